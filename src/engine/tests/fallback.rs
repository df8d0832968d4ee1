//! A seed that fails costs the pass nothing but itself.

use std::{sync::Arc, time::Duration};

use crossbeam_channel::{Receiver, Sender, unbounded};

use super::fixture::{
    BATCH, ELEMENTS, Kind, Layer, Room, WIDTH, close, config, expected, kernel, live, moody, noise,
    passes_counted, seed, seed_on, set_weights, shift_kernel, weights_of,
};
use crate::{
    backend::{
        Backend, Bindings, BuildError, CompileOptions, Executable, MemoryNeeds, Queue, RunContext, RunError,
        cpu::CpuBackend,
    },
    engine::{EngineConfig, LiveSeed},
    graph::{Graph, Source},
    wire::{Blend, FailureKind},
};

/// A layer of a good seed beside a bad one: passes must be those of the good seed alone.
fn good_seed_alone(layer: &mut Layer, kind: FailureKind) {
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!(report.live_mask, 1);
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    assert_eq!(report.failures[0].error.failure(), kind, "{}", report.failures[0].error);
    assert_eq!(report.blend_weight, 0.5);
    let e = expected(Blend::Convex, &[(weights_of(0), 0.5)], &noise(1), &noise(2));
    close(&layer.read(Room::Output, ELEMENTS), &e.output);
    layer.backward(report.ticket, 1, &noise(2)).unwrap();
    close(&layer.read(Room::GradInput, ELEMENTS), &e.grad_input);
    close(&layer.grad_w(0), &e.grad_w[0]);
    close(&layer.read(Room::GradAlphas, 2), &[e.grad_alphas[0], 0.0]);
    let mut failures = layer.counters[1].snapshot().failures;
    assert!(*failures.of(kind) >= 1);
    assert_eq!(layer.sync.held_bytes(), 0);
}

fn beside(bad: &Arc<LiveSeed>, config: EngineConfig) -> Layer {
    let mut layer = Layer::new(Blend::Convex, 2, config);
    layer.attach(0, &seed(0), 0.5);
    layer.attach(1, bad, 0.25);
    layer
}

#[test]
fn a_kernel_of_another_shape_is_left_out() {
    let bad = live(kernel("flat", &weights_of(1), [WIDTH, BATCH]), 1);
    good_seed_alone(&mut beside(&bad, config()), FailureKind::Shape);
}

#[test]
fn a_kernel_that_gives_nan_is_left_out_and_its_buffers_stay() {
    let bad = live(kernel("nan", &[f32::NAN; WIDTH], [BATCH, WIDTH]), 1);
    good_seed_alone(&mut beside(&bad, config()), FailureKind::NonFinite);
    assert_eq!(passes_counted(&bad), 0.0);
    // With the guard off nobody looks.
    let mut layer = beside(&bad, EngineConfig { non_finite_guard: false, ..config() });
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!(report.live_mask, 3);
}

#[test]
fn an_output_whose_sum_overflows_is_finite_all_the_same() {
    let mut layer = Layer::new(Blend::Residual, 1, config());
    layer.attach(0, &live(shift_kernel(3e38), 0), 1.0);
    let report = layer.forward(&noise(1), false).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    layer.attach(0, &live(shift_kernel(f32::INFINITY), 0), 1.0);
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!(report.failures[0].error.failure(), FailureKind::NonFinite);
}

#[cfg(debug_assertions)]
#[test]
fn a_kernel_that_panics_is_left_out_on_either_thread() {
    for (threads, spread_above) in [(1, u64::MAX), (2, 0)] {
        let panic_in = Some("tanh-1".parse().unwrap());
        let config = EngineConfig { panic_in, threads, spread_above, ..config() };
        let mut layer = Layer::new(Blend::Convex, 2, config);
        layer.attach(0, &seed(0), 0.5);
        layer.attach(1, &seed(1), 0.25);
        good_seed_alone(&mut layer, FailureKind::Runtime);
        good_seed_alone(&mut layer, FailureKind::Runtime);
        let error = layer.counters[1].last_error().unwrap();
        assert_eq!(error.code, "kernel.runtime");
        assert!(error.message.contains("asked to"), "{}", error.message);
    }
}

