//! `[validator]`: what a kernel must satisfy before it runs.

use std::time::Duration;

use super::{section::section, units::ByteSize};
use crate::signature::PublicKey;

section! {
    /// The limits an artifact is held to.
    Validator in "validator" {
        /// The largest artifact.
        max_artifact_bytes: ByteSize = ByteSize::mib(256), "bytes", Restart;
        /// The most files within an artifact.
        max_archive_entries: usize = 4096, "files", Restart;
        /// The largest file within an artifact, unpacked.
        max_entry_bytes: ByteSize = ByteSize::mib(256), "bytes", Restart;
        /// The most parameters, counted as single numbers.
        max_parameters: u64 = 10_000_000, "numbers", Restart;
        /// Module types a kernel may be made of, as prefixes of the class path such as "torch.nn.";
        /// "*" accepts every class. What a class may compute is bounded by the op whitelist in any case.
        allowed_modules: Vec<String> = vec!["*".to_owned()], "list of prefixes", Restart;
        /// Whether NaN or infinity among the weights is a reason to refuse.
        require_finite: bool = true, "true or false", Restart;
        /// The most memory that one pass may need beside the weights.
        max_plan_bytes: ByteSize = ByteSize::gib(2), "bytes", Restart;
        /// The most floating-point operations that a kernel may need for one sample, forward and backward
        /// together.
        max_flops: u64 = 100_000_000_000, "operations", Restart;
        /// The longest that judging an artifact may take as a whole, its trial too; and making a plan of it later.
        time_limit: Duration = Duration::from_secs(10), "time", Restart;
        /// The keys whose signatures count, each "ed25519:" and 64 hexadecimal digits as kasmina keygen prints it.
        trusted_keys: Vec<PublicKey> = Vec::new(), "list of keys", Restart;
        /// Whether a kernel without a trusted key's signature is refused. A wrong signature always is, where a
        /// key is listed.
        require_signature: bool = false, "true or false", Restart;
        /// Whether a kernel is run before it goes live, twice forward and backward on a made-up input: it must
        /// give the same finite numbers both times.
        trial: bool = true, "true or false", Restart;
        /// The most floating-point operations that a whole trial may need.
        max_trial_flops: u64 = 200_000_000_000, "operations", Restart;
        /// The most memory that a trial may need: values, and copies of weights, buffers and constants.
        max_trial_bytes: ByteSize = ByteSize::mib(256), "bytes", Restart;
        /// The longest a trial may take; looked at between operations.
        trial_time_limit: Duration = Duration::from_secs(5), "time", Restart;
    }
}
