//! One seed alone at an alpha of 1 that nobody wants the gradient of: what it gives is the layer's output.

use super::fixture::{
    BATCH, ELEMENTS, Kind, Layer, Room, WIDTH, close, config, expected, kernel, live, moody, noise, seed,
    set_weights, weights_of,
};
use crate::{
    backend::test_device::device,
    engine::{BackwardReport, ForwardReport, LiveSeed},
    wire::{Blend, FailureKind, Wants},
};
use std::sync::Arc;

const KINDS: [Kind; 2] = [Kind { host: false, recompute: false }, Kind { host: false, recompute: true }];

fn layer(kind: Kind, blend: Blend, live: &Arc<LiveSeed>) -> Layer {
    let mut layer = Layer::of(kind, device(1), blend, 1, config());
    layer.attach(0, live, 1.0);
    layer
}

/// A forward whose backward will want the gradient of alpha, or not: where it is wanted the outputs are blended.
fn forward(layer: &mut Layer, alphas: bool) -> ForwardReport {
    let mut request = layer.forward_request(&noise(1), true);
    request.wants = Wants { alphas, ..request.wants };
    layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap()
}

fn backward(layer: &mut Layer, report: &ForwardReport, alphas: bool) -> BackwardReport {
    let mut request = layer.backward_request(report.ticket, 1, &noise(2), None);
    request.grad_alphas = request.grad_alphas.filter(|_| alphas);
    layer.sync.backward(&request, &layer.arena, &mut layer.quota).unwrap()
}

/// y and the gradients of x and w.
fn all(layer: &Layer) -> Vec<f32> {
    [layer.read(Room::Output, ELEMENTS), layer.read(Room::GradInput, ELEMENTS), layer.grad_w(0)].concat()
}

#[test]
fn it_gives_what_the_blend_would() {
    for kind in KINDS {
        for blend in [Blend::Convex, Blend::Residual] {
            for make in [seed, moody] {
                let [blended, whole] = [true, false].map(|alphas| {
                    let mut layer = layer(kind, blend, &make(0));
                    let report = forward(&mut layer, alphas);
                    backward(&mut layer, &report, alphas);
                    assert_eq!(layer.sync.held_bytes(), 0);
                    (all(&layer), report.saved_bytes)
                });
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(&blended.0), bits(&whole.0), "{blend}");
                // On a device a pass may come late, so that nothing of it is the trainer's memory.
                let is_written = !device(1).is_asynchronous();
                assert_eq!(whole.1 < blended.1, is_written && !kind.recompute, "{blend}");
            }
            let mut layer = layer(kind, blend, &seed(0));
            let report = forward(&mut layer, false);
            backward(&mut layer, &report, false);
            let e = expected(blend, &[(weights_of(0), 1.0)], &noise(1), &noise(2));
            close(&all(&layer), &[e.output, e.grad_input, e.grad_w[0].clone()].concat());
        }
    }
}

#[test]
fn where_it_fails_the_output_is_that_of_no_seeds() {
    let bad = live(kernel("nan", &[f32::NAN; WIDTH], [BATCH, WIDTH]), 1);
    for kind in KINDS {
        let mut layer = layer(kind, Blend::Convex, &bad);
        let report = forward(&mut layer, false);
        assert_eq!((report.live_mask, report.blend_weight), (0, 0.0));
        assert_eq!(report.failures[0].error.failure(), FailureKind::NonFinite);
        assert_eq!(layer.read(Room::Output, ELEMENTS), [0.0; ELEMENTS]);
        let mut request = layer.backward_request(report.ticket, 0, &noise(2), None);
        request.grad_alphas = None;
        layer.sync.backward(&request, &layer.arena, &mut layer.quota).unwrap();
        assert_eq!(layer.read(Room::GradInput, ELEMENTS), [0.0; ELEMENTS]);
        assert_eq!(layer.sync.held_bytes(), 0);
    }
}

#[test]
fn run_again_in_vain_it_gives_zeros() {
    let live = seed(0);
    let mut layer = layer(KINDS[1], Blend::Residual, &live);
    let report = forward(&mut layer, false);
    set_weights(&live, &[f32::NAN; WIDTH]);
    let failures = backward(&mut layer, &report, false).failures;
    assert_eq!(failures[0].error.failure(), FailureKind::NonFinite);
    assert_eq!(layer.read(Room::GradInput, ELEMENTS), [0.0; ELEMENTS]);
    assert_eq!(layer.grad_w(0), [0.0; WIDTH]);
    assert_eq!(layer.sync.held_bytes(), 0);
}
