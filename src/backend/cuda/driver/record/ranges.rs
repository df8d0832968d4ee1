//! Sets of addresses.

use std::{collections::BTreeMap, ops::Range};

use super::super::Address;

/// Addresses in ranges that neither overlap nor touch: the end of each by its start.
#[derive(Clone, Debug, Default)]
pub(super) struct Ranges(BTreeMap<Address, Address>);

impl Ranges {
    pub(super) fn of(ranges: &[Range<Address>]) -> Self {
        let mut all = Self::default();
        ranges.iter().for_each(|range| all.insert(range));
        all
    }

    pub(super) fn insert(&mut self, range: &Range<Address>) {
        let (mut start, mut end) = (range.start, range.end);
        while let Some((&known, &known_end)) = self.0.range(..=end).next_back()
            && known_end >= start
        {
            self.0.remove(&known);
            (start, end) = (start.min(known), end.max(known_end));
        }
        self.0.insert(start, end);
    }

    pub(super) fn remove(&mut self, range: &Range<Address>) {
        while let Some((&known, &known_end)) = self.0.range(..range.end).next_back()
            && known_end > range.start
        {
            self.0.remove(&known);
            if known < range.start {
                self.0.insert(known, range.start);
            }
            if known_end > range.end {
                self.0.insert(range.end, known_end);
            }
        }
    }

    /// Whether all of a range is among them.
    pub(super) fn covers(&self, range: &Range<Address>) -> bool {
        self.0.range(..=range.start).next_back().is_some_and(|(_, &end)| end >= range.end)
    }

    /// Whether some of a range is among them.
    pub(super) fn meets(&self, range: &Range<Address>) -> bool {
        self.0.range(..range.end).next_back().is_some_and(|(_, &end)| end > range.start)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn ranges_are_sets(steps in prop::collection::vec((any::<bool>(), 0u64..40, 1u64..12), 1..40)) {
            let (mut ranges, mut set) = (Ranges::default(), [false; 64]);
            for (adds, start, len) in steps {
                let range = start..start + len;
                if adds { ranges.insert(&range) } else { ranges.remove(&range) }
                set[start as usize..(start + len) as usize].fill(adds);
                for (start, end) in [(0, 5), (3, 4), (10, 20), (17, 33), (30, 52)] {
                    let part = &set[start as usize..end as usize];
                    prop_assert_eq!(ranges.covers(&(start..end)), part.iter().all(|&is_in| is_in));
                    prop_assert_eq!(ranges.meets(&(start..end)), part.iter().any(|&is_in| is_in));
                }
            }
        }
    }
}
