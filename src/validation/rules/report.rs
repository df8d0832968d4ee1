//! The results of the rules while they come in.

use std::collections::BTreeMap;

use super::*;
use crate::{
    artifact::{ArtifactError, Problem},
    graph::GraphError,
    validation::RuleResult,
};

/// How much of a reason is kept.
const MOST_CHARACTERS: usize = 1000;

/// One result a rule: a failure replaces a pass, and the first failure stays.
#[derive(Debug, Default)]
pub(in crate::validation) struct Report(BTreeMap<&'static str, Judged>);

#[derive(Debug)]
struct Judged {
    passed: bool,
    detail: String,
    may_pass: bool,
}

impl Report {
    pub(in crate::validation) fn pass(&mut self, rule: &'static str, detail: impl Into<String>) {
        let passed = || Judged { passed: true, detail: shortened(detail.into()), may_pass: false };
        self.0.entry(rule).or_insert_with(passed);
    }

    pub(in crate::validation) fn fail(&mut self, rule: &'static str, detail: impl Into<String>) {
        self.note_failure(rule, detail.into(), false);
    }

    /// Notes a failure that says nothing of the artifact: there was no time, or the validator is at fault.
    pub(in crate::validation) fn fail_for_now(&mut self, rule: &'static str, detail: impl Into<String>) {
        self.note_failure(rule, detail.into(), true);
    }

    fn note_failure(&mut self, rule: &'static str, detail: String, may_pass: bool) {
        if self.0.get(rule).is_none_or(|known| known.passed) {
            self.0.insert(rule, Judged { passed: false, detail: shortened(detail), may_pass });
        }
    }

    pub(in crate::validation) fn note(&mut self, rule: &'static str, result: Result<String, String>) {
        match result {
            Ok(detail) => self.pass(rule, detail),
            Err(detail) => self.fail(rule, detail),
        }
    }

    /// Blames the rule that an error of reading or lowering is about.
    pub(in crate::validation) fn blame(&mut self, error: &ArtifactError, lowering: bool) {
        self.note_failure(rule_of(error, lowering), error.to_string(), error.is_late());
    }

    /// Blames the rule that an error of differentiating is about.
    pub(in crate::validation) fn blame_gradient(&mut self, error: &GraphError) {
        let rule = match error {
            GraphError::Limit { .. } => MEMORY_LIMIT,
            GraphError::Time { .. } => ARCHIVE_LIMITS,
            _ => return self.fail(OPS_WHITELIST, format!("the program has no gradient: {error}")),
        };
        let late = matches!(error, GraphError::Time { .. });
        self.note_failure(rule, format!("with its gradient, {error}"), late);
    }

    /// Whether no rule has failed so far.
    pub(in crate::validation) fn accepts(&self) -> bool {
        self.0.values().all(|judged| judged.passed)
    }

    /// The results in the order of [`ALL`].
    pub(in crate::validation) fn finish(mut self) -> Vec<RuleResult> {
        let taken = ALL.into_iter().filter_map(|name| Some((name, self.0.remove(name)?)));
        let result = |(name, Judged { passed, detail, may_pass }): (&'static str, Judged)| RuleResult {
            name: name.to_owned(),
            passed,
            detail,
            may_pass,
        };
        taken.map(result).collect()
    }
}

/// A reason may quote the artifact, which may be long.
fn shortened(mut detail: String) -> String {
    if let Some((end, _)) = detail.char_indices().nth(MOST_CHARACTERS) {
        detail.truncate(end);
        detail.push('…');
    }
    detail
}

fn rule_of(error: &ArtifactError, lowering: bool) -> &'static str {
    let graph = |error: &GraphError| match error {
        GraphError::Limit { .. } => MEMORY_LIMIT,
        GraphError::Time { .. } => ARCHIVE_LIMITS,
        _ => SHAPES_DECLARED,
    };
    match error {
        ArtifactError::Malformed { .. } => ARCHIVE_READABLE,
        ArtifactError::Limit { .. } => ARCHIVE_LIMITS,
        ArtifactError::Rejected { .. } if lowering => OPS_WHITELIST,
        ArtifactError::Rejected { .. } => ARCHIVE_WHITELIST,
        ArtifactError::Operation { source: Problem::Unknown | Problem::Unsupported { .. }, .. } => {
            OPS_WHITELIST
        }
        ArtifactError::Operation { source: Problem::Graph(source), .. }
        | ArtifactError::Graph { source, .. } => graph(source),
        ArtifactError::Operation { source: Problem::Argument { .. }, .. }
        | ArtifactError::Raised { .. }
        | ArtifactError::InputCount { .. }
        | ArtifactError::InputShape { .. } => SHAPES_DECLARED,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_failure_of_a_rule_stays_and_the_order_is_fixed() {
        let mut report = Report::default();
        report.pass(WEIGHTS_FINITE, "fine");
        report.pass(ARCHIVE_READABLE, "read");
        report.fail(ARCHIVE_READABLE, "the code does not parse");
        report.fail(ARCHIVE_READABLE, "again");
        report.fail(SHAPES_DECLARED, "é".repeat(5000));
        report.pass(ARCHIVE_READABLE, "read");
        report.pass(VALIDATION_COMPLETED, "é".repeat(5000));
        let rules: Vec<_> = report.finish().into_iter().map(|r| (r.name, r.passed, r.detail)).collect();
        assert_eq!(rules[0], (ARCHIVE_READABLE.into(), false, "the code does not parse".into()));
        assert_eq!(rules[1].0, WEIGHTS_FINITE);
        assert_eq!(rules[2].2.chars().count(), MOST_CHARACTERS + 1);
        let last = rules.iter().find(|rule| rule.0 == VALIDATION_COMPLETED).unwrap();
        assert_eq!((last.1, last.2.chars().count()), (true, MOST_CHARACTERS + 1));
        assert_eq!(rules.len(), 4);
    }

    #[test]
    fn what_failed_for_want_of_time_may_pass() {
        let may_pass = |error: ArtifactError| {
            let mut report = Report::default();
            report.blame(&error, true);
            report.finish().remove(0).may_pass
        };
        let limit = |what| ArtifactError::Limit { place: "data.pkl".into(), what, limit: 10_000 };
        assert!(may_pass(limit("milliseconds of reading")) && may_pass(limit("milliseconds of lowering")));
        assert!(!may_pass(limit("files")));
        let graph = |source| ArtifactError::Graph { place: "output".into(), source };
        assert!(may_pass(graph(GraphError::Time { nodes: 3 })));
        assert!(!may_pass(graph(GraphError::Limit { what: "nodes", limit: 1 })));
        let operation = |source| ArtifactError::Operation { place: "p".into(), op: "o".into(), source };
        assert!(may_pass(operation(Problem::Graph(GraphError::Time { nodes: 3 }))));
        assert!(!may_pass(operation(Problem::Unknown)));
        let mut report = Report::default();
        report.blame_gradient(&GraphError::Time { nodes: 3 });
        report.fail_for_now(VALIDATION_COMPLETED, "a defect");
        report.fail(VALIDATION_COMPLETED, "another");
        assert!(report.finish().iter().all(|rule| rule.may_pass && !rule.passed));
    }

    #[test]
    fn errors_blame_the_rule_they_are_about() {
        let operation = |source| ArtifactError::Operation { place: "p".into(), op: "o".into(), source };
        assert_eq!(rule_of(&operation(Problem::Unknown), true), OPS_WHITELIST);
        let limit = GraphError::Limit { what: "elements", limit: 1 };
        assert_eq!(rule_of(&operation(Problem::Graph(limit)), true), MEMORY_LIMIT);
        let rejected =
            ArtifactError::Rejected { place: "data.pkl".into(), what: "os.system".into(), hint: "no".into() };
        assert_eq!(rule_of(&rejected, false), ARCHIVE_WHITELIST);
        assert_eq!(rule_of(&rejected, true), OPS_WHITELIST);
    }
}
