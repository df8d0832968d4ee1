//! What a seed's requests and passes come to, as `docs/lifecycle.md` has it: a table and some counting.

use std::time::Duration;

use super::{
    field::{ATTEMPTS, THRESHOLD},
    kernels::ABSENT,
};
use crate::wire::{ScheduleKind, ScheduleSpec, SeedState};

use SeedState::{Blending, Dormant, ErrorRecovery, Fossilized, Holding, Loading, Training};

/// Why something is refused: the stable code, and of a step that there is not both states.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Refusal {
    Code(&'static str),
    Step(SeedState, SeedState),
}

use Refusal::{Code, Step};

type Answer = Result<(), Refusal>;

/// A kernel in memory of its own: one graft of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Live {
    pub(super) kernel: usize,
    /// No two grafts have the same.
    pub(super) graft: u64,
    /// How often it has come back. What ran before knows nothing of how it does since.
    returns: u32,
}

impl Live {
    pub(super) fn new(kernel: usize, graft: u64) -> Self {
        Self { kernel, graft, returns: 0 }
    }
}

/// A graft as it was asked for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Graft {
    pub(super) kernel: usize,
    pub(super) alpha: f32,
    pub(super) behind: bool,
    pub(super) schedule: Option<ScheduleSpec>,
}

impl Graft {
    fn goal(&self) -> SeedState {
        match (self.behind, self.schedule) {
            (true, _) => Training,
            (false, Some(_)) => Blending,
            (false, None) => Holding,
        }
    }
}

/// A blend factor on its way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Way {
    spec: ScheduleSpec,
    from: f32,
    done: u32,
}

impl Way {
    fn new(spec: ScheduleSpec, from: f32) -> Result<Self, Refusal> {
        match spec {
            _ if !(0.0..=1.0).contains(&from) || !(0.0..=1.0).contains(&spec.target) => {
                Err(Code("seed.alpha"))
            }
            _ if spec.steps == 0 => Err(Code("seed.schedule")),
            spec => Ok(Self { spec, from, done: 0 }),
        }
    }

    pub(super) fn alpha(&self) -> f32 {
        let Self { spec: ScheduleSpec { kind, steps, target, .. }, from, done } = *self;
        if done == steps || kind == ScheduleKind::Constant {
            return target;
        }
        let (p, a0, a1) = (f64::from(done) / f64::from(steps), f64::from(from), f64::from(target));
        let sigma = |x: f64| 1.0 / (1.0 + (-x).exp());
        let f = match kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => p,
            ScheduleKind::Cosine => (1.0 - (std::f64::consts::PI * p).cos()) / 2.0,
            ScheduleKind::Sigmoid => (sigma(12.0 * (p - 0.5)) - sigma(-6.0)) / (sigma(6.0) - sigma(-6.0)),
        };
        (a0 + (a1 - a0) * f) as f32
    }

    fn steps_left(&self) -> u32 {
        self.spec.steps - self.done
    }
}

/// A kernel that was taken out after failures, and how it was.
#[derive(Clone, Copy, Debug)]
struct Return {
    live: Live,
    state: SeedState,
    alpha: f32,
    way: Option<Way>,
}

/// One slot.
#[derive(Clone, Debug)]
pub(super) struct Slot {
    pub(super) state: SeedState,
    pub(super) live: Option<Live>,
    pub(super) behind: bool,
    alpha: f32,
    way: Option<Way>,
    frozen: bool,
    /// Failures in a row.
    row: u32,
    /// Attempts to come back that this graft has had.
    attempts: u32,
    coming: Option<Return>,
    /// A graft that nobody waits for: ready, or failed.
    begun: Option<Result<(Graft, Live), &'static str>>,
    refused_until: Vec<(usize, Duration)>,
}

/// What a seed says of itself.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Told {
    pub(super) state: SeedState,
    pub(super) kernel: Option<usize>,
    pub(super) alpha: f32,
    pub(super) steps_left: u32,
    pub(super) frozen: bool,
    pub(super) loading: Option<usize>,
    pub(super) coming: Option<usize>,
}

