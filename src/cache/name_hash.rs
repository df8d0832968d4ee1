//! The hash of a kernel's name in the device tier.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Makes [`NameHasher`]s with the seed of this table.
///
/// The standard hasher withstands whoever may put millions of chosen keys into a table. This table holds as many
/// as the budget has entries, each a kernel that was judged and loaded, and is looked into on every hit; a random
/// seed and one multiplication for eight bytes are enough.
#[derive(Clone, Debug)]
pub(super) struct NameHashes(u64);

impl Default for NameHashes {
    fn default() -> Self {
        Self(RandomState::new().hash_one(0u8))
    }
}

impl BuildHasher for NameHashes {
    type Hasher = NameHasher;

    fn build_hasher(&self) -> NameHasher {
        NameHasher(self.0)
    }
}

/// Multiplies, and folds the upper half of the product over the lower one.
#[derive(Debug)]
pub(super) struct NameHasher(u64);

impl NameHasher {
    fn mix(&mut self, word: u64) {
        // The constant is 2^64 over the golden ratio: odd, and its bits show no pattern.
        let product = u128::from(self.0 ^ word) * 0x9e37_79b9_7f4a_7c15;
        self.0 = (product as u64) ^ ((product >> 64) as u64);
    }
}

impl Hasher for NameHasher {
    fn write(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        words.iter().for_each(|word| self.mix(u64::from_le_bytes(*word)));
        let mut last = [0; 8];
        last[..rest.len()].copy_from_slice(rest);
        // The length keeps apart what zeros would make the same.
        self.mix(u64::from_le_bytes(last) ^ ((bytes.len() as u64) << 56));
    }

    fn write_u8(&mut self, _: u8) {
        // The mark of a text's end; `write` has taken the length in.
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_that_differ_a_little_differ_in_every_part_of_the_hash() {
        let hashes = NameHashes::default();
        let names = (0..10_000).map(|n| format!("kernel-{n}"));
        let all: Vec<u64> = names.map(|name| hashes.hash_one(name.as_str())).collect();
        assert_eq!(all.iter().collect::<HashSet<_>>().len(), all.len());
        // A table looks at the lowest bits for the place and at the highest seven for the tag.
        for part in [0, 57] {
            let mut buckets = [0u32; 128];
            all.iter().for_each(|hash| buckets[(hash >> part & 127) as usize] += 1);
            assert!(buckets.iter().all(|&n| (20..=200).contains(&n)), "{buckets:?}");
        }
        assert_ne!(hashes.hash_one("a"), hashes.hash_one("a\0"));
    }
}
