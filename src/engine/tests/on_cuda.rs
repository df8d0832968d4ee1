//! Layers on a device that goes on by itself: the CUDA backend, whose kernels run as programs of the host here. The other
//! tests of the engine run on it too where `KASMINA_TEST_DEVICE` says `cuda`.

use std::{sync::Arc, time::Duration};

use super::{
    fixture::{ELEMENTS, Kind, Layer, Room, config, noise, passes_counted, seed_on, set_weights, weights_of},
    kernels::live_on,
};
use crate::{
    backend::{
        Backend, RunError,
        cpu::CpuBackend,
        cuda::{
            CudaBackend, CudaOptions,
            testing::{OPTIONS, backend_on, held_backend, recorded_backend, settled_bytes, stream_of},
        },
    },
    engine::{Alpha, EngineConfig, EngineError, LiveSeed, Role},
    fault::Fault as _,
    id::SeedIndex,
    wire::{Blend, FailureKind},
};

const BLENDS: [Blend; 3] = [Blend::Convex, Blend::Residual, Blend::Multiply];
/// Long enough for a pass on a busy machine, planning and all, and short enough to wait for in vain.
const LIMIT: Duration = Duration::from_secs(1);
const ALPHAS: [f32; 3] = [0.75, 0.5, 0.25];

/// A layer of three seeds, one of them in training.
fn layer_on(backend: &Arc<dyn Backend>, kind: Kind, blend: Blend) -> (Layer, Vec<Arc<LiveSeed>>) {
    let mut layer = Layer::of(kind, backend.clone(), blend, ALPHAS.len(), config());
    let mut lives: Vec<_> = (0..ALPHAS.len()).map(|n| seed_on(&**backend, n)).collect();
    for (n, alpha) in ALPHAS.into_iter().enumerate() {
        let role = if n == 1 { Role::Straight } else { Role::Blended };
        layer.attach_as(role, n, &lives[n], alpha);
    }
    if kind.host {
        lives.push(seed_on(&**backend, 7));
        layer.attach(ALPHAS.len(), &lives[ALPHAS.len()], 0.0);
    }
    (layer, lives)
}

/// All that three passes give, with an optimizer's step before the last of them.
fn train(layer: &mut Layer, lives: &[Arc<LiveSeed>]) -> Vec<f32> {
    let mut all = Vec::new();
    for pass in 0..3 {
        if pass == 2 {
            lives.iter().enumerate().for_each(|(n, live)| set_weights(live, &weights_of(n + 20)));
        }
        let report = layer.forward(&noise(pass), true).unwrap();
        assert!(report.failures.is_empty(), "{:?}", report.failures);
        all.extend(layer.read(Room::Output, ELEMENTS));
        let back = layer.backward(report.ticket, lives.len(), &noise(pass + 9)).unwrap();
        assert!(back.failures.is_empty(), "{:?}", back.failures);
        all.extend(layer.read(Room::GradInput, ELEMENTS));
        (0..lives.len()).for_each(|place| all.extend(layer.grad_w(place)));
        all.extend(layer.read(Room::GradAlphas, ALPHAS.len()));
    }
    all.extend(lives.iter().map(|live| passes_counted(live)));
    all
}

#[test]
fn a_layer_gives_what_it_gives_on_the_cpu_and_every_use_of_memory_comes_after_its_writer() {
    for blend in BLENDS {
        for host in [false, true] {
            for recompute in [false, true] {
                let kind = Kind { host, recompute };
                let cpu: Arc<dyn Backend> = Arc::new(CpuBackend::new(1));
                let (mut there, lives) = layer_on(&cpu, kind, blend);
                let truth = train(&mut there, &lives);
                let (backend, recorder) = recorded_backend();
                let backend: Arc<dyn Backend> = backend;
                let (mut here, lives) = layer_on(&backend, kind, blend);
                let ours = train(&mut here, &lives);
                assert_eq!(ours.len(), truth.len());
                for (n, (a, b)) in ours.iter().zip(&truth).enumerate() {
                    assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{blend} {kind:?} {n}: {a} and {b}");
                }
                drop((here, lives));
                assert_eq!(recorder.judge(), [""; 0], "{blend} {kind:?}");
            }
        }
    }
}

