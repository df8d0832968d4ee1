//! The workspace: intervals of time packed into one block, best fit first.

use std::collections::{BTreeMap, BTreeSet};

use crate::tensor::ALIGNMENT_BYTES;

/// Something that needs bytes from one step to another, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Need {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) bytes: usize,
}

/// More than any machine has.
const HUGE: usize = (isize::MAX as usize).next_multiple_of(ALIGNMENT_BYTES) - ALIGNMENT_BYTES;

/// Free bytes between those in use: by offset to join neighbours, by size to find the best fit, so that a step
/// costs a logarithm of the gaps however fragmented the block is.
#[derive(Default)]
struct Gaps {
    by_offset: BTreeMap<usize, usize>,
    by_size: BTreeSet<(usize, usize)>,
}

impl Gaps {
    fn insert(&mut self, offset: usize, bytes: usize) {
        self.by_offset.insert(offset, bytes);
        self.by_size.insert((bytes, offset));
    }

    fn remove(&mut self, offset: usize) -> Option<usize> {
        let bytes = self.by_offset.remove(&offset)?;
        self.by_size.remove(&(bytes, offset));
        Some(bytes)
    }

    /// The smallest gap that holds so many bytes, of equal ones the first.
    fn best(&self, bytes: usize) -> Option<(usize, usize)> {
        self.by_size.range((bytes, 0)..).next().map(|&(size, offset)| (offset, size))
    }
}

/// Gives each need an offset such that none that live at one time overlap, and the block's size.
///
/// Needs must ascend by `first`. Each takes the smallest gap it fits.
pub(super) fn pack(needs: &[Need]) -> (Vec<usize>, usize) {
    let mut gaps = Gaps::default();
    let mut ending: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    let mut total = 0;
    let mut offsets = Vec::with_capacity(needs.len());
    for need in needs {
        while let Some(entry) = ending.first_entry().filter(|entry| *entry.key() < need.first) {
            for (offset, bytes) in entry.remove() {
                release(&mut gaps, offset, bytes);
            }
        }
        // A size past the address space stays one, and the caller's limit refuses the plan.
        let bytes = need.bytes.checked_next_multiple_of(ALIGNMENT_BYTES).unwrap_or(HUGE).min(HUGE);
        let offset = match gaps.best(bytes).filter(|_| bytes > 0) {
            Some((offset, size)) => {
                gaps.remove(offset);
                if size > bytes {
                    gaps.insert(offset + bytes, size - bytes);
                }
                offset
            }
            None if bytes == 0 => 0,
            None => grow(&mut gaps, &mut total, bytes),
        };
        if bytes > 0 {
            ending.entry(need.last).or_default().push((offset, bytes));
        }
        offsets.push(offset);
    }
    (offsets, total)
}

/// Room at the end, counting a gap that already lies there.
fn grow(gaps: &mut Gaps, total: &mut usize, bytes: usize) -> usize {
    let last = gaps.by_offset.last_key_value().map(|(&offset, &size)| (offset, size));
    let offset = match last {
        Some((offset, size)) if offset + size == *total => {
            gaps.remove(offset);
            offset
        }
        _ => *total,
    };
    *total = offset.saturating_add(bytes);
    offset
}

fn release(gaps: &mut Gaps, mut offset: usize, mut bytes: usize) {
    if let Some(after) = gaps.remove(offset + bytes) {
        bytes += after;
    }
    let before = gaps.by_offset.range(..offset).next_back().map(|(&before, &size)| (before, size));
    if let Some((before, size)) = before.filter(|(before, size)| before + size == offset) {
        gaps.remove(before);
        (offset, bytes) = (before, bytes + size);
    }
    gaps.insert(offset, bytes);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn memory_is_reused_once_free() {
        let need = |first, last, bytes| Need { first, last, bytes };
        let (offsets, total) = pack(&[need(0, 1, 64), need(1, 2, 128), need(2, 3, 64), need(3, 4, 192)]);
        assert_eq!(offsets, [0, 64, 0, 64]);
        assert_eq!(total, 256);
    }

    #[test]
    fn many_gaps_of_many_sizes_are_packed() {
        // Every second one lives on, so that each end leaves a gap that joins no other. With a search through
        // the gaps this would take minutes.
        const COUNT: usize = 100_000;
        let needs: Vec<Need> = (0..COUNT)
            .map(|n| {
                let last = if n % 2 == 0 { n + 1 } else { 2 * COUNT };
                Need { first: n, last, bytes: 64 * (1 + (n * 7919) % 1000) }
            })
            .collect();
        let (offsets, total) = pack(&needs);
        assert_eq!(offsets.len(), COUNT);
        let most: usize = needs.iter().map(|need| need.bytes).sum();
        assert!(total < most, "gaps are used again: {total} of {most}");
    }

    proptest! {
        #[test]
        fn nothing_alive_at_one_time_overlaps(
            mut spans in prop::collection::vec((0usize..40, 0usize..10, 0usize..1000), 0..60),
        ) {
            spans.sort();
            let needs: Vec<Need> =
                spans.iter().map(|&(first, len, bytes)| Need { first, last: first + len, bytes }).collect();
            let (offsets, total) = pack(&needs);
            for (i, a) in needs.iter().enumerate() {
                prop_assert!(offsets[i] % ALIGNMENT_BYTES == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in needs.iter().enumerate().skip(i + 1) {
                    let together = a.first <= b.last && b.first <= a.last;
                    let overlap = offsets[i] < offsets[j] + b.bytes && offsets[j] < offsets[i] + a.bytes;
                    prop_assert!(!(together && overlap && a.bytes > 0 && b.bytes > 0), "{a:?} {b:?}");
                }
            }
        }
    }
}
