//! The client against the daemon's side of the wire, played by a thread: the seeds' output is twice the
//! input, and the one parameter's gradient the sum of what came back.

use std::{
    os::{fd::AsFd, unix::net::UnixStream},
    thread::JoinHandle,
    time::Duration,
};

use super::{Client, ClientError, ConnectOptions, Events, PassRequest, connection::Connection};
use crate::{
    digest::Digest,
    fault::Fault,
    id::{Generation, KernelId, LayerId, SeedIndex, SessionId},
    tensor::{DType, Shape},
    validation::Metadata,
    wire::{
        Arena, Backward, Blend, Block, Command, Completion, DaemonLane, Empty, ErrorReply, Event, EventKind,
        Export, ExportReply, FailureKind, Forward, FrameKind, GraftReply, HelloReply, LayerReply, Offer,
        OfferReply, PROTOCOL, Reply, Request, SeedReply, SeedState, SessionLimits, SetAlpha, SharedMemory,
        Status, TensorEntry, Wake, Wants, decode, encode, receive, send,
    },
};

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
            max_layers: 1,
            max_seeds_per_layer: 2,
            max_tickets: 8,
            max_saved_bytes: 0,
        },
        spin_us: 0,
    }
}

fn graft_reply(kernel: KernelId) -> GraftReply {
    let weight = TensorEntry {
        name: "weight".into(),
        dtype: DType::F32,
        shape: Shape::from([2]),
        offset: 64,
        requires_grad: true,
        aliases: vec![],
        persistent: true,
    };
    GraftReply {
        device_bytes: None,
        layer: LayerId(1),
        seed: SeedIndex(1),
        kernel,
        generation: Generation(1),
        state: SeedState::Holding,
        alpha: 0.5,
        memory_bytes: 4096,
        buffers_offset: 4096,
        gradient_bytes: 128,
        parameters: vec![weight],
        buffers: vec![],
    }
}

fn artifact() -> Vec<u8> {
    (0..300_001u32).map(|i| (i * 7) as u8).collect()
}

/// Guesses too low at first, and of seed 0 says that it has written something else.
fn exported(arena: &Arena, Export { seed, offset, bytes, .. }: Export) -> ExportReply {
    let artifact = artifact();
    let parent = Metadata::bare("good".parse().unwrap());
    if bytes == 0 {
        return ExportReply { bytes: 1000, digest: None, parent };
    }
    let region = arena.region(Block { offset, bytes }).unwrap();
    let is_written = bytes >= artifact.len() as u64 && region.write(&artifact);
    let digest = if seed.0 == 0 { Digest::of(b"another") } else { Digest::of(&artifact) };
    ExportReply { bytes: artifact.len() as u64, digest: is_written.then_some(digest), parent }
}

fn control(socket: UnixStream, memory: &SharedMemory, arena: &Arena) {
    let answer = |reply: Vec<u8>| send(&socket, &reply, &[]).unwrap();
    while let Ok((payload, _)) = receive(&socket, FrameKind::Request) {
        match decode(&payload).unwrap() {
            Request::OpenLayer(open) => {
                assert_eq!((open.seeds, open.dtype), (2, DType::F32));
                answer(encode(FrameKind::Reply, 0, &Reply::Ok(LayerReply { layer: LayerId(1) })).unwrap());
            }
            Request::Graft(graft) if graft.kernel.as_str() == "good" => {
                let reply = encode(FrameKind::Reply, 1, &Reply::Ok(graft_reply(graft.kernel))).unwrap();
                send(&socket, &reply, &[memory.file()]).unwrap();
            }
            Request::Graft(graft) => {
                let error = ErrorReply {
                    code: "kernel.not_found".into(),
                    message: "no such kernel".into(),
                    layer: None,
                    seed: None,
                    kernel: None,
                };
                let error = error.at(graft.layer, graft.seed).about(&graft.kernel);
                answer(encode(FrameKind::Reply, 0, &Reply::<Empty>::Error(error)).unwrap());
            }
            Request::SetAlpha(SetAlpha { alpha, .. }) => {
                let (state, generation) = (SeedState::Holding, Generation(1));
                let reply = SeedReply {
                    state,
                    alpha,
                    kernel: None,
                    generation,
                    target: None,
                    steps_left: 0,
                    frozen: false,
                };
                answer(encode(FrameKind::Reply, 0, &Reply::Ok(reply)).unwrap());
            }
            Request::Offer(Offer { offset, bytes }) => {
                let mut artifact = vec![0; bytes as usize];
                assert!(arena.region(Block { offset, bytes }).unwrap().read(&mut artifact));
                let digest = Digest::of(&artifact);
                let reply = OfferReply { kernel: KernelId::offered(&digest), digest };
                answer(encode(FrameKind::Reply, 0, &Reply::Ok(reply)).unwrap());
            }
            Request::Export(export) => {
                let reply = exported(arena, export);
                answer(encode(FrameKind::Reply, 0, &Reply::Ok(reply)).unwrap());
            }
            _ => answer(encode(FrameKind::Reply, 0, &Reply::Ok(Empty {})).unwrap()),
        }
    }
}

