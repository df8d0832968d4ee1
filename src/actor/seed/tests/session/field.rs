//! A session's layer: real seeds, a real lane, and its trainer, who writes and reads the arena.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use actix::{Actor as _, Addr};

use super::kernels::{ABSENT, BATCH, ELEMENTS, GRADIENT_BYTES, NAMES, WIDTH, id, kernel};
use crate::{
    actor::{
        Events, GraftSeed, Holders, Kernels, LaneLink, Seed, SeedParts, Teller, UnloadSeed,
        base::{Handle, StopActor},
        seed::SeedReached,
    },
    backend::{Backend, test_device},
    backoff::Backoff,
    cache::{Budget, DeviceCache},
    clock::ManualClock,
    engine::{
        EngineConfig, Kernel, LaneEvent, LaneLimits, LaneParts, LayerSpec, QuotaLimits, RecoveryPolicy,
        SeedCounters, SessionLedger,
    },
    id::{LayerId, SeedIndex, SessionId},
    tensor::DType,
    wire::{
        Blend, Block, ClientLane, Completion, DaemonLane, FLAG_TAKE_TICKET, FLAG_TRAIN,
        FLAG_WANT_GRAD_ALPHAS, FLAG_WANT_GRAD_INPUT, FLAG_WANT_GRAD_PARAMETERS, GraftRole, ScheduleSpec,
        Submission, VERB_BACKWARD, VERB_FORWARD, VERB_RELEASE, Wake,
    },
};

const LAYER: LayerId = LayerId(1);
pub(super) const SEEDS: usize = 2;
/// Failures in a row after which a kernel is taken out.
pub(super) const THRESHOLD: u32 = 2;
/// How often a kernel comes back.
pub(super) const ATTEMPTS: u32 = 2;
/// Tickets that the layer may have.
pub(super) const TICKETS: usize = 5;
const WANTS: u32 = FLAG_WANT_GRAD_INPUT | FLAG_WANT_GRAD_PARAMETERS | FLAG_WANT_GRAD_ALPHAS;
/// Long enough that reaching it means that something hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// What a layer is opened with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Kind {
    pub(super) blend: Blend,
    pub(super) host: bool,
    pub(super) recompute: bool,
    /// Whether seeds run on threads of their own.
    pub(super) spread: bool,
}

/// Where things lie in the arena's heap; the inputs of tickets one behind the other.
#[derive(Clone, Copy)]
enum Room {
    Output,
    GradOutput,
    Straight,
    GradInput,
    GradWeights,
    GradAlphas,
    Alphas,
    Input(usize),
}

const ROOM_BYTES: u64 = 256;

/// What a backward has written.
pub(super) struct Gradients {
    pub(super) completion: Completion,
    pub(super) of_x: Vec<f32>,
    /// By slot that ran.
    pub(super) of_weights: Vec<Vec<f32>>,
    pub(super) of_alphas: Vec<f32>,
}

pub(super) struct Field {
    /// Those of the layer, and then its host if it has one here.
    pub(super) seeds: Vec<Addr<Seed>>,
    pub(super) clock: ManualClock,
    pub(super) ledger: Arc<SessionLedger>,
    pub(super) link: LaneLink,
    backend: Arc<dyn Backend>,
    lane: ClientLane,
    has_ended: Arc<AtomicBool>,
    sequence: u64,
}

