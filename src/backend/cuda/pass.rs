//! One run of a program: its launches with the holes filled.

use std::ops::Range;

use super::{
    driver::{Address, Code, Launch},
    lower::{MOST_BYTES, Program},
};
use crate::backend::{
    Bindings,
    plan::{Home, block},
};

/// A launch's arguments, as the driver reads them.
#[repr(align(16))]
pub(super) struct Arguments([u8; MOST_BYTES]);

impl Default for Arguments {
    fn default() -> Self {
        Self([0; MOST_BYTES])
    }
}

/// A program, and what belongs into its holes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass<'a> {
    pub(super) program: &'a Program,
    pub(super) bindings: &'a Bindings<'a>,
    /// Where the executable's constants are; any number where it has none.
    pub(super) constants: Address,
    pub(super) seed: u64,
}

impl Pass<'_> {
    /// How many launches.
    pub(super) fn len(&self) -> usize {
        self.program.calls.len()
    }

    /// Which of the program's touches are those of a launch.
    pub(super) fn touched(&self, nth: usize) -> Range<usize> {
        let (first, len) = self.program.calls[nth].touches;
        first as usize..(first + len) as usize
    }

    /// Whether a launch is a library's, whose captured form cannot be given other addresses.
    pub(super) fn is_fixed(&self, nth: usize) -> bool {
        matches!(self.program.calls[nth].code, Code::Routine(_))
    }

    /// The touches of all launches that are libraries'.
    pub(super) fn fixed(&self) -> impl Iterator<Item = usize> {
        (0..self.len()).filter(|&nth| self.is_fixed(nth)).flat_map(|nth| self.touched(nth))
    }

    /// Whether a launch is given the seed.
    pub(super) fn is_seeded(&self, nth: usize) -> bool {
        self.program.calls[nth].seed_at.is_some()
    }

    /// The address that a touch has in this pass.
    pub(super) fn address(&self, touch: usize) -> Address {
        let (home, offset_bytes) = self.program.origins[touch];
        let start = match home {
            Home::Constants => self.constants,
            home => block(self.bindings, home).start().expose_provenance() as Address,
        };
        start.wrapping_add(offset_bytes)
    }

    /// Gives a launch, its arguments put together in memory of the caller's.
    pub(super) fn launch<'b>(&'b self, nth: usize, arguments: &'b mut Arguments) -> Launch<'b> {
        let (call, touched) = (&self.program.calls[nth], self.touched(nth));
        let (first, len) = (call.arguments.0 as usize, call.arguments.1 as usize);
        let filled = &mut arguments.0[..len];
        filled.copy_from_slice(&self.program.arguments[first..first + len]);
        let touches = &self.program.touches[touched.clone()];
        for (touch, nth) in touches.iter().zip(touched) {
            put(filled, touch.at, self.address(nth));
        }
        if let Some(at) = call.seed_at {
            put(filled, at, self.seed);
        }
        Launch { code: call.code, arguments: filled, touches }
    }
}

/// Writes an address or a seed among arguments.
fn put(arguments: &mut [u8], at: u32, value: u64) {
    arguments[at as usize..][..size_of::<u64>()].copy_from_slice(&value.to_ne_bytes());
}