fn forward(lane: &DaemonLane, forward: &Forward) -> Completion {
    let input = lane.arena().floats(forward.input).unwrap().to_vec();
    let output: Vec<f32> = input.iter().map(|x| 2.0 * x).collect();
    lane.arena().floats(forward.output).unwrap().copy_from(&output);
    let mut completion =
        Completion { sequence: forward.sequence, blend_weight: 0.5, ..Completion::default() };
    completion.ticket = if forward.take_ticket { 40 + u64::from(forward.train) } else { 0 };
    completion.set_live(SeedIndex(1));
    completion.set_failed(SeedIndex(0), FailureKind::NonFinite);
    completion
}

fn backward(lane: &DaemonLane, backward: &Backward) -> Completion {
    let grad = lane.arena().floats(backward.grad_output).unwrap().to_vec();
    let input: Vec<f32> = grad.iter().map(|g| 2.0 * g).collect();
    lane.arena().floats(backward.grad_input.unwrap()).unwrap().copy_from(&input);
    let sum: f32 = grad.iter().sum();
    let parameters = lane.arena().floats(backward.grad_parameters.unwrap()).unwrap();
    parameters.update(|i, _| if i == 16 { sum } else { 0.0 });
    lane.arena().floats(backward.grad_alphas.unwrap()).unwrap().copy_from(&[0.0, 7.0]);
    Completion { sequence: backward.sequence, ..Completion::default() }
}

/// Serves until the client is gone; returns the tickets that were released.
fn serve(mut lane: DaemonLane) -> Vec<u64> {
    let mut released = Vec::new();
    while let Wake::Item(submission) = lane.wait(Duration::ZERO, None).unwrap() {
        let completion = match submission.check(lane.arena().layout()).unwrap() {
            Command::Forward(command) if command.layer != LayerId(1) => {
                Completion::refused(command.sequence, Status::LayerUnknown, "no such layer")
            }
            Command::Forward(command) => forward(&lane, &command),
            Command::Backward(command) => backward(&lane, &command),
            Command::Release(release) => {
                released.push(release.ticket.0);
                Completion { sequence: release.sequence, ..Completion::default() }
            }
        };
        lane.publish(&completion).unwrap();
    }
    released
}

fn session() -> (Client, JoinHandle<Vec<u64>>) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (lane, doorbell) = DaemonLane::serve(1 << 20).unwrap();
    let daemon = std::thread::spawn(move || {
        let (payload, _) = receive(&theirs, FrameKind::Request).unwrap();
        assert!(matches!(decode(&payload).unwrap(), Request::Hello(hello) if hello.protocol == PROTOCOL));
        let reply = encode(FrameKind::Reply, 2, &Reply::Ok(hello(&lane))).unwrap();
        send(&theirs, &reply, &[lane.arena().file(), doorbell.as_fd()]).unwrap();
        drop(doorbell);
        let memory = SharedMemory::create("test", 4096).unwrap();
        memory.floats(64, 2).unwrap().copy_from(&[1.0, 2.0]);
        let arena = lane.arena().clone();
        std::thread::scope(|scope| {
            let lane = scope.spawn(|| serve(lane));
            control(theirs, &memory, &arena);
            lane.join().unwrap()
        })
    });
    (Client::start(Connection::over(ours), &ConnectOptions::default()).unwrap(), daemon)
}

