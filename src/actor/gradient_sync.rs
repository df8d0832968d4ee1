//! The bridge to a session's lane, where its layers' gradient synchronizers live.
//!
//! A lane is a thread of the data plane and knows no async runtime; its answers come through closures and
//! its events through a sink. Here they become futures and messages.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};

use super::ActorError;
use crate::{
    engine::{
        Alpha, Answer, Course, EngineError, LaneCommand, LaneEvent, LaneGauges, LaneHandle, LaneParts,
        LayerSpec, LiveSeed, Role, Upcoming,
    },
    id::{Generation, LayerId, SeedIndex},
    wire::ScheduleSpec,
};

/// A session's lane, as its actors ask it.
#[derive(Clone, Debug)]
pub struct LaneLink(Arc<LaneHandle>);

impl LaneLink {
    /// Starts a lane; its events arrive on the channel.
    ///
    /// The channel is unbounded. A lane sends at most two events for each kernel that is attached, one for each
    /// schedule, one at its end, and one for each plan that it makes, which takes it far longer than its session takes
    /// to hear of it. Kernels and schedules come one request at a time, each with an answer.
    ///
    /// # Errors
    /// As [`LaneHandle::start`].
    pub fn start(parts: LaneParts) -> Result<(Self, mpsc::UnboundedReceiver<LaneEvent>), ActorError> {
        let (events, received) = mpsc::unbounded_channel();
        // A session that is gone needs no events.
        let lane = LaneHandle::start(parts, Box::new(move |event| drop(events.send(event))))?;
        Ok((Self(Arc::new(lane)), received))
    }

    /// Opens a layer.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn open(&self, spec: LayerSpec) -> Result<(), ActorError> {
        self.ask(|answer| LaneCommand::OpenLayer { spec, answer }).await
    }

    /// Closes a layer with its tickets.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn close(&self, layer: LayerId) -> Result<(), ActorError> {
        self.ask(|answer| LaneCommand::CloseLayer { layer, answer }).await
    }

    /// Puts a live seed into its slot.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn attach(
        &self,
        layer: LayerId,
        seed: SeedIndex,
        live: Arc<LiveSeed>,
        alpha: Alpha,
        role: Role,
        course: Option<Course>,
    ) -> Result<(), ActorError> {
        self.ask(|answer| LaneCommand::Attach { layer, seed, live, alpha, role, course, answer }).await
    }

    /// Takes the kernel out of a slot.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn detach(&self, layer: LayerId, seed: SeedIndex) -> Result<Option<Generation>, ActorError> {
        self.ask(|answer| LaneCommand::Detach { layer, seed, answer }).await
    }

    /// Sets a slot's blend factor, and ends its course.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn set_alpha(&self, layer: LayerId, seed: SeedIndex, alpha: Alpha) -> Result<(), ActorError> {
        self.ask(|answer| LaneCommand::SetAlpha { layer, seed, alpha, answer }).await
    }

    /// Has a slot's blend factor go by a schedule; gives that of the next pass.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn blend(
        &self,
        layer: LayerId,
        seed: SeedIndex,
        spec: ScheduleSpec,
        number: u64,
        from: Option<Alpha>,
    ) -> Result<Alpha, ActorError> {
        self.ask(|answer| LaneCommand::Blend { layer, seed, spec, number, from, answer }).await
    }

    /// Leaves a slot's blend factor where its course has brought it; gives that.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn hold(&self, layer: LayerId, seed: SeedIndex) -> Result<Alpha, ActorError> {
        self.ask(|answer| LaneCommand::Hold { layer, seed, answer }).await
    }

    /// Sets what a slot's kernel does in passes.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn set_role(&self, layer: LayerId, seed: SeedIndex, role: Role) -> Result<(), ActorError> {
        self.ask(|answer| LaneCommand::SetRole { layer, seed, role, answer }).await
    }

    /// What a layer's next passes will want of a seed.
    ///
    /// # Errors
    /// The lane's refusal.
    pub async fn upcoming(&self, layer: LayerId, seed: SeedIndex) -> Result<Upcoming, ActorError> {
        self.ask(|answer| LaneCommand::Upcoming { layer, seed, answer }).await
    }

    /// From now on the lane refuses forward passes and goes on with backward ones. Returns once the pass that
    /// was under way is over, so that its ticket is counted.
    pub async fn drain(&self) {
        let (answer, answered) = oneshot::channel();
        let asked = self.0.send(LaneCommand::Drain).and_then(|()| {
            self.0.send(LaneCommand::Snapshot { answer: Box::new(move |held| drop(answer.send(held))) })
        });
        // A lane that is gone has nothing left to drain.
        if asked.is_ok() {
            let _ = answered.await;
        }
    }

    /// The lane's numbers.
    pub fn gauges(&self) -> &Arc<LaneGauges> {
        self.0.gauges()
    }

    /// Keeps the lane, once it has done what waits for it already, from everything until the first of what it gives is
    /// dropped. The second tells when it has stopped.
    #[cfg(test)]
    pub(super) fn hold_up(&self) -> (std::sync::mpsc::Sender<()>, std::sync::mpsc::Receiver<()>) {
        let (held, let_go) = std::sync::mpsc::channel();
        let (stopped, has_stopped) = std::sync::mpsc::channel();
        let answer = Box::new(move |_| {
            let _ = stopped.send(());
            let _ = let_go.recv();
        });
        self.0.send(LaneCommand::Snapshot { answer }).expect("the lane lives");
        (held, has_stopped)
    }

    /// How many commands wait.
    #[cfg(test)]
    pub(super) fn queued(&self) -> usize {
        self.0.queued()
    }

    async fn ask<T: Send + 'static>(
        &self,
        command: impl FnOnce(Answer<Result<T, EngineError>>) -> LaneCommand,
    ) -> Result<T, ActorError> {
        let (answer, answered) = oneshot::channel();
        // An asker that is gone needs no answer.
        self.0.send(command(Box::new(move |result| drop(answer.send(result)))))?;
        answered.await.map_err(|_| EngineError::LaneGone)?.map_err(ActorError::from)
    }
}
