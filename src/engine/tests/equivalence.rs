//! A layer against its formulas.

use super::fixture::{
    ELEMENTS, Layer, Room, WIDTH, close, config, expected, noise, passes_counted, seed, weights_of,
};
use crate::{backend::test_device::device, engine::EngineConfig, id::SeedIndex, wire::Blend};

const BLENDS: [Blend; 3] = [Blend::Convex, Blend::Residual, Blend::Multiply];

fn layer_of(blend: Blend, alphas: &[f32], config: EngineConfig) -> Layer {
    let mut layer = Layer::new(blend, alphas.len(), config);
    for (n, alpha) in alphas.iter().enumerate() {
        layer.attach(n, &seed(n), *alpha);
    }
    layer
}

/// Output and all gradients of one pass there and back.
fn there_and_back(layer: &mut Layer, ran: usize) -> Vec<f32> {
    let report = layer.forward(&noise(1), true).unwrap();
    assert!(report.failures.is_empty(), "{:?}", report.failures);
    let output = layer.read(Room::Output, ELEMENTS);
    let back = layer.backward(report.ticket, ran, &noise(2)).unwrap();
    assert!(back.failures.is_empty());
    assert_eq!(back.live_mask, report.live_mask);
    let mut all = output;
    all.extend(layer.read(Room::GradInput, ELEMENTS));
    (0..ran).for_each(|place| all.extend(layer.grad_w(place)));
    all.extend(layer.read(Room::GradAlphas, layer.counters.len()));
    all
}

#[test]
fn outputs_and_gradients_follow_the_formulas() {
    for blend in BLENDS {
        for alphas in [&[1.0][..], &[0.25], &[0.25, 0.5], &[0.75, 0.5, 1.0]] {
            let mut layer = layer_of(blend, alphas, config());
            let seeds: Vec<_> = alphas.iter().enumerate().map(|(n, a)| (weights_of(n), *a)).collect();
            let e = expected(blend, &seeds, &noise(1), &noise(2));
            // Twice: what is reused from the first pass must not show in the second.
            for _ in 0..2 {
                let all = there_and_back(&mut layer, alphas.len());
                let mut want = [e.output.clone(), e.grad_input.clone()].concat();
                e.grad_w.iter().for_each(|w| want.extend(w));
                want.extend(&e.grad_alphas);
                close(&all, &want);
            }
            assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
            assert_eq!((layer.quota.tickets(), layer.quota.saved_bytes()), (0, 0));
        }
    }
}

#[test]
fn seeds_on_threads_of_their_own_give_the_same_bits() {
    for blend in BLENDS {
        let alphas = [0.75, 0.5, 1.0, 0.1];
        let mut alone = layer_of(blend, &alphas, config());
        let spread = EngineConfig { threads: 2, spread_above: 0, ..config() };
        let mut spread = layer_of(blend, &alphas, spread);
        for _ in 0..20 {
            let (a, b) = (there_and_back(&mut alone, 4), there_and_back(&mut spread, 4));
            assert!(a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()), "{blend}");
        }
        let stats = |layer: &Layer, n: usize| {
            let s = layer.counters[n].snapshot();
            (s.asynchronous_passes, s.synchronous_passes)
        };
        // Where the device goes on by itself nothing runs on the caller's thread.
        let here = if device(1).is_asynchronous() { (20, 0) } else { (0, 20) };
        let counted: Vec<_> = (0..4).map(|n| stats(&spread, n)).collect();
        assert_eq!(counted, [(20, 0), (20, 0), (20, 0), here]);
        assert_eq!(stats(&alone, 0), here);
    }
}

#[test]
fn seeds_without_weight_do_not_run() {
    let mut layer = layer_of(Blend::Convex, &[0.0, 0.5], config());
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!((report.live_mask, report.blend_weight, report.alpha_total), (2, 0.5, 0.5));
    assert_eq!(layer.counters[0].snapshot().executions, 0);
    layer.sync.set_alpha(SeedIndex(1), super::fixture::alpha(0.0)).unwrap();
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!((report.live_mask, report.blend_weight), (0, 0.0));
    assert_eq!(layer.read(Room::Output, ELEMENTS), [0.0; ELEMENTS]);
    layer.backward(report.ticket, 0, &noise(2)).unwrap();
    assert_eq!(layer.read(Room::GradInput, ELEMENTS), [0.0; ELEMENTS]);
    assert_eq!(layer.read(Room::GradAlphas, 2), [0.0; 2]);

    let mut product = Layer::new(Blend::Multiply, 2, config());
    product.forward(&noise(1), false).unwrap();
    assert_eq!(product.read(Room::Output, ELEMENTS), [1.0; ELEMENTS]);
}

#[test]
fn a_batch_of_another_size_gets_a_plan_of_its_own() {
    let mut layer = layer_of(Blend::Residual, &[1.0], config());
    let mut request = layer.forward_request(&noise(1), false);
    request.input_shape = [1, WIDTH].into();
    request.output_shape = [1, WIDTH].into();
    request.input.bytes = 4 * WIDTH as u64;
    request.output.bytes = 4 * WIDTH as u64;
    // This kernel was made for one shape: its output no longer fits and it fails, it alone.
    let report = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!(report.failures.len(), 1);
    assert_eq!(report.live_mask, 0);
    let report = layer.forward(&noise(1), false).unwrap();
    assert_eq!(report.live_mask, 1);
}

#[test]
fn buffers_are_updated_once_for_each_pass_that_went_well() {
    let mut layer = Layer::new(Blend::Convex, 1, config());
    let live = seed(0);
    layer.attach(0, &live, 0.5);
    for pass in 1..=3 {
        let report = layer.forward(&noise(1), true).unwrap();
        layer.backward(report.ticket, 1, &noise(2)).unwrap();
        assert_eq!(passes_counted(&live), pass as f32);
    }
    let mut request = layer.forward_request(&noise(1), false);
    request.train = false;
    layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!(passes_counted(&live), 3.0);
}

#[test]
fn a_kernel_grafted_between_two_passes_serves_the_second_alone() {
    let mut layer = Layer::new(Blend::Residual, 1, config());
    layer.attach(0, &seed(0), 1.0);
    let before = layer.forward(&noise(1), true).unwrap();
    layer.attach(0, &seed(1), 0.5);
    let after = layer.forward(&noise(1), true).unwrap();
    assert!(after.generation > before.generation);
    for (ticket, n, alpha) in [(after.ticket, 1, 0.5), (before.ticket, 0, 1.0)] {
        layer.backward(ticket, 1, &noise(2)).unwrap();
        let e = expected(Blend::Residual, &[(weights_of(n), alpha)], &noise(1), &noise(2));
        close(&layer.grad_w(0), &e.grad_w[0]);
        close(&layer.read(Room::GradInput, ELEMENTS), &e.grad_input);
    }
    layer.sync.detach(SeedIndex(0)).unwrap();
    assert_eq!(layer.sync.held_bytes(), 0);
}