fn request<'a>(input: &'a [f32], shape: &'a Shape, gradients: Option<Wants>) -> PassRequest<'a> {
    let (train, rng_seed, alphas) = (true, 1, None);
    PassRequest { input, input_shape: shape, output_shape: shape, train, gradients, rng_seed, alphas }
}

const ALL: Option<Wants> = Some(Wants { input: true, parameters: true, alphas: true });

#[test]
fn a_pass_goes_there_and_back() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Convex, None).unwrap();
    let shape = Shape::from([1, 3]);
    let kernel = "good".parse().unwrap();
    let grafted = layer.graft(SeedIndex(1), &kernel, 0.5, &Shape::from([3])).unwrap();
    let weight = &grafted.parameters()[0];
    grafted.floats(weight).unwrap().update(|_, value| value * 3.0);
    assert_eq!(grafted.floats(weight).unwrap().to_vec(), [3.0, 6.0]);

    let pass = layer.forward(&request(&[1.0, 2.0, 3.0], &shape, ALL)).unwrap();
    assert_eq!(pass.output().unwrap(), [2.0, 4.0, 6.0]);
    assert_eq!(pass.blend_weight(), 0.5);
    assert_eq!(pass.failures().collect::<Vec<_>>(), [(SeedIndex(0), FailureKind::NonFinite)]);
    let gradients = pass.backward(&[1.0, 1.0, 1.0]).unwrap();
    assert_eq!(gradients.input.as_deref(), Some(&[2.0, 2.0, 2.0][..]));
    assert_eq!(gradients.parameter(SeedIndex(1), weight), Some(&[3.0, 0.0][..]));
    assert_eq!(gradients.parameter(SeedIndex(0), weight), None);
    assert_eq!(gradients.alphas.as_deref(), Some(&[0.0, 7.0][..]));
    drop((layer, client));
    assert_eq!(daemon.join().unwrap(), [0u64; 0], "a ticket that had its backward needs no release");
}

#[test]
fn dropped_passes_release_their_tickets_and_the_heap_comes_back() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Convex, None).unwrap();
    // 200 passes of 64 KiB do not fit an arena of 1 MiB at once, and 200 releases do not fit its ring.
    let input = vec![1.0; 16 << 10];
    let shape = Shape::from([1, 16 << 10]);
    for _ in 0..200 {
        layer.forward(&request(&input, &shape, ALL)).unwrap();
    }
    let held: Vec<_> = (0..4).map(|_| layer.forward(&request(&input, &shape, None)).unwrap()).collect();
    let huge = vec![0.0; 1 << 18];
    let error = layer.forward(&request(&huge, &Shape::from([1, 1 << 18]), None)).unwrap_err();
    assert_eq!(error.code(), "session.quota");
    drop(held);
    drop((layer, client));
    assert_eq!(daemon.join().unwrap(), [41; 200]);
}

#[test]
fn refusals_carry_the_daemons_words() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Convex, None).unwrap();
    let kernel = "bad".parse().unwrap();
    let error = layer.graft(SeedIndex(0), &kernel, 0.5, &Shape::from([3])).unwrap_err();
    assert_eq!(error.remote_code(), "kernel.not_found");
    let ClientError::Refused(reply) = &error else { panic!("{error}") };
    assert_eq!((reply.seed, reply.kernel.as_deref()), (Some(SeedIndex(0)), Some("bad")));
    let shape = Shape::from([2, 2]);
    assert!(matches!(layer.forward(&request(&[1.0], &shape, None)), Err(ClientError::Usage { .. })));
    let pass = layer.forward(&request(&[1.0; 4], &shape, None)).unwrap();
    assert!(matches!(pass.backward(&[1.0; 4]), Err(ClientError::Usage { .. })), "it took no ticket");
    drop((layer, client));
    daemon.join().unwrap();
}

