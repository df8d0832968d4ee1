//! The session and the model, side by side.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use proptest::{prelude::*, test_runner::TestCaseError};

use super::{
    arithmetic::{Part, Sum},
    field::{Field, Kind, SEEDS, TICKETS},
    kernels::{ELEMENTS, NAMES, ROOT, WIDE, WIDTH},
    model::{Graft, Live, Refusal, Slot, Told},
};
use crate::{
    actor::{ActorError, DescribeSeed, GraftSeed, seed::SeedDescription},
    fault::Fault as _,
    id::SeedIndex,
    wire::{Completion, FailureKind, Status},
};

pub(super) type Checked = Result<(), TestCaseError>;

/// How long a seed may take to be where it should be. It is there at once; whoever waits has found a fault.
const PATIENCE: Duration = Duration::from_secs(30);
/// Past every wait before a kernel comes back.
// So long that no wait ends while a test runs: a seed that is in one where it should not be stays there to be seen.
const REST: Duration = Duration::from_secs(4000);

/// A forward whose backward is due.
#[derive(Clone, Debug)]
struct Taken {
    ticket: u64,
    place: usize,
    sum: Sum,
    /// The grafts that ran, the host's last.
    grafts: Vec<(usize, Live)>,
}

/// What a forward is asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked {
    pub(super) train: bool,
    pub(super) ticket: bool,
    /// Whether some of x is negative, which one of the kernels cannot have.
    pub(super) negative: bool,
    pub(super) given: Option<[f32; SEEDS]>,
}

pub(super) struct Run {
    kind: Kind,
    field: Field,
    slots: Vec<Slot>,
    host: Option<Live>,
    taken: Vec<Taken>,
    spent: Vec<u64>,
    /// Grafts and passes so far, of all sessions.
    number: u64,
    now: Duration,
}

impl Run {
    pub(super) async fn new(kind: Kind) -> Self {
        Self::connect(kind, 0).await
    }

    async fn connect(kind: Kind, number: u64) -> Self {
        let field = Field::open(kind).await;
        let mut run = Self {
            kind,
            field,
            slots: vec![Slot::dormant(); SEEDS],
            host: None,
            taken: Vec::new(),
            spent: Vec::new(),
            number,
            now: Duration::ZERO,
        };
        if kind.host {
            run.graft_host(0).await.unwrap();
        }
        run
    }

    /// The trainer dies with all that it has outstanding, and another connects.
    pub(super) async fn reconnect(self) -> Self {
        let Self { kind, field, number, .. } = self;
        field.disconnect().await;
        Self::connect(kind, number).await
    }

    /// Takes everything back and looks that nothing is held; then the trainer goes.
    pub(super) async fn end(mut self) -> Checked {
        while !self.taken.is_empty() {
            self.release(0)?;
        }
        for seed in 0..SEEDS {
            self.prune(seed, Duration::ZERO).await?;
        }
        self.check().await?;
        let held = self.field.ledger.held();
        let host = self.host.map_or(0, |live| self.field.bytes_of(live.kernel));
        prop_assert_eq!(held.bytes, host, "bytes are held by nobody");
        self.field.disconnect().await;
        Ok(())
    }

    fn number(&mut self) -> u64 {
        self.number += 1;
        self.number
    }

    pub(super) async fn graft(&mut self, seed: usize, graft: Graft, waits: bool) -> Checked {
        let (number, now, asked) = (self.number(), self.now, asked(&graft));
        if waits {
            let predicted = self.slots[seed].graft(graft, number, now);
            return agree(predicted, self.field.seeds[seed].send(asked).await.unwrap());
        }
        let predicted = self.slots[seed].begin_graft(graft, number, now);
        agree(predicted, self.field.seeds[seed].send(crate::actor::BeginGraft(asked)).await.unwrap())?;
        // Until it is ready; the order of what comes then is the test's.
        let give_up = Instant::now() + PATIENCE;
        while self.described(seed).await.loading.is_some_and(|loading| loading.stage == "loading") {
            prop_assert!(Instant::now() < give_up, "a graft is never ready");
            tokio::task::yield_now().await;
        }
        Ok(())
    }

    pub(super) async fn finish(&mut self, seed: usize) -> Checked {
        let predicted = self.slots[seed].finish_graft(self.now);
        let finished = self.field.seeds[seed].send(crate::actor::FinishGraft).await.unwrap();
        prop_assert!(!matches!(finished, Ok(None)), "it was ready");
        agree(predicted, finished)
    }