impl Slot {
    pub(super) fn dormant() -> Self {
        Self {
            state: Dormant,
            live: None,
            behind: false,
            alpha: 0.0,
            way: None,
            frozen: false,
            row: 0,
            attempts: 0,
            coming: None,
            begun: None,
            refused_until: Vec::new(),
        }
    }

    pub(super) fn told(&self) -> Told {
        Told {
            state: self.state,
            kernel: self.live.map(|live| live.kernel),
            alpha: self.alpha(),
            steps_left: self.way.map_or(0, |way| way.steps_left()),
            frozen: self.frozen,
            loading: self.begun.and_then(Result::ok).map(|(_, live)| live.kernel),
            coming: self.coming.map(|coming| coming.live.kernel),
        }
    }

    /// The blend factor of the next pass.
    pub(super) fn alpha(&self) -> f32 {
        self.way.map_or(self.alpha, |way| way.alpha())
    }

    /// The grafts whose memory the slot holds.
    pub(super) fn held(&self) -> impl Iterator<Item = u64> {
        let begun = self.begun.and_then(Result::ok).map(|(_, live)| live);
        [self.live, begun, self.coming.map(|coming| coming.live)].into_iter().flatten().map(|live| live.graft)
    }

    fn is_active(&self) -> bool {
        matches!(self.state, Training | Blending | Holding | Fossilized)
    }

    fn may_take(&self, graft: &Graft, now: Duration) -> Answer {
        if !(0.0..=1.0).contains(&graft.alpha) {
            return Err(Code("seed.alpha"));
        }
        if let Some(spec) = graft.schedule {
            if graft.behind {
                return Err(Code("seed.schedule"));
            }
            Way::new(spec, graft.alpha)?;
        }
        if self.refused_until.iter().any(|&(kernel, until)| kernel == graft.kernel && until > now) {
            return Err(Code("seed.embargoed"));
        }
        match (self.state, graft.goal()) {
            (Fossilized, _) => Err(Step(Fossilized, Loading)),
            (Blending | Holding, Training) => Err(Step(self.state, Training)),
            _ => Ok(()),
        }
    }

    fn begin(&mut self) {
        (self.begun, self.coming) = (None, None);
        if !self.is_active() {
            (self.state, self.frozen) = (Loading, false);
        }
    }

    fn load(&mut self, graft: &Graft) -> Answer {
        if graft.kernel != ABSENT {
            return Ok(());
        }
        if self.state == Loading {
            self.state = Dormant;
        }
        Err(Code("daemon.restarting"))
    }

    fn settle(&mut self, graft: Graft, live: Live) {
        let Graft { alpha, behind, schedule, .. } = graft;
        *self = Self {
            state: graft.goal(),
            live: Some(live),
            behind,
            alpha,
            way: schedule.and_then(|spec| Way::new(spec, alpha).ok()),
            refused_until: std::mem::take(&mut self.refused_until),
            ..Self::dormant()
        };
    }

    /// A graft that its trainer waits for.
    pub(super) fn graft(&mut self, graft: Graft, number: u64, now: Duration) -> Answer {
        self.may_take(&graft, now)?;
        self.begin();
        self.load(&graft)?;
        self.settle(graft, Live::new(graft.kernel, number));
        Ok(())
    }

    /// A graft that nobody waits for, and that is over when this is.
    pub(super) fn begin_graft(&mut self, graft: Graft, number: u64, now: Duration) -> Answer {
        self.may_take(&graft, now)?;
        self.begin();
        let live = Live::new(graft.kernel, number);
        self.begun = Some(self.load(&graft).map(|()| (graft, live)).map_err(|_| "daemon.restarting"));
        Ok(())
    }

    pub(super) fn finish_graft(&mut self, now: Duration) -> Answer {
        let (graft, live) = self.begun.take().ok_or(Code("seed.not_loading"))?.map_err(Code)?;
        self.may_take(&graft, now)?;
        self.settle(graft, live);
        Ok(())
    }

