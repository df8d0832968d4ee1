//! Passes that go well, seeds that fail, tickets and quotas.

use std::sync::Arc;

use super::{
    kernels::{FEATURES, GRADIENT_BYTES, kernel, live, passes, too_wide},
    trainer::{ALL, Backward, Forward, Trainer, status, until},
};
use crate::{
    engine::{EngineConfig, EngineError, Holdings, LaneEvent, LaneLimits, QuotaLimits, SessionLedger},
    id::{Generation, LayerId, SeedIndex, TicketId},
    wire::{Blend, FailureKind, Status, Submission, Wants},
};

const X: [f32; 6] = [0.5, -1.0, 2.0, 0.25, 3.0, -0.5];
const G: [f32; 6] = [1.0, 0.5, -2.0, 0.75, -1.0, 0.125];

/// A kernel's weights.
type Affine = ([f32; FEATURES], [f32; FEATURES]);
const FIRST: Affine = ([1.5, -0.5, 2.0], [0.25, 0.0, -1.0]);
const SECOND: Affine = ([-1.0, 0.75, 0.5], [1.0, -0.25, 0.5]);

fn close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (a, e) in actual.iter().zip(expected) {
        assert!((f64::from(*a) - e).abs() <= 1e-5 * (1.0 + e.abs()), "{actual:?} is not {expected:?}");
    }
}

fn k((w, b): &Affine, i: usize) -> f64 {
    f64::from(w[i % FEATURES]) * f64::from(X[i]) + f64::from(b[i % FEATURES])
}

/// S, and its gradients for `G`, of seeds with their weights in the sum: written out by hand.
fn check(pass: &Forward, back: &Backward, seeds: &[(Affine, f64)], of_alphas: &[f64]) {
    let sum = |f: &dyn Fn(&Affine, usize) -> f64, i| seeds.iter().map(|(s, weight)| weight * f(s, i)).sum();
    close(&pass.output, &(0..6).map(|i| sum(&k, i)).collect::<Vec<f64>>());
    let slope = |s: &Affine, i: usize| f64::from(s.0[i % FEATURES]) * f64::from(G[i]);
    close(&back.input, &(0..6).map(|i| sum(&slope, i)).collect::<Vec<f64>>());
    assert_eq!(back.parameters.len(), seeds.len());
    for ((_, weight), [of_w, of_b]) in seeds.iter().zip(&back.parameters) {
        let column = |f: &dyn Fn(usize) -> f64| -> Vec<f64> {
            (0..FEATURES).map(|c| weight * (f(c) + f(c + FEATURES))).collect()
        };
        close(of_w, &column(&|i| f64::from(X[i]) * f64::from(G[i])));
        close(of_b, &column(&|i| f64::from(G[i])));
    }
    close(&back.alphas, of_alphas);
}

fn dot(seed: &Affine) -> f64 {
    (0..6).map(|i| k(seed, i) * f64::from(G[i])).sum()
}

fn two_seeds(blend: Blend, alphas: [f32; 2], config: EngineConfig) -> Trainer {
    let trainer = Trainer::with_layer(blend, 3, config);
    let (first, second) = (kernel("first", FIRST.0, FIRST.1), kernel("second", SECOND.0, SECOND.1));
    trainer.attach(0, live(&first, 1).0, alphas[0]).unwrap();
    trainer.attach(2, live(&second, 1).0, alphas[1]).unwrap();
    trainer
}

