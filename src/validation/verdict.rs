//! The verdict on an artifact: a list of named rules, each passed or failed with the reason.

use serde::{Deserialize, Serialize};

use crate::{digest::Digest, tensor::Shape};

/// How one rule judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleResult {
    /// The rule's stable name, such as `ops.whitelist`.
    pub name: String,
    /// Whether the artifact keeps to it.
    pub passed: bool,
    /// Why, or what was looked at.
    pub detail: String,
    /// Whether it failed for want of time, or by a defect of ours: judged again, the artifact may pass.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub may_pass: bool,
}

/// A module inside the artifact.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleUse {
    /// Where it stands, such as `block.conv`; empty for the root.
    pub path: String,
    /// What it is, such as `torch.nn.modules.conv.Conv2d`.
    pub class: String,
}

/// What the validator found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    /// Whether every rule passed.
    pub accepted: bool,
    /// The rules that were judged; those that could not be, because an earlier one failed, are absent.
    pub rules: Vec<RuleResult>,
    /// SHA-256 of the artifact this is about; zeros, written as null, where it was too large to be read.
    #[serde(with = "known")]
    pub digest: Digest,
    /// Which rules and limits it was judged by, as a fingerprint; see [`Policy::fingerprint`](super::Policy::fingerprint).
    pub policy: String,
    /// The artifact's size.
    pub size_bytes: u64,
    /// The archive's format, where it could be read.
    pub format: Option<String>,
    /// How many numbers its parameters hold.
    pub parameters: u64,
    /// How many numbers its buffers hold.
    pub buffers: u64,
    /// How many numbers its constants hold: tensors that are neither parameters nor buffers.
    #[serde(default)]
    pub constants: u64,
    /// The modules inside, in the archive's order.
    pub modules: Vec<ModuleUse>,
    /// How many modules there are beside the listed ones: a list is cut where it grows too long.
    #[serde(default)]
    pub more_modules: u64,
    /// The operations its program names, in alphabetical order.
    pub ops: Vec<String>,
    /// How many operations there are beside the listed ones.
    #[serde(default)]
    pub more_ops: u64,
    /// The input's shape without its batch dimension, where one is declared.
    pub input_shape: Option<Shape>,
    /// The output's shape without its batch dimension, as inferred.
    pub output_shape: Option<Shape>,
    /// What one sample's forward pass needs, where a shape is declared.
    pub forward: Option<PassCost>,
    /// What one sample's backward pass needs, where a shape is declared.
    pub backward: Option<PassCost>,
    /// How the trial went, where one was held.
    pub trial: Option<Trial>,
}

/// What a pass needs, as computed without running it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PassCost {
    /// Floating-point operations.
    pub flops: u64,
    /// Bytes of values alive at once, weights not counted, each value with memory of its own.
    pub peak_bytes: u64,
}

/// What a trial measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// The input's shape with its batch.
    pub input_shape: Shape,
    /// Microseconds of the second forward pass in training mode.
    pub forward_us: u64,
    /// Microseconds of the second backward pass.
    pub backward_us: u64,
}

/// What stands for the digest of bytes that were not read.
pub(super) const UNKNOWN: Digest = Digest::from_bytes([0; 32]);

mod known {
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    use super::UNKNOWN;
    use crate::digest::Digest;

    pub(super) fn serialize<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
        Some(digest).filter(|digest| **digest != UNKNOWN).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
        Option::deserialize(deserializer).map(|digest| digest.unwrap_or(UNKNOWN))
    }
}

/// How many entries a list of a verdict may have, and how many bytes all of them together.
const MOST_LISTED: usize = 1000;
const MOST_LISTED_BYTES: usize = 128 << 10;

/// The first entries of a list that is as long as an artifact likes, and how many were left out.
pub(super) fn listed<T>(all: impl Iterator<Item = T>, bytes: impl Fn(&T) -> usize) -> (Vec<T>, u64) {
    let (mut kept, mut left_out, mut used) = (Vec::new(), 0, 0usize);
    for item in all {
        used = used.saturating_add(bytes(&item));
        if kept.len() < MOST_LISTED && used <= MOST_LISTED_BYTES {
            kept.push(item);
        } else {
            left_out += 1;
        }
    }
    (kept, left_out)
}

impl Verdict {
    /// The digest, where the bytes were read.
    pub fn known_digest(&self) -> Option<&Digest> {
        Some(&self.digest).filter(|digest| **digest != UNKNOWN)
    }

    /// The first rule that failed.
    pub fn first_failure(&self) -> Option<&RuleResult> {
        self.rules.iter().find(|rule| !rule.passed)
    }

    /// The rule of a name, where it was judged.
    pub fn rule(&self, name: &str) -> Option<&RuleResult> {
        self.rules.iter().find(|rule| rule.name == name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_cut_by_its_length_and_by_its_bytes() {
        let list = |count: usize, bytes: usize| {
            let (kept, left_out) = listed(std::iter::repeat_n("x".repeat(bytes), count), String::len);
            (kept.len(), left_out)
        };
        assert_eq!(list(MOST_LISTED, 3), (MOST_LISTED, 0));
        assert_eq!(list(MOST_LISTED + 5, 3), (MOST_LISTED, 5));
        assert_eq!(list(100, 4096), (32, 68));
        assert_eq!(list(2, MOST_LISTED_BYTES + 1), (0, 2));
    }
}
