//! Alpha schedules: a blend factor on its way, one step for each training forward of its layer.

use super::{Alpha, EngineError};
use crate::wire::{ScheduleKind, ScheduleSpec};

/// How steep a sigmoid is where nobody says.
const STEEPNESS: f64 = 12.0;
/// The flattest sigmoid, a line as far as a number of 32 bits can tell, and the steepest, a step.
const FLATTEST: f32 = 0.01;
const STEEPEST: f32 = 100.0;

/// A blend factor's way from one value to another over n steps.
///
/// With k steps done it is `from + (target - from) * f(k / n)`, where f(p) is
/// - constant: 1,
/// - linear: p,
/// - cosine: (1 − cos πp) / 2,
/// - sigmoid: (σ(s(p − ½)) − σ(−s/2)) / (σ(s/2) − σ(−s/2)), with the logistic function σ and the steepness s.
///
/// After n steps it is the target itself, bit by bit, and before the first it is where it came from (a constant
/// one is at its target at once).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Schedule {
    spec: ScheduleSpec,
    from: Alpha,
    target: Alpha,
    done: u32,
}

impl Schedule {
    /// A schedule at its start, or where it is told to have come to.
    ///
    /// # Errors
    /// [`EngineError::Schedule`] for no steps, none left, a steepness out of [0.01, 100] or where it has no meaning;
    /// [`EngineError::Alpha`] for a target that is no blend factor.
    pub fn new(spec: &ScheduleSpec, from: Alpha) -> Result<Self, EngineError> {
        let refuse = |reason: String| Err(EngineError::Schedule { reason });
        let target = Alpha::new(spec.target)?;
        if spec.steps == 0 {
            return refuse("it has no steps: give at least 1".to_owned());
        }
        if spec.done >= spec.steps {
            let ScheduleSpec { steps, done, .. } = *spec;
            return refuse(format!("{done} of {steps} steps cannot be done already: one must be left"));
        }
        match spec.steepness {
            Some(_) if spec.kind != ScheduleKind::Sigmoid => {
                return refuse("only a sigmoid has a steepness: leave it out".to_owned());
            }
            Some(steepness) if !(FLATTEST..=STEEPEST).contains(&steepness) => {
                return refuse(format!("a steepness of {steepness} is not in [{FLATTEST}, {STEEPEST}]"));
            }
            _ => {}
        }
        Ok(Self { spec: *spec, from, target, done: spec.done })
    }

    /// The blend factor of the next pass.
    pub fn alpha(&self) -> Alpha {
        if self.is_over() || self.spec.kind == ScheduleKind::Constant {
            return self.target;
        }
        let (from, target) = (f64::from(self.from.get()), f64::from(self.target.get()));
        let part = self.part(f64::from(self.done) / f64::from(self.spec.steps));
        // Between two blend factors, so one itself; a rounding error must not carry it past either.
        let value = (from + (target - from) * part).clamp(from.min(target), from.max(target));
        Alpha::new(value as f32).unwrap_or(self.target)
    }

    /// Does a step; whether it was the last.
    pub fn advance(&mut self) -> bool {
        self.done = self.done.saturating_add(1).min(self.spec.steps);
        self.is_over()
    }

    /// Where it ends.
    pub fn target(&self) -> Alpha {
        self.target
    }

    /// How many steps it still has.
    pub fn steps_left(&self) -> u32 {
        self.spec.steps - self.done
    }

    fn is_over(&self) -> bool {
        self.done == self.spec.steps
    }

    /// f(p), which is 0 at 0 and 1 at 1.
    fn part(&self, p: f64) -> f64 {
        match self.spec.kind {
            ScheduleKind::Constant => 1.0,
            ScheduleKind::Linear => p,
            // The square of the half angle's sine: the same, without the difference that loses digits near 0.
            ScheduleKind::Cosine => (std::f64::consts::FRAC_PI_2 * p).sin().powi(2),
            ScheduleKind::Sigmoid => {
                let steepness = self.spec.steepness.map_or(STEEPNESS, f64::from);
                let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
                let (low, high) = (logistic(-steepness / 2.0), logistic(steepness / 2.0));
                (logistic(steepness * (p - 0.5)) - low) / (high - low)
            }
        }
    }
}

