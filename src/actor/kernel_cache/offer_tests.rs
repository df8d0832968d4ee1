//! Offers, with a real validator, a real tier below, and an origin that nobody is to ask.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    OfferKernel,
    load_tests::{BY, Bench, bench, golden, id},
};
use crate::{
    actor::ActorError,
    cache::{Evictor, Tier as _},
    digest::Digest,
    fault::Fault as _,
    id::{KernelId, SessionId},
    wire::{Arena, Block, MIN_ARENA_BYTES, OffersReport},
};

/// An arena with an artifact at the start of its heap.
fn arena(bytes: &[u8]) -> (Arc<Arena>, Block) {
    let arena = Arena::create(MIN_ARENA_BYTES.max(4 << 20)).unwrap();
    let block = Block { offset: arena.layout().heap_offset, bytes: bytes.len() as u64 };
    assert!(arena.region(block).unwrap().write(bytes));
    (Arc::new(arena), block)
}

async fn offer(bench: &Bench, bytes: &[u8]) -> Result<Digest, ActorError> {
    let (arena, block) = arena(bytes);
    bench.parts.offer(OfferKernel { arena, block }).await
}

#[actix::test]
async fn an_offered_kernel_is_in_memory_and_nowhere_else() {
    let bench = bench(Some("arithmetic.eval.pt2"));
    let bytes = golden("activations.eval.pt2");
    let digest = offer(&bench, &bytes).await.unwrap();
    assert_eq!(digest, Digest::of(&bytes));
    let name = KernelId::offered(&digest);
    let lease = bench.parts.get(name.clone()).await.unwrap();
    assert_eq!((lease.id(), lease.digest()), (&name, digest));
    assert!(lease.verdict().unwrap().accepted);
    let why = bench.parts.explain(name.clone()).await;
    assert_eq!((why.loads[0].place.as_deref(), why.loads[0].error.as_deref()), (Some("offer"), None));

    drop(bench.parts.device.lease(&name).unwrap());
    bench.parts.note_uses().await;
    bench.parts.lookup.settle().await;
    assert!(bench.tier.about(&name).await.unwrap().is_none());
    assert_eq!(bench.tier.most_used(0, 8).await.unwrap().unwrap_or_default(), [] as [KernelId; 0]);
    assert_eq!(bench.source.asked.load(Ordering::SeqCst), 0);
    assert_eq!(bench.parts.fetching.stats().bytes, 0, "its share was given back");
}

#[actix::test]
async fn one_that_has_left_memory_is_not_looked_for() {
    let bench = bench(Some("activations.eval.pt2"));
    bench.source.gate.add_permits(9);
    let bytes = golden("activations.eval.pt2");
    let name = KernelId::offered(&offer(&bench, &bytes).await.unwrap());
    let gone = bench.parts.evict(name.clone(), &BY).await.unwrap();
    assert_eq!(gone.evicted, std::slice::from_ref(&name));
    let refused = bench.parts.get(name.clone()).await.unwrap_err();
    assert_eq!(refused.code(), "kernel.not_offered");
    assert!(refused.to_string().contains("offer its artifact again"), "{refused}");
    assert_eq!(bench.source.asked.load(Ordering::SeqCst), 0);
    // Nor is what another has, whoever guesses that it is there.
    let other = KernelId::offered(&Digest::of(b"other"));
    assert_eq!(bench.parts.get(other).await.unwrap_err().code(), "kernel.not_offered");
    offer(&bench, &bytes).await.unwrap();
    assert!(bench.parts.get(name).await.is_ok(), "a forgotten one comes back by its owner");
    assert!(bench.parts.get(id("k")).await.is_ok());
}

#[actix::test]
async fn the_same_artifact_is_judged_once() {
    let bench = bench(None);
    let bytes = golden("activations.eval.pt2");
    let (one, two) = tokio::join!(offer(&bench, &bytes), offer(&bench, &bytes));
    let name = KernelId::offered(&one.unwrap());
    assert_eq!(name, KernelId::offered(&two.unwrap()));
    // Whether the second came while the first was judged, or after, is the machine's.
    let both = bench.parts.measure(Duration::from_secs(60)).await.offers;
    assert_eq!((both.taken_in + both.known, both.refused, both.failed), (2, 0, 0));
    assert!(both.taken_in >= 1);
    let held = bench.parts.get(name.clone()).await.unwrap();
    offer(&bench, &bytes).await.unwrap();
    let again = bench.parts.get(name.clone()).await.unwrap();
    assert!(Arc::ptr_eq(&held, &again));
    assert_eq!(bench.parts.loads.of(&name, 8).len(), 1);
    let offers = bench.parts.measure(Duration::from_secs(60)).await.offers;
    assert_eq!(offers, OffersReport { known: both.known + 1, ..both });
    let by = Evictor::Session { session: SessionId(3) };
    assert!(bench.parts.device.evict(&name, &by).is_err(), "it is in use");
    drop((held, again));
    assert!(bench.parts.device.evict(&name, &by).unwrap().is_some());
    assert!(by.to_string().contains("session 3"));
}

#[actix::test]
async fn what_breaks_a_rule_or_is_no_block_of_the_heap_is_refused() {
    let bench = bench(None);
    let refused = offer(&bench, b"PK\x03\x04 this is no archive").await.unwrap_err();
    assert_eq!(refused.code(), "kernel.deserialize");
    let mut bytes = golden("activations.eval.pt2").to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0xff;
    assert!(offer(&bench, &bytes).await.unwrap_err().code().starts_with("kernel."));
    assert_eq!(bench.parts.device.stats().entries, 0);

    let (arena, block) = arena(&bytes);
    let heap = *arena.layout();
    for (offset, bytes) in [
        (0, 64),
        (heap.heap_offset - 1, 64),
        (heap.heap_offset + heap.heap_bytes - 8, 64),
        (u64::MAX, 64),
        (u64::MAX - 8, 64),
    ] {
        let offer = OfferKernel { arena: arena.clone(), block: Block { offset, bytes } };
        let refused = bench.parts.offer(offer).await.unwrap_err();
        assert!(refused.to_string().contains("does not lie in the heap"), "{refused}");
    }
    let bytes = bench.parts.max_offer_bytes + 1;
    let offer = OfferKernel { arena, block: Block { bytes, ..block } };
    let refused = bench.parts.offer(offer).await.unwrap_err();
    assert_eq!(refused.code(), "kernel.rejected");
    assert!(refused.to_string().contains("validator.max_artifact_bytes"), "{refused}");
    let offers = bench.parts.measure(Duration::from_secs(60)).await.offers;
    assert_eq!(offers, OffersReport { refused: 8, ..OffersReport::default() });
}