#[test]
fn a_pass_without_time_fails_every_seed_and_succeeds() {
    let mut layer = beside(&seed(1), EngineConfig { time_limit: Duration::ZERO, ..config() });
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!(report.live_mask, 0);
    assert!(report.failures.iter().all(|f| f.error.failure() == FailureKind::Timeout));
    assert_eq!(layer.read(Room::Output, ELEMENTS), [0.0; ELEMENTS]);
    layer.backward(report.ticket, 0, &noise(2)).unwrap();
    assert_eq!(layer.read(Room::GradInput, ELEMENTS), [0.0; ELEMENTS]);
}

#[test]
fn tickets_of_a_kernel_that_was_swapped_neither_end_nor_lengthen_the_row_of_the_next() {
    for old_fails in [false, true] {
        // Run again, the old one reads what its trainer has made of its parameters.
        let kind = Kind { recompute: true, ..Kind::default() };
        let mut layer = Layer::with_host(kind, Blend::Residual, 1, 0, config());
        let old = seed(1);
        layer.attach(0, &old, 1.0);
        let tickets = [(); 2].map(|()| layer.forward(&noise(1), true).unwrap().ticket);
        if old_fails {
            set_weights(&old, &[f32::NAN; WIDTH]);
        }
        layer.attach(0, &live(kernel("nan", &[f32::NAN; WIDTH], [BATCH, WIDTH]), 2), 1.0);
        let fails = |layer: &mut Layer| layer.forward(&noise(1), false).unwrap().failures[0].unloaded;
        for ticket in tickets {
            assert!(!fails(&mut layer));
            let back = layer.backward(ticket, 1, &noise(2)).unwrap();
            assert_eq!(
                back.failures.iter().map(|failure| failure.unloaded).collect::<Vec<_>>(),
                vec![false; usize::from(old_fails)]
            );
        }
        assert!(fails(&mut layer), "the third in a row");
        assert_eq!(layer.counters[0].snapshot().failures.non_finite, if old_fails { 5 } else { 3 });
    }
}

#[test]
fn after_too_many_failures_in_a_row_the_kernel_is_unloaded() {
    let bad = live(kernel("nan", &[f32::NAN; WIDTH], [BATCH, WIDTH]), 1);
    let mut layer = beside(&bad, config());
    let unloaded: Vec<Option<bool>> = (0..4)
        .map(|_| layer.forward(&noise(1), false).unwrap().failures.first().map(|f| f.unloaded))
        .collect();
    assert_eq!(unloaded, [Some(false), Some(false), Some(true), None]);
    assert_eq!(layer.sync.live_seeds(), 1);
    assert_eq!(layer.counters[1].snapshot().failures.non_finite, 3);
    // Another kernel in its place starts with a clean row.
    layer.attach(1, &bad, 0.25);
    assert!(!layer.forward(&noise(1), false).unwrap().failures[0].unloaded);
}

/// Runs like the CPU, but waits for a permit before each run that reads parameters.
#[derive(Debug)]
struct Gated {
    cpu: CpuBackend,
    permits: Receiver<()>,
}

#[derive(Debug)]
struct GatedRun {
    inner: Arc<dyn Executable>,
    permits: Option<Receiver<()>>,
}

impl Backend for Gated {
    fn name(&self) -> &str {
        "gated"
    }

    fn compile(
        &self,
        graph: &Graph,
        options: &CompileOptions<'_>,
    ) -> Result<Arc<dyn Executable>, BuildError> {
        let inner = self.cpu.compile(graph, options)?;
        let is_slow =
            graph.source(Source::Parameter(0)).is_some() && graph.source(Source::Input(0)).is_some();
        Ok(Arc::new(GatedRun { inner, permits: is_slow.then(|| self.permits.clone()) }))
    }
}

impl Executable for GatedRun {
    fn needs(&self) -> &MemoryNeeds {
        self.inner.needs()
    }

    fn held_bytes(&self) -> usize {
        self.inner.held_bytes()
    }

