//! From graft to fossil and out again.

use std::time::Duration;

use super::bench::{Bench, linear, weights};
use crate::{
    actor::{BeginGraft, FinishGraft, FossilizeSeed, GraftSeed, HoldSeed, SetSeedAlpha},
    clock::Clock as _,
    fault::Fault as _,
    wire::{GraftRole, SeedState},
};

#[actix::test]
async fn a_graft_with_a_schedule_blends_and_then_holds() {
    let mut bench = Bench::new(0).await;
    let graft = GraftSeed { schedule: Some(linear(2, 0.5)), ..bench.graft_of("a", 0.25) };
    let reply = bench.graft(graft).await.unwrap().reply;
    assert_eq!((reply.state, reply.alpha), (SeedState::Blending, 0.25));
    let seed = bench.described().await.seed;
    assert_eq!((seed.target, seed.steps_left), (Some(0.5), 2));
    assert_eq!(bench.pass(true).alpha_total, 0.25);
    let seed = bench.described().await.seed;
    assert_eq!((seed.state, seed.alpha, seed.steps_left), (SeedState::Blending, 0.375, 1));
    assert_eq!([bench.pass(true).alpha_total, bench.pass(true).alpha_total], [0.375, 0.5]);
    bench.settled(SeedState::Holding).await;
    let seed = bench.described().await.seed;
    assert_eq!((seed.alpha, seed.target, seed.steps_left), (0.5, None, 0));
    assert_eq!(
        bench.told("a blending holding").await,
        ["a dormant loading", "a loading blending", "a alpha_reached", "a blending holding"]
    );
}

#[actix::test]
async fn a_plain_graft_holds_and_a_fossil_is_left_alone() {
    let mut bench = Bench::new(0).await;
    assert_eq!(bench.graft(bench.graft_of("a", 0.5)).await.unwrap().reply.state, SeedState::Holding);
    assert_eq!(bench.blend(4, 1.0).await.unwrap().state, SeedState::Blending);
    bench.pass(true);
    let refused = bench.seed.send(FossilizeSeed { freeze: true }).await.unwrap().unwrap_err();
    assert_eq!(refused.code(), "seed.transition");
    assert_eq!(refused.to_string(), "a seed cannot go from blending to fossilized");
    let held = bench.seed.send(HoldSeed).await.unwrap().unwrap();
    assert_eq!((held.state, held.alpha, held.target), (SeedState::Holding, 0.625, None));
    // Whether a schedule has just ended nobody can know, so this is no error.
    assert_eq!(bench.seed.send(HoldSeed).await.unwrap().unwrap(), held);
    let fossil = bench.seed.send(FossilizeSeed { freeze: true }).await.unwrap().unwrap();
    assert_eq!((fossil.state, fossil.alpha, fossil.frozen), (SeedState::Fossilized, 1.0, true));
    assert_eq!(bench.pass(true).alpha_total, 1.0);
    for (refused, to) in [
        (bench.seed.send(SetSeedAlpha(0.5)).await.unwrap().map(drop), "holding"),
        (bench.blend(2, 0.5).await.map(drop), "blending"),
        (bench.seed.send(HoldSeed).await.unwrap().map(drop), "holding"),
        (bench.graft(bench.graft_of("b", 0.5)).await.map(drop), "loading"),
        (bench.seed.send(BeginGraft(bench.graft_of("b", 0.5))).await.unwrap(), "loading"),
    ] {
        assert_eq!(refused.unwrap_err().to_string(), format!("a seed cannot go from fossilized to {to}"));
    }
    assert_eq!(bench.pass(true).alpha_total, 1.0);
    let pruned = bench.prune(None).await;
    assert_eq!((pruned.state, pruned.frozen, pruned.kernel), (SeedState::Dormant, false, None));
    let told = bench.told("a pruned dormant").await;
    assert_eq!(
        told[2..],
        [
            "a holding blending",
            "a blending holding",
            "a holding fossilized",
            "a fossilized",
            "a fossilized pruned",
            "a pruned",
            "a pruned dormant"
        ]
    );
}

