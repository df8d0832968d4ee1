//! Which threads run passes, and how often one of them came to the supply of kernels, where it might wait.
//!
//! A pass must not: kernels come to it ready. That nobody has changed this by mistake is counted here, at the doors
//! of the supply, and the tests of every fault hold the count at zero.

use std::{cell::RefCell, sync::Arc};

use super::Counter;

thread_local! {
    static WAITS: RefCell<Option<Arc<Counter>>> = const { RefCell::new(None) };
}

/// From now on this thread runs passes, and `waits` counts where it comes to the supply.
pub fn enter(waits: Arc<Counter>) {
    WAITS.set(Some(waits));
}

/// The counter of this thread, for one that it starts to run passes with it.
pub fn counter() -> Option<Arc<Counter>> {
    WAITS.with_borrow(Clone::clone)
}

/// To be called wherever somebody asks the supply. Costs a look at the thread's own memory.
pub fn may_wait() {
    WAITS.with_borrow(|waits| waits.iter().for_each(|waits| waits.increment()));
}
