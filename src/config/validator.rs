//! `[validator]`: what a kernel must satisfy before it runs.

use super::{section::section, units::ByteSize};

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
    }
}