#[test]
fn two_seeds_give_their_sum_and_its_gradients() {
    for (blend, alphas, weights) in [
        (Blend::Convex, [0.25f32, 0.5], [0.25, 0.5]),
        (Blend::Convex, [1.0, 0.25], [0.8, 0.2]),
        (Blend::Residual, [1.0, 0.25], [1.0, 0.25]),
    ] {
        let mut trainer = two_seeds(blend, alphas, EngineConfig::default());
        let pass = trainer.forward(&X, true, Some(ALL));
        assert_eq!((status(&pass.completion), pass.completion.live_mask), (Status::Ok, 0b101));
        assert_eq!(pass.completion.alpha_total, alphas[0] + alphas[1]);
        assert_eq!(pass.completion.blend_weight, (alphas[0] + alphas[1]).min(1.0));
        assert_eq!(trainer.handle.gauges().tickets(), 1);
        assert_eq!(trainer.handle.gauges().saved_bytes(), pass.completion.saved_bytes);
        let back = trainer.backward(&pass, &G, ALL);
        assert_eq!((status(&back.completion), back.completion.live_mask), (Status::Ok, 0b101));
        let (d, total) = ([dot(&FIRST), dot(&SECOND)], f64::from(alphas[0] + alphas[1]));
        let mean = weights[0] * d[0] + weights[1] * d[1];
        let of_alphas = match blend {
            Blend::Convex if total > 1.0 => d.map(|d| (d - mean) / total),
            _ => d,
        };
        check(&pass, &back, &[(FIRST, weights[0]), (SECOND, weights[1])], &[of_alphas[0], 0.0, of_alphas[1]]);
        assert_eq!((trainer.handle.gauges().tickets(), trainer.snapshot().tickets), (0, 0));
    }
}

#[test]
fn equal_passes_give_equal_bits() {
    let run = || {
        let mut trainer = two_seeds(Blend::Multiply, [0.3, 0.7], EngineConfig::default());
        let pass = trainer.forward(&X, true, Some(ALL));
        let back = trainer.backward(&pass, &G, ALL);
        (pass.output, back.input, back.parameters, back.alphas)
    };
    assert_eq!(run(), run());
}

#[test]
fn alphas_change_and_a_batch_never_seen_is_planned_on_the_way() {
    let mut trainer = two_seeds(Blend::Convex, [0.25, 0.5], EngineConfig::default());
    trainer.set_alpha(2, 0.0);
    let pass = trainer.forward(&X[..3], false, Some(ALL));
    assert_eq!((pass.completion.live_mask, pass.completion.blend_weight), (0b001, 0.25));
    close(&pass.output, &(0..3).map(|i| 0.25 * k(&FIRST, i)).collect::<Vec<f64>>());
    trainer.set_alpha(0, 0.0);
    let pass = trainer.forward(&X, false, None);
    assert_eq!((pass.completion.live_mask, pass.completion.blend_weight), (0, 0.0));
    assert_eq!((pass.output, pass.completion.ticket), (vec![0.0; 6], 0));
}

#[test]
fn a_plan_is_made_once_for_each_batch_and_mode() {
    let mut trainer = Trainer::with_layer(Blend::Convex, 2, EngineConfig::default());
    let kernel = kernel("first", FIRST.0, FIRST.1);
    for seed in [0, 1] {
        trainer.attach(seed, live(&kernel, 1).0, 0.5).unwrap();
    }
    assert_eq!(kernel.plan_count(), 0);
    for _ in 0..3 {
        trainer.forward(&X, false, None);
        trainer.forward(&X, true, None);
        trainer.forward(&X[..3], true, None);
    }
    assert_eq!(kernel.plan_count(), 3);
    assert!(kernel.resident_bytes() > GRADIENT_BYTES + 64, "two blocks of weights, and plans");
}

#[test]
fn buffers_are_committed_once_and_only_in_training() {
    let mut trainer = Trainer::with_layer(Blend::Convex, 1, EngineConfig::default());
    let (seed, memory) = live(&kernel("first", FIRST.0, FIRST.1), 1);
    trainer.attach(0, seed, 1.0).unwrap();
    trainer.forward(&X, false, None);
    assert_eq!(passes(&memory), 0.0);
    let pass = trainer.forward(&X, true, Some(ALL));
    trainer.backward(&pass, &G, ALL);
    assert_eq!(passes(&memory), 1.0);
    // NaN weights: the pass fails, and the buffer stays as it was.
    memory.floats(0, 3).unwrap().copy_from(&[f32::NAN; 3]);
    assert_eq!(trainer.forward(&X, true, None).completion.failed_mask, 1);
    assert_eq!(passes(&memory), 1.0);
}

