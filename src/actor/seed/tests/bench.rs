//! A seed with a lane, a trainer that runs passes, and a cache whose contents the test decides.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use actix::{Actor as _, Addr};
use tokio::task::yield_now;

use crate::{
    actor::{
        ActorError, BlendSeed, DescribeSeed, Events, GraftSeed, Grafted, Holders, Kernels, LaneLink,
        PruneSeed, Scope, Seed, SeedFile, SeedParts, Teller, UnloadSeed, Watcher,
        base::Handle,
        seed::{SeedDescription, SeedReached},
    },
    backend::test_device,
    backoff::Backoff,
    cache::{Budget, DeviceCache, Evictor},
    clock::ManualClock,
    digest::Digest,
    engine::{
        EngineConfig, Kernel, KernelParts, LaneEvent, LaneLimits, LaneParts, LayerSpec, PlanKey, Program,
        QuotaLimits, RecoveryPolicy, SeedCounters, SessionLedger, Weight,
    },
    fault::Fault,
    graph::{Binary, Builder, Graph, GraphError, Limits, Op, Sink, Source},
    id::{KernelId, LayerId, SeedIndex, SessionId},
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
    wire::{
        Blend, Block, ClientLane, Completion, DaemonLane, Event, EventKind, FLAG_TRAIN, GraftRole,
        ScheduleKind, ScheduleSpec, SeedReply, SeedState, SharedFloats, Submission, VERB_FORWARD, Wake,
    },
};

const LAYER: LayerId = LayerId(1);
const SEED: SeedIndex = SeedIndex(0);
pub(super) const WIDTH: usize = 4;
/// More than anything takes, on a machine with much to do.
const PATIENCE: Duration = Duration::from_secs(60);

/// k(x) = w·x, with one weight for each feature.
#[derive(Debug)]
struct Scale;

