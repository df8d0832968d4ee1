//! Coming back after failures, in the memory that the trainer has.

use std::time::Duration;

use super::bench::{Bench, WIDTH, id, linear, weights};
use crate::{
    actor::{BeginGraft, FinishGraft, FossilizeSeed, GraftSeed, PruneSeed, SetSeedAlpha, UnloadSeed},
    engine::{Alpha, EngineError},
    fault::Fault as _,
    wire::{SeedReply, SeedState},
};

const SECOND: Duration = Duration::from_secs(1);

/// Lets time pass.
async fn pass_time(bench: &Bench, seconds: u32) {
    tokio::time::pause();
    bench.clock.advance(seconds * SECOND);
    tokio::time::advance(seconds * SECOND).await;
    tokio::time::resume();
}

/// Lets time pass, and what waited for it happen.
async fn after(bench: &Bench, seconds: u32, state: SeedState) -> SeedReply {
    pass_time(bench, seconds).await;
    bench.settled(state).await;
    bench.described().await.seed
}

#[actix::test]
async fn a_kernel_comes_back_with_the_trainers_values_in_the_same_memory() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    let described = bench.described().await;
    assert_eq!((described.seed.alpha, described.seed.kernel), (0.0, None));
    let recovery = described.recovery.unwrap();
    assert_eq!((recovery.kernel.as_str(), recovery.attempt, recovery.attempts), ("a", 1, 3));
    assert_eq!(recovery.retry_after_ms, Some(1000));
    assert_eq!(described.last_error.unwrap().code, "kernel.non_finite");
    assert_eq!(
        (bench.pass(true).live_mask, bench.output()),
        (0, vec![0.0; WIDTH]),
        "passes go on without it"
    );
    // The trainer goes on with its parameters, where it has them.
    weights(&grafted.memory).copy_from(&[3.0; WIDTH]);
    let back = after(&bench, 1, SeedState::Holding).await;
    assert_eq!((back.alpha, back.kernel.as_ref().map(|kernel| kernel.as_str())), (0.5, Some("a")));
    assert!(back.generation > grafted.reply.generation);
    assert_eq!((bench.pass(true).alpha_total, bench.output()), (0.5, vec![1.5; WIDTH]));
    weights(&grafted.memory).copy_from(&[5.0; WIDTH]);
    bench.pass(true);
    assert_eq!(bench.output(), [2.5; WIDTH], "it is one memory");
    assert_eq!(
        bench.told("a recovered").await,
        [
            "a dormant loading",
            "a loading holding",
            "a unloaded",
            "a holding error_recovery",
            "a error_recovery loading",
            "a loading holding",
            "a recovered"
        ]
    );
}

#[actix::test]
async fn a_schedule_goes_on_where_it_was() {
    let mut bench = Bench::new(1).await;
    let graft = GraftSeed { schedule: Some(linear(4, 1.0)), ..bench.graft_of("a", 0.0) };
    let grafted = bench.graft(graft).await.unwrap();
    bench.pass(true);
    weights(&grafted.memory).copy_from(&[f32::NAN; WIDTH]);
    // It fails at 0.25 and is tried once more at 0.5: a pass in which it is left out is one of its layer's.
    assert_eq!([bench.pass(true).failed_mask, bench.pass(true).failed_mask], [1, 1]);
    bench.settled(SeedState::ErrorRecovery).await;
    weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
    let back = after(&bench, 1, SeedState::Blending).await;
    assert_eq!((back.alpha, back.target, back.steps_left), (0.5, Some(1.0), 2));
    let ran = [(); 3].map(|()| bench.pass(true).alpha_total);
    assert_eq!(ran, [0.5, 0.75, 1.0]);
    bench.settled(SeedState::Holding).await;
}

#[actix::test]
async fn attempts_wait_longer_and_longer_and_end_in_rest_with_the_last_error() {
    let mut bench = Bench::new(2).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    after(&bench, 1, SeedState::Holding).await;
    assert_eq!([bench.pass(true).failed_mask, bench.pass(true).failed_mask], [1, 1], "it is as it was");
    bench.settled(SeedState::ErrorRecovery).await;
    let recovery = bench.described().await.recovery.unwrap();
    assert_eq!((recovery.attempt, recovery.retry_after_ms), (2, Some(2000)));
    // This time it cannot even be had.
    bench.withdraw("a");
    after(&bench, 2, SeedState::Dormant).await;
    let described = bench.described().await;
    assert!(described.recovery.is_none());
    assert_eq!(described.last_error.unwrap().code, "daemon.restarting");
    let told = bench.told("a error_recovery dormant").await;
    let mut last = told.iter().rev().map(String::as_str);
    assert_eq!(
        [last.next(), last.next(), last.next()],
        [Some("a error_recovery dormant"), Some("a loading error_recovery"), Some("a recovery_failed")]
    );
    let held = bench.ledger.held();
    assert_eq!((held.bytes, held.seeds), (0, 0), "its memory is free");
    bench.graft(bench.graft_of("b", 0.5)).await.unwrap();
}

