//! Passes of a trainer whose tensors lie on the device: when its streams have come to them, and what they find.

use std::{
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use super::{LaneEnd, thread::Service};
use crate::{
    backend::RunError,
    engine::target::there,
    wire::{Blend, Command, Completion, Status},
};

/// How often a lane that waits for a trainer's GPU looks at once, and then how often after its turn was offered to other
/// threads. Every further time it sleeps first, longer each time.
const SPINS: u32 = 200;
const YIELDS: u32 = 1000;
/// How long it sleeps at first, and at most.
const NAP: Duration = Duration::from_micros(20);
const LONGEST_NAP: Duration = Duration::from_millis(1);

impl Service {
    /// Runs one submission once what it reads is there, and lets the trainer's streams go on. Where the lane ends instead,
    /// nothing was written, and no stream is told so: its trainer sees to them.
    pub(super) fn run_on_device(
        &mut self,
        command: &Command,
        completion: &mut Completion,
    ) -> Result<(), LaneEnd> {
        if matches!(command, Command::Release(_)) {
            return self.run(command, completion);
        }
        // Its trainer knows the number of a ticket without being told.
        self.layers.number_ticket_after(self.lane.taken() - 1);
        self.await_tensors()?;
        let end = self.run(command, completion);
        if !matches!(end, Err(LaneEnd::DeviceLost { .. } | LaneEnd::Stopped | LaneEnd::PeerGone)) {
            self.let_streams_go_on(command, completion);
        }
        end
    }

    /// Waits for the trainer's stream. Its time is the trainer's: others have the session's turn meanwhile.
    fn await_tensors(&mut self) -> Result<(), LaneEnd> {
        if self.lane.is_ready() {
            return Ok(());
        }
        self.turns.withdraw();
        let came = Instant::now();
        for turn in 0.. {
            if self.lane.is_ready() {
                break;
            }
            if self.stop.load(Ordering::Acquire) {
                return Err(LaneEnd::Stopped);
            }
            if self.lane.is_gone() {
                return Err(LaneEnd::PeerGone);
            }
            pause(turn);
        }
        self.waited += came.elapsed();
        Ok(())
    }

    /// What the trainer's streams find when they go on, and they do. It does not look at a completion before: where the
    /// pass was refused, it finds what changes nothing.
    fn let_streams_go_on(&mut self, command: &Command, completion: &Completion) {
        let is_refused = completion.status != Status::Ok as u32;
        if is_refused && let Err(error) = self.neutralise(command) {
            tracing::warn!(%error, "what a refused pass was to write is undefined");
        }
        let weight = if is_refused { 0.0 } else { completion.blend_weight };
        self.lane.let_streams_go_on((1.0 - f64::from(weight)) as f32);
    }

    /// Writes what changes nothing to where a refused pass was to write: no part of the output, no gradients.
    fn neutralise(&self, command: &Command) -> Result<(), RunError> {
        let mut queue = self.backend.open_queue(false);
        match command {
            Command::Forward(request) => {
                let output = there(&self.arena, request.output);
                if self.layers.blend_rule(request.layer) == Some(Blend::Multiply) {
                    let one = request.dtype.one();
                    queue.write(&one.repeat(output.len_bytes() / one.len()), output)?;
                } else {
                    queue.zero(output)?;
                }
            }
            Command::Backward(request) => {
                for block in [request.grad_input, request.grad_parameters].into_iter().flatten() {
                    queue.zero(there(&self.arena, block))?;
                }
            }
            Command::Release(_) => {}
        }
        queue.finish(None)
    }
}

/// Waits a little, longer after many turns.
fn pause(turn: u32) {
    if turn < SPINS {
        std::hint::spin_loop();
    } else if turn < YIELDS {
        std::thread::yield_now();
    } else {
        std::thread::sleep((NAP * (turn - YIELDS + 1)).min(LONGEST_NAP));
    }
}
