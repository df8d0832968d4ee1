//! `catalogue.status` and `catalogue.checksum`: what an origin refuses before the validator sees a byte, for those
//! who have an entry and an artifact in their hands and no origin between.

use super::{Metadata, RuleResult, Status, Verdict, rules};

impl Verdict {
    /// Adds what the catalogue's entry says against the artifact, at the front as an origin would have said it
    /// first. `accept_testing` is the origin's setting.
    pub fn hold_to_entry(&mut self, entry: &Metadata, accept_testing: bool) {
        let status = entry.status;
        let usable = match status {
            Status::Validated | Status::Deployed => Ok(format!("it is {status}")),
            Status::Testing if accept_testing => {
                Ok("it is testing, and origin.accept_testing is set".to_owned())
            }
            Status::Testing => Err("it is testing: set origin.accept_testing to use it".to_owned()),
            Status::Invalid => Err("it is invalid: publish a valid one".to_owned()),
        };
        // Of bytes that were not read nothing is known; archive.limits says why.
        let checksum = entry.checksum.zip(self.known_digest()).map(|(expected, actual)| {
            if expected == *actual {
                return Ok("the SHA-256 is the catalogue's".to_owned());
            }
            Err(format!(
                "the SHA-256 is {actual}, the catalogue says {expected}: the bytes are others or damaged"
            ))
        });
        let judged = [(rules::CATALOGUE_STATUS, Some(usable)), (rules::CATALOGUE_CHECKSUM, checksum)];
        let judged = judged.into_iter().filter_map(|(name, judged)| {
            let (passed, detail) = match judged? {
                Ok(detail) => (true, detail),
                Err(detail) => (false, detail),
            };
            Some(RuleResult { name: name.to_owned(), passed, detail, may_pass: false })
        });
        self.rules.splice(0..0, judged);
        self.accepted = self.rules.iter().all(|rule| rule.passed);
    }
}