#[actix::test]
async fn without_attempts_a_seed_rests_at_once() {
    let mut bench = Bench::new(0).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::Dormant).await;
    assert_eq!(bench.described().await.last_error.unwrap().code, "kernel.non_finite");
}

#[actix::test]
async fn a_trainer_that_grafts_or_prunes_is_not_brought_anything_back() {
    for grafts in [true, false] {
        let mut bench = Bench::new(3).await;
        let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
        bench.fail(&grafted.memory);
        bench.settled(SeedState::ErrorRecovery).await;
        let state = if grafts {
            bench.graft(bench.graft_of("b", 0.25)).await.unwrap().reply.state
        } else {
            bench.prune(None).await.state
        };
        let later = after(&bench, 10, state).await;
        assert_eq!(later.kernel.map(|kernel| kernel.to_string()), grafts.then(|| "b".to_owned()));
        assert_eq!(bench.pass(true).alpha_total, if grafts { 0.25 } else { 0.0 });
        assert!(bench.described().await.recovery.is_none());
    }
}

#[actix::test]
async fn a_trainers_graft_that_fails_ends_in_rest_even_while_the_kernel_before_was_on_its_way_back() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    assert!(bench.graft(bench.graft_of("absent", 0.5)).await.is_err());
    let later = after(&bench, 10, SeedState::Dormant).await;
    assert_eq!((later.kernel, bench.pass(true).live_mask), (None, 0));
}

#[actix::test]
async fn a_kernel_that_has_changed_meanwhile_is_not_put_over_the_trainers_memory() {
    let mut bench = Bench::new(1).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    bench.withdraw("a");
    bench.publish("a", &[1, WIDTH]);
    after(&bench, 1, SeedState::Dormant).await;
    assert_eq!(bench.described().await.last_error.unwrap().code, "kernel.changed");
}

#[actix::test]
async fn a_fossil_comes_back_as_one_and_what_was_set_meanwhile_counts() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    let set = bench.seed.send(SetSeedAlpha(0.75)).await.unwrap().unwrap();
    assert_eq!((set.state, set.alpha), (SeedState::ErrorRecovery, 0.0));
    weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
    assert_eq!(after(&bench, 1, SeedState::Holding).await.alpha, 0.75);
    bench.seed.send(FossilizeSeed { freeze: true }).await.unwrap().unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
    let back = after(&bench, 2, SeedState::Fossilized).await;
    assert_eq!((back.alpha, back.frozen), (1.0, true));
    assert_eq!(bench.pass(true).alpha_total, 1.0);
}

#[actix::test]
async fn many_good_passes_make_the_attempts_count_anew() {
    let mut bench = Bench::new(1).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    for _ in 0..2 {
        bench.fail(&grafted.memory);
        bench.settled(SeedState::ErrorRecovery).await;
        assert_eq!(bench.described().await.recovery.unwrap().attempt, 1);
        weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
        after(&bench, 1, SeedState::Holding).await;
        for _ in 0..100 {
            bench.pass(true);
        }
    }
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
    after(&bench, 1, SeedState::Holding).await;
    bench.fail(&grafted.memory);
    bench.settled(SeedState::Dormant).await;
}

#[actix::test]
async fn a_prune_is_the_last_word_even_where_the_lane_unloads_meanwhile() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    // Both are there before the lane has answered the prune, the pass that unloads being just under way.
    let (held, has_stopped) = bench.link.hold_up();
    has_stopped.recv().unwrap();
    let prune = bench.seed.send(PruneSeed { embargo: Some(100 * SECOND) });
    let unload = bench.seed.send(UnloadSeed {
        generation: grafted.reply.generation,
        error: EngineError::NonFinite { kernel: id("a") },
        alpha: Alpha::new(0.5).unwrap(),
        course: None,
    });
    unload.await.unwrap();
    drop(held);
    assert_eq!(prune.await.unwrap().unwrap().state, SeedState::Dormant);
    let later = after(&bench, 10, SeedState::Dormant).await;
    assert_eq!((later.kernel, later.alpha), (None, 0.0));
    assert_eq!(bench.pass(true).live_mask, 0, "nor does the lane have it");
    let described = bench.described().await;
    assert!(described.recovery.is_none() && described.last_error.is_none());
}