#[test]
fn a_layer_that_is_closed_leaves_nothing_on_the_device() {
    let (backend, driver) = held_backend();
    // Once before: words for notes stay with the streams.
    let run = || layer_on(&(backend.clone() as _), Kind { host: true, recompute: true }, Blend::Convex);
    let (mut layer, lives) = run();
    train(&mut layer, &lives);
    drop((layer, lives));
    settled_bytes(&backend);
    let of_the_backend = (driver.allocated(), driver.locked());
    let (mut layer, lives) = run();
    train(&mut layer, &lives);
    let outstanding = layer.forward(&noise(1), true).unwrap();
    assert_ne!(outstanding.ticket.0, 0);
    assert!(driver.allocated() > of_the_backend.0 && driver.locked() > of_the_backend.1);
    drop((layer, lives));
    assert_eq!(settled_bytes(&backend), 0);
    assert_eq!((driver.allocated(), driver.locked()), of_the_backend);
}

#[test]
fn a_seed_whose_stream_does_not_come_to_its_end_is_left_out_alone() {
    let (backend, driver) = held_backend();
    let config = EngineConfig { time_limit: LIMIT, error_threshold: 100, ..config() };
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer = Layer::on(shared.clone(), Blend::Residual, 2, config);
    // Which stream the second seed's queue is on: the streams are taken in turn, so the next ones are known by asking.
    let first = stream_of(&backend, &mut *backend.open_queue(false));
    let lives = [seed_on(&*shared, 0), seed_on(&*shared, 1)];
    layer.attach(0, &lives[0], 1.0);
    layer.attach(1, &lives[1], 1.0);
    let whole = layer.forward(&noise(1), true).unwrap();
    assert_eq!((whole.live_mask, whole.failures.len()), (0b11, 0));

    driver.hold(first);
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!(report.failures.len(), 1, "{:?}", report.failures);
    let failed = report.failures[0].seed;
    assert_eq!(report.failures[0].error.failure(), FailureKind::Timeout);
    assert_eq!(report.live_mask, 0b11 & !(1 << failed.0));
    let again = layer.forward(&noise(1), false).unwrap();
    assert!(again.failures[0].error.to_string().contains("earlier pass"), "{}", again.failures[0].error);
    let held = layer.sync.held_bytes();

    driver.let_go(first);
    let back = layer.forward(&noise(1), false).unwrap();
    assert_eq!((back.live_mask, back.failures.len()), (0b11, 0));
    assert!(layer.sync.held_bytes() < held, "the late run's memory has come back");
    // What it did late counted for nothing.
    let counted = lives.map(|live| passes_counted(&live));
    assert_eq!((counted[usize::from(failed.0)], counted[1 - usize::from(failed.0)]), (2.0, 4.0));
}

#[test]
fn a_seed_taken_out_while_its_stream_is_busy_keeps_nobody_waiting() {
    let (backend, driver) = held_backend();
    let config = EngineConfig { time_limit: LIMIT, ..config() };
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer = Layer::on(shared.clone(), Blend::Residual, 1, config);
    let stream = stream_of(&backend, &mut *backend.open_queue(false));
    layer.attach(0, &seed_on(&*shared, 0), 1.0);
    driver.hold(stream);
    assert_eq!(layer.forward(&noise(1), false).unwrap().failures.len(), 1);
    let before = backend.held_bytes();
    // Nobody waits for it: what it uses is kept until it is done.
    layer.sync.detach(SeedIndex(0)).unwrap();
    assert_eq!(layer.sync.held_bytes(), 0);
    driver.let_go(stream);
    layer.forward(&noise(1), false).unwrap();
    let after = settled_bytes(&backend);
    assert!(after < before, "{after} of {before} bytes");
    drop(layer);
    assert_eq!(settled_bytes(&backend), 0);
}

#[test]
fn a_host_whose_stream_is_late_refuses_its_pass_and_stays() {
    let (backend, driver) = held_backend();
    let config = EngineConfig { time_limit: LIMIT, error_threshold: 1, ..config() };
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer =
        Layer::of(Kind { host: true, recompute: false }, shared.clone(), Blend::Residual, 1, config);
    let stream = stream_of(&backend, &mut *backend.open_queue(false));
    layer.attach(1, &seed_on(&*shared, 7), 0.0);
    let whole = layer.forward(&noise(1), true).unwrap();
    driver.hold(stream);
    let refused = layer.backward(whole.ticket, 1, &noise(2)).unwrap_err();
    assert_eq!((refused.code(), layer.sync.live_seeds()), ("kernel.timeout", 1), "{refused}");
    let refused = layer.forward(&noise(1), true).unwrap_err();
    assert!(matches!(&refused, EngineError::Host { .. }), "{refused}");
    driver.let_go(stream);
    let whole = layer.forward(&noise(1), true).unwrap();
    assert_eq!((whole.live_mask, layer.sync.live_seeds()), (0b10, 1));
    layer.backward(whole.ticket, 1, &noise(2)).unwrap();
}

