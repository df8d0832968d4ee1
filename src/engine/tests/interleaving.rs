//! Whatever order passes, grafts and prunes come in, every backward repeats its own forward.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::{
    fixture::{ELEMENTS, Kind, Layer, Room, alpha, close, config, noise, seed},
    plain::{Composition, Runs},
};
use crate::{
    engine::{EngineConfig, Role},
    id::{SeedIndex, TicketId},
    wire::Blend,
};

const SEEDS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Forward { ticket: bool, train: bool, given: Option<[f32; SEEDS]> },
    Backward { which: usize },
    Release { which: usize },
    Attach { seed: usize, kernel: usize, role: Role, alpha: f32 },
    AttachHost { kernel: usize },
    Detach { seed: usize },
    SetAlpha { seed: usize, alpha: f32 },
    SetRole { seed: usize, role: Role },
}

fn step() -> impl Strategy<Value = Step> {
    let factor = || prop_oneof![Just(0.0f32), Just(0.25), Just(1.0)];
    let role = || prop_oneof![Just(Role::Blended), Just(Role::Straight)];
    let given = || prop::option::of([(); SEEDS].map(|()| prop_oneof![factor(), Just(f32::NAN)]));
    prop_oneof![
        4 => (any::<bool>(), prop::bool::weighted(0.8), given())
            .prop_map(|(ticket, train, given)| Step::Forward { ticket, train, given }),
        3 => any::<usize>().prop_map(|which| Step::Backward { which }),
        1 => any::<usize>().prop_map(|which| Step::Release { which }),
        2 => (0..SEEDS, 0..5usize, role(), factor())
            .prop_map(|(seed, kernel, role, alpha)| Step::Attach { seed, kernel, role, alpha }),
        1 => (0..5usize).prop_map(|kernel| Step::AttachHost { kernel }),
        1 => (0..SEEDS).prop_map(|seed| Step::Detach { seed }),
        1 => (0..SEEDS, factor()).prop_map(|(seed, alpha)| Step::SetAlpha { seed, alpha }),
        1 => (0..SEEDS, role()).prop_map(|(seed, role)| Step::SetRole { seed, role }),
    ]
}

/// By seed: which kernel, what it does and with which factor.
type Grafted = BTreeMap<usize, (usize, Role, f32)>;

/// A forward as the model sees it.
#[derive(Clone, Debug)]
struct Taken {
    ticket: TicketId,
    runs: Vec<Runs>,
    host: Option<usize>,
}

/// Who takes part in a pass, with which factor.
fn runs(grafted: &Grafted, ticket: bool, train: bool, given: Option<[f32; SEEDS]>) -> Vec<Runs> {
    let mut runs = Vec::new();
    for (&seed, &(kernel, role, own)) in grafted {
        let given = given.map_or(f32::NAN, |given| given[seed]);
        let alpha = if given.is_nan() { own } else { given };
        let is_in = match role {
            Role::Straight => train,
            _ => alpha > 0.0 || ticket && !given.is_nan(),
        };
        if is_in {
            runs.push(Runs { seed, kernel, role, alpha });
        }
    }
    runs
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn every_backward_repeats_its_own_forward(
        steps in prop::collection::vec(step(), 1..40),
        blend in prop_oneof![Just(Blend::Convex), Just(Blend::Residual), Just(Blend::Multiply)],
        is_spread in any::<bool>(),
        has_host in any::<bool>(),
        recompute in any::<bool>(),
    ) {
        let config = if is_spread {
            EngineConfig { threads: 2, spread_above: 0, ..config() }
        } else {
            config()
        };
        let mut layer = Layer::with_host(Kind { host: has_host, recompute }, blend, SEEDS, 0, config);
        let mut host = has_host.then_some(0);
        let mut grafted = Grafted::new();
        let mut tickets: Vec<Taken> = Vec::new();
        let plain = |taken: &Taken| {
            let composition = Composition { blend, runs: &taken.runs, host: taken.host, seeds: SEEDS };
            composition.at(&noise(1), &noise(2), &noise(3))
        };
        for step in steps {
            match step {
                Step::Forward { ticket, train, given } => {
                    let mut request = layer.forward_request(&noise(1), ticket);
                    request.train = train;
                    request.alphas = given.map(|alphas| {
                        layer.write(Room::Alphas, &alphas);
                        super::fixture::block(Room::Alphas, 4 * SEEDS)
                    });
                    let report = layer.sync.forward(&request, &layer.arena, &mut layer.quota).unwrap();
                    prop_assert!(report.failures.is_empty());
                    let runs = runs(&grafted, ticket, train, given);
                    let slots = runs.iter().map(|runs| runs.seed).chain(host.map(|_| SEEDS));
                    prop_assert_eq!(report.live_mask, slots.fold(0, |mask, slot| mask | 1 << slot));
                    let taken = Taken { ticket: report.ticket, runs, host };
                    close(&layer.read(Room::Output, ELEMENTS), &plain(&taken).output);
                    prop_assert_eq!(report.ticket.0 != 0, ticket);
                    if ticket {
                        tickets.push(taken);
                    }
                }
                Step::Backward { which } if !tickets.is_empty() => {
                    let taken = tickets.swap_remove(which % tickets.len());
                    let ran = taken.runs.len() + usize::from(taken.host.is_some());
                    layer.backward_with(taken.ticket, ran, &noise(2), Some(&noise(3))).unwrap();
                    let plain = plain(&taken);
                    close(&layer.read(Room::GradInput, ELEMENTS), &plain.grad_input);
                    close(&layer.read(Room::GradAlphas, SEEDS), &plain.grad_alphas);
                    for (place, grad_w) in plain.grad_w.iter().enumerate() {
                        close(&layer.grad_w(place), grad_w);
                    }
                }
                Step::Release { which } if !tickets.is_empty() => {
                    let taken = tickets.swap_remove(which % tickets.len());
                    layer.sync.release(taken.ticket, &mut layer.quota).unwrap();
                }
                Step::Attach { seed: index, kernel, role, alpha } => {
                    layer.attach_as(role, index, &seed(kernel), alpha);
                    grafted.insert(index, (kernel, role, alpha));
                }
                Step::AttachHost { kernel } if has_host => {
                    layer.attach(SEEDS, &seed(kernel), 1.0);
                    host = Some(kernel);
                }
                Step::Detach { seed } => {
                    let was = layer.sync.detach(SeedIndex(seed as u16)).unwrap();
                    prop_assert_eq!(was.is_some(), grafted.remove(&seed).is_some());
                }
                Step::SetAlpha { seed, alpha: value } => {
                    layer.sync.set_alpha(SeedIndex(seed as u16), alpha(value)).unwrap();
                    if let Some(entry) = grafted.get_mut(&seed) {
                        entry.2 = value;
                    }
                }
                Step::SetRole { seed, role } => {
                    layer.sync.set_role(SeedIndex(seed as u16), role).unwrap();
                    if let Some(entry) = grafted.get_mut(&seed) {
                        entry.1 = role;
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
