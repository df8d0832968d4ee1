//! A trainer with its session's lane: blocks handed out end to end, one submission at a time.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, bounded, unbounded};

use super::kernels::{FEATURES, GRADIENT_BYTES};
use crate::{
    backend::{Backend, Memory, test_device::device},
    engine::{
        Alpha, Answer, EngineConfig, EngineError, LaneCommand, LaneEvent, LaneHandle, LaneLimits, LaneParts,
        LaneSnapshot, LayerSpec, LiveSeed, Role, SeedCounters,
    },
    id::{Generation, LayerId, SeedIndex, SessionId, TicketId},
    tensor::DType,
    wire::{
        Blend, Block, ClientLane, Completion, DaemonLane, FLAG_TAKE_TICKET, FLAG_TRAIN, Status, Submission,
        VERB_BACKWARD, VERB_FORWARD, VERB_RELEASE, Wake, Wants,
    },
};

pub(super) const LAYER: LayerId = LayerId(7);
pub(super) const ALL: Wants = Wants { input: true, parameters: true, alphas: true };
/// Long enough that reaching it means that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

pub(super) struct Trainer {
    pub(super) lane: ClientLane,
    pub(super) handle: LaneHandle,
    pub(super) events: Receiver<LaneEvent>,
    pub(super) counters: Vec<Arc<SeedCounters>>,
    next_offset: u64,
    sequence: u64,
}

/// A forward pass that has come back.
pub(super) struct Forward {
    pub(super) completion: Completion,
    pub(super) output: Vec<f32>,
}

/// A backward pass that has come back.
#[derive(Debug, PartialEq)]
pub(super) struct Backward {
    pub(super) completion: Completion,
    pub(super) input: Vec<f32>,
    /// By seed that ran: the gradients of w and b.
    pub(super) parameters: Vec<[Vec<f32>; 2]>,
    pub(super) alphas: Vec<f32>,
}

impl Trainer {
    pub(super) fn new(config: EngineConfig, limits: LaneLimits) -> Self {
        Self::start(device(2), config, limits, None)
    }

    /// One whose tensors lie in memory of the device, where that is given.
    pub(super) fn start(
        backend: Arc<dyn Backend>,
        config: EngineConfig,
        limits: LaneLimits,
        device_arena: Option<Arc<dyn Memory>>,
    ) -> Self {
        let (lane, doorbell) = DaemonLane::serve(4 << 20).unwrap();
        let file = lane.arena().file().try_clone_to_owned().unwrap();
        let client = ClientLane::join(file, doorbell, lane.arena().layout()).unwrap();
        let (sender, events) = unbounded();
        let parts = LaneParts {
            session: SessionId(1),
            lane,
            backend,
            config: Arc::new(config),
            limits,
            recorder: None,
            device_arena,
            device_share: None,
        };
        let tell = Box::new(move |event| drop(sender.send(event)));
        let handle = LaneHandle::start(parts, tell).unwrap();
        let next_offset = client.arena().layout().heap_offset;
        Self { lane: client, handle, events, counters: Vec::new(), next_offset, sequence: 0 }
    }

    /// A trainer with one open layer of `seeds` seeds.
    pub(super) fn with_layer(blend: Blend, seeds: usize, config: EngineConfig) -> Self {
        let mut trainer = Self::new(config, LaneLimits::default());
        trainer.open(blend, seeds).unwrap();
        trainer
    }

    pub(super) fn open(&mut self, blend: Blend, seeds: usize) -> Result<(), EngineError> {
        self.counters = (0..seeds).map(|_| Arc::default()).collect();
        let counters = self.counters.clone();
        let spec = LayerSpec { id: LAYER, blend, counters, host: false, recompute: false };
        self.ask(|answer| LaneCommand::OpenLayer { spec, answer })
    }

