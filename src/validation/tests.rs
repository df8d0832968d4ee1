//! The validator as a whole, on bytes.

use std::sync::Arc;

use proptest::prelude::*;

use super::{Policy, RuleResult, ValidationError, Verdict, rules, validate};
use crate::fault::{ErrorClass, Fault};

fn judge(bytes: &[u8]) -> Verdict {
    let outcome = validate(Arc::from(bytes), None, &Policy::default());
    assert_eq!(outcome.module.is_some(), outcome.verdict.accepted);
    outcome.verdict
}

#[test]
fn bytes_that_are_no_archive_are_unreadable_and_say_so() {
    for bytes in [&b""[..], b"PK\x05\x06", b"not a zip file at all, but long enough to look for one in it"] {
        let verdict = judge(bytes);
        assert!(!verdict.accepted);
        assert_eq!(verdict.first_failure().unwrap().name, rules::ARCHIVE_READABLE);
        let rejection = verdict.rejection(&"k".parse().unwrap()).unwrap();
        assert_eq!(rejection.code(), "kernel.deserialize");
        assert!(rejection.to_string().starts_with("kernel k cannot be read"), "{rejection}");
    }
}

#[test]
fn an_archive_over_its_limit_names_the_limit() {
    let mut policy = Policy::default();
    policy.read.archive_bytes = 10;
    let verdict = validate(Arc::from([0; 11]), None, &policy).verdict;
    let rule = verdict.rule(rules::ARCHIVE_LIMITS).unwrap();
    assert!(!rule.passed && rule.detail.contains("10"), "{}", rule.detail);
}

#[test]
fn one_deadline_bounds_the_whole_judgement() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/activations.eval.pt2");
    let bytes: Arc<[u8]> = std::fs::read(path).unwrap().into();
    let mut policy = Policy::default();
    assert!(validate(bytes.clone(), None, &policy).verdict.accepted);
    policy.read.time_limit = std::time::Duration::ZERO;
    let verdict = validate(bytes, None, &policy).verdict;
    let failure = verdict.first_failure().unwrap();
    assert_eq!(failure.name, rules::ARCHIVE_LIMITS, "{:?}", verdict.rules);
    assert!(verdict.format.is_none() && failure.detail.contains("reading"), "it covers reading: {failure:?}");
    assert!(failure.detail.ends_with("raise validator.time_limit"), "{failure:?}");
    let rejection = verdict.rejection(&"k".parse().unwrap()).unwrap();
    assert_eq!((rejection.class(), rejection.code()), (ErrorClass::Overloaded, "kernel.deserialize"));
}

#[test]
fn what_there_was_no_time_for_says_nothing_of_the_kernel() {
    let path =
        std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/activations.eval.pt2");
    let bytes: Arc<[u8]> = std::fs::read(path).unwrap().into();
    let mut policy = Policy::default();
    policy.trial.as_mut().unwrap().time_limit = std::time::Duration::ZERO;
    let mut verdict = validate(bytes, None, &policy).verdict;
    let failure = verdict.first_failure().unwrap();
    assert_eq!((failure.name.as_str(), failure.may_pass), (rules::TRIAL_RUNS, true), "{failure:?}");
    let rejection = verdict.rejection(&"k".parse().unwrap()).unwrap();
    assert_eq!((rejection.class(), rejection.code()), (ErrorClass::Overloaded, "kernel.rejected"));
    assert!(rejection.to_string().contains("judged anew"), "{rejection}");
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    // A defect of ours is one, and a rule that it breaks in any case decides.
    verdict.rules =
        vec![RuleResult { name: rules::VALIDATION_COMPLETED.into(), ..verdict.rules.pop().unwrap() }];
    assert!(verdict.rules[0].may_pass);
    assert_eq!(verdict.rejection(&"k".parse().unwrap()).unwrap().class(), ErrorClass::Bug);
    let (name, detail) = (rules::WEIGHTS_FINITE.into(), "why".into());
    verdict.rules.push(RuleResult { name, passed: false, detail, may_pass: false });
    assert_eq!(verdict.rejection(&"k".parse().unwrap()).unwrap().class(), ErrorClass::Invalid);
}

#[test]
fn a_verdict_survives_json_and_maps_its_first_failure_to_a_code() {
    let mut verdict = judge(b"");
    let failed =
        |name: &str| RuleResult { name: name.into(), passed: false, detail: "why".into(), may_pass: false };
    let code = |verdict: &Verdict| verdict.rejection(&"k".parse().unwrap()).map(|error| error.code());
    for (rule, expected) in [
        (rules::ARCHIVE_LIMITS, "kernel.deserialize"),
        (rules::ARCHIVE_WHITELIST, "kernel.rejected"),
        (rules::SHAPES_DECLARED, "kernel.shape"),
        (rules::OPS_WHITELIST, "kernel.rejected"),
        (rules::WEIGHTS_FINITE, "kernel.rejected"),
    ] {
        verdict.rules = vec![failed(rule), failed(rules::MEMORY_LIMIT)];
        assert_eq!(code(&verdict), Some(expected), "{rule}");
    }
    let json = serde_json::to_value(&verdict).unwrap();
    assert_eq!(json["accepted"], false);
    assert_eq!(json["rules"][0]["name"], rules::WEIGHTS_FINITE);
    assert_eq!(json["rules"][0]["passed"], false);
    assert_eq!(json["rules"][0]["detail"], "why");
    assert_eq!(serde_json::from_value::<Verdict>(json).unwrap(), verdict);
    verdict.rules.clear();
    assert_eq!(code(&verdict), None);
    let error = ValidationError::Rejected { kernel: "k".into(), rule: "r".into(), detail: "d".into() };
    assert!(error.to_string().contains("rejected by rule r: d"));
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let verdict = judge(&bytes);
        prop_assert!(!verdict.accepted);
        prop_assert!(verdict.rule(rules::VALIDATION_COMPLETED).is_none());
    }
}
