//! Seeds whose blend factor is on its way: begun and ended by the control plane, moved on by training forwards.

use super::{ForwardReport, GradientSynchronizer};
use crate::{
    engine::{Alpha, Course, EngineError, Role, Schedule},
    id::{Generation, SeedIndex},
    wire::ScheduleSpec,
};

/// A seed whose blend factor has reached its target.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Reached {
    /// Which seed.
    pub seed: SeedIndex,
    /// Which of its kernels.
    pub generation: Generation,
    /// The number of its course.
    pub number: u64,
    /// Where it has ended.
    pub alpha: Alpha,
}

impl GradientSynchronizer {
    /// Has a live seed's blend factor go by a schedule, from where it is or from where it is told. A seed that
    /// learned behind the layer goes into the blend. Gives the blend factor of the next pass.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`]; [`EngineError::Role`] for the host; [`EngineError::Vacant`] for a seed without
    /// a kernel; those of [`Schedule::new`].
    pub fn schedule(
        &mut self,
        seed: SeedIndex,
        spec: &ScheduleSpec,
        number: u64,
        from: Option<Alpha>,
    ) -> Result<Alpha, EngineError> {
        let present = self.blended(seed)?;
        let schedule = Schedule::new(spec, from.unwrap_or(present))?;
        self.follow(seed, Course { schedule, number })?;
        Ok(schedule.alpha())
    }

    /// Has a live seed's blend factor go on with a course.
    ///
    /// # Errors
    /// As [`schedule`](Self::schedule).
    pub fn follow(&mut self, seed: SeedIndex, course: Course) -> Result<(), EngineError> {
        self.blended(seed)?;
        let slot = self.slot(seed)?;
        if let Some(attached) = &mut slot.attached {
            attached.role = Role::Blended;
            attached.alpha = course.schedule.alpha();
            attached.course = Some(course);
            slot.counters.note_alpha(attached.alpha, course.schedule.steps_left());
        }
        Ok(())
    }

    /// Leaves a live seed's blend factor where it is, and tells where that is.
    ///
    /// # Errors
    /// [`EngineError::SeedUnknown`], [`EngineError::Role`], [`EngineError::Vacant`].
    pub fn hold(&mut self, seed: SeedIndex) -> Result<Alpha, EngineError> {
        let present = self.blended(seed)?;
        let slot = self.slot(seed)?;
        if let Some(attached) = &mut slot.attached {
            attached.course = None;
        }
        slot.counters.note_alpha(present, 0);
        Ok(present)
    }

    /// Moves every course on by a step, but those of seeds whose bit is set in `given`: their blend factor in the
    /// pass was the trainer's. Call it after each training forward that went well.
    pub fn advance(&mut self, given: u64, mut reached: impl FnMut(Reached)) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(attached) = &mut slot.attached else { continue };
            let Some(course) = &mut attached.course else { continue };
            if given >> index & 1 == 1 {
                continue;
            }
            let is_over = course.schedule.advance();
            attached.alpha = course.schedule.alpha();
            slot.counters.note_alpha(attached.alpha, course.schedule.steps_left());
            if is_over {
                let number = course.number;
                attached.course = None;
                let (generation, alpha) = (attached.live.generation(), attached.alpha);
                reached(Reached { seed: SeedIndex(index as u16), generation, number, alpha });
            }
        }
    }

    /// Takes a sample of each seed that ran in the layer's n-th training forward, before that moves blend factors on.
    /// `measures` has the norms of gradients noted in them when its ticket is spent.
    pub fn sample(&mut self, step: u64, report: &ForwardReport, measures: bool) {
        let ran = self.slots.iter().enumerate().filter(|(index, _)| report.live_mask >> index & 1 == 1);
        ran.for_each(|(_, slot)| slot.counters.sample(step));
        if let Some(ticket) = self.tickets.get_mut(&report.ticket) {
            ticket.sampled = Some(step).filter(|_| measures);
        }
    }

    /// The blend factor of a live seed that is not the host.
    fn blended(&mut self, seed: SeedIndex) -> Result<Alpha, EngineError> {
        let layer = self.id;
        self.slot(seed)?;
        self.seeds_role(seed, Role::Blended)?;
        let attached = self.slot(seed)?.attached.as_ref();
        attached.map(|attached| attached.alpha).ok_or(EngineError::Vacant { layer, seed })
    }
}
