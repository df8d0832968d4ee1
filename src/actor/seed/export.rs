//! Giving out what a seed has learnt: its kernel's artifact, with the weights that the seed has now.

use std::sync::Arc;

use actix::{Handler, Message, ResponseFuture};

use super::{Occupant, Recovery, Seed, SeedFile};
use crate::{
    actor::{ActorError, Holder},
    backend::{Backend, Memory as _},
    digest::Digest,
    engine::{EngineError, Holdings, Kernel},
    validation::Metadata,
    wire::{Arena, Block, ExportReply},
};

/// Has the artifact written into the trainer's arena.
#[derive(Debug, Message)]
#[rtype(result = "Result<ExportReply, ActorError>")]
pub struct ExportSeed {
    /// The arena.
    pub arena: Arc<Arena>,
    /// Where in it; not checked yet. One of no bytes asks how many it takes.
    pub block: Block,
}

impl Seed {
    /// The kernel that is there, or that is on its way back: its memory is kept meanwhile.
    fn exported(&self) -> Option<&Occupant> {
        self.occupant.as_ref().or_else(|| self.recovery.as_ref().map(Recovery::occupant))
    }
}

impl Handler<ExportSeed> for Seed {
    type Result = ResponseFuture<Result<ExportReply, ActorError>>;

    fn handle(&mut self, ExportSeed { arena, block }: ExportSeed, _: &mut Self::Context) -> Self::Result {
        let (session, layer, seed) = (self.parts.session, self.parts.layer, self.parts.seed);
        let Some(occupant) = self.exported() else {
            return Box::pin(std::future::ready(Err(ActorError::NoKernel { layer, seed })));
        };
        let (id, digest, memory) = (occupant.graft.kernel.clone(), occupant.digest, occupant.memory.clone());
        let running = occupant.kernel.upgrade();
        let (kernels, ledger) = (self.parts.kernels.clone(), self.parts.ledger.clone());
        let backend = self.parts.backend.clone();
        let holder = Holder { session, layer, seed, generation: self.generation };
        Box::pin(async move {
            // One that was unloaded, and may have left memory.
            let mut lease = None;
            let kernel = match running {
                Some(kernel) => kernel,
                None => lease.insert(kernels.get(&id, holder).await?).clone(),
            };
            if kernel.digest() != digest {
                return Err(ActorError::Replaced { kernel: id });
            }
            let parent = parent(&kernel);
            let artifact_bytes = kernel.artifact_bytes().unwrap_or(0) as u64;
            if block.bytes == 0 {
                return Ok(ExportReply { bytes: artifact_bytes, digest: None, parent });
            }
            arena.region(block)?;
            let bytes = kernel.export_bytes() as u64;
            let share = ledger.take(Holdings { bytes, ..Holdings::NONE })?;
            let written = tokio::task::spawn_blocking(move || {
                let written = write(&kernel, &memory.shared, &*backend, &arena, block);
                drop(share);
                written
            });
            let (bytes, digest) =
                written.await.map_err(|_| ActorError::Lost { what: "exporting the seed" })??;
            drop(lease);
            if let Some(digest) = digest {
                tracing::info!(%session, %layer, %seed, kernel = %id, bytes, %digest, "seed exported");
            }
            Ok(ExportReply { bytes, digest, parent })
        })
    }
}

/// Writes the artifact where there is room for it; its length, and its digest if it was written.
fn write(
    kernel: &Kernel,
    memory: &SeedFile,
    backend: &dyn Backend,
    arena: &Arena,
    block: Block,
) -> Result<(u64, Option<Digest>), ActorError> {
    let copy = match memory {
        SeedFile::Host(_) => None,
        SeedFile::Device(_) => Some(memory.read(backend).map_err(EngineError::of_kernel(kernel.id()))?),
    };
    let weights = copy.as_ref().map_or_else(|| memory.region(), |copy| copy.region());
    let exported = kernel.export(weights).ok_or(ActorError::Lost { what: "the kernel's artifact" })?;
    let refused = |source| ActorError::Export { kernel: kernel.id().clone(), source: Box::new(source) };
    let artifact = exported.map_err(refused)?;
    let is_written = artifact.len() as u64 <= block.bytes && arena.region(block)?.write(&artifact);
    Ok((artifact.len() as u64, is_written.then(|| Digest::of(&artifact))))
}

/// What the catalogue says of the kernel, without what belongs to its own bytes, and with their digest.
fn parent(kernel: &Kernel) -> Metadata {
    Metadata {
        kernel_binary_ref: None,
        validation_report: None,
        signature: None,
        checksum: Some(kernel.digest()),
        ..kernel.metadata().clone()
    }
}
