//! The order of use: a doubly linked list threaded through slot numbers.

/// No slot.
const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Link {
    newer: u32,
    older: u32,
}

/// Slots from the most to the least recently used. Every change takes constant time, and none allocates
/// but [`push_newest`](Self::push_newest) with a slot number never seen before.
#[derive(Debug)]
pub(super) struct Order {
    links: Vec<Link>,
    newest: u32,
    oldest: u32,
}

impl Default for Order {
    fn default() -> Self {
        Self { links: Vec::new(), newest: NONE, oldest: NONE }
    }
}

impl Order {
    /// Puts a slot that is not in the list at its new end.
    pub(super) fn push_newest(&mut self, slot: u32) {
        if self.links.len() <= slot as usize {
            self.links.resize(slot as usize + 1, Link { newer: NONE, older: NONE });
        }
        let second = self.newest;
        self.links[slot as usize] = Link { newer: NONE, older: second };
        match second {
            NONE => self.oldest = slot,
            second => self.links[second as usize].newer = slot,
        }
        self.newest = slot;
    }

    /// Takes a slot that is in the list out of it.
    pub(super) fn remove(&mut self, slot: u32) {
        let Link { newer, older } = self.links[slot as usize];
        match newer {
            NONE => self.newest = older,
            newer => self.links[newer as usize].older = older,
        }
        match older {
            NONE => self.oldest = newer,
            older => self.links[older as usize].newer = newer,
        }
    }

    /// Makes a slot that is in the list the most recently used one.
    pub(super) fn touch(&mut self, slot: u32) {
        if self.newest != slot {
            self.remove(slot);
            self.push_newest(slot);
        }
    }

    /// Slots from the least recently used on.
    pub(super) fn oldest_first(&self) -> impl Iterator<Item = u32> + '_ {
        std::iter::successors(some(self.oldest), |&slot| some(self.links[slot as usize].newer))
    }
}

fn some(slot: u32) -> Option<u32> {
    (slot != NONE).then_some(slot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn touching_and_removing_keep_the_order() {
        let mut order = Order::default();
        (0..4).for_each(|slot| order.push_newest(slot));
        let slots = |order: &Order| order.oldest_first().collect::<Vec<_>>();
        order.touch(0);
        order.touch(2);
        order.touch(2);
        assert_eq!(slots(&order), [1, 3, 0, 2]);
        order.remove(1);
        order.remove(2);
        assert_eq!(slots(&order), [3, 0]);
        order.remove(3);
        order.remove(0);
        assert!(slots(&order).is_empty());
        order.push_newest(2);
        assert_eq!(slots(&order), [2]);
    }
}
