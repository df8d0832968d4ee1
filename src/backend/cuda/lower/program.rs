//! What lowering makes: launches with holes for the addresses of a run.

use smallvec::SmallVec;

use crate::backend::{
    cuda::{
        arguments::Record,
        driver::{Access, Code, Touch},
    },
    plan::{Home, Place, Scratch},
};

/// The most bytes that any kernel's argument has.
pub(in crate::backend::cuda) const MOST_BYTES: usize = 1408;

/// A launch; its arguments and touches are parts of the program's lists.
#[derive(Clone, Copy, Debug)]
pub(in crate::backend::cuda) struct Call {
    pub(in crate::backend::cuda) code: Code,
    /// Where its arguments begin, and how many bytes they have.
    pub(in crate::backend::cuda) arguments: (u32, u32),
    /// Where its touches begin, and how many there are.
    pub(in crate::backend::cuda) touches: (u32, u32),
    /// Where the pass's seed belongs among the arguments.
    pub(in crate::backend::cuda) seed_at: Option<u32>,
}

/// A plan as launches.
#[derive(Clone, Debug, Default)]
pub(in crate::backend::cuda) struct Program {
    pub(in crate::backend::cuda) calls: Vec<Call>,
    pub(in crate::backend::cuda) arguments: Vec<u8>,
    pub(in crate::backend::cuda) touches: Vec<Touch>,
    /// By touch: the block and the bytes before what is touched in it.
    pub(in crate::backend::cuda) origins: Vec<(Home, u64)>,
}

impl Program {
    /// The blocks that libraries read and write, some of them several times.
    pub(in crate::backend::cuda) fn homes_of_routines(&self) -> impl Iterator<Item = Home> {
        let routines = self.calls.iter().filter(|call| matches!(call.code, Code::Routine(_)));
        routines.flat_map(|call| {
            let (first, len) = call.touches;
            self.origins[first as usize..(first + len) as usize].iter().map(|&(home, _)| home)
        })
    }

    /// Bytes of memory that it takes.
    pub(in crate::backend::cuda) fn held_bytes(&self) -> usize {
        self.calls.capacity() * size_of::<Call>()
            + self.arguments.capacity()
            + self.touches.capacity() * size_of::<Touch>()
            + self.origins.capacity() * size_of::<(Home, u64)>()
    }

    /// Gives back what the lists have too much.
    pub(super) fn shrink(&mut self) {
        self.calls.shrink_to_fit();
        self.arguments.shrink_to_fit();
        self.touches.shrink_to_fit();
        self.origins.shrink_to_fit();
    }

    /// Appends a launch.
    pub(super) fn push<R: Record>(&mut self, code: Code, record: &R, uses: &[Use], seed_at: Option<usize>) {
        const { assert!(size_of::<R>() <= MOST_BYTES) };
        let (arguments, touches) = (self.arguments.len() as u32, self.touches.len() as u32);
        self.arguments.extend_from_slice(record.bytes());
        for used in uses {
            self.touches.push(Touch { at: used.at as u32, access: used.access, len_bytes: used.len_bytes });
            self.origins.push((used.home, used.offset_bytes));
        }
        self.calls.push(Call {
            code,
            arguments: (arguments, size_of::<R>() as u32),
            touches: (touches, uses.len() as u32),
            seed_at: seed_at.map(|at| at as u32),
        });
    }
}

/// A pointer among a record's fields, and the memory it points to.
#[derive(Clone, Copy, Debug)]
pub(super) struct Use {
    at: usize,
    home: Home,
    offset_bytes: u64,
    len_bytes: u64,
    access: Access,
}

/// The uses of one launch.
pub(super) type Uses = SmallVec<[Use; 12]>;

impl Use {
    /// A tensor that is read, from its first element on.
    pub(super) fn read(at: usize, place: &Place) -> Self {
        Self::of(at, place, Access::Read)
    }

    /// A tensor that is written.
    pub(super) fn write(at: usize, place: &Place) -> Self {
        Self::of(at, place, Access::Write)
    }

    /// A step's scratch memory from some bytes on.
    pub(super) fn scratch(at: usize, scratch: Scratch, skipped_bytes: usize, access: Access) -> Self {
        Self {
            at,
            home: Home::Workspace,
            offset_bytes: (scratch.offset_bytes + skipped_bytes) as u64,
            len_bytes: scratch.len_bytes.saturating_sub(skipped_bytes) as u64,
            access,
        }
    }

    /// The same use from `bytes` on, `len_bytes` of them.
    pub(super) fn part(self, bytes: usize, len_bytes: usize) -> Self {
        Self { offset_bytes: self.offset_bytes + bytes as u64, len_bytes: len_bytes as u64, ..self }
    }

    fn of(at: usize, place: &Place, access: Access) -> Self {
        let (size, first) = (place.dtype.size_bytes(), place.layout.offset());
        let len_bytes = if place.layout.shape().contains(&0) {
            0
        } else {
            place.layout.end().map_or(0, |end| (end - first) * size) as u64
        };
        let offset_bytes = (place.offset_bytes + first * size) as u64;
        Self { at, home: place.home, offset_bytes, len_bytes, access }
    }
}
