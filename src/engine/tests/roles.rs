//! Roles, a host in the daemon and alphas of one pass, against the plain composition.

use std::sync::Arc;

use super::{
    fixture::{
        BATCH, ELEMENTS, Kind, Layer, Room, WIDTH, alpha, close, config, kernel, live, noise, passes_counted,
        seed, set_weights, shift_kernel, weights_of,
    },
    plain::{Composition, Plain, Runs},
};
use crate::{
    engine::{EngineConfig, EngineError, Role},
    fault::Fault as _,
    id::{SeedIndex, TicketId},
    wire::{Blend, FailureKind, Status},
};

const BLENDS: [Blend; 3] = [Blend::Convex, Blend::Residual, Blend::Multiply];
const NAN: f32 = f32::NAN;
/// Which kernel is the host's.
const HOST: usize = 9;

/// A layer's seeds by role and alpha, and what a pass is given.
type Case = (&'static [(Role, f32)], Option<&'static [f32]>);

const CASES: [Case; 12] = [
    (&[], None),
    (&[(Role::Blended, 0.25)], None),
    (&[(Role::Blended, 1.0)], None),
    (&[(Role::Blended, 0.25), (Role::Blended, 0.5)], None),
    (&[(Role::Blended, 0.75), (Role::Blended, 0.5), (Role::Blended, 1.0)], None),
    (&[(Role::Straight, 0.0)], None),
    (&[(Role::Straight, 1.0), (Role::Blended, 0.5)], None),
    (&[(Role::Blended, 0.5), (Role::Straight, 0.25), (Role::Blended, 0.75)], None),
    (&[(Role::Straight, 0.5), (Role::Straight, 0.0)], None),
    (&[(Role::Blended, 0.5), (Role::Blended, 0.0)], Some(&[0.0, 0.25])),
    (&[(Role::Blended, 0.5), (Role::Blended, 0.0), (Role::Blended, 1.0)], Some(&[NAN, NAN, 0.75])),
    (&[(Role::Blended, 1.0), (Role::Straight, 0.0), (Role::Blended, 1.0)], Some(&[0.0, 0.5, 0.0])),
];

/// Who takes part in a training pass whose backward wants all gradients.
fn runs((seeds, given): &Case) -> Vec<Runs> {
    let mut runs = Vec::new();
    for (n, &(role, own)) in seeds.iter().enumerate() {
        let given = given.map_or(NAN, |given| given[n]);
        let alpha = if given.is_nan() { own } else { given };
        if role == Role::Straight || alpha > 0.0 || !given.is_nan() {
            runs.push(Runs { seed: n, kernel: n, role, alpha });
        }
    }
    runs
}