#[test]
fn a_seed_that_fails_is_left_out_and_at_last_unloaded() {
    let config = || EngineConfig { panic_in: Some("panics".parse().unwrap()), ..EngineConfig::default() };
    let nan = kernel("nan", [f32::NAN; 3], [0.0; 3]);
    let mut kinds = vec![(nan, FailureKind::NonFinite), (too_wide("wide"), FailureKind::Shape)];
    if cfg!(debug_assertions) {
        kinds.push((kernel("panics", FIRST.0, FIRST.1), FailureKind::Runtime));
    }
    for (kernel, kind) in kinds {
        let mut trainer = two_seeds(Blend::Convex, [1.0, 0.25], config());
        let (seed, _) = live(&kernel, 5);
        let held = Arc::downgrade(&seed);
        trainer.attach(0, seed, 1.0).unwrap();
        for n in 1..=4 {
            let pass = trainer.forward(&X, true, Some(ALL));
            let completion = &pass.completion;
            let failed: Vec<_> = completion.failed_seeds().collect();
            assert_eq!((status(completion), completion.live_mask), (Status::Ok, 0b100), "{kind}");
            assert_eq!(completion.blend_weight, 0.25, "its alpha counts as 0");
            match n {
                4 => assert_eq!(failed, []),
                _ => {
                    assert_eq!(failed, [(SeedIndex(0), kind)]);
                    assert!(completion.message().contains(kernel.id().as_str()), "{}", completion.message());
                }
            }
            let back = trainer.backward(&pass, &G, ALL);
            check(&pass, &back, &[(SECOND, 0.25)], &[0.0, 0.0, dot(&SECOND)]);
        }
        let told = [trainer.event(), trainer.event()];
        let here = |layer: &LayerId, seed: &SeedIndex, generation: &Generation| {
            (*layer, *seed, *generation) == (super::trainer::LAYER, SeedIndex(0), Generation(5))
        };
        assert!(matches!(&told[0], LaneEvent::SeedFailed { layer, seed, generation, error, .. }
            if here(layer, seed, generation) && error.failure() == kind));
        assert!(matches!(&told[1], LaneEvent::SeedUnloaded { layer, seed, generation, .. }
            if here(layer, seed, generation)));
        assert!(trainer.events.is_empty());
        assert!(held.upgrade().is_none(), "an unloaded kernel is let go");
        let stats = trainer.counters[0].snapshot();
        assert_eq!((stats.executions, stats.successes, stats.failures.total()), (3, 0, 3));
    }
}

#[test]
fn tickets_are_spent_once_and_in_any_order() {
    let mut trainer = two_seeds(Blend::Residual, [0.5, 0.5], EngineConfig::default());
    let mut taken: Vec<(f32, Forward)> = (0..64)
        .map(|n| {
            let scale = n as f32 / 8.0;
            (scale, trainer.forward(&X.map(|x| x * scale), true, Some(ALL)))
        })
        .collect();
    assert_eq!(trainer.snapshot().tickets, 64);
    // 37 and 64 have no common divisor, so that every one comes up once, far from where it stands.
    let order: Vec<usize> = (0..64).map(|n| n * 37 % 64).collect();
    for &n in &order {
        let (scale, pass) = &taken[n];
        let back = trainer.backward(pass, &G, ALL);
        assert_eq!(status(&back.completion), Status::Ok);
        let of_w: Vec<f64> = (0..FEATURES)
            .map(|c| 0.5 * f64::from(*scale) * f64::from(X[c] * G[c] + X[c + FEATURES] * G[c + FEATURES]))
            .collect();
        close(&back.parameters[0][0], &of_w);
    }
    assert_eq!((trainer.snapshot().tickets, trainer.handle.gauges().saved_bytes()), (0, 0));
    let (_, spent) = &taken[order[0]];
    assert_eq!(status(&trainer.backward(spent, &G, ALL).completion), Status::TicketSpent);
    assert_eq!(status(&trainer.release(TicketId(spent.completion.ticket))), Status::TicketSpent);
    assert_eq!(status(&trainer.release(TicketId(9999))), Status::TicketUnknown);
    assert_eq!(status(&trainer.release(TicketId(0))), Status::TicketUnknown);
    let (_, mut pass) = taken.remove(0);
    pass = trainer.forward(&X, pass.completion.ticket == 0, Some(ALL));
    assert_eq!(status(&trainer.release(TicketId(pass.completion.ticket))), Status::Ok);
    assert_eq!(trainer.snapshot().tickets, 0);
}