    fn run(
        &self,
        queue: &mut dyn Queue,
        bindings: &Bindings<'_>,
        context: &RunContext,
    ) -> Result<(), RunError> {
        if let Some(permits) = &self.permits {
            // The thread that holds the request comes through; a seed's own thread waits.
            if std::thread::current().name().is_some_and(|name| name.starts_with("seed ")) {
                let _ = permits.recv();
            }
        }
        self.inner.run(queue, bindings, context)
    }
}

fn gated() -> (Sender<()>, Layer) {
    let (sender, permits) = unbounded();
    let config = EngineConfig {
        threads: 2,
        spread_above: 0,
        time_limit: Duration::from_millis(1),
        error_threshold: 100,
        ..config()
    };
    let backend = Arc::new(Gated { cpu: CpuBackend::new(1), permits });
    let mut layer = Layer::on(backend, Blend::Residual, 2, config);
    (0..2).for_each(|n| layer.attach(n, &seed_on(&CpuBackend::new(1), n), 1.0));
    (sender, layer)
}

#[test]
fn a_seed_that_does_not_come_back_is_left_out_until_it_does() {
    let (permit, mut layer) = gated();
    // The first seed hangs on its thread; whether the second makes it within the limit is the machine's.
    let report = layer.forward(&noise(1), false).unwrap();
    assert!(report.failures.iter().any(|f| f.seed.0 == 0 && f.error.failure() == FailureKind::Timeout));
    let held = layer.sync.held_bytes();
    assert!(held > 0, "the late run keeps its memory");
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!(report.failures[0].error.failure(), FailureKind::Timeout);
    assert!(report.failures[0].error.to_string().contains("earlier pass"), "{}", report.failures[0].error);
    permit.send(()).unwrap();
    // It comes back, late, and is taken in again: its memory is free and it is asked once more.
    let waits = |layer: &mut Layer| {
        let report = layer.forward(&noise(1), false).unwrap();
        report.failures.first().is_some_and(|failure| failure.error.to_string().contains("earlier pass"))
    };
    while waits(&mut layer) {
        std::thread::yield_now();
    }
    drop(permit);
}

#[test]
fn a_seed_taken_out_while_it_hangs_leaves_nothing_behind() {
    let (permit, mut layer) = gated();
    layer.forward(&noise(1), false).unwrap();
    assert!(layer.sync.held_bytes() > 0);
    layer.sync.detach(crate::id::SeedIndex(0)).unwrap();
    assert_eq!(layer.sync.held_bytes(), 0);
    drop(layer);
    drop(permit);
}

#[test]
fn a_row_of_failures_is_the_present_kernels_own() {
    let mut layer = Layer::new(Blend::Residual, 1, EngineConfig { error_threshold: 2, ..config() });
    let bad = || live(kernel("nan", &[f32::NAN; WIDTH], [BATCH, WIDTH]), 1);
    layer.attach(0, &bad(), 0.5);
    // What is not finite when it comes in is not the kernel's fault, however often.
    for _ in 0..5 {
        let report = layer.forward(&[f32::INFINITY; ELEMENTS], false).unwrap();
        assert_eq!((report.failures.len(), report.failures[0].unloaded), (1, false));
    }
    assert!(!layer.forward(&noise(1), false).unwrap().failures[0].unloaded);
    // Another kernel begins a row of its own.
    layer.attach(0, &bad(), 0.5);
    assert!(!layer.forward(&noise(1), false).unwrap().failures[0].unloaded);
    assert!(layer.forward(&noise(1), false).unwrap().failures[0].unloaded);
}

#[test]
fn seeds_of_a_layer_have_dropout_masks_of_their_own() {
    let masks = [0, 1, 2].map(|slot| {
        let mut layer = Layer::new(Blend::Residual, 3, config());
        layer.attach(slot, &moody(0), 1.0);
        layer.forward(&noise(1), true).unwrap();
        layer.read(Room::Output, ELEMENTS)
    });
    assert!(masks.iter().all(|mask| mask.contains(&0.0)), "half of them are dropped");
    assert!(masks[0] != masks[1] && masks[1] != masks[2] && masks[0] != masks[2]);
}
