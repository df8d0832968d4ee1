//! The names that exist, and the nearest one to a name that does not.

use std::collections::BTreeSet;

/// Every key and section of the configuration.
pub(super) struct Keys {
    keys: BTreeSet<String>,
    sections: BTreeSet<String>,
}

impl Keys {
    /// The set of `keys`, full names; a section is whatever stands before a dot.
    pub(super) fn new(keys: impl Iterator<Item = String>) -> Self {
        let keys: BTreeSet<String> = keys.collect();
        let dots =
            |key: &String| key.match_indices('.').map(|(at, _)| key[..at].to_owned()).collect::<Vec<_>>();
        let sections = keys.iter().flat_map(dots).collect();
        Self { keys, sections }
    }

    pub(super) fn is_key(&self, name: &str) -> bool {
        self.keys.contains(name)
    }

    pub(super) fn is_section(&self, name: &str) -> bool {
        self.sections.contains(name)
    }

    /// Why `name` is refused, with the nearest name that exists.
    pub(super) fn unknown(&self, name: &str) -> String {
        if self.is_section(name) {
            return format!("is a section: write [{name}] and its keys below");
        }
        let distance = |known: &&String| edit_distance(name, known);
        let nearest = self.keys.iter().chain(&self.sections).min_by_key(distance);
        match nearest.filter(|known| distance(known) <= 2 + name.len() / 4) {
            Some(known) => format!("unknown key, did you mean {known}?"),
            None => "unknown key, see config/kasmina.toml for those that exist".to_owned(),
        }
    }
}

/// Insertions, deletions and replacements that make `a` into `b`; long names are cut, they match nothing.
fn edit_distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().take(100).collect(), b.chars().collect());
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(row[j] + 1).min(diagonal + 1);
        }
    }
    row[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_the_textbook_ones() {
        for (a, b, steps) in
            [("kitten", "sitting", 3), ("", "abc", 3), ("abc", "abc", 0), ("flaw", "lawn", 2)]
        {
            assert_eq!(edit_distance(a, b), steps, "{a} {b}");
        }
    }

    #[test]
    fn a_slip_of_the_pen_is_told_the_right_name() {
        let keys = Keys::new(["cache.max_bytes", "cache.sqlite.path"].map(String::from).into_iter());
        assert_eq!(keys.unknown("cache.max_byte"), "unknown key, did you mean cache.max_bytes?");
        assert_eq!(keys.unknown("cahce"), "unknown key, did you mean cache?");
        assert!(keys.unknown("cache.sqlite").contains("is a section"));
        assert!(keys.unknown("quite.something_else").contains("config/kasmina.toml"));
        assert!(keys.is_section("cache.sqlite") && !keys.is_section("cache.max_bytes"));
    }
}
