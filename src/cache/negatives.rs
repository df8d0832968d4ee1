//! Kernels known not to be had, in memory: a bounded number, each for a while.

use std::collections::HashMap;

use super::Negative;
use crate::id::KernelId;

#[derive(Debug)]
pub(super) struct Negatives {
    known: HashMap<KernelId, Negative>,
    max_entries: usize,
}

impl Negatives {
    pub(super) fn new(max_entries: usize) -> Self {
        Self { known: HashMap::new(), max_entries }
    }

    /// What is known of a kernel, unless that is out of date.
    pub(super) fn get(&mut self, id: &KernelId, now_unix_ms: i64) -> Option<Negative> {
        let negative = self.known.get(id)?;
        if negative.until_unix_ms > now_unix_ms {
            return Some(negative.clone());
        }
        self.known.remove(id);
        None
    }

    /// Remembers; over the bound, first what is out of date goes, then what would be soonest.
    pub(super) fn insert(&mut self, id: KernelId, negative: Negative, now_unix_ms: i64) {
        if self.known.len() >= self.max_entries && !self.known.contains_key(&id) {
            self.known.retain(|_, negative| negative.until_unix_ms > now_unix_ms);
        }
        if self.known.len() >= self.max_entries && !self.known.contains_key(&id) {
            let soonest = self.known.iter().min_by_key(|(_, negative)| negative.until_unix_ms);
            match soonest.map(|(id, _)| id.clone()) {
                Some(soonest) => self.known.remove(&soonest),
                None => return,
            };
        }
        self.known.insert(id, negative);
    }

    pub(super) fn remove(&mut self, id: &KernelId) -> bool {
        self.known.remove(id).is_some()
    }

    pub(super) fn clear(&mut self) {
        self.known.clear();
    }

    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn negative(until_unix_ms: i64) -> Negative {
        Negative { code: "kernel.not_found".into(), reason: "none".into(), until_unix_ms }
    }

    #[test]
    fn what_is_out_of_date_is_forgotten_and_the_bound_holds() {
        let id = |text: &str| text.parse::<KernelId>().unwrap();
        let mut negatives = Negatives::new(2);
        negatives.insert(id("a"), negative(10), 0);
        negatives.insert(id("b"), negative(20), 0);
        negatives.insert(id("b"), negative(30), 0);
        negatives.insert(id("c"), negative(40), 5);
        assert!(negatives.get(&id("a"), 5).is_none());
        assert_eq!(negatives.get(&id("b"), 29).unwrap().until_unix_ms, 30);
        assert!(negatives.get(&id("b"), 30).is_none());
        assert_eq!(negatives.len(), 1);
        Negatives::new(0).insert(id("a"), negative(10), 0);
    }
}
