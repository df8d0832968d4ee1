//! What a seed has learnt, as an artifact.

use super::{ClientError, Layer};
use crate::{
    digest::Digest,
    id::SeedIndex,
    validation::Metadata,
    wire::{Export, ExportReply, Request, WireError},
};

/// A seed's kernel with the weights that the seed has.
#[derive(Clone, Debug, PartialEq)]
pub struct Exported {
    /// The artifact, which another session can graft once it was published, or offered.
    pub artifact: Vec<u8>,
    /// Its SHA-256.
    pub digest: Digest,
    /// What the catalogue says of the kernel that was grafted.
    pub parent: Metadata,
}

/// How often the daemon may ask for more room: it knows the room for good once it has written an artifact.
const MAX_TRIES: usize = 3;

impl Layer {
    /// The artifact of a seed's kernel, with the parameters and buffers that the seed has now. A pass that runs
    /// meanwhile may have its effect in some of them.
    ///
    /// Blocking: until it is written.
    ///
    /// # Errors
    /// [`ClientError::Refused`], with `seed.no_kernel` for a dormant seed; [`ClientError::Wire`] where the arena has
    /// no room for it.
    pub fn export(&self, seed: SeedIndex) -> Result<Exported, ClientError> {
        let layer = self.id;
        let ask = |offset, bytes| self.shared.ask(&Request::Export(Export { layer, seed, offset, bytes }));
        let ExportReply { mut bytes, .. } = ask(0, 0)?;
        for _ in 0..MAX_TRIES {
            let length = usize::try_from(bytes).unwrap_or(usize::MAX);
            let held = self.shared.allocate(length)?;
            let reply: ExportReply = ask(held.block.offset, bytes)?;
            if let (Some(digest), true) = (reply.digest, reply.bytes <= bytes) {
                let artifact = held.read(usize::try_from(reply.bytes).unwrap_or(usize::MAX))?;
                if Digest::of(&artifact) == digest {
                    return Ok(Exported { artifact, digest, parent: reply.parent });
                }
                let reason = "the exported artifact is not what the daemon has written".to_owned();
                return Err(WireError::Frame { reason }.into());
            }
            bytes = reply.bytes;
        }
        let reason = "the daemon asks for more room for an artifact each time".to_owned();
        Err(WireError::Frame { reason }.into())
    }
}