#[test]
fn a_ticket_taken_before_a_swap_finishes_on_the_old_kernel() {
    let mut trainer = Trainer::with_layer(Blend::Residual, 1, EngineConfig::default());
    let (seed, _) = live(&kernel("first", FIRST.0, FIRST.1), 1);
    let held = Arc::downgrade(&seed);
    trainer.attach(0, seed, 1.0).unwrap();
    let before = trainer.forward(&X, true, Some(ALL));
    trainer.attach(0, live(&kernel("second", SECOND.0, SECOND.1), 2).0, 0.5).unwrap();
    let after = trainer.forward(&X, true, Some(ALL));
    assert!(after.completion.generation > before.completion.generation);
    assert!(held.upgrade().is_some());
    let back = trainer.backward(&before, &G, ALL);
    check(&before, &back, &[(FIRST, 1.0)], &[dot(&FIRST)]);
    assert!(held.upgrade().is_none(), "the last ticket lets it go");
    assert_eq!(trainer.detach(0).unwrap(), Some(Generation(2)));
    let back = trainer.backward(&after, &G, ALL);
    check(&after, &back, &[(SECOND, 0.5)], &[dot(&SECOND)]);
    assert_eq!(trainer.detach(0).unwrap(), None);
}

#[test]
fn only_what_was_announced_is_given() {
    let mut trainer = two_seeds(Blend::Convex, [0.25, 0.5], EngineConfig::default());
    let alphas = Wants { alphas: true, ..Wants::default() };
    let pass = trainer.forward(&X, true, Some(alphas));
    let back = trainer.backward(&pass, &G, alphas);
    close(&back.alphas, &[dot(&FIRST), 0.0, dot(&SECOND)]);
    let pass = trainer.forward(&X, true, Some(alphas));
    let refused = trainer.backward(&pass, &G, ALL);
    assert_eq!(status(&refused.completion), Status::Protocol);
    assert!(trainer.hung_up());
}

#[test]
fn quotas_refuse_and_the_session_goes_on() {
    let holding = |session| {
        let ledger = SessionLedger::alone(QuotaLimits { session, ..QuotaLimits::default() });
        LaneLimits { ledger, ..LaneLimits::default() }
    };
    let spent = |key, limit| move |error: &EngineError| matches!(error, EngineError::Spent(spent) if (spent.key, spent.limit) == (key, limit));
    let limits = holding(Holdings { layers: 1, tickets: 2, ..Holdings::NONE });
    let ledger = limits.ledger.clone();
    let mut trainer = Trainer::new(EngineConfig::default(), limits);
    trainer.open(Blend::Convex, 1).unwrap();
    let one_more = |trainer: &mut Trainer, id| {
        let counters = vec![Arc::default()];
        let (blend, host, recompute) = (Blend::Convex, false, false);
        let spec = crate::engine::LayerSpec { id, blend, counters, host, recompute };
        trainer.ask(|answer| crate::engine::LaneCommand::OpenLayer { spec, answer })
    };
    assert!(matches!(one_more(&mut trainer, super::trainer::LAYER), Err(EngineError::Request { .. })));
    assert!(
        one_more(&mut trainer, LayerId(8))
            .is_err_and(|error| spent("limits.max_layers_per_session", 1)(&error))
    );
    trainer.attach(0, live(&kernel("first", FIRST.0, FIRST.1), 1).0, 1.0).unwrap();
    assert!(matches!(
        trainer.attach(1, live(&kernel("first", FIRST.0, FIRST.1), 1).0, 1.0),
        Err(EngineError::SeedUnknown { seed: SeedIndex(1), seeds: 1, .. })
    ));
    let held: Vec<Forward> = (0..2).map(|_| trainer.forward(&X, true, Some(ALL))).collect();
    assert_eq!(status(&trainer.forward(&X, true, Some(ALL)).completion), Status::Quota);
    assert_eq!(status(&trainer.forward(&X, true, None).completion), Status::Ok, "it takes no ticket");
    trainer.release(TicketId(held[0].completion.ticket));
    assert_eq!(status(&trainer.forward(&X, true, Some(ALL)).completion), Status::Ok);
    assert_eq!((ledger.held().layers, ledger.held().tickets), (1, 2));
    assert_eq!(ledger.held().bytes, trainer.handle.gauges().saved_bytes());
    trainer.joined();
    assert_eq!(ledger.held(), Holdings { sessions: 1, ..Holdings::NONE }, "a lane that ends gives all back");

    let limits = holding(Holdings { bytes: 1, ..Holdings::NONE });
    let ledger = limits.ledger.clone();
    let mut trainer = Trainer::new(EngineConfig::default(), limits);
    trainer.open(Blend::Convex, 1).unwrap();
    trainer.attach(0, live(&kernel("first", FIRST.0, FIRST.1), 1).0, 1.0).unwrap();
    let refused = trainer.forward(&X, true, Some(ALL)).completion;
    assert_eq!(status(&refused), Status::Quota);
    assert!(refused.message().starts_with("limits.max_bytes_per_session is 1: "), "{}", refused.message());
    assert_eq!(ledger.held().tickets, 0, "what was reserved for it is given back");
    assert_eq!(status(&trainer.forward(&X, true, None).completion), Status::Ok);
}