#[test]
fn a_ticket_of_a_kernel_that_has_left_its_place_waits_no_longer_than_others() {
    let (backend, driver) = held_backend();
    let config = EngineConfig { time_limit: LIMIT, error_threshold: 100, ..config() };
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer = Layer::on(shared.clone(), Blend::Residual, 1, config);
    layer.attach(0, &seed_on(&*shared, 0), 1.0);
    let before = layer.forward(&noise(1), true).unwrap();
    layer.attach(0, &seed_on(&*shared, 1), 1.0);
    // Every stream that its backward may be on.
    let mut queues: Vec<_> = (0..32).map(|_| backend.open_queue(false)).collect();
    let streams: Vec<_> = queues.iter_mut().map(|queue| stream_of(&backend, &mut **queue)).collect();
    drop(queues);
    streams.iter().for_each(|stream| driver.hold(*stream));
    let late = layer.backward(before.ticket, 1, &noise(2)).unwrap();
    assert_eq!(late.failures[0].error.failure(), FailureKind::Timeout);
    streams.iter().for_each(|stream| driver.let_go(*stream));
    let now = layer.forward(&noise(1), true).unwrap();
    assert!(now.failures.is_empty(), "{:?}", now.failures);
    layer.backward(now.ticket, 1, &noise(2)).unwrap();
    assert_eq!(layer.sync.held_bytes(), 0);
}

#[test]
fn a_seed_that_the_device_has_no_room_for_is_left_out_and_says_so() {
    let driver = Arc::new(crate::backend::cuda::testing::driver());
    let room = CudaOptions { memory_bytes: 1 << 20, ..OPTIONS };
    let backend: Arc<CudaBackend> = backend_on(&driver, room);
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer =
        Layer::on(shared.clone(), Blend::Residual, 1, EngineConfig { error_threshold: 2, ..config() });
    layer.attach(0, &seed_on(&*shared, 0), 1.0);
    // Room for the plans, that of the blend of nothing among them, and for nothing else.
    layer.forward(&noise(1), false).unwrap();
    layer.sync.set_alpha(SeedIndex(0), Alpha::ZERO).unwrap();
    layer.forward(&noise(1), true).unwrap();
    layer.sync.set_alpha(SeedIndex(0), Alpha::new(1.0).unwrap()).unwrap();
    let taken = backend.allocate(backend.budget_bytes() - settled_bytes(&backend));
    assert!(taken.lack().is_none());
    let report = layer.forward(&noise(1), true).unwrap();
    let [failure] = &report.failures[..] else { panic!("{:?}", report.failures) };
    let EngineError::Run { source: RunError::OutOfMemory { needed_bytes, .. }, .. } = &failure.error else {
        panic!("{}", failure.error)
    };
    assert!(*needed_bytes > 0);
    assert!(failure.error.to_string().contains("raise device.memory"), "{}", failure.error);
    drop(taken);
    let report = layer.forward(&noise(1), true).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    // The device's lack is not the kernel's fault, however often.
    let taken = backend.allocate(backend.budget_bytes() - settled_bytes(&backend));
    for _ in 0..4 {
        let report = layer.forward(&noise(1), true).unwrap();
        assert!(report.failures.iter().all(|failure| !failure.unloaded), "{:?}", report.failures);
    }
    drop(taken);
}

#[test]
fn a_device_that_fails_fails_its_seeds_and_never_the_process() {
    let (backend, driver) = held_backend();
    let shared: Arc<dyn Backend> = backend.clone();
    let mut layer = Layer::on(shared.clone(), Blend::Residual, 2, config());
    layer.attach(0, &seed_on(&*shared, 0), 1.0);
    layer.attach(1, &live_on(&*shared, super::kernels::shift_kernel(1.0), 3), 1.0);
    layer.forward(&noise(1), false).unwrap();
    driver.fail_next("work");
    // What is wrong with the device is wrong with all that it is asked from then on.
    for _ in 0..3 {
        let refused = layer.forward(&noise(1), false).unwrap_err();
        assert!(refused.to_string().contains("cuda:0 failed: work failed"), "{refused}");
    }
}
