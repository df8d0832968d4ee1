//! What a pass costs, in figures that are the same on every machine: allocations, bytes copied, instructions.
//!
//! Allocations are the whole process's, so this has no harness, whose own thread allocates too. Instructions are those that
//! valgrind counts in this same program, started once more for it.

#![expect(clippy::unwrap_used, reason = "what fails in a test's helper fails the test")]

mod instructions;
mod layer;
mod passes;
mod plans;
mod subject;
mod watched;

use std::{
    alloc::{GlobalAlloc, Layout, System},
    sync::atomic::{AtomicUsize, Ordering},
};

/// The system's allocator, which counts.
struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: everything is the system allocator's; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.realloc(block, layout, size) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(block, layout) }
    }
}

/// What `work` gives, and how often the process has allocated meanwhile.
fn counted<R>(work: impl FnOnce() -> R) -> (R, usize) {
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    let result = work();
    (result, ALLOCATIONS.load(Ordering::Relaxed) - before)
}

/// Numbers between −1 and 1, the same in every run.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|n| (n.wrapping_mul(2_654_435_761) % 997) as f32 / 500.0 - 1.0).collect()
}

fn main() {
    if std::env::args().any(|argument| argument == instructions::ARGUMENT) {
        return instructions::reference_passes();
    }
    let failures = [plans::check(), passes::check(), instructions::check()].concat();
    assert!(failures.is_empty(), "passes cost other than they should:\n{}", failures.join("\n"));
}