    pub(super) async fn graft_host(&mut self, kernel: usize) -> Checked {
        if !self.kind.host {
            return Ok(());
        }
        let graft = Graft { kernel, alpha: 0.0, behind: false, schedule: None };
        agree(Ok(()), self.field.seeds[SEEDS].send(asked(&graft)).await.unwrap())?;
        self.host = Some(Live::new(kernel, self.number()));
        Ok(())
    }

    pub(super) async fn set_alpha(&mut self, seed: usize, alpha: f32) -> Checked {
        let predicted = self.slots[seed].set_alpha(alpha);
        agree(predicted, self.field.seeds[seed].send(crate::actor::SetSeedAlpha(alpha)).await.unwrap())
    }

    pub(super) async fn blend(&mut self, seed: usize, blend: crate::actor::BlendSeed) -> Checked {
        let predicted = self.slots[seed].blend(blend.schedule, blend.alpha);
        agree(predicted, self.field.seeds[seed].send(blend).await.unwrap())
    }

    pub(super) async fn hold(&mut self, seed: usize) -> Checked {
        let predicted = self.slots[seed].hold();
        agree(predicted, self.field.seeds[seed].send(crate::actor::HoldSeed).await.unwrap())
    }

    pub(super) async fn fossilize(&mut self, seed: usize, freeze: bool) -> Checked {
        let predicted = self.slots[seed].fossilize(freeze);
        agree(predicted, self.field.seeds[seed].send(crate::actor::FossilizeSeed { freeze }).await.unwrap())
    }

    pub(super) async fn prune(&mut self, seed: usize, embargo: Duration) -> Checked {
        self.slots[seed].prune(embargo, self.now);
        let prune = crate::actor::PruneSeed { embargo: Some(embargo) };
        agree(Ok(()), self.field.seeds[seed].send(prune).await.unwrap())
    }

    /// Lets time pass.
    pub(super) async fn rest(&mut self) {
        tokio::time::pause();
        self.field.clock.advance(REST);
        tokio::time::advance(REST).await;
        tokio::time::resume();
        self.now += REST;
        self.slots.iter_mut().for_each(Slot::rested);
    }

    pub(super) fn forward(&mut self, asked: Asked) -> Checked {
        let Asked { train, ticket, negative, given } = asked;
        let place = (0..=TICKETS).find(|place| self.taken.iter().all(|taken| taken.place != *place));
        let x = input(self.number(), negative);
        let (completion, output) = self.field.forward(place.unwrap_or(0), &x, (train, ticket), given);
        let refused = match (self.host, given) {
            (_, Some(given)) if given.iter().any(|alpha| *alpha > 1.0) => Some(Status::Alpha),
            _ if ticket && self.taken.len() == TICKETS => Some(Status::Quota),
            (Some(Live { kernel: ROOT, .. }), _) if negative => Some(Status::KernelNonFinite),
            _ => None,
        };
        prop_assert_eq!(status(&completion), refused.unwrap_or(Status::Ok), "{}", completion.message());
        if refused.is_some() {
            return Ok(());
        }
        let (parts, failed) = self.parts(asked);
        let slots = parts.iter().map(|part| part.seed).chain(self.host.map(|_| SEEDS));
        prop_assert_eq!(completion.live_mask, slots.fold(0, |mask, slot| mask | 1 << slot));
        let kinds: Vec<_> = failed.iter().map(|&(seed, kind)| (SeedIndex(seed as u16), kind)).collect();
        prop_assert_eq!(completion.failed_seeds().collect::<Vec<_>>(), kinds);
        let total: f32 = parts.iter().filter(|part| !part.behind).map(|part| part.alpha).sum();
        close(&[completion.alpha_total], &[f64::from(total)], "the sum of the factors")?;
        prop_assert_eq!(completion.ticket != 0, ticket);
        let sum = Sum { blend: self.kind.blend, parts, host: self.host.map(|live| live.kernel), x };
        close(&output, &sum.output(), "the output")?;

        for part in sum.parts.iter().filter(|_| !ticket) {
            self.slots[part.seed].succeeded();
        }
        for (seed, _) in failed {
            self.slots[seed].failed();
        }
        if ticket {
            let graft = |part: &Part| (part.seed, self.slots[part.seed].live.expect("it has run"));
            let grafts = sum.parts.iter().map(graft).chain(self.host.map(|live| (SEEDS, live)));
            let grafts = grafts.collect();
            let place = place.expect("there are fewer tickets than places");
            self.taken.push(Taken { ticket: completion.ticket, place, sum, grafts });
        }
        if train {
            let own = |seed: &usize| given.is_none_or(|given| given[*seed].is_nan());
            (0..SEEDS).filter(own).for_each(|seed| self.slots[seed].stepped());
        }
        Ok(())
    }

