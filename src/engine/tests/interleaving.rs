//! Whatever order passes, grafts and prunes come in, every backward repeats its own forward.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::fixture::{ELEMENTS, Layer, Room, alpha, close, config, expected, noise, seed, weights_of};
use crate::{
    engine::EngineConfig,
    id::{SeedIndex, TicketId},
    wire::Blend,
};

const SEEDS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Forward { ticket: bool },
    Backward { which: usize },
    Release { which: usize },
    Attach { seed: usize, kernel: usize, alpha: f32 },
    Detach { seed: usize },
    SetAlpha { seed: usize, alpha: f32 },
}

fn step() -> impl Strategy<Value = Step> {
    let factor = || prop_oneof![Just(0.0f32), Just(0.25), Just(1.0)];
    prop_oneof![
        4 => any::<bool>().prop_map(|ticket| Step::Forward { ticket }),
        3 => any::<usize>().prop_map(|which| Step::Backward { which }),
        1 => any::<usize>().prop_map(|which| Step::Release { which }),
        2 => (0..SEEDS, 0..5usize, factor()).prop_map(|(seed, kernel, alpha)| Step::Attach { seed, kernel, alpha }),
        1 => (0..SEEDS).prop_map(|seed| Step::Detach { seed }),
        1 => (0..SEEDS, factor()).prop_map(|(seed, alpha)| Step::SetAlpha { seed, alpha }),
    ]
}

/// By seed: which kernel and with which factor.
type Grafted = BTreeMap<usize, (usize, f32)>;

fn running(grafted: &Grafted) -> Vec<(Vec<f32>, f32)> {
    grafted.values().filter(|(_, a)| *a > 0.0).map(|(kernel, a)| (weights_of(*kernel), *a)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn every_backward_repeats_its_own_forward(
        steps in prop::collection::vec(step(), 1..40),
        blend in prop_oneof![Just(Blend::Convex), Just(Blend::Residual), Just(Blend::Multiply)],
        is_spread in any::<bool>(),
    ) {
        let config = if is_spread {
            EngineConfig { threads: 2, spread_above: 0, ..config() }
        } else {
            config()
        };
        let mut layer = Layer::new(blend, SEEDS, config);
        let mut grafted = Grafted::new();
        let mut tickets: Vec<(TicketId, Grafted)> = Vec::new();
        for step in steps {
            match step {
                Step::Forward { ticket } => {
                    let report = layer.forward(&noise(1), ticket).unwrap();
                    prop_assert!(report.failures.is_empty());
                    let e = expected(blend, &running(&grafted), &noise(1), &noise(2));
                    close(&layer.read(Room::Output, ELEMENTS), &e.output);
                    prop_assert_eq!(report.ticket.0 != 0, ticket);
                    if ticket {
                        tickets.push((report.ticket, grafted.clone()));
                    }
                }
                Step::Backward { which } if !tickets.is_empty() => {
                    let (ticket, then) = tickets.swap_remove(which % tickets.len());
                    let ran = running(&then);
                    layer.backward(ticket, ran.len(), &noise(2)).unwrap();
                    let e = expected(blend, &ran, &noise(1), &noise(2));
                    close(&layer.read(Room::GradInput, ELEMENTS), &e.grad_input);
                    for (place, grad_w) in e.grad_w.iter().enumerate() {
                        close(&layer.grad_w(place), grad_w);
                    }
                }
                Step::Release { which } if !tickets.is_empty() => {
                    let (ticket, _) = tickets.swap_remove(which % tickets.len());
                    layer.sync.release(ticket, &mut layer.quota).unwrap();
                }
                Step::Attach { seed: index, kernel, alpha } => {
                    layer.attach(index, &seed(kernel), alpha);
                    grafted.insert(index, (kernel, alpha));
                }
                Step::Detach { seed } => {
                    let was = layer.sync.detach(SeedIndex(seed as u16)).unwrap();
                    prop_assert_eq!(was.is_some(), grafted.remove(&seed).is_some());
                }
                Step::SetAlpha { seed, alpha: value } => {
                    layer.sync.set_alpha(SeedIndex(seed as u16), alpha(value)).unwrap();
                    if let Some(entry) = grafted.get_mut(&seed) {
                        entry.1 = value;
                    }
                }
                _ => {}
            }
            prop_assert_eq!(layer.sync.tickets(), tickets.len());
            prop_assert_eq!(layer.quota.tickets(), tickets.len());
        }
        layer.sync.release_all(&mut layer.quota);
        prop_assert_eq!((layer.sync.held_bytes(), layer.quota.saved_bytes()), (0, 0));
    }
}
