//! Seeds that multiply matrices or convolve, on a device that has libraries for it.

use std::sync::Arc;

use super::{
    fixture::{ELEMENTS, Layer, Room, config, noise, set_weights, weights_of},
    kernels::{convolving_on, mixing_on},
};
use crate::{
    backend::{
        Backend,
        cpu::CpuBackend,
        cuda::testing::{captures_and_replays, recorded_backend},
    },
    engine::LiveSeed,
    wire::Blend,
};

const SEEDS: usize = 2;
/// Passes until all that is replayed was captured.
const SETTLING: usize = 24;

/// What passes give, with an optimizer's step before each.
fn train(layer: &mut Layer, lives: &[Arc<LiveSeed>], passes: usize, ahead: usize) -> Vec<f32> {
    let mut all = Vec::new();
    for pass in 0..passes {
        lives.iter().enumerate().for_each(|(n, live)| set_weights(live, &weights_of(n + pass)));
        let mut tickets = Vec::new();
        for _ in 0..ahead {
            let report = layer.forward(&noise(pass), true).unwrap();
            assert!(report.failures.is_empty(), "{:?}", report.failures);
            all.extend(layer.read(Room::Output, ELEMENTS));
            tickets.push(report.ticket);
        }
        for ticket in tickets {
            let back = layer.backward(ticket, SEEDS, &noise(pass + 9)).unwrap();
            assert!(back.failures.is_empty(), "{:?}", back.failures);
            all.extend(layer.read(Room::GradInput, ELEMENTS));
            (0..SEEDS).for_each(|place| all.extend(layer.grad_w(place)));
        }
    }
    all
}

#[test]
fn passes_with_products_give_what_they_give_on_the_cpu_and_are_replayed_before_long() {
    agree_and_are_replayed(mixing_on);
}

#[test]
fn passes_with_convolutions_give_what_they_give_on_the_cpu_and_are_replayed_before_long() {
    agree_and_are_replayed(convolving_on);
}

fn agree_and_are_replayed(seed_on: fn(&dyn Backend, usize) -> Arc<LiveSeed>) {
    for ahead in [1, 2] {
        let cpu: Arc<dyn Backend> = Arc::new(CpuBackend::new(1));
        let (backend, recorder) = recorded_backend();
        let cuda: Arc<dyn Backend> = backend;
        let [(mut there, theirs), (mut here, ours)] = [&cpu, &cuda].map(|backend| {
            let mut layer = Layer::on(Arc::clone(backend), Blend::Convex, SEEDS, config());
            let lives: Vec<_> = (0..SEEDS).map(|n| seed_on(&**backend, n)).collect();
            lives.iter().enumerate().for_each(|(n, live)| layer.attach(n, live, 0.4));
            (layer, lives)
        });
        let truth = train(&mut there, &theirs, SETTLING, ahead);
        let results = train(&mut here, &ours, SETTLING, ahead);
        for (n, (a, b)) in results.iter().zip(&truth).enumerate() {
            assert!((a - b).abs() <= 1e-5 * (1.0 + b.abs()), "{n}: {a} and {b}");
        }
        assert_eq!(recorder.judge(), [""; 0]);
        captures_and_replays(&recorder);
        train(&mut here, &ours, SETTLING, ahead);
        let (captures, replays) = captures_and_replays(&recorder);
        // Of each seed a forward and a backward, and the layer's own backward; its blend is one launch.
        assert_eq!((captures, replays), (0, SETTLING * ahead * (2 * SEEDS + 1)), "{ahead} forwards ahead");
    }
}