impl Field {
    /// A session with an open layer of dormant seeds. All kernels but the absent one are in memory.
    pub(super) async fn open(kind: Kind) -> Self {
        let Kind { blend, host, recompute, spread } = kind;
        let backoff = Backoff {
            first: Duration::from_secs(1000),
            max: Duration::from_secs(2000),
            jitter: 0.0,
            ..Backoff::default()
        };
        let config = Arc::new(EngineConfig {
            error_threshold: THRESHOLD,
            recovery: RecoveryPolicy { attempts: ATTEMPTS, backoff },
            max_tickets_per_layer: TICKETS,
            threads: 2,
            spread_above: if spread { 0 } else { u64::MAX },
            ..EngineConfig::default()
        });
        let clock = ManualClock::default();
        let weigh = |kernel: &Arc<Kernel>| kernel.resident_bytes() as u64;
        let budget = Budget { max_entries: 8, max_bytes: 1 << 30 };
        let device = DeviceCache::new(budget, weigh, Arc::new(clock.clone()));
        (0..ABSENT).for_each(|n| drop(device.admit(id(n), kernel(n)).unwrap()));
        let kernels = Kernels::new(device, Arc::new(Holders::default()), Handle::new("kernel_cache", 8));
        let backend = test_device::device(2);
        let (lane, doorbell) = DaemonLane::serve(1 << 20).unwrap();
        let file = lane.arena().file().try_clone_to_owned().unwrap();
        let client = ClientLane::join(file, doorbell, lane.arena().layout()).unwrap();
        let ledger = SessionLedger::alone(QuotaLimits::default());
        let (link, mut told) = LaneLink::start(LaneParts {
            session: SessionId(1),
            lane,
            backend: backend.clone(),
            config: config.clone(),
            recorder: None,
            device_arena: None,
            device_share: None,
            limits: LaneLimits { ledger: ledger.clone(), ..LaneLimits::default() },
        })
        .unwrap();
        let slots = SEEDS + usize::from(host);
        let counters: Vec<Arc<SeedCounters>> = (0..slots).map(|_| Arc::default()).collect();
        let spec = LayerSpec { id: LAYER, blend, counters: counters.clone(), host, recompute };
        link.open(spec).await.unwrap();
        let events = Events::new(Arc::new(clock.clone()));
        let seed = |(n, counters): (usize, Arc<SeedCounters>)| {
            let parts = SeedParts {
                on_device: false,
                session: SessionId(1),
                layer: LAYER,
                seed: SeedIndex(n as u16),
                lane: link.clone(),
                kernels: kernels.clone(),
                backend: backend.clone(),
                config: config.clone(),
                counters,
                ledger: ledger.clone(),
                teller: Teller::new(events.clone(), 7, SessionId(1)).of_layer(LAYER, &"fc".into()),
                clock: Arc::new(clock.clone()),
            };
            Seed::new(parts).start()
        };
        let seeds: Vec<Addr<Seed>> = counters.into_iter().enumerate().map(seed).collect();
        let (actors, has_ended) = (seeds.clone(), Arc::new(AtomicBool::new(false)));
        let ended = has_ended.clone();
        // As its session does.
        actix::spawn(async move {
            while let Some(event) = told.recv().await {
                match event {
                    LaneEvent::AlphaReached { seed, number, alpha, generation, .. } => {
                        let reached = SeedReached { number, alpha, generation };
                        actors[usize::from(seed.0)].send(reached).await.unwrap();
                    }
                    LaneEvent::SeedUnloaded { seed, generation, error, alpha, course, .. } => {
                        let unload = UnloadSeed { generation, error, alpha, course };
                        actors[usize::from(seed.0)].send(unload).await.unwrap();
                    }
                    LaneEvent::Ended(_) => ended.store(true, Ordering::Release),
                    _ => {}
                }
            }
        });
        Self { seeds, clock, ledger, link, backend, lane: client, has_ended, sequence: 0 }
    }

    /// What a seed of a kernel takes, with what the device keeps beside it.
    pub(super) fn bytes_of(&self, number: usize) -> u64 {
        let bytes = kernel(number).memory_bytes();
        (bytes + self.backend.mirror_bytes(bytes)) as u64
    }

    pub(super) fn graft_of(
        kernel: usize,
        alpha: f32,
        behind: bool,
        schedule: Option<ScheduleSpec>,
    ) -> GraftSeed {
        GraftSeed {
            kernel: NAMES[kernel].parse().unwrap(),
            alpha,
            input_shape: [WIDTH].into(),
            dtype: DType::F32,
            role: if behind { GraftRole::Train } else { GraftRole::Blend },
            schedule,
        }
    }

    /// The trainer dies. Returns when nobody holds anything of the session any more.
    pub(super) async fn disconnect(self) {
        let Self { seeds, ledger, link, lane, has_ended, .. } = self;
        drop(lane);
        for seed in &seeds {
            seed.send(StopActor).await.unwrap();
        }
        drop((seeds, link));
        let is_free = || ledger.held() == crate::engine::Holdings { sessions: 1, ..Default::default() };
        let give_up = std::time::Instant::now() + PATIENCE;
        while !(has_ended.load(Ordering::Acquire) && is_free()) {
            assert!(std::time::Instant::now() < give_up, "left behind: {:?}", ledger.held());
            tokio::task::yield_now().await;
        }
    }