#[actix::test]
async fn what_was_set_ends_the_schedule_and_what_was_never_grafted_cannot_blend() {
    let bench = Bench::new(0).await;
    let refused = bench.blend(4, 1.0).await.unwrap_err();
    assert_eq!(refused.to_string(), "a seed cannot go from dormant to blending");
    bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.blend(4, 1.0).await.unwrap();
    let set = bench.seed.send(SetSeedAlpha(0.75)).await.unwrap().unwrap();
    assert_eq!((set.state, set.alpha), (SeedState::Holding, 0.75));
    let refused = bench.blend(0, 1.0).await.unwrap_err();
    assert_eq!((refused.code(), bench.state().await), ("seed.schedule", SeedState::Holding));
    let bad = GraftSeed { schedule: Some(linear(3, 2.0)), ..bench.graft_of("b", 0.0) };
    assert_eq!(bench.graft(bad).await.unwrap_err().code(), "seed.alpha");
    let told = bench.described().await.seed;
    assert_eq!((told.kernel, told.alpha), (Some(super::bench::id("a")), 0.75));
}

#[actix::test]
async fn a_seed_in_training_goes_into_the_blend_from_0() {
    let mut bench = Bench::new(0).await;
    let behind = GraftSeed { role: GraftRole::Train, ..bench.graft_of("a", 0.5) };
    let scheduled = GraftSeed { schedule: Some(linear(2, 1.0)), ..behind.clone() };
    assert_eq!(bench.graft(scheduled).await.unwrap_err().code(), "seed.schedule");
    assert_eq!(bench.graft(behind.clone()).await.unwrap().reply.state, SeedState::Training);
    let refused = bench.seed.send(HoldSeed).await.unwrap().unwrap_err();
    assert_eq!(refused.to_string(), "a seed cannot go from training to holding");
    let blending = bench.blend(2, 1.0).await.unwrap();
    assert_eq!((blending.state, blending.alpha), (SeedState::Blending, 0.0));
    let ran = [(); 3].map(|()| bench.pass(true).alpha_total);
    assert_eq!(ran, [0.0, 0.5, 1.0]);
    bench.settled(SeedState::Holding).await;
    let refused = bench.graft(behind).await.unwrap_err();
    assert_eq!(refused.to_string(), "a seed cannot go from holding to training");
}

#[actix::test]
async fn another_kernel_takes_over_between_two_passes_with_a_way_of_its_own() {
    let mut bench = Bench::new(0).await;
    bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.blend(4, 1.0).await.unwrap();
    bench.seed.send(BeginGraft(bench.graft_of("b", 0.25))).await.unwrap().unwrap();
    let grafted = loop {
        if let Some(grafted) = bench.seed.send(FinishGraft).await.unwrap().unwrap() {
            break grafted;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((grafted.reply.state, grafted.reply.alpha), (SeedState::Holding, 0.25));
    weights(&grafted.memory).copy_from(&[3.0; 4]);
    assert_eq!((bench.pass(true).alpha_total, bench.output()[0]), (0.25, 0.75));
    assert_eq!(bench.pass(true).alpha_total, 0.25);
    let told = bench.told("b kernel_swapped").await;
    assert_eq!(told[2..], ["a holding blending", "b blending holding", "b kernel_swapped"]);
}

#[actix::test]
async fn a_pruned_kernel_is_refused_for_as_long_as_it_was_said() {
    let mut bench = Bench::new(0).await;
    bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.prune(Some(Duration::from_secs(30))).await;
    bench.clock.advance(Duration::from_millis(500));
    let refused = bench.graft(bench.graft_of("a", 0.5)).await.unwrap_err();
    assert_eq!(refused.code(), "seed.embargoed");
    assert!(refused.to_string().contains("another 29500 ms"), "{refused}");
    assert_eq!(bench.state().await, SeedState::Dormant, "it was not even begun");
    bench.graft(bench.graft_of("b", 0.5)).await.unwrap();
    bench.prune(Some(Duration::ZERO)).await;
    bench.graft(bench.graft_of("b", 0.5)).await.unwrap();
    bench.prune(None).await;
    bench.clock.advance(Duration::from_secs(30));
    assert!(bench.clock.unix_ms() > 0);
    bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    let told = bench.told("a embargoed").await;
    assert_eq!(told.last().unwrap(), "a embargoed");
}
