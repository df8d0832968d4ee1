//! Tickets: any order, once, and no more than may be held.

use super::fixture::{ELEMENTS, Layer, Room, WIDTH, block, close, config, expected, noise, seed, weights_of};
use crate::{
    engine::{EngineConfig, EngineError, Quota},
    fault::Fault as _,
    id::TicketId,
    wire::{Blend, Wants},
};

fn layer() -> Layer {
    let mut layer = Layer::new(Blend::Convex, 2, config());
    layer.attach(0, &seed(0), 0.5);
    layer.attach(1, &seed(1), 0.25);
    layer
}

#[test]
fn sixty_four_tickets_come_back_in_any_order() {
    let mut layer = layer();
    let mut tickets: Vec<TicketId> =
        (0..64).map(|_| layer.forward(&noise(1), true).unwrap().ticket).collect();
    assert_eq!(layer.sync.tickets(), 64);
    assert!(layer.quota.saved_bytes() > 0);
    let seeds = [(weights_of(0), 0.5), (weights_of(1), 0.25)];
    for turn in 0..64 {
        let ticket = tickets.swap_remove(turn * 37 % tickets.len());
        let g = noise(turn);
        layer.backward(ticket, 2, &g).unwrap();
        let e = expected(Blend::Convex, &seeds, &noise(1), &g);
        close(&layer.grad_w(0), &e.grad_w[0]);
        close(&layer.grad_w(1), &e.grad_w[1]);
    }
    assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));
    assert_eq!((layer.quota.tickets(), layer.quota.saved_bytes()), (0, 0));
}

#[test]
fn a_ticket_serves_once() {
    let mut layer = layer();
    let (a, b) = (layer.forward(&noise(1), true).unwrap(), layer.forward(&noise(1), true).unwrap());
    layer.backward(a.ticket, 2, &noise(2)).unwrap();
    layer.sync.release(b.ticket, &mut layer.quota).unwrap();
    for ticket in [a.ticket, b.ticket] {
        let error = layer.backward(ticket, 2, &noise(2)).unwrap_err();
        assert_eq!(error.code(), "ticket.spent");
        assert!(layer.sync.release(ticket, &mut layer.quota).is_err());
    }
    for ticket in [0, 3, u64::MAX] {
        assert_eq!(layer.backward(TicketId(ticket), 2, &noise(2)).unwrap_err().code(), "ticket.unknown");
    }
}

#[test]
fn quotas_refuse_what_is_too_much_and_leave_nothing_behind() {
    let mut layer = layer();
    layer.quota = Quota::new(2, 1 << 20);
    layer.forward(&noise(1), true).unwrap();
    layer.forward(&noise(1), true).unwrap();
    let held = layer.sync.held_bytes();
    let error = layer.forward(&noise(1), true).unwrap_err();
    assert_eq!(error.code(), "session.quota");
    layer.forward(&noise(1), false).unwrap();
    assert_eq!(layer.sync.held_bytes(), held);

    layer.sync.release_all(&mut layer.quota);
    layer.quota = Quota::new(100, 64);
    assert!(matches!(layer.forward(&noise(1), true), Err(EngineError::Spent(_))));
    assert_eq!((layer.sync.tickets(), layer.sync.held_bytes()), (0, 0));

    let mut narrow = Layer::new(Blend::Convex, 1, EngineConfig { max_tickets_per_layer: 1, ..config() });
    narrow.forward(&noise(1), true).unwrap();
    assert_eq!(narrow.forward(&noise(1), true).unwrap_err().code(), "session.quota");
}

#[test]
fn a_request_that_does_not_fit_leaves_the_ticket() {
    let mut layer = layer();
    let mut request = layer.forward_request(&noise(1), true);
    request.wants = Wants { input: false, parameters: true, alphas: false };
    let ticket = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap().ticket;
    let whole = crate::wire::Backward {
        places: None,
        sequence: 0,
        layer: crate::id::LayerId(1),
        ticket,
        grad_output: block(Room::GradOutput, 4 * ELEMENTS),
        grad_input: None,
        grad_parameters: Some(block(Room::GradParameters, 128)),
        grad_alphas: None,
        straight: None,
    };
    let with = |change: &dyn Fn(&mut crate::wire::Backward)| {
        let mut request = whole.clone();
        change(&mut request);
        request
    };
    for wrong in [
        with(&|r| r.grad_input = Some(block(Room::GradInput, 4 * ELEMENTS))),
        with(&|r| r.grad_alphas = Some(block(Room::GradAlphas, 8))),
        with(&|r| r.grad_output.bytes = 4),
        with(&|r| r.grad_parameters = Some(block(Room::GradParameters, 64))),
    ] {
        let error = layer.sync.backward(&wrong, &layer.arena, &mut layer.quota).unwrap_err();
        assert!(matches!(error, EngineError::Request { .. }), "{error}");
    }
    layer.write(Room::GradOutput, &noise(2));
    layer.sync.backward(&whole, &layer.arena, &mut layer.quota).unwrap();
    let e = expected(Blend::Convex, &[(weights_of(0), 0.5), (weights_of(1), 0.25)], &noise(1), &noise(2));
    close(&layer.grad_w(1), &e.grad_w[1]);
    assert_eq!(layer.sync.held_bytes(), 0);

    let mut lie = layer.forward_request(&noise(1), false);
    lie.output.bytes = 4 * WIDTH as u64;
    assert!(layer.sync.forward(&lie, &layer.arena, &mut layer.quota).is_err());
}
