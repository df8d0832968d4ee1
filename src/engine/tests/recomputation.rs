//! Layers whose backward runs the forward again: the same bits, and next to nothing held.

use super::fixture::{
    ELEMENTS, Kind, Layer, Room, WIDTH, close, config, expected, moody, noise, passes_counted, seed,
    set_weights, weights_of,
};
use crate::{
    engine::{EngineConfig, Quota, Role},
    wire::{Blend, FailureKind},
};

const HOST: usize = 9;

fn kind(host: bool, recompute: bool) -> Kind {
    Kind { host, recompute }
}

/// Two blended seeds, one in training and perhaps a host, all with dropout and a buffer that the output depends on.
fn moody_layer(blend: Blend, host: bool, recompute: bool, config: EngineConfig) -> Layer {
    let mut layer = Layer::with_host(kind(host, recompute), blend, 3, HOST, config);
    for (n, role) in [Role::Blended, Role::Straight, Role::Blended].into_iter().enumerate() {
        layer.attach_as(role, n, &moody(n), 0.75);
    }
    if host {
        layer.attach(3, &moody(HOST), 0.0);
    }
    layer
}

/// Everything that three passes give whose backwards come in another order than their forwards.
fn crossed(layer: &mut Layer, ran: usize) -> Vec<u32> {
    let mut all = Vec::new();
    let mut tickets = Vec::new();
    for rng_seed in [3, 4, 3] {
        let mut request = layer.forward_request(&noise(1), true);
        request.rng_seed = rng_seed;
        tickets.push(layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap().ticket);
        all.extend(layer.read(Room::Output, ELEMENTS));
    }
    for n in [1, 2, 0] {
        layer.backward(tickets[n], ran, &noise(n)).unwrap();
        all.extend(layer.read(Room::GradInput, ELEMENTS));
        (0..ran).for_each(|place| all.extend(layer.grad_w(place)));
        all.extend(layer.read(Room::GradAlphas, 3));
    }
    all.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn gradients_are_those_of_a_ticket_that_kept_everything() {
    for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
        for host in [false, true] {
            for (threads, spread_above) in [(1, u64::MAX), (2, 0)] {
                let config = EngineConfig { threads, spread_above, ..config() };
                let mut kept = moody_layer(blend, host, false, config.clone());
                let mut again = moody_layer(blend, host, true, config);
                let ran = 3 + usize::from(host);
                let bits = crossed(&mut kept, ran);
                assert_eq!(bits, crossed(&mut again, ran), "{blend} {host} {threads}");
                assert!(bits.contains(&0), "the masks have taken something away");
                // The second of them found what the first had left, and so did both layers.
                assert_eq!(crossed(&mut kept, ran), crossed(&mut again, ran));
                assert_eq!(again.sync.held_bytes(), 0);
            }
        }
    }
}

#[test]
fn buffers_move_on_once_for_each_pass() {
    let mut layer = Layer::with_host(kind(true, true), Blend::Convex, 1, HOST, config());
    let (blended, host) = (moody(0), moody(HOST));
    layer.attach(0, &blended, 0.5);
    layer.attach(1, &host, 0.0);
    for pass in 1..=3 {
        let ticket = layer.forward(&noise(1), true).unwrap().ticket;
        layer.backward(ticket, 2, &noise(2)).unwrap();
        assert_eq!((passes_counted(&blended), passes_counted(&host)), (pass as f32, pass as f32));
    }
}

#[test]
fn a_ticket_holds_the_buffers_that_its_pass_has_moved_on_and_nothing_else() {
    let mut layer = Layer::with_host(kind(true, true), Blend::Multiply, 2, HOST, config());
    layer.attach(0, &seed(0), 0.5);
    layer.attach_as(Role::Straight, 1, &seed(1), 0.0);
    // Three blocks of one buffer, a cache line each.
    layer.quota = Quota::new(100, 3 * 64);
    let report = layer.forward(&noise(1), true).unwrap();
    assert_eq!((report.saved_bytes, layer.sync.held_bytes()), (3 * 64, 3 * 64));
    assert!(layer.forward(&noise(1), true).unwrap_err().to_string().contains("saved bytes"));
    assert_eq!(layer.sync.held_bytes(), 3 * 64);
    // In eval mode nothing moves on.
    let mut request = layer.forward_request(&noise(1), true);
    request.train = false;
    let eval = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
    assert_eq!(eval.saved_bytes, 0);
    layer.backward(eval.ticket, 2, &noise(2)).unwrap();
    layer.backward(report.ticket, 3, &noise(2)).unwrap();
    assert_eq!((layer.sync.held_bytes(), layer.quota.saved_bytes()), (0, 0));
    layer.forward(&noise(1), false).unwrap();
    assert_eq!(layer.sync.held_bytes(), 0);
}

#[test]
fn what_changed_in_between_is_what_the_gradients_are_of() {
    let mut layer = Layer::with_host(kind(false, true), Blend::Residual, 1, HOST, config());
    let live = seed(0);
    layer.attach(0, &live, 0.5);
    let ticket = layer.forward(&noise(1), true).unwrap().ticket;
    set_weights(&live, &weights_of(4));
    layer.backward(ticket, 1, &noise(2)).unwrap();
    let e = expected(Blend::Residual, &[(weights_of(4), 0.5)], &noise(1), &noise(2));
    close(&layer.grad_w(0), &e.grad_w[0]);
    close(&layer.read(Room::GradInput, ELEMENTS), &e.grad_input);
}

#[test]
fn a_seed_that_fails_the_second_time_gives_zeros_and_the_others_go_on_without_it() {
    for blend in [Blend::Convex, Blend::Residual, Blend::Multiply] {
        for (threads, spread_above) in [(1, u64::MAX), (2, 0)] {
            let config = EngineConfig { threads, spread_above, ..config() };
            let mut layer = Layer::with_host(kind(false, true), blend, 2, HOST, config);
            let (bad, good) = (seed(0), seed(1));
            layer.attach(0, &bad, 0.25);
            layer.attach(1, &good, 0.5);
            let ticket = layer.forward(&noise(1), true).unwrap().ticket;
            set_weights(&bad, &[f32::NAN; WIDTH]);
            let report = layer.backward(ticket, 2, &noise(2)).unwrap();
            assert_eq!((report.live_mask, report.failures.len()), (0b11, 1));
            assert_eq!(report.failures[0].error.failure(), FailureKind::NonFinite);
            let e = expected(blend, &[(weights_of(1), 0.5)], &noise(1), &noise(2));
            assert_eq!(layer.grad_w(0), [0.0; WIDTH]);
            close(&layer.grad_w(1), &e.grad_w[0]);
            close(&layer.read(Room::GradInput, ELEMENTS), &e.grad_input);
            close(&layer.read(Room::GradAlphas, 2), &[0.0, e.grad_alphas[0]]);
            assert_eq!(layer.sync.held_bytes(), 0);
        }
    }
}
