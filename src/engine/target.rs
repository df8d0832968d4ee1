//! Where a pass finds things and puts them: blocks of the arena, and memory of the daemon's own.

use crate::{
    backend::{OwnMemory, Queue, Region, RunError, Shared},
    wire::Block,
};

/// Where a gradient lies or goes, or an output goes.
#[derive(Debug)]
pub(super) enum Target {
    /// Nobody wants it.
    Nowhere,
    /// In the arena. It is written to by runs on the caller's thread alone, which cannot come late; what is read
    /// late by others is read in vain.
    Arena(Block),
    /// Memory of the daemon's own.
    Own(OwnMemory),
}

impl Target {
    /// As the device has it.
    pub(super) fn region<'a>(&'a self, arena: &'a Shared) -> Region<'a> {
        match self {
            Self::Nowhere => Region::EMPTY,
            Self::Arena(block) => there(arena, *block),
            Self::Own(memory) => memory.region(),
        }
    }

    pub(super) fn lack(&self) -> Option<&RunError> {
        if let Self::Own(memory) = self { memory.lack() } else { None }
    }
}

/// The memory of a block that was checked to lie within the arena, as the trainer has it; none where it does not.
pub(super) fn theirs(arena: &Shared, block: Block) -> Region<'_> {
    part(arena.theirs(), block)
}

/// The same in the host's memory, for what is read and written here and not on the device: blend factors and their
/// gradients.
pub(super) fn words(arena: &Shared, block: Block) -> Region<'_> {
    part(arena.words(), block)
}

/// The same as the device has it.
pub(super) fn there(arena: &Shared, block: Block) -> Region<'_> {
    part(arena.device(), block)
}

fn part(memory: Region<'_>, block: Block) -> Region<'_> {
    memory.part(block.offset as usize, block.bytes as usize).unwrap_or(Region::EMPTY)
}

/// A region that this process can read: itself, or a copy of what a device has there.
pub(super) fn readable<'a>(
    queue: &mut dyn Queue,
    region: Region<'a>,
    copy: &'a mut Vec<u8>,
) -> Result<Region<'a>, RunError> {
    if region.is_host() {
        return Ok(region);
    }
    copy.resize(region.len_bytes(), 0);
    queue.read(region, copy)?;
    Ok(Region::from_mut(copy))
}