impl Program for Scale {
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut builder = Builder::with_limits(*limits);
            let x = builder.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let w = builder.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
            let y = builder.apply(Op::Binary(Binary::Mul), &[x, w])?;
            builder.sink(Sink::Output(0), y);
            Ok(builder.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

pub(super) fn id(text: &str) -> KernelId {
    text.parse().unwrap()
}

pub(super) struct Bench {
    pub(super) seed: Addr<Seed>,
    pub(super) clock: ManualClock,
    pub(super) ledger: Arc<SessionLedger>,
    pub(super) link: LaneLink,
    device: DeviceCache<Arc<Kernel>>,
    lane: ClientLane,
    watcher: Watcher,
    sequence: u64,
}

impl Bench {
    /// A dormant seed; the kernels `a` and `b` are in memory.
    pub(super) async fn new(attempts: u32) -> Self {
        let backoff = Backoff {
            first: Duration::from_secs(1),
            max: Duration::from_secs(3),
            jitter: 0.0,
            ..Backoff::default()
        };
        let recovery = RecoveryPolicy { attempts, backoff };
        let config = Arc::new(EngineConfig { error_threshold: 2, recovery, ..EngineConfig::default() });
        let clock = ManualClock::default();
        let budget = Budget { max_entries: 8, max_bytes: 1 << 30 };
        let weigh = |kernel: &Arc<Kernel>| kernel.resident_bytes() as u64;
        let device = DeviceCache::new(budget, weigh, Arc::new(clock.clone()));
        // Nobody fills it: what is not there cannot be had.
        let kernels =
            Kernels::new(device.clone(), Arc::new(Holders::default()), Handle::new("kernel_cache", 8));
        let backend = test_device::device(1);
        let (lane, doorbell) = DaemonLane::serve(1 << 20).unwrap();
        let file = lane.arena().file().try_clone_to_owned().unwrap();
        let client = ClientLane::join(file, doorbell, lane.arena().layout()).unwrap();
        let (link, mut told) = LaneLink::start(LaneParts {
            session: SessionId(1),
            lane,
            backend: backend.clone(),
            config: config.clone(),
            limits: LaneLimits::default(),
            recorder: None,
            device_arena: None,
            device_share: None,
        })
        .unwrap();
        let counters: Arc<SeedCounters> = Arc::default();
        let spec = LayerSpec {
            id: LAYER,
            blend: Blend::Residual,
            counters: vec![counters.clone()],
            host: false,
            recompute: false,
        };
        link.open(spec).await.unwrap();
        let events = Events::new(Arc::new(clock.clone()));
        let watcher = events.watch(Scope { uid: None, session: None }).unwrap();
        let ledger = SessionLedger::alone(QuotaLimits::default());
        let seed = Seed::new(SeedParts {
            on_device: false,
            session: SessionId(1),
            layer: LAYER,
            seed: SEED,
            lane: link.clone(),
            kernels,
            backend,
            config,
            counters,
            ledger: ledger.clone(),
            teller: Teller::new(events, 7, SessionId(1)).of_layer(LAYER, &"fc".into()),
            clock: Arc::new(clock.clone()),
        })
        .start();
        let actor = seed.clone();
        // As its session does.
        actix::spawn(async move {
            while let Some(event) = told.recv().await {
                match event {
                    LaneEvent::AlphaReached { number, alpha, generation, .. } => {
                        actor.send(SeedReached { number, alpha, generation }).await.unwrap();
                    }
                    LaneEvent::SeedUnloaded { generation, error, alpha, course, .. } => {
                        actor.send(UnloadSeed { generation, error, alpha, course }).await.unwrap();
                    }
                    _ => {}
                }
            }
        });
        let bench = Self { seed, clock, ledger, link, device, lane: client, watcher, sequence: 0 };
        bench.publish("a", &[WIDTH]);
        bench.publish("b", &[WIDTH]);
        bench
    }

    /// Puts a kernel into memory, with weights of 1.
    pub(super) fn publish(&self, name: &str, weights: &[usize]) {
        let weights: Shape = weights.iter().copied().collect();
        let tensor = HostTensor::from_values(weights.clone(), &vec![1.0f32; weights.elements()]).unwrap();
        let weight = Weight {
            name: "w".to_owned(),
            tensor,
            requires_grad: true,
            aliases: Vec::new(),
            persistent: true,
        };
        let parts = KernelParts {
            id: id(name),
            digest: Digest::of(name.as_bytes()),
            metadata: Metadata::bare(id(name)),
            verdict: None,
            parameters: vec![weight],
            buffers: Vec::new(),
            program: Box::new(Scale),
        };
        drop(self.device.admit(id(name), Arc::new(Kernel::new(parts).unwrap())).unwrap());
    }

    /// Puts a kernel out of memory.
    pub(super) fn withdraw(&self, name: &str) {
        self.device.condemn(&id(name), &Evictor::Operator { uid: 0 });
    }

    pub(super) fn graft_of(&self, kernel: &str, alpha: f32) -> GraftSeed {
        GraftSeed {
            kernel: id(kernel),
            alpha,
            input_shape: [WIDTH].into(),
            dtype: DType::F32,
            role: GraftRole::Blend,
            schedule: None,
        }
    }

    pub(super) async fn graft(&self, graft: GraftSeed) -> Result<Grafted, ActorError> {
        self.seed.send(graft).await.unwrap()
    }

    pub(super) async fn blend(&self, steps: u32, target: f32) -> Result<SeedReply, ActorError> {
        self.seed.send(BlendSeed { schedule: linear(steps, target), alpha: None }).await.unwrap()
    }

    pub(super) async fn prune(&self, embargo: Option<Duration>) -> SeedReply {
        self.seed.send(PruneSeed { embargo }).await.unwrap().unwrap()
    }

    pub(super) async fn described(&self) -> SeedDescription {
        self.seed.send(DescribeSeed).await.unwrap()
    }

    pub(super) async fn state(&self) -> SeedState {
        self.described().await.seed.state
    }

    /// Waits until the seed is in a state; time stands still meanwhile.
    pub(super) async fn settled(&self, state: SeedState) {
        let until = Instant::now() + PATIENCE;
        while self.state().await != state {
            assert!(Instant::now() < until, "it stays {}", self.state().await);
            yield_now().await;
        }
    }

    /// Waits until so many commands wait for the lane, which is held up.
    pub(super) async fn queued(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while self.link.queued() != count {
            assert!(Instant::now() < until, "{} commands wait", self.link.queued());
            self.described().await;
        }
    }

    /// A forward pass of ones.
    pub(super) fn pass(&mut self, train: bool) -> Completion {
        self.sequence += 1;
        let offset = self.lane.arena().layout().heap_offset;
        let bytes = WIDTH as u64 * 4;
        let input = Block { offset, bytes };
        self.lane.arena().floats(input).unwrap().copy_from(&[1.0; WIDTH]);
        let dims = [1, WIDTH as u32, 0, 0, 0, 0, 0, 0];
        let submission = Submission {
            verb: VERB_FORWARD,
            flags: if train { FLAG_TRAIN } else { 0 },
            sequence: self.sequence,
            layer: LAYER.0,
            dtype: u32::from(DType::F32.code()),
            input_offset: offset,
            input_bytes: bytes,
            output_offset: offset + 64,
            output_bytes: bytes,
            input_rank: 2,
            output_rank: 2,
            input_dims: dims,
            output_dims: dims,
            ..Submission::default()
        };
        self.lane.publish(&submission).unwrap();
        match self.lane.wait(Duration::ZERO, Some(Duration::from_secs(60))).unwrap() {
            Wake::Item(completion) => completion,
            other => panic!("{other:?}"),
        }
    }

    /// What the last pass gave.
    pub(super) fn output(&self) -> Vec<f32> {
        let offset = self.lane.arena().layout().heap_offset + 64;
        self.lane.arena().floats(Block { offset, bytes: WIDTH as u64 * 4 }).unwrap().to_vec()
    }

    /// Passes that fail, until the kernel is taken out.
    pub(super) fn fail(&mut self, memory: &SeedFile) {
        weights(memory).copy_from(&[f32::NAN; WIDTH]);
        for _ in 0..2 {
            assert_eq!(self.pass(true).failed_mask, 1);
        }
    }

    /// The events so far, in short.
    pub(super) async fn told(&mut self, until: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line| line != until) {
            lines.push(short(&*self.watcher.next().await));
        }
        lines
    }
}

pub(super) fn linear(steps: u32, target: f32) -> ScheduleSpec {
    ScheduleSpec { kind: ScheduleKind::Linear, steps, target, steepness: None, done: 0 }
}

/// The weights in a seed's memory file.
pub(super) fn weights(memory: &SeedFile) -> SharedFloats<'_> {
    let SeedFile::Host(memory) = memory else { panic!("the trainer's tensors lie in the host's memory") };
    memory.floats(0, WIDTH).unwrap()
}

fn short(event: &Event) -> String {
    assert_eq!((event.session, event.layer, event.seed), (Some(SessionId(1)), Some(LAYER), Some(SEED)));
    let kernel = event.kernel.as_ref().map_or("-", |kernel| kernel.as_str());
    match &event.kind {
        EventKind::StateChanged { from, to, .. } => format!("{kernel} {from} {to}"),
        kind => format!("{kernel} {}", kind.name()),
    }
}