#[actix::test]
async fn what_comes_back_does_not_come_after_what_the_trainer_grafts() {
    let mut bench = Bench::new(3).await;
    let first = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.seed.send(BeginGraft(bench.graft_of("b", 0.25))).await.unwrap().unwrap();
    while bench.described().await.loading.is_none_or(|loading| loading.stage != "ready") {
        tokio::task::yield_now().await;
    }
    bench.fail(&first.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    weights(&first.memory).copy_from(&[3.0; WIDTH]);
    // The lane is busy with a pass while the trainer's kernel waits to go in, and the other's time comes.
    let (held, has_stopped) = bench.link.hold_up();
    has_stopped.recv().unwrap();
    let finish = bench.seed.send(FinishGraft);
    bench.queued(1).await;
    pass_time(&bench, 1).await;
    for _ in 0..1000 {
        bench.described().await;
    }
    drop(held);
    let grafted = finish.await.unwrap().unwrap().expect("it was ready");
    assert_eq!((grafted.reply.kernel.as_str(), grafted.reply.state), ("b", SeedState::Holding));
    let later = after(&bench, 10, SeedState::Holding).await;
    assert_eq!((later.kernel, later.alpha), (Some(id("b")), 0.25));
    bench.pass(true);
    assert_eq!(bench.output(), [0.25; WIDTH], "the lane runs what the seed says");
    assert!(bench.described().await.recovery.is_none());
}

#[actix::test]
async fn an_alpha_that_is_set_while_a_kernel_goes_back_in_is_what_runs() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    weights(&grafted.memory).copy_from(&[1.0; WIDTH]);
    // The lane is asked first which shapes are in use, and stops again before it is given the kernel.
    let (first, has_stopped) = bench.link.hold_up();
    has_stopped.recv().unwrap();
    pass_time(&bench, 1).await;
    bench.queued(1).await;
    let (held, has_stopped) = bench.link.hold_up();
    drop(first);
    has_stopped.recv().unwrap();
    bench.queued(1).await;
    let set = bench.seed.send(SetSeedAlpha(0.125));
    bench.queued(2).await;
    drop(held);
    set.await.unwrap().unwrap();
    bench.settled(SeedState::Holding).await;
    assert_eq!(bench.described().await.seed.alpha, 0.125);
    assert_eq!(bench.pass(true).alpha_total, 0.125);
}

#[actix::test]
async fn a_fossil_on_its_way_back_takes_no_alpha() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.seed.send(FossilizeSeed { freeze: false }).await.unwrap().unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    let refused = bench.seed.send(SetSeedAlpha(0.75)).await.unwrap().unwrap_err();
    assert!(refused.to_string().contains("from fossilized to holding"), "{refused}");
}

#[actix::test]
async fn a_graft_that_fails_leaves_nothing_of_a_fossil_that_was_unloaded() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.seed.send(FossilizeSeed { freeze: true }).await.unwrap().unwrap();
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    assert!(bench.described().await.seed.frozen, "it may come back");
    assert!(bench.graft(bench.graft_of("absent", 0.5)).await.is_err());
    let seed = bench.described().await.seed;
    assert_eq!((seed.state, seed.frozen), (SeedState::Dormant, false));
}

#[actix::test]
async fn an_embargo_is_of_what_returns_and_of_what_loads() {
    let mut bench = Bench::new(3).await;
    let grafted = bench.graft(bench.graft_of("a", 0.5)).await.unwrap();
    bench.seed.send(BeginGraft(bench.graft_of("b", 0.5))).await.unwrap().unwrap();
    while bench.described().await.loading.is_none_or(|loading| loading.stage != "ready") {
        tokio::task::yield_now().await;
    }
    bench.fail(&grafted.memory);
    bench.settled(SeedState::ErrorRecovery).await;
    bench.prune(Some(30 * SECOND)).await;
    for kernel in ["a", "b"] {
        let refused = bench.graft(bench.graft_of(kernel, 0.5)).await.unwrap_err();
        assert_eq!(refused.code(), "seed.embargoed", "{kernel}");
    }
}