    pub(super) fn set_alpha(&mut self, alpha: f32) -> Answer {
        if !(0.0..=1.0).contains(&alpha) {
            return Err(Code("seed.alpha"));
        }
        if self.state == Fossilized || self.coming.as_ref().is_some_and(|coming| coming.state == Fossilized) {
            return Err(Step(Fossilized, Holding));
        }
        if let Some(coming) = &mut self.coming {
            (coming.alpha, coming.way) = (alpha, None);
            if coming.state == Blending {
                coming.state = Holding;
            }
            return Ok(());
        }
        self.live.ok_or(Code("seed.no_kernel"))?;
        (self.alpha, self.way) = (alpha, None);
        if self.state == Blending {
            self.state = Holding;
        }
        Ok(())
    }

    pub(super) fn blend(&mut self, spec: ScheduleSpec, from: Option<f32>) -> Answer {
        match self.state {
            Training | Blending | Holding => {}
            // Of a seed that is being given its first kernel it is the kernel that lacks.
            Loading => return Err(Code("seed.no_kernel")),
            state => return Err(Step(state, Blending)),
        }
        let present = if self.state == Training { 0.0 } else { self.alpha() };
        self.way = Some(Way::new(spec, from.unwrap_or(present))?);
        (self.state, self.behind) = (Blending, false);
        Ok(())
    }

    pub(super) fn hold(&mut self) -> Answer {
        match self.state {
            Holding => Ok(()),
            Blending => {
                (self.alpha, self.way, self.state) = (self.alpha(), None, Holding);
                Ok(())
            }
            state => Err(Step(state, Holding)),
        }
    }

    pub(super) fn fossilize(&mut self, freeze: bool) -> Answer {
        if self.state != Holding {
            return Err(Step(self.state, Fossilized));
        }
        (self.state, self.alpha, self.frozen) = (Fossilized, 1.0, freeze);
        Ok(())
    }

    pub(super) fn prune(&mut self, embargo: Duration, now: Duration) {
        let begun = self.begun.and_then(Result::ok).map(|(_, live)| live);
        let coming = self.coming.map(|coming| coming.live);
        let taken_out = [self.live, begun, coming].into_iter().flatten().map(|live| live.kernel);
        if !embargo.is_zero() {
            self.refused_until.retain(|&(_, until)| until > now);
            self.refused_until.extend(taken_out.map(|kernel| (kernel, now + embargo)));
        }
        *self = Self { refused_until: std::mem::take(&mut self.refused_until), ..Self::dormant() };
    }

    /// A pass of the seed went well to its end: its forward where no backward follows, or that.
    pub(super) fn succeeded(&mut self) {
        self.row = 0;
    }

    /// A pass of the seed failed.
    pub(super) fn failed(&mut self) {
        self.row += 1;
        let Some(live) = self.live.filter(|_| self.row >= THRESHOLD) else { return };
        let coming = Return { live, state: self.state, alpha: self.alpha(), way: self.way };
        (self.row, self.live, self.alpha, self.way) = (0, None, 0.0, None);
        if self.attempts == ATTEMPTS {
            (self.state, self.frozen) = (Dormant, false);
            return;
        }
        self.attempts += 1;
        (self.state, self.coming) = (ErrorRecovery, Some(coming));
    }

    /// Long enough has passed for every attempt to come back.
    pub(super) fn rested(&mut self) {
        if let Some(Return { mut live, state, alpha, way }) = self.coming.take() {
            live.returns += 1;
            (self.live, self.state, self.alpha, self.way, self.row) = (Some(live), state, alpha, way, 0);
        }
    }

    /// A training forward of the layer went well, in which the blend factor was not the trainer's.
    pub(super) fn stepped(&mut self) {
        let Some(way) = &mut self.way else { return };
        way.done += 1;
        if way.steps_left() == 0 {
            (self.alpha, self.way, self.state) = (way.spec.target, None, Holding);
        }
    }
}
