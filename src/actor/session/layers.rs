//! A session's layers and the seeds in them. A dormant seed is a set of counters and nothing more.

use std::{collections::BTreeMap, sync::Arc};

use actix::Addr;

use crate::{
    actor::{ActorError, DescribeSeed, Seed},
    engine::SeedCounters,
    id::{Generation, LayerId, SeedIndex, SessionId},
    wire::{SeedReply, SeedReport, SeedState},
};

/// One slot of a layer.
#[derive(Clone, Debug, Default)]
pub(super) struct SeedSlot {
    pub(super) counters: Arc<SeedCounters>,
    /// Made at the first graft.
    pub(super) actor: Option<Addr<Seed>>,
}

/// One open layer.
#[derive(Debug)]
pub(super) struct Layer {
    pub(super) name: String,
    /// Its seeds and, last, its host if the daemon runs that.
    pub(super) seeds: Vec<SeedSlot>,
    pub(super) host: bool,
}

/// A slot with its place.
#[derive(Clone, Debug)]
pub(super) struct Placed {
    layer: LayerId,
    layer_name: String,
    seed: SeedIndex,
    slot: SeedSlot,
}

/// The layers of a session, by number.
#[derive(Debug, Default)]
pub(super) struct Layers {
    open: BTreeMap<LayerId, Layer>,
    last: u32,
}

impl Layers {
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// A number that no layer of this session has had.
    pub(super) fn number(&mut self) -> LayerId {
        self.last += 1;
        LayerId(self.last)
    }

    pub(super) fn insert(&mut self, id: LayerId, layer: Layer) {
        self.open.insert(id, layer);
    }

    pub(super) fn remove(&mut self, id: LayerId) {
        self.open.remove(&id);
    }

    pub(super) fn slot(&mut self, layer: LayerId, seed: SeedIndex) -> Result<&mut SeedSlot, ActorError> {
        let open = self.open.get_mut(&layer).ok_or(ActorError::LayerUnknown { layer })?;
        let seeds = open.seeds.len();
        open.seeds.get_mut(usize::from(seed.0)).ok_or(ActorError::SeedUnknown { layer, seed, seeds })
    }

    /// Whether a slot is the host's, whose role is its own.
    pub(super) fn is_host(&self, layer: LayerId, seed: SeedIndex) -> bool {
        let is_last = |open: &Layer| open.host && usize::from(seed.0) + 1 == open.seeds.len();
        self.open.get(&layer).is_some_and(is_last)
    }

    pub(super) fn actor(&self, layer: LayerId, seed: SeedIndex) -> Option<&Addr<Seed>> {
        self.open.get(&layer)?.seeds.get(usize::from(seed.0))?.actor.as_ref()
    }

    /// Every slot of every layer, in order.
    pub(super) fn slots(&self) -> Vec<Placed> {
        let of_layer = |(&layer, open): (&LayerId, &Layer)| {
            let name = open.name.clone();
            let seeds = open.seeds.iter().cloned().enumerate();
            seeds
                .map(move |(n, slot)| Placed {
                    layer,
                    layer_name: name.clone(),
                    seed: SeedIndex(n as u16),
                    slot,
                })
                .collect::<Vec<_>>()
        };
        self.open.iter().flat_map(of_layer).collect()
    }
}

/// A seed that has never had a kernel.
pub(super) fn dormant() -> SeedReply {
    SeedReply { state: SeedState::Dormant, alpha: 0.0, kernel: None, generation: Generation(0) }
}

/// Asks a slot for its report.
pub(super) async fn describe(session: SessionId, placed: Placed) -> SeedReport {
    let described = match &placed.slot.actor {
        Some(actor) => actor.send(DescribeSeed).await.ok(),
        None => None,
    };
    let (seed, loading, last_error) = described
        .map_or_else(|| (dormant(), None, None), |found| (found.seed, found.loading, found.last_error));
    SeedReport {
        session,
        layer: placed.layer,
        layer_name: placed.layer_name,
        seed: placed.seed,
        state: seed.state,
        alpha: seed.alpha,
        kernel: seed.kernel,
        generation: seed.generation,
        loading,
        stats: placed.slot.counters.snapshot(),
        last_error,
    }
}
