//! What changed between two configurations, and what it takes for the change to come into force.

use super::{resolved::Config, section::Change};

/// A key whose value changed. Values are as they stand in a TOML file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Changed {
    /// The full name.
    pub key: String,
    /// The value in force.
    pub old: String,
    /// The value asked for.
    pub new: String,
    /// What it takes.
    pub change: Change,
}

/// Every key that differs, in the order of the shipped file.
pub fn diff(old: &Config, new: &Config) -> Vec<Changed> {
    let pairs = old.entries().into_iter().zip(new.entries());
    let differing = pairs.filter(|(old, new)| old.value != new.value);
    differing
        .map(|(old, new)| Changed { key: old.key, old: old.value, new: new.value, change: new.change })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_differs_is_listed() {
        let old = Config::default();
        assert_eq!(diff(&old, &old), []);
        let mut new = old.clone();
        new.cache.sqlite.enabled = false;
        new.engine.error_threshold = 4;
        let keys: Vec<_> = diff(&old, &new).into_iter().map(|c| (c.key, c.old, c.new)).collect();
        let expected = [("cache.sqlite.enabled", "true", "false"), ("engine.error_threshold", "3", "4")];
        assert_eq!(keys, expected.map(|(k, o, n)| (k.to_owned(), o.to_owned(), n.to_owned())));
    }
}