#[test]
fn a_layer_that_is_not_open_is_refused_and_the_session_goes_on() {
    let mut trainer = two_seeds(Blend::Convex, [0.25, 0.5], EngineConfig::default());
    let (submission, _) = trainer.forward_request(&X, 0);
    let elsewhere = Submission { layer: 1, ..submission };
    assert_eq!(status(&trainer.submit(elsewhere)), Status::LayerUnknown);
    assert_eq!(status(&trainer.submit(submission)), Status::Ok);
    assert_eq!(trainer.handle.gauges().refusals(), 1);
}

#[test]
fn a_kernel_is_told_to_have_grown_once_for_each_new_shape() {
    let mut trainer = two_seeds(Blend::Residual, [0.5, 0.25], EngineConfig::default());
    let planned = |trainer: &Trainer| {
        let told = trainer.events.try_iter().map(|event| match event {
            LaneEvent::Planned { kernel } => kernel.to_string(),
            other => panic!("{other:?}"),
        });
        let mut told: Vec<String> = told.collect();
        told.sort();
        told
    };
    trainer.forward(&X, true, Some(ALL));
    assert_eq!(planned(&trainer), ["first", "second"]);
    trainer.forward(&X, true, Some(ALL));
    assert_eq!(planned(&trainer), [""; 0], "nothing is new");
    trainer.forward(&X[..3], true, Some(ALL));
    assert_eq!(planned(&trainer), ["first", "second"]);
}

#[test]
fn a_kernel_weighs_its_plans_and_what_its_seeds_run_in() {
    let trainer = Trainer::with_layer(Blend::Residual, 1, EngineConfig::default());
    let kernel = kernel("first", FIRST.0, FIRST.1);
    let bare = kernel.resident_bytes();
    trainer.attach(0, live(&kernel, 1).0, 1.0).unwrap();
    assert_eq!(kernel.resident_bytes(), bare);
    let mut trainer = trainer;
    trainer.forward(&X, true, None);
    let one_shape = kernel.resident_bytes();
    assert!(one_shape > bare + 64, "a plan and a workspace");
    trainer.forward(&X[..3], false, None);
    let two_shapes = kernel.resident_bytes();
    assert!(two_shapes > one_shape);
    trainer.detach(0).unwrap();
    // The seed's memory is gone, the plans stay with the kernel.
    until(|| kernel.resident_bytes() < two_shapes);
    assert!(kernel.resident_bytes() > bare);
}