#[test]
fn who_is_refused_before_it_has_spoken_is_told_why() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let (code, message) = ("session.quota".to_owned(), "limits.max_sessions is 1".to_owned());
    let error = ErrorReply { code, message, layer: None, seed: None, kernel: None };
    send(&theirs, &encode(FrameKind::Reply, 0, &Reply::<Empty>::Error(error)).unwrap(), &[]).unwrap();
    drop(theirs);
    let error = Client::start(Connection::over(ours), &ConnectOptions::default()).unwrap_err();
    assert_eq!(error.remote_code(), "session.quota");
}

#[test]
fn events_come_until_the_daemon_is_gone() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = std::thread::spawn(move || {
        let (payload, _) = receive(&theirs, FrameKind::Request).unwrap();
        assert_eq!(payload, br#"{"verb":"watch","session":7}"#);
        send(&theirs, &encode(FrameKind::Reply, 0, &Reply::Ok(Empty {})).unwrap(), &[]).unwrap();
        for count in [1, 2] {
            let event: Event = EventKind::Lost { count }.into();
            send(&theirs, &encode(FrameKind::Event, 0, &event).unwrap(), &[]).unwrap();
        }
    });
    let mut events = Events::start(Connection::over(ours), Some(SessionId(7))).unwrap();
    for count in [1, 2] {
        assert_eq!(events.next().unwrap().unwrap().kind, EventKind::Lost { count });
    }
    assert_eq!(events.next().unwrap().unwrap_err().code(), "session.lost");
    assert!(events.next().is_none());
    daemon.join().unwrap();
}

#[test]
fn a_daemon_that_dies_is_noticed_at_once() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let daemon = std::thread::spawn(move || {
        let (mut lane, doorbell) = DaemonLane::serve(1 << 20).unwrap();
        receive(&theirs, FrameKind::Request).unwrap();
        let reply = encode(FrameKind::Reply, 2, &Reply::Ok(hello(&lane))).unwrap();
        send(&theirs, &reply, &[lane.arena().file(), doorbell.as_fd()]).unwrap();
        drop(doorbell);
        receive(&theirs, FrameKind::Request).unwrap();
        let reply = encode(FrameKind::Reply, 0, &Reply::Ok(LayerReply { layer: LayerId(1) })).unwrap();
        send(&theirs, &reply, &[]).unwrap();
        // It dies in the middle of a pass.
        assert!(matches!(lane.wait(Duration::ZERO, None).unwrap(), Wake::Item(_)));
    });
    let client = Client::start(Connection::over(ours), &ConnectOptions::default()).unwrap();
    let layer = client.open_layer("fc", 2, Blend::Convex, None).unwrap();
    let shape = Shape::from([1]);
    let error = layer.forward(&request(&[1.0], &shape, None)).unwrap_err();
    assert_eq!(error.code(), "session.lost");
    daemon.join().unwrap();
}

#[test]
fn an_artifact_is_offered_as_it_is_and_its_block_comes_back() {
    let (client, daemon) = session();
    // Together they do not fit an arena of 1 MiB.
    for n in 0..4 {
        let artifact: Vec<u8> = (0..400_001).map(|i| (i * 7 + n) as u8).collect();
        let offered = client.offer(&artifact).unwrap();
        assert_eq!(offered.digest, Digest::of(&artifact));
        assert_eq!(offered.kernel, KernelId::offered(&offered.digest));
    }
    assert_eq!(client.offer(&vec![0; 1 << 20]).unwrap_err().code(), "session.quota");
    drop(client);
    daemon.join().unwrap();
}

#[test]
fn an_exported_artifact_is_taken_out_of_the_arena_and_checked() {
    let (client, daemon) = session();
    let layer = client.open_layer("fc", 2, Blend::Convex, None).unwrap();
    // Together they do not fit an arena of 1 MiB.
    for _ in 0..4 {
        let exported = layer.export(SeedIndex(1)).unwrap();
        assert_eq!(exported.artifact, artifact());
        assert_eq!(exported.digest, Digest::of(&exported.artifact));
        assert_eq!(exported.parent.id.as_str(), "good");
    }
    let error = layer.export(SeedIndex(0)).unwrap_err();
    let reason = std::error::Error::source(&error).unwrap().to_string();
    assert!(reason.contains("is not what the daemon has written"), "{reason}");
    drop((layer, client));
    daemon.join().unwrap();
}
