//! The client against a real lane: hosts, roles, alphas of one pass, and forward passes that are run again. Grafting is
//! played by a thread that knows kernels by the number in their name, k(x) = number·x.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use super::{Client, ClientError, ConnectOptions, Layer, LayerOptions, PassRequest, connection::Connection};
use crate::{
    backend::test_device::device,
    digest::Digest,
    engine::{
        Alpha, Answer, EngineConfig, Kernel, KernelParts, LaneCommand, LaneHandle, LaneLimits, LaneParts,
        LayerSpec, LiveSeed, PlanKey, Program, Weight,
    },
    fault::Fault,
    graph::{Binary, Builder, Graph, GraphError, Limits, Op, Sink, Source},
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
    wire::{
        Blend, DaemonLane, Empty, FrameKind, Graft, GraftReply, GraftRole, HelloReply, LayerReply, PROTOCOL,
        Reply, Request, SeedReply, SeedState, SessionLimits, SetAlpha, SharedMemory, Status, TensorEntry,
        Wants, decode, encode, receive, send,
    },
};

const FEATURES: usize = 2;

/// k(x) = w·x, with one weight for each feature.
#[derive(Debug)]
struct Scale;

impl Program for Scale {
    fn lower(&self, key: &PlanKey, limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut builder = Builder::with_limits(*limits);
            let x = builder.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let w = builder.source(Source::Parameter(0), Shape::from([FEATURES]), DType::F32)?;
            let y = builder.apply(Op::Binary(Binary::Mul), &[x, w])?;
            builder.sink(Sink::Output(0), y);
            Ok(builder.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

fn kernel(id: &KernelId) -> Arc<Kernel> {
    let factor: f32 = id.as_str().trim_start_matches("times-").parse().unwrap();
    let tensor = HostTensor::from_values(Shape::from([FEATURES]), &[factor; FEATURES]).unwrap();
    let parts = KernelParts {
        id: id.clone(),
        digest: Digest::of(id.as_str().as_bytes()),
        metadata: Metadata::bare(id.clone()),
        verdict: None,
        parameters: vec![Weight {
            name: "w".into(),
            tensor,
            requires_grad: true,
            aliases: Vec::new(),
            persistent: true,
        }],
        buffers: vec![],
        program: Box::new(Scale),
    };
    Arc::new(Kernel::new(parts).unwrap())
}

fn ask<T: Send + 'static>(lane: &LaneHandle, command: impl FnOnce(Answer<T>) -> LaneCommand) -> T {
    let (sender, answer) = mpsc::channel();
    lane.send(command(Box::new(move |result| drop(sender.send(result))))).unwrap();
    answer.recv().unwrap()
}

fn hello(lane: &DaemonLane) -> HelloReply {
    HelloReply {
        device_bytes: None,
        session: SessionId(1),
        server: "kasminad/test".into(),
        protocol: PROTOCOL,
        device: "cpu".into(),
        arena: *lane.arena().layout(),
        limits: SessionLimits {
            max_arena_bytes: 1 << 20,
            max_layers: 4,
            max_seeds_per_layer: 2,
            max_tickets: 8,
            max_saved_bytes: 1 << 20,
        },
        spin_us: 0,
    }
}

fn graft(lane: &LaneHandle, graft: &Graft) -> (GraftReply, Arc<SharedMemory>) {
    let kernel = kernel(&graft.kernel);
    let memory = Arc::new(SharedMemory::create("test-seed", kernel.memory_bytes()).unwrap());
    assert!(kernel.initialise(memory.region()));
    let live = Arc::new(
        LiveSeed::new(kernel.clone(), device(1).share(memory.clone()).unwrap(), Generation(1)).unwrap(),
    );
    let Graft { layer, seed, alpha, role, .. } = *graft;
    let factor = Alpha::new(alpha).unwrap();
    ask(lane, |answer| LaneCommand::Attach {
        layer,
        seed,
        live,
        alpha: factor,
        role: role.into(),
        course: None,
        answer,
    })
    .unwrap();
    let weight = TensorEntry {
        name: "w".into(),
        dtype: DType::F32,
        shape: Shape::from([FEATURES]),
        offset: 0,
        requires_grad: true,
        aliases: vec![],
        persistent: true,
    };
    let reply = GraftReply {
        device_bytes: None,
        layer,
        seed,
        kernel: graft.kernel.clone(),
        generation: Generation(1),
        state: if role == GraftRole::Train { SeedState::Training } else { SeedState::Holding },
        alpha,
        memory_bytes: kernel.memory_bytes() as u64,
        buffers_offset: kernel.buffers_offset() as u64,
        gradient_bytes: kernel.parameter_layout().total_bytes() as u64,
        parameters: vec![weight],
        buffers: vec![],
    };
    (reply, memory)
}

fn holding(alpha: f32) -> SeedReply {
    let (state, generation) = (SeedState::Holding, Generation(1));
    SeedReply { state, alpha, kernel: None, generation, target: None, steps_left: 0, frozen: false }
}

fn control(socket: &UnixStream, lane: &LaneHandle) {
    let mut layers = 0;
    while let Ok((payload, _)) = receive(socket, FrameKind::Request) {
        match decode(&payload).unwrap() {
            Request::OpenLayer(open) => {
                layers += 1;
                let id = LayerId(layers);
                let slots = usize::from(open.seeds) + usize::from(open.host);
                let counters = (0..slots).map(|_| Arc::default()).collect();
                let (blend, host, recompute) = (open.blend, open.host, open.recompute);
                let spec = LayerSpec { id, blend, counters, host, recompute };
                ask(lane, |answer| LaneCommand::OpenLayer { spec, answer }).unwrap();
                let reply = encode(FrameKind::Reply, 0, &Reply::Ok(LayerReply { layer: id })).unwrap();
                send(socket, &reply, &[]).unwrap();
            }
            Request::Graft(asked) => {
                let (reply, memory) = graft(lane, &asked);
                let reply = encode(FrameKind::Reply, 1, &Reply::Ok(reply)).unwrap();
                send(socket, &reply, &[memory.file()]).unwrap();
            }
            Request::SetAlpha(SetAlpha { layer, seed, alpha }) => {
                let factor = Alpha::new(alpha).unwrap();
                ask(lane, |answer| LaneCommand::SetAlpha { layer, seed, alpha: factor, answer }).unwrap();
                send(socket, &encode(FrameKind::Reply, 0, &Reply::Ok(holding(alpha))).unwrap(), &[]).unwrap();
            }
            Request::CloseLayer(close) => {
                ask(lane, |answer| LaneCommand::CloseLayer { layer: close.layer, answer }).unwrap();
                // While the client waits: the lane ends with it.
                let left = ask(lane, |answer| LaneCommand::Snapshot { answer });
                assert_eq!((left.layers.len(), left.tickets, left.saved_bytes), (0, 0, 0));
                send(socket, &encode(FrameKind::Reply, 0, &Reply::Ok(Empty {})).unwrap(), &[]).unwrap();
            }
            other => panic!("{other:?}"),
        }
    }
}

fn session() -> (Client, JoinHandle<()>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = std::thread::spawn(move || {
        receive(&theirs, FrameKind::Request).unwrap();
        let (lane, doorbell) = DaemonLane::serve(1 << 20).unwrap();
        let reply = encode(FrameKind::Reply, 2, &Reply::Ok(hello(&lane))).unwrap();
        send(&theirs, &reply, &[lane.arena().file(), doorbell.as_fd()]).unwrap();
        drop(doorbell);
        let parts = LaneParts {
            session: SessionId(1),
            lane,
            backend: device(1),
            config: Arc::new(EngineConfig::default()),
            limits: LaneLimits::default(),
            recorder: None,
            device_arena: None,
            device_share: None,
        };
        control(&theirs, &LaneHandle::start(parts, Box::new(|_| {})).unwrap());
    });
    (Client::start(Connection::over(ours), &ConnectOptions::default()).unwrap(), daemon)
}

const X: [f32; 4] = [1.0, 2.0, -1.0, 0.5];
const G: [f32; 4] = [0.5, -1.0, 2.0, 1.0];

/// A training pass whose backward wants everything.
fn request<'a>(shape: &'a Shape, alphas: Option<&'a [f32]>) -> PassRequest<'a> {
    PassRequest {
        input: &X,
        input_shape: shape,
        output_shape: shape,
        train: true,
        gradients: Some(Wants { input: true, parameters: true, alphas: true }),
        rng_seed: 1,
        alphas,
    }
}

fn put(layer: &Layer, role: GraftRole, seed: SeedIndex, kernel: &str, alpha: f32) -> TensorEntry {
    let id = kernel.parse().unwrap();
    let grafted = layer.graft_as(role, seed, &id, alpha, &Shape::from([FEATURES])).unwrap();
    grafted.parameters()[0].clone()
}

/// By feature the sum of g·x, scaled.
fn of_weights(g: &[f32; 4], by: f32) -> [f32; FEATURES] {
    [by * (g[0] * X[0] + g[2] * X[2]), by * (g[1] * X[1] + g[3] * X[3])]
}

#[test]
fn a_whole_layer_runs_in_the_daemon_with_a_kernel_that_learns_behind_it() {
    for recompute in [false, true] {
        let (client, daemon) = session();
        let options = LayerOptions { seeds: 2, host: true, recompute, ..LayerOptions::default() };
        let layer = client.open_layer_with("fc", options).unwrap();
        let host = layer.host().unwrap();
        assert_eq!((layer.seeds(), host), (2, SeedIndex(2)));
        let shape = Shape::from([2, FEATURES]);
        let refused = layer.forward(&request(&shape, None)).unwrap_err();
        assert!(matches!(refused, ClientError::Pass { status: Status::NoHost, .. }), "{refused}");
        let w = put(&layer, GraftRole::Blend, host, "times-3", 0.0);
        put(&layer, GraftRole::Train, SeedIndex(0), "times-5", 0.0);
        put(&layer, GraftRole::Blend, SeedIndex(1), "times-2", 0.25);

        let pass = layer.forward(&request(&shape, Some(&[f32::NAN, 0.5]))).unwrap();
        assert_eq!(pass.live().collect::<Vec<_>>(), [SeedIndex(0), SeedIndex(1), host]);
        assert_eq!((pass.blend_weight(), pass.alpha_total()), (0.5, 0.5));
        assert_eq!(pass.output().unwrap(), X.map(|x| 2.5 * x));
        let gradients = pass.backward(&G).unwrap();
        assert_eq!(gradients.input.as_deref(), Some(&G.map(|g| 2.5 * g)[..]));
        for (seed, by) in [(SeedIndex(0), 1.0), (SeedIndex(1), 0.5), (host, 0.5)] {
            assert_eq!(gradients.parameter(seed, &w), Some(&of_weights(&G, by)[..]), "{seed}");
        }
        let dot: f32 = X.iter().zip(&G).map(|(x, g)| x * g).sum();
        assert_eq!(gradients.alphas.as_deref(), Some(&[0.0, -dot][..]), "the whole of it");
        // The alpha was that pass's alone.
        let pass = layer.forward(&request(&shape, None)).unwrap();
        assert_eq!(pass.output().unwrap(), X.map(|x| 2.75 * x));
        drop((pass, layer, client));
        daemon.join().unwrap();
    }
}

#[test]
fn a_kernel_in_training_is_given_the_gradient_of_the_layers_output() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Multiply, None).unwrap();
    assert_eq!(layer.host(), None);
    let shape = Shape::from([2, FEATURES]);
    let w = put(&layer, GraftRole::Train, SeedIndex(1), "times-5", 1.0);
    let pass = layer.forward(&request(&shape, None)).unwrap();
    assert_eq!((pass.output().unwrap(), pass.alpha_total()), (vec![1.0; 4], 0.0));
    let of_y = [1.0, 0.25, -0.5, 2.0];
    let short = layer.forward(&request(&shape, None)).unwrap();
    assert!(matches!(short.backward_with(&G, Some(&of_y[..3])), Err(ClientError::Usage { .. })));
    let gradients = pass.backward_with(&G, Some(&of_y)).unwrap();
    assert_eq!(gradients.input.as_deref(), Some(&[0.0; 4][..]));
    assert_eq!(gradients.parameter(SeedIndex(1), &w), Some(&of_weights(&of_y, 1.0)[..]));
    drop((layer, client));
    daemon.join().unwrap();
}

#[test]
fn alphas_that_do_not_fit_are_refused_and_the_session_goes_on() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Residual, None).unwrap();
    let shape = Shape::from([2, FEATURES]);
    put(&layer, GraftRole::Blend, SeedIndex(0), "times-2", 1.0);
    let refused = layer.forward(&request(&shape, Some(&[1.5, 0.0]))).unwrap_err();
    let ClientError::Pass { status: Status::Alpha, message } = &refused else { panic!("{refused}") };
    assert_eq!(message, "alpha 1.5 given for seed 0 is not in [0, 1]");
    assert!(matches!(layer.forward(&request(&shape, Some(&[1.0]))), Err(ClientError::Usage { .. })));
    // An alpha of 0 has a gradient where the pass was given it.
    let pass = layer.forward(&request(&shape, Some(&[0.0, 0.0]))).unwrap();
    assert_eq!(pass.output().unwrap(), [0.0; 4]);
    let gradients = pass.backward(&G).unwrap();
    let dot: f32 = X.iter().zip(&G).map(|(x, g)| 2.0 * x * g).sum();
    assert_eq!(gradients.alphas.as_deref(), Some(&[dot, 0.0][..]));
    drop((layer, client));
    daemon.join().unwrap();
}