/// A schedule that a seed follows, and the number by which the control plane knows it: an end that is told late
/// must not be taken for the end of the next one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Course {
    /// Where it stands.
    pub schedule: Schedule,
    /// Its number among those of its seed.
    pub number: u64,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const KINDS: [ScheduleKind; 4] =
        [ScheduleKind::Constant, ScheduleKind::Linear, ScheduleKind::Cosine, ScheduleKind::Sigmoid];

    fn spec(kind: ScheduleKind, steps: u32, target: f32) -> ScheduleSpec {
        ScheduleSpec { kind, steps, target, steepness: None, done: 0 }
    }

    fn start(spec: &ScheduleSpec, from: f32) -> Schedule {
        Schedule::new(spec, Alpha::new(from).unwrap()).unwrap()
    }

    /// What each pass runs with, until and including the first after the end.
    fn course(mut schedule: Schedule) -> Vec<f32> {
        let mut alphas = vec![schedule.alpha().get()];
        loop {
            let is_over = schedule.advance();
            alphas.push(schedule.alpha().get());
            assert_eq!(schedule.steps_left() == 0, is_over);
            if is_over {
                return alphas;
            }
        }
    }

    #[test]
    fn four_steps_by_the_formulas() {
        let rising = |kind| course(start(&spec(kind, 4, 1.0), 0.0));
        assert_eq!(rising(ScheduleKind::Constant), [1.0; 5]);
        assert_eq!(rising(ScheduleKind::Linear), [0.0, 0.25, 0.5, 0.75, 1.0]);
        let cosine = [0.0, 0.146_446_61, 0.5, 0.853_553_4, 1.0];
        assert_eq!(rising(ScheduleKind::Cosine), cosine);
        // σ(±3) and σ(±6) from a table.
        let (near, far) = (0.047_425_873_177_566_78, 0.002_472_623_156_634_774);
        let quarter = ((near - far) / (1.0 - 2.0 * far)) as f32;
        assert_eq!(rising(ScheduleKind::Sigmoid), [0.0, quarter, 0.5, 1.0 - quarter, 1.0]);
        assert_eq!(course(start(&spec(ScheduleKind::Linear, 2, 0.25), 0.75)), [0.75, 0.5, 0.25]);
        let halfway = ScheduleSpec { done: 2, ..spec(ScheduleKind::Cosine, 4, 1.0) };
        assert_eq!(course(start(&halfway, 0.0)), cosine[2..]);
    }

    #[test]
    fn a_schedule_that_makes_no_sense_is_refused_with_the_reason() {
        let good = spec(ScheduleKind::Sigmoid, 3, 0.5);
        for (bad, reason) in [
            (ScheduleSpec { steps: 0, ..good }, "no steps"),
            (ScheduleSpec { done: 3, ..good }, "one must be left"),
            (ScheduleSpec { target: 1.5, ..good }, "alpha 1.5"),
            (ScheduleSpec { target: f32::NAN, ..good }, "alpha NaN"),
            (ScheduleSpec { steepness: Some(0.0), ..good }, "steepness of 0"),
            (ScheduleSpec { steepness: Some(f32::NAN), ..good }, "steepness of NaN"),
            (ScheduleSpec { steepness: Some(101.0), ..good }, "steepness of 101"),
            (ScheduleSpec { kind: ScheduleKind::Linear, steepness: Some(5.0), ..good }, "only a sigmoid"),
        ] {
            let text = Schedule::new(&bad, Alpha::ZERO).unwrap_err().to_string();
            assert!(text.contains(reason), "{text}");
        }
        for steepness in [FLATTEST, 0.1, STEEPEST] {
            let ends = course(start(&ScheduleSpec { steepness: Some(steepness), ..good }, 0.0));
            assert_eq!((ends[0], ends[3]), (0.0, 0.5), "{steepness}");
            assert!(ends.iter().all(|alpha| alpha.is_finite()));
        }
    }

    proptest! {
        #[test]
        fn it_goes_one_way_from_its_start_to_its_target(
            kind in proptest::sample::select(&KINDS[..]),
            steps in 1u32..400,
            from in 0f32..=1.0,
            target in 0f32..=1.0,
            steepness in proptest::option::of(FLATTEST..=STEEPEST),
        ) {
            let steepness = steepness.filter(|_| kind == ScheduleKind::Sigmoid);
            let alphas = course(start(&ScheduleSpec { kind, steps, target, steepness, done: 0 }, from));
            prop_assert_eq!(alphas.len(), steps as usize + 1);
            let first = if kind == ScheduleKind::Constant { target } else { from };
            prop_assert_eq!((alphas[0], alphas[steps as usize]), (first, target));
            for pair in alphas.windows(2) {
                let goes_on = if target >= from { pair[0] <= pair[1] } else { pair[0] >= pair[1] };
                prop_assert!(goes_on);
            }
        }

        #[test]
        fn another_target_begins_where_the_first_was_left(
            kind in proptest::sample::select(&KINDS[1..]),
            steps in 2u32..400,
            done in 0u32..400,
            from in 0f32..=1.0,
            targets in (0f32..=1.0, 0f32..=1.0),
        ) {
            let mut first = start(&spec(kind, steps, targets.0), from);
            (0..done % steps).for_each(|_| { first.advance(); });
            let second = Schedule::new(&spec(kind, steps, targets.1), first.alpha()).unwrap();
            prop_assert_eq!(second.alpha(), first.alpha());
            prop_assert_eq!(*course(second).last().unwrap(), targets.1);
        }
    }
}