    /// Sends a command and waits for its answer.
    pub(super) fn ask<T: Send + 'static>(&self, command: impl FnOnce(Answer<T>) -> LaneCommand) -> T {
        let (sender, answer) = bounded(1);
        self.handle.send(command(Box::new(move |result| drop(sender.send(result))))).unwrap();
        answer.recv_timeout(PATIENCE).unwrap()
    }

    pub(super) fn attach(&self, seed: u16, live: Arc<LiveSeed>, alpha: f32) -> Result<(), EngineError> {
        let alpha = Alpha::new(alpha).unwrap();
        let seed = SeedIndex(seed);
        let role = Role::Blended;
        let course = None;
        self.ask(|answer| LaneCommand::Attach { layer: LAYER, seed, live, alpha, role, course, answer })
    }

    pub(super) fn detach(&self, seed: u16) -> Result<Option<Generation>, EngineError> {
        self.ask(|answer| LaneCommand::Detach { layer: LAYER, seed: SeedIndex(seed), answer })
    }

    pub(super) fn set_alpha(&self, seed: u16, alpha: f32) {
        let alpha = Alpha::new(alpha).unwrap();
        let seed = SeedIndex(seed);
        self.ask(|answer| LaneCommand::SetAlpha { layer: LAYER, seed, alpha, answer }).unwrap();
    }

    pub(super) fn snapshot(&self) -> LaneSnapshot {
        self.ask(|answer| LaneCommand::Snapshot { answer })
    }

    /// The next event but those that tell of plans.
    pub(super) fn event(&self) -> LaneEvent {
        loop {
            match self.events.recv_timeout(PATIENCE).unwrap() {
                LaneEvent::Planned { .. } => {}
                event => return event,
            }
        }
    }

    fn block(&mut self, bytes: usize) -> Block {
        let layout = *self.lane.arena().layout();
        let taken = (bytes as u64).next_multiple_of(64).max(64);
        if self.next_offset + taken > layout.heap_offset + layout.heap_bytes {
            self.next_offset = layout.heap_offset;
        }
        self.next_offset += taken;
        Block { offset: self.next_offset - taken, bytes: bytes as u64 }
    }

    fn floats(&self, block: Block) -> Vec<f32> {
        self.lane.arena().floats(block).unwrap().to_vec()
    }

    /// Publishes a submission and waits for its completion.
    pub(super) fn submit(&mut self, submission: Submission) -> Completion {
        self.sequence += 1;
        let sequence = self.sequence;
        self.lane.publish(&Submission { sequence, ..submission }).unwrap();
        match self.lane.wait(Duration::ZERO, Some(PATIENCE)).unwrap() {
            Wake::Item(completion) => {
                assert_eq!(completion.sequence, sequence);
                completion
            }
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the lane has hung up.
    pub(super) fn hung_up(&mut self) -> bool {
        matches!(self.lane.wait(Duration::ZERO, Some(PATIENCE)).unwrap(), Wake::Gone)
    }

    pub(super) fn forward_request(&mut self, x: &[f32], flags: u32) -> (Submission, Block) {
        let bytes = x.len() * 4;
        let (input, output) = (self.block(bytes), self.block(bytes));
        self.lane.arena().floats(input).unwrap().copy_from(x);
        let dims = [(x.len() / FEATURES) as u32, FEATURES as u32, 0, 0, 0, 0, 0, 0];
        let submission = Submission {
            verb: VERB_FORWARD,
            flags,
            layer: LAYER.0,
            dtype: u32::from(DType::F32.code()),
            input_offset: input.offset,
            input_bytes: input.bytes,
            output_offset: output.offset,
            output_bytes: output.bytes,
            input_rank: 2,
            output_rank: 2,
            input_dims: dims,
            output_dims: dims,
            ..Submission::default()
        };
        (submission, output)
    }

    /// A forward pass; `wants` takes a ticket.
    pub(super) fn forward(&mut self, x: &[f32], train: bool, wants: Option<Wants>) -> Forward {
        let ticket = wants.map_or(0, |wants| wants.flags() | FLAG_TAKE_TICKET);
        let (submission, output) = self.forward_request(x, ticket | if train { FLAG_TRAIN } else { 0 });
        let completion = self.submit(submission);
        Forward { completion, output: self.floats(output) }
    }

    pub(super) fn backward(&mut self, pass: &Forward, gradient: &[f32], wants: Wants) -> Backward {
        let seeds = self.counters.len();
        let ran = pass.completion.live_seeds().count();
        let grad_output = self.block(gradient.len() * 4);
        self.lane.arena().floats(grad_output).unwrap().copy_from(gradient);
        let none = Block { offset: 0, bytes: 0 };
        let mut place = |wanted, bytes| if wanted { self.block(bytes) } else { none };
        let grad_input = place(wants.input, gradient.len() * 4);
        let grad_parameters = place(wants.parameters, ran * GRADIENT_BYTES);
        let grad_alphas = place(wants.alphas, seeds * 4);
        let completion = self.submit(Submission {
            verb: VERB_BACKWARD,
            flags: wants.flags(),
            layer: LAYER.0,
            ticket: pass.completion.ticket,
            grad_output_offset: grad_output.offset,
            grad_output_bytes: grad_output.bytes,
            grad_input_offset: grad_input.offset,
            grad_input_bytes: grad_input.bytes,
            grad_parameters_offset: grad_parameters.offset,
            grad_parameters_bytes: grad_parameters.bytes,
            grad_alphas_offset: grad_alphas.offset,
            grad_alphas_bytes: grad_alphas.bytes,
            ..Submission::default()
        });
        let numbers = |wanted, block| if wanted { self.floats(block) } else { Vec::new() };
        let blocks = numbers(wants.parameters, grad_parameters);
        let parameters = blocks
            .chunks(GRADIENT_BYTES / 4)
            .map(|block| [block[..FEATURES].to_vec(), block[16..16 + FEATURES].to_vec()])
            .collect();
        let (input, alphas) = (numbers(wants.input, grad_input), numbers(wants.alphas, grad_alphas));
        Backward { completion, input, parameters, alphas }
    }

    pub(super) fn release(&mut self, ticket: TicketId) -> Completion {
        let (layer, ticket) = (LAYER.0, ticket.0);
        self.submit(Submission { verb: VERB_RELEASE, layer, ticket, ..Submission::default() })
    }

    /// Waits until the lane's thread is gone.
    pub(super) fn joined(self) {
        let Self { handle, lane, .. } = self;
        handle.stop();
        drop(lane);
    }
}

pub(super) fn status(completion: &Completion) -> Status {
    Status::from_number(completion.status).unwrap()
}

/// Waits, without sleeping, until something holds.
pub(super) fn until(mut holds: impl FnMut() -> bool) {
    let give_up = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < give_up, "it never came to hold");
        std::thread::yield_now();
    }
}