fn layer_of(case: &Case, kind: Kind, blend: Blend, config: EngineConfig) -> Layer {
    let mut layer = Layer::with_host(kind, blend, case.0.len(), HOST, config);
    for (n, &(role, value)) in case.0.iter().enumerate() {
        layer.attach_as(role, n, &seed(n), value);
    }
    layer
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

/// Output and all gradients of a pass there and back; `ran` slots.
fn there_and_back(
    layer: &mut Layer,
    given: Option<&[f32]>,
    ran: usize,
    straight: Option<&[f32]>,
) -> Vec<f32> {
    let report = layer.forward_given(&noise(1), true, given).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    assert_eq!(report.live_mask.count_ones() as usize, ran);
    let mut all = layer.read(Room::Output, ELEMENTS);
    let back = layer.backward_with(report.ticket, ran, &noise(2), straight).unwrap();
    assert!(back.failures.is_empty(), "{:?}", back.failures);
    assert_eq!(back.live_mask, report.live_mask);
    all.extend(layer.read(Room::GradInput, ELEMENTS));
    (0..ran).for_each(|place| all.extend(layer.grad_w(place)));
    all.extend(layer.read(Room::GradAlphas, layer.seeds));
    all
}

fn flat(plain: &Plain) -> Vec<f64> {
    let mut all = [plain.output.clone(), plain.grad_input.clone()].concat();
    plain.grad_w.iter().for_each(|w| all.extend(w));
    all.extend(&plain.grad_alphas);
    all
}

#[test]
fn every_layer_equals_its_plain_composition() {
    let spread = || EngineConfig { threads: 2, spread_above: 0, ..config() };
    for blend in BLENDS {
        for case in &CASES {
            for host in [false, true] {
                let runs = runs(case);
                let host_kernel = host.then_some(HOST);
                let composition = Composition { blend, runs: &runs, host: host_kernel, seeds: case.0.len() };
                // Where the trainer multiplies, the gradient of y is not that of P, and it says so.
                let of_y = if blend == Blend::Multiply && !host { noise(5) } else { noise(2) };
                let straight = (blend == Blend::Multiply && !host).then_some(&of_y[..]);
                let plain = flat(&composition.at(&noise(1), &noise(2), &of_y));
                let ran = runs.len() + usize::from(host);
                let mut seen: Option<Vec<f32>> = None;
                for recompute in [false, true] {
                    for config in [config(), spread()] {
                        let mut layer = layer_of(case, Kind { host, recompute }, blend, config);
                        // Twice: what is reused from the first pass must not show in the second.
                        for _ in 0..2 {
                            let all = there_and_back(&mut layer, case.1, ran, straight);
                            close(&all, &plain);
                            let first = seen.get_or_insert_with(|| all.clone());
                            assert_eq!(bits(first), bits(&all), "{blend} {case:?} {host} {recompute}");
                        }
                        assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
                        assert_eq!((layer.quota.tickets(), layer.quota.saved_bytes()), (0, 0));
                    }
                }
            }
        }
    }
}

#[test]
fn a_kernel_in_training_changes_nothing_and_learns_in_training_passes_alone() {
    let mut layer = Layer::new(Blend::Convex, 2, config());
    let (learner, blended) = (seed(0), seed(1));
    layer.attach(1, &blended, 0.5);
    layer.forward(&noise(1), false).unwrap();
    let alone = layer.read(Room::Output, ELEMENTS);
    layer.attach_as(Role::Straight, 0, &learner, 1.0);
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!((report.live_mask, report.blend_weight, report.alpha_total), (0b11, 0.5, 0.5));
    assert_eq!(bits(&layer.read(Room::Output, ELEMENTS)), bits(&alone));
    assert_eq!(passes_counted(&learner), 1.0);
    let mut request = layer.forward_request(&noise(1), true);
    request.train = false;
    let report = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!(report.live_mask, 0b10, "not in eval passes");
    assert_eq!(passes_counted(&learner), 1.0);
    // It is blended from now on; the ticket taken before does not know.
    layer.sync.release(report.ticket, &mut layer.quota).unwrap();
    let before = layer.forward(&noise(1), true).unwrap();
    layer.sync.set_role(SeedIndex(0), Role::Blended).unwrap();
    layer.sync.set_alpha(SeedIndex(0), alpha(0.25)).unwrap();
    let after = layer.forward(&noise(1), true).unwrap();
    assert_eq!((before.alpha_total, after.alpha_total), (0.5, 0.75));
    let part = |seed: usize, role, alpha| Runs { seed, kernel: seed, role, alpha };
    for (ticket, role) in [(after.ticket, Role::Blended), (before.ticket, Role::Straight)] {
        let runs = [part(0, role, 0.25), part(1, Role::Blended, 0.5)];
        let composition = Composition { blend: Blend::Convex, runs: &runs, host: None, seeds: 2 };
        let plain = composition.at(&noise(1), &noise(2), &noise(2));
        layer.backward(ticket, 2, &noise(2)).unwrap();
        close(&layer.grad_w(0), &plain.grad_w[0]);
        close(&layer.grad_w(1), &plain.grad_w[1]);
        close(&layer.read(Room::GradInput, ELEMENTS), &plain.grad_input);
    }
}

#[test]
fn a_seed_in_training_that_fails_is_left_out_and_at_last_unloaded() {
    let mut layer = Layer::new(Blend::Residual, 2, config());
    layer.attach(0, &seed(0), 1.0);
    layer.attach_as(Role::Straight, 1, &live(kernel("nan", &[NAN; WIDTH], [BATCH, WIDTH]), 1), 0.0);
    for n in 1..=3 {
        let report = layer.forward(&noise(1), true).unwrap();
        assert_eq!((report.live_mask, report.alpha_total), (1, 1.0));
        assert_eq!(report.failures[0].error.failure(), FailureKind::NonFinite);
        assert_eq!(report.failures[0].unloaded, n == 3);
        layer.backward(report.ticket, 1, &noise(2)).unwrap();
    }
    assert_eq!(layer.sync.live_seeds(), 1);
}

#[test]
fn an_alpha_of_0_runs_only_where_its_gradient_is_asked_for() {
    let mut layer = Layer::new(Blend::Convex, 2, config());
    layer.attach(0, &seed(0), 0.5);
    layer.attach(1, &seed(1), 0.0);
    let given = [0.0, NAN];
    // Nobody will ask.
    let report = layer.forward_given(&noise(1), false, Some(&given)).unwrap();
    assert_eq!((report.live_mask, report.alpha_total), (0, 0.0));
    layer.write(Room::Alphas, &given);
    let mut request = layer.forward_request(&noise(1), true);
    request.alphas = Some(super::fixture::block(Room::Alphas, 8));
    request.wants.alphas = false;
    let report = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!(report.live_mask, 0);
    // Asked for, in eval mode too; the daemon's own 0 runs in no case.
    request.wants.alphas = true;
    request.train = false;
    let report = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!((report.live_mask, report.blend_weight), (0b01, 0.0));
    assert_eq!(layer.read(Room::Output, ELEMENTS), [0.0; ELEMENTS]);
    layer.sync.release_all(&mut layer.quota);
    assert_eq!(layer.sync.held_bytes(), 0);
}

#[test]
fn alphas_of_a_pass_are_that_passs_alone() {
    let mut layer = Layer::new(Blend::Residual, 2, config());
    layer.attach(0, &seed(0), 0.5);
    let totals: Vec<f32> = [Some(&[1.0, 0.75][..]), None, Some(&[NAN, 1.0])]
        .iter()
        .map(|given| layer.forward_given(&noise(1), false, *given).unwrap().alpha_total)
        .collect();
    assert_eq!(totals, [1.0, 0.5, 0.5], "a seed without a kernel has no use for one");
}

#[test]
fn an_alpha_out_of_range_refuses_its_pass_and_no_more() {
    let mut layer = Layer::new(Blend::Convex, 2, config());
    layer.attach(0, &seed(0), 0.5);
    for bad in [1.5, -0.25, f32::INFINITY, f32::NEG_INFINITY] {
        let error = layer.forward_given(&noise(1), true, Some(&[NAN, bad])).unwrap_err();
        assert_eq!(error, EngineError::GivenAlpha { seed: SeedIndex(1), value: bad });
        assert_eq!(Status::from_code(error.code()), Status::Alpha);
    }
    assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
    for wrong in [&[0.5][..], &[0.5; 3]] {
        let error = layer.forward_given(&noise(1), true, Some(wrong)).unwrap_err();
        assert!(matches!(error, EngineError::Request { .. }), "{error}");
    }
    layer.forward_given(&noise(1), true, Some(&[0.5, 1.0])).unwrap();
}

const WITH_HOST: Kind = Kind { host: true, recompute: false };

#[test]
fn a_layer_without_its_host_is_refused_until_it_has_one() {
    let mut layer = Layer::with_host(WITH_HOST, Blend::Convex, 1, HOST, config());
    let host = layer.sync.detach(SeedIndex(1)).unwrap().unwrap();
    layer.attach(0, &seed(0), 0.5);
    let error = layer.forward(&noise(1), true).unwrap_err();
    assert_eq!(Status::from_code(error.code()), Status::NoHost, "{error}");
    layer.attach(1, &host, 0.0);
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!((report.live_mask, report.blend_weight), (0b11, 0.5));
    // Its ticket outlives it.
    layer.sync.detach(SeedIndex(1)).unwrap();
    layer.backward(report.ticket, 2, &noise(2)).unwrap();
    let runs = [Runs { seed: 0, kernel: 0, role: Role::Blended, alpha: 0.5 }];
    let composition = Composition { blend: Blend::Convex, runs: &runs, host: Some(HOST), seeds: 1 };
    close(&layer.grad_w(1), &composition.at(&noise(1), &noise(2), &noise(2)).grad_w[1]);
}

#[test]
fn a_host_under_a_whole_blend_still_runs() {
    let mut layer = Layer::with_host(WITH_HOST, Blend::Convex, 1, HOST, config());
    let host = seed(HOST);
    layer.attach(1, &host, 0.0);
    layer.attach(0, &seed(0), 1.0);
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!((report.live_mask, report.blend_weight), (0b11, 1.0));
    assert_eq!(passes_counted(&host), 1.0, "its running statistics move on");
    layer.backward(report.ticket, 2, &noise(2)).unwrap();
    assert_eq!(layer.grad_w(1), [0.0; WIDTH]);
}

/// What refuses the pass, and what the layer says of it.
fn refused_by_host(layer: &mut Layer, kind: FailureKind) -> EngineError {
    let error = layer.forward(&noise(1), true).unwrap_err();
    assert!(matches!(error, EngineError::Host { .. }), "{error}");
    assert_eq!((error.failure(), error.code()), (kind, kind.code()));
    assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
    assert_eq!((layer.quota.tickets(), layer.quota.saved_bytes()), (0, 0));
    error
}

#[test]
fn a_host_that_fails_refuses_the_pass_and_stays() {
    for (threads, spread_above) in [(1, u64::MAX), (2, 0)] {
        let config = EngineConfig { threads, spread_above, ..config() };
        let mut layer = Layer::with_host(WITH_HOST, Blend::Convex, 2, HOST, config);
        let good = seed(0);
        layer.attach(0, &good, 0.5);
        // Beside it a seed that fails too: it is not taken out without its trainer's being told.
        layer.attach(1, &live(kernel("nan", &[NAN; WIDTH], [BATCH, WIDTH]), 1), 0.25);
        for (host, kind) in [
            (live(shift_kernel(NAN), 1), FailureKind::NonFinite),
            (live(kernel("flat", &weights_of(1), [WIDTH, BATCH]), 1), FailureKind::Shape),
        ] {
            layer.attach(2, &host, 0.0);
            let before = *layer.counters[2].snapshot().failures.of(kind);
            for _ in 0..5 {
                refused_by_host(&mut layer, kind);
            }
            assert_eq!(*layer.counters[2].snapshot().failures.of(kind), before + 5);
            assert_eq!(layer.sync.live_seeds(), 3);
            assert_eq!(passes_counted(&good), 0.0, "a pass that is refused leaves no trace");
            assert_eq!(layer.counters[2].last_error().unwrap().code, kind.code());
        }
        layer.attach(2, &seed(HOST), 0.0);
        let report = layer.forward(&noise(1), true).unwrap();
        assert_eq!((report.live_mask, report.failures.len()), (0b101, 1));
        let runs = [Runs { seed: 0, kernel: 0, role: Role::Blended, alpha: 0.5 }];
        let composition = Composition { blend: Blend::Convex, runs: &runs, host: Some(HOST), seeds: 2 };
        let plain = composition.at(&noise(1), &noise(2), &noise(2));
        close(&layer.read(Room::Output, ELEMENTS), &plain.output);
        layer.backward(report.ticket, 2, &noise(2)).unwrap();
        close(&layer.read(Room::GradInput, ELEMENTS), &plain.grad_input);
        close(&layer.read(Room::GradAlphas, 2), &plain.grad_alphas);
    }
}

#[cfg(debug_assertions)]
#[test]
fn a_host_that_panics_refuses_the_pass() {
    let panic_in = Some("tanh-9".parse().unwrap());
    let mut layer =
        Layer::with_host(WITH_HOST, Blend::Residual, 1, HOST, EngineConfig { panic_in, ..config() });
    layer.attach(0, &seed(0), 0.5);
    let error = refused_by_host(&mut layer, FailureKind::Runtime);
    assert!(error.to_string().contains("asked to"), "{error}");
}

#[test]
fn a_host_whose_backward_fails_spends_the_ticket() {
    let kind = Kind { host: true, recompute: true };
    let mut layer = Layer::with_host(kind, Blend::Convex, 1, HOST, config());
    let host = seed(HOST);
    layer.attach(1, &host, 0.0);
    layer.attach(0, &seed(0), 0.5);
    let ticket = layer.forward(&noise(1), true).unwrap().ticket;
    set_weights(&host, &[NAN; WIDTH]);
    let error = layer.backward(ticket, 2, &noise(2)).unwrap_err();
    assert_eq!(Status::from_code(error.code()), Status::KernelNonFinite, "{error}");
    assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
    assert_eq!(layer.backward(ticket, 2, &noise(2)).unwrap_err().code(), "ticket.spent");
    let live: Arc<_> = layer.sync.detach(SeedIndex(1)).unwrap().unwrap();
    assert!(Arc::ptr_eq(&live, &host));
    assert_eq!(layer.backward(TicketId(99), 2, &noise(2)).unwrap_err().code(), "ticket.unknown");
}