    /// Who takes part in a pass and goes well, and who fails in it.
    fn parts(&self, asked: Asked) -> (Vec<Part>, Vec<(usize, FailureKind)>) {
        let (mut parts, mut failed) = (Vec::new(), Vec::new());
        for (seed, slot) in self.slots.iter().enumerate() {
            let Some(live) = slot.live else { continue };
            let given = asked.given.map(|given| given[seed]).filter(|alpha| !alpha.is_nan());
            let alpha = given.unwrap_or(slot.alpha());
            let takes_part = match slot.behind {
                true => asked.train,
                // One of 0 that was given runs for its gradient alone.
                false => alpha != 0.0 || given.is_some() && asked.ticket,
            };
            match live.kernel {
                _ if !takes_part => {}
                ROOT if asked.negative => failed.push((seed, FailureKind::NonFinite)),
                WIDE => failed.push((seed, FailureKind::Shape)),
                kernel => parts.push(Part { seed, kernel, alpha, behind: slot.behind }),
            }
        }
        (parts, failed)
    }

    pub(super) fn backward(&mut self, which: usize) -> Checked {
        if self.taken.is_empty() {
            return Ok(());
        }
        let Taken { ticket, sum, grafts, .. } = self.taken.remove(which % self.taken.len());
        let (g, straight) = (numbers(self.number(), 1.0), numbers(self.number(), 1.0));
        let gradients = self.field.backward(ticket, grafts.len(), &g, &straight);
        prop_assert_eq!(status(&gradients.completion), Status::Ok, "{}", gradients.completion.message());
        prop_assert_eq!(gradients.completion.failed_mask, 0);
        let slots = grafts.iter().map(|(slot, _)| slot);
        prop_assert_eq!(gradients.completion.live_mask, slots.fold(0, |mask, slot| mask | 1 << slot));
        let plain = sum.gradients(&g, &straight);
        close(&gradients.of_x, &plain.of_x, "the gradient of x")?;
        for (ours, plain) in gradients.of_weights.iter().zip(&plain.of_weights) {
            close(ours, plain, "a gradient of weights")?;
        }
        if let Some(of_alphas) = &plain.of_alphas {
            let mut by_seed = [0.0; SEEDS];
            sum.parts.iter().zip(of_alphas).for_each(|(part, gradient)| by_seed[part.seed] = *gradient);
            close(&gradients.of_alphas, &by_seed, "the gradients of the factors")?;
        }
        self.ended_well(grafts);
        self.spent.push(ticket);
        Ok(())
    }

    /// Nothing of a ticket can fail any more. What has another kernel by now knows nothing of it.
    fn ended_well(&mut self, grafts: Vec<(usize, Live)>) {
        for (slot, live) in grafts.into_iter().filter(|(slot, _)| *slot < SEEDS) {
            if self.slots[slot].live == Some(live) {
                self.slots[slot].succeeded();
            }
        }
    }

    /// A second backward.
    pub(super) fn again(&mut self, which: usize) -> Checked {
        let Some(&ticket) = self.spent.get(which % self.spent.len().max(1)) else {
            let unknown = self.field.backward(1 << 40, 0, &[0.0; ELEMENTS], &[0.0; ELEMENTS]).completion;
            prop_assert_eq!(status(&unknown), Status::TicketUnknown);
            return Ok(());
        };
        let spent = self.field.backward(ticket, 0, &[0.0; ELEMENTS], &[0.0; ELEMENTS]).completion;
        prop_assert_eq!(status(&spent), Status::TicketSpent);
        prop_assert_eq!(status(&self.field.release(ticket)), Status::TicketSpent);
        Ok(())
    }

    pub(super) fn release(&mut self, which: usize) -> Checked {
        if self.taken.is_empty() {
            return Ok(());
        }
        let Taken { ticket, grafts, .. } = self.taken.remove(which % self.taken.len());
        prop_assert_eq!(status(&self.field.release(ticket)), Status::Ok);
        self.ended_well(grafts);
        self.spent.push(ticket);
        Ok(())
    }

