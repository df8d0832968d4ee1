//! A short list of what was used last.

/// Values by key, the one used last first. Where there is no more room, the one used longest ago goes.
///
/// It is looked through from the start: what a pass asks for is nearly always what the pass before asked for.
#[derive(Debug)]
pub(super) struct Recent<K, V> {
    room: usize,
    entries: Vec<(K, V)>,
}

impl<K: PartialEq, V> Recent<K, V> {
    /// Nothing, with room for so many, at least one.
    pub(super) const fn new(room: usize) -> Self {
        Self { room: if room == 0 { 1 } else { room }, entries: Vec::new() }
    }

    /// What is kept for a key, from now on the one used last.
    pub(super) fn get(&mut self, key: &K) -> Option<&V> {
        let place = self.entries.iter().position(|(known, _)| known == key)?;
        self.entries[..=place].rotate_right(1);
        self.entries.first().map(|(_, value)| value)
    }

    /// Keeps a value for a key that has none.
    pub(super) fn insert(&mut self, key: K, value: V) {
        debug_assert!(self.entries.iter().all(|(known, _)| *known != key), "a key has one value");
        self.entries.truncate(self.room - 1);
        self.entries.insert(0, (key, value));
    }

    /// All of it, the one used last first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&K, &V)> {
        self.entries.iter().map(|(key, value)| (key, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_one_used_last_stands_first_and_the_one_used_longest_ago_goes() {
        let mut recent = Recent::new(8);
        (0..8).for_each(|key| recent.insert(key, key * 10));
        for key in [0, 3, 3] {
            assert_eq!(recent.get(&key), Some(&(key * 10)));
        }
        let keys = |recent: &Recent<u32, u32>| recent.iter().map(|(key, _)| *key).collect::<Vec<_>>();
        assert_eq!(keys(&recent), [3, 0, 7, 6, 5, 4, 2, 1]);
        recent.insert(9, 90);
        assert_eq!(keys(&recent), [9, 3, 0, 7, 6, 5, 4, 2]);
        assert_eq!(recent.get(&1), None);
        assert_eq!(keys(&recent), [9, 3, 0, 7, 6, 5, 4, 2], "what is not there moves nothing");
    }
}
