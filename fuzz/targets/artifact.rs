//! Fuzzes the whole way from an artifact's bytes to a verdict.

#![no_main]

use kasmina::validation::{Metadata, Policy, rules, validate};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let id = "k".parse().expect("a letter is a kernel's name");
    let metadata = Metadata { input_shape: Some([4, 8, 8].into()), ..Metadata::bare(id) };
    let mut policy = Policy::default();
    policy.read.fuel = 20_000;
    if let Some(trial) = &mut policy.trial {
        trial.max_flops = 1_000_000;
    }
    let verdict = validate(bytes.into(), Some(&metadata), &policy).verdict;
    let completed = verdict.rule(rules::VALIDATION_COMPLETED);
    assert!(completed.is_none(), "the validator panicked: {completed:?}");
});