    async fn described(&self, seed: usize) -> SeedDescription {
        self.field.seeds[seed].send(DescribeSeed).await.unwrap()
    }

    /// Every seed stands where the model has it, and nobody holds what nobody needs.
    pub(super) async fn check(&self) -> Checked {
        let grafts = self.slots.iter().flat_map(Slot::held).chain(self.host.map(|live| live.graft));
        let by_tickets = self.taken.iter().flat_map(|taken| taken.grafts.iter().map(|(_, live)| live.graft));
        let grafts: BTreeSet<u64> = grafts.chain(by_tickets).collect();
        let expected: Vec<Told> = self.slots.iter().map(Slot::told).collect();
        let give_up = Instant::now() + PATIENCE;
        loop {
            let mut told = Vec::new();
            for seed in 0..SEEDS {
                told.push(told_by(&self.described(seed).await));
            }
            let held = self.field.ledger.held();
            let is_alike = told.iter().zip(&expected).all(|(told, expected)| is_alike(told, expected));
            if is_alike && held.seeds == grafts.len() as u64 && held.tickets == self.taken.len() as u64 {
                break;
            }
            if Instant::now() > give_up {
                prop_assert_eq!(&told, &expected);
                prop_assert_eq!((held.seeds, held.tickets), (grafts.len() as u64, self.taken.len() as u64));
            }
            tokio::task::yield_now().await;
        }
        prop_assert_eq!(self.field.link.gauges().tickets(), self.taken.len() as u64);
        prop_assert!(!self.taken.is_empty() || self.field.link.gauges().saved_bytes() == 0);
        Ok(())
    }
}

fn asked(graft: &Graft) -> GraftSeed {
    Field::graft_of(graft.kernel, graft.alpha, graft.behind, graft.schedule)
}

/// What was predicted has happened, and a refusal says what it should.
fn agree<T>(predicted: Result<(), Refusal>, happened: Result<T, ActorError>) -> Checked {
    match (predicted, happened.map(drop)) {
        (Ok(()), Ok(())) => {}
        (Err(Refusal::Code(code)), Err(error)) => prop_assert_eq!(code, error.code(), "{}", error),
        (Err(Refusal::Step(from, to)), Err(error)) => {
            prop_assert_eq!(error.code(), "seed.transition");
            prop_assert_eq!(error.to_string(), format!("a seed cannot go from {from} to {to}"));
        }
        (predicted, happened) => {
            prop_assert!(false, "{happened:?} where {predicted:?} was predicted");
        }
    }
    Ok(())
}

fn status(completion: &Completion) -> Status {
    Status::from_number(completion.status).unwrap()
}

fn told_by(described: &SeedDescription) -> Told {
    let number = |kernel: &crate::id::KernelId| NAMES.iter().position(|name| *name == kernel.as_str());
    let seed = &described.seed;
    Told {
        state: seed.state,
        kernel: seed.kernel.as_ref().and_then(number),
        alpha: seed.alpha,
        steps_left: seed.steps_left,
        frozen: seed.frozen,
        loading: described.loading.as_ref().and_then(|loading| number(&loading.kernel)),
        coming: described.recovery.as_ref().and_then(|recovery| number(&recovery.kernel)),
    }
}

fn is_alike(told: &Told, expected: &Told) -> bool {
    (told.alpha - expected.alpha).abs() < 1e-6 && Told { alpha: expected.alpha, ..told.clone() } == *expected
}

/// Numbers in ±scale that differ from pass to pass.
fn numbers(salt: u64, scale: f32) -> Vec<f32> {
    (0..ELEMENTS).map(|i| ((salt * 31 + i as u64 * 7) as f32 * 0.37).sin() * scale).collect()
}

fn input(salt: u64, negative: bool) -> Vec<f32> {
    let mut x: Vec<f32> = numbers(salt, 0.75).into_iter().map(|x| x + 1.0).collect();
    if negative {
        x[WIDTH] = -x[WIDTH];
    }
    x
}

fn close(ours: &[f32], plain: &[f64], what: &str) -> Checked {
    prop_assert_eq!(ours.len(), plain.len());
    let is_near = |(a, e): (&f32, &f64)| (f64::from(*a) - e).abs() < 2e-5 * (1.0 + e.abs());
    prop_assert!(ours.iter().zip(plain).all(is_near), "{}: {:?}, expected {:?}", what, ours, plain);
    Ok(())
}