    fn block(&self, room: Room, bytes: usize) -> Block {
        let number = match room {
            Room::Output => 0,
            Room::GradOutput => 1,
            Room::Straight => 2,
            Room::GradInput => 3,
            Room::GradWeights => 4,
            Room::GradAlphas => 5,
            Room::Alphas => 6,
            Room::Input(n) => 7 + n as u64,
        };
        let offset = self.lane.arena().layout().heap_offset + number * ROOM_BYTES;
        Block { offset, bytes: bytes as u64 }
    }

    fn write(&self, room: Room, values: &[f32]) -> Block {
        let block = self.block(room, 4 * values.len());
        self.lane.arena().floats(block).unwrap().copy_from(values);
        block
    }

    fn read(&self, room: Room, count: usize) -> Vec<f32> {
        self.lane.arena().floats(self.block(room, 4 * count)).unwrap().to_vec()
    }

    fn submit(&mut self, submission: Submission) -> Completion {
        self.sequence += 1;
        let sequence = self.sequence;
        self.lane.publish(&Submission { sequence, layer: LAYER.0, ..submission }).unwrap();
        match self.lane.wait(Duration::ZERO, Some(PATIENCE)).unwrap() {
            Wake::Item(completion) => completion,
            other => panic!("{other:?}"),
        }
    }

    /// A forward pass whose input lies in a place that stays until its backward.
    pub(super) fn forward(
        &mut self,
        place: usize,
        x: &[f32],
        (train, ticket): (bool, bool),
        given: Option<[f32; SEEDS]>,
    ) -> (Completion, Vec<f32>) {
        let input = self.write(Room::Input(place), x);
        let output = self.write(Room::Output, &[f32::NAN; ELEMENTS]);
        let alphas = given.map_or(Block { offset: 0, bytes: 0 }, |given| self.write(Room::Alphas, &given));
        let flags = if train { FLAG_TRAIN } else { 0 } | if ticket { FLAG_TAKE_TICKET | WANTS } else { 0 };
        let dims = [BATCH as u32, WIDTH as u32, 0, 0, 0, 0, 0, 0];
        let completion = self.submit(Submission {
            verb: VERB_FORWARD,
            flags,
            dtype: u32::from(DType::F32.code()),
            input_offset: input.offset,
            input_bytes: input.bytes,
            output_offset: output.offset,
            output_bytes: output.bytes,
            alphas_offset: alphas.offset,
            alphas_bytes: alphas.bytes,
            input_rank: 2,
            output_rank: 2,
            input_dims: dims,
            output_dims: dims,
            ..Submission::default()
        });
        (completion, self.read(Room::Output, ELEMENTS))
    }

    pub(super) fn backward(&mut self, ticket: u64, ran: usize, g: &[f32], straight: &[f32]) -> Gradients {
        let (grad_output, straight) = (self.write(Room::GradOutput, g), self.write(Room::Straight, straight));
        let [grad_input, grad_weights, grad_alphas] = [
            (Room::GradInput, ELEMENTS),
            (Room::GradWeights, ran * GRADIENT_BYTES / 4),
            (Room::GradAlphas, SEEDS),
        ]
        .map(|(room, count)| self.write(room, &vec![f32::NAN; count]));
        let completion = self.submit(Submission {
            verb: VERB_BACKWARD,
            flags: WANTS,
            ticket,
            grad_output_offset: grad_output.offset,
            grad_output_bytes: grad_output.bytes,
            grad_input_offset: grad_input.offset,
            grad_input_bytes: grad_input.bytes,
            grad_parameters_offset: grad_weights.offset,
            grad_parameters_bytes: grad_weights.bytes,
            grad_alphas_offset: grad_alphas.offset,
            grad_alphas_bytes: grad_alphas.bytes,
            straight_offset: straight.offset,
            straight_bytes: straight.bytes,
            ..Submission::default()
        });
        let blocks = self.read(Room::GradWeights, ran * GRADIENT_BYTES / 4);
        Gradients {
            completion,
            of_x: self.read(Room::GradInput, ELEMENTS),
            of_weights: blocks.chunks(GRADIENT_BYTES / 4).map(|block| block[..WIDTH].to_vec()).collect(),
            of_alphas: self.read(Room::GradAlphas, SEEDS),
        }
    }

    pub(super) fn release(&mut self, ticket: u64) -> Completion {
        self.submit(Submission { verb: VERB_RELEASE, ticket, ..Submission::default() })
    }
}
