//! The daemon from its first line to its last.

use std::{
    path::PathBuf,
    process,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use actix::Actor as _;
use tokio::{
    net::{UnixListener, UnixStream},
    signal::unix::{Signal, SignalKind, signal},
    sync::Notify,
};

use super::{
    DaemonError, Phase,
    access::Access,
    device::choose_device,
    listen::Listener,
    metrics::MetricsSocket,
    wiring::{Wiring, wire},
};
use crate::{
    actor::{AdmitSession, BeginDrain, CloseCache, Devices, RefusedSession, Supervisor, base::Handle},
    config::{Config, DeviceKind},
    control::{Control, serve_operator},
    fault::Fault,
    http::Probe,
    id::KernelId,
    telemetry::Notifier,
    wire::{ErrorReply, FrameKind, Peer, Reply, encode},
};

/// How long records of failing passes may take to be written before the daemon leaves without them.
const RECORDS_PATIENCE: Duration = Duration::from_secs(5);

/// How long the end of what works with a GPU may take.
const ENDING_PATIENCE: Duration = Duration::from_secs(20);

/// How long opening a GPU may take: half a minute at the first start on two processors, more on a busy one.
const OPENING_PATIENCE: Duration = Duration::from_secs(180);

/// What the daemon takes from its environment besides the settings, read by the binary.
#[derive(Debug)]
pub struct DaemonEnvironment {
    /// Where systemd wants to be told.
    pub notifier: Option<Notifier>,
    /// Gives a variable that says where NVIDIA's software lies, such as `LD_LIBRARY_PATH`.
    pub variable: fn(&str) -> Option<PathBuf>,
    /// A kernel whose passes panic, for tests of what then happens. Builds without debug assertions ignore
    /// it.
    pub panic_in: Option<KernelId>,
}

/// Runs the daemon until a signal or an operator ends it.
///
/// Blocking: for as long as the daemon lives. SIGTERM and SIGINT drain; a second one leaves at once.
///
/// # Errors
/// [`DaemonError`] when it cannot start, or when the supervisor fails.
pub fn run(config: &Config, environment: &DaemonEnvironment) -> Result<(), DaemonError> {
    let system = actix::System::new();
    let mut device = None;
    let outcome = system.block_on(serve(config, environment, &mut device));
    let Some(devices) = device.filter(|devices| devices.have_gpu()) else { return outcome };
    if devices.lost().is_some() {
        // Their end would wait for threads that wait for the device. The process ends, or begins anew.
        std::mem::forget((system, devices));
        return outcome;
    }
    let code = i32::from(outcome.is_err());
    let (ended, has_ended) = mpsc::channel::<()>();
    thread::spawn(move || {
        // A GPU may stall when nobody looks any more, and a driver may not answer.
        if has_ended.recv_timeout(ENDING_PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
            tracing::error!("leaving without threads that the GPU holds up");
            process::exit(code);
        }
    });
    drop((system, devices));
    drop(ended);
    outcome
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let wait = |kind| signal(kind).map_err(|source| DaemonError::Signals { source });
        Ok(Self { terminate: wait(SignalKind::terminate())?, interrupt: wait(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => tracing::info!(signal = "SIGTERM", "asked to leave"),
            _ = self.interrupt.recv() => tracing::info!(signal = "SIGINT", "asked to leave"),
        }
    }
}

/// Serves until it ends; `opened` then holds what kernels ran on.
async fn serve(
    config: &Config,
    environment: &DaemonEnvironment,
    opened: &mut Option<Arc<Devices>>,
) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    // Bound first: a second daemon is refused before it has touched what the first one works with.
    let trainers = Listener::bind("daemon.socket", &config.daemon.socket, config.daemon.socket_mode)?;
    let operators =
        Listener::bind("daemon.control_socket", &config.daemon.control_socket, config.daemon.control_mode)?;
    let metrics = MetricsSocket::bind(&config.metrics)?;

    if let Some(notifier) = &environment.notifier
        && config.device.kind != DeviceKind::Cpu
    {
        notifier.extend_start(OPENING_PATIENCE);
    }
    let device = tokio::select! {
        chosen = choose_device(config, environment.variable) => chosen?,
        // What is being compiled is finished before the process ends: nothing can interrupt the compiler.
        () = signals.next() => return Ok(()),
    };
    let devices = &*opened.insert(device.devices.clone());
    let stall_limit = config.device.stall_limit;
    let Wiring { supervisor, cache, validator, events, recorder, parts } =
        wire(config, device, environment.panic_in.clone()).await?;
    let address = Supervisor::new(parts).start();
    supervisor.publish(Some(address.clone()));
    let shutdown = Arc::new(Notify::new());
    let phase = || Phase::now().as_str();
    let probe = Probe::new(supervisor.clone(), cache.clone(), phase, || Phase::now() == Phase::Serving);
    let metrics = metrics.map(|socket| socket.serve(probe)).transpose()?;
    let control = Control {
        supervisor: supervisor.clone(),
        cache: cache.clone(),
        validator,
        events,
        shutdown: shutdown.clone(),
        phase,
        max_artifact_bytes: config.validator.max_artifact_bytes.0,
    };
    let own_uid = rustix::process::geteuid().as_raw();
    let trainers_allowed = Access::trainers(own_uid, &config.daemon.allow_uids);
    let operators_allowed = Access::operators(own_uid, &config.daemon.admin_uids);

    Phase::Serving.enter();
    tracing::info!(
        socket = %config.daemon.socket.display(),
        control_socket = %config.daemon.control_socket.display(),
        version = env!("CARGO_PKG_VERSION"),
        "ready",
    );
    if let Some(notifier) = &environment.notifier {
        notifier.ready();
    }
    let mut watch = tokio::time::interval(config.daemon.watch_interval);
    let outcome = loop {
        tokio::select! {
            () = signals.next() => break Ok(()),
            () = shutdown.notified() => break Ok(()),
            (stream, peer) = accept(&trainers.socket) => match devices.lost() {
                // Whoever comes back at once is let in by the next daemon.
                Some(reason) => break Err(DaemonError::DeviceLost { reason }),
                None => admit(stream, peer, &trainers_allowed, &supervisor).await,
            },
            (stream, peer) = accept(&operators.socket) => {
                if operators_allowed.admits(&peer) {
                    actix::spawn(serve_operator(stream, peer, control.clone()));
                } else {
                    tracing::warn!(uid = peer.uid, pid = peer.pid, "operator refused");
                    refuse(stream, &DaemonError::Refused { uid: peer.uid }).await;
                }
            }
            _ = watch.tick() => {
                if !address.connected() {
                    break Err(DaemonError::Supervisor);
                }
                if let Some(reason) = lost_after_a_beat(devices, stall_limit) {
                    break Err(DaemonError::DeviceLost { reason });
                }
            }
        }
    };

    Phase::Draining.enter();
    // Where the device is lost no ticket can be spent any more. The process goes on as another daemon, so a service manager
    // that is told of an end would make it one.
    let is_lost = matches!(outcome, Err(DaemonError::DeviceLost { .. }));
    if let Some(notifier) = environment.notifier.as_ref().filter(|_| !is_lost) {
        notifier.stopping();
    }
    // New trainers are told at once that nobody is here; those that are connected finish.
    drop(trainers);
    let is_lost = is_lost || {
        let patience = config.daemon.drain_timeout;
        let lost = async {
            loop {
                watch.tick().await;
                if let Some(reason) = lost_after_a_beat(devices, stall_limit) {
                    break reason;
                }
            }
        };
        tokio::select! {
            left = supervisor.ask(BeginDrain { patience }) => {
                match left {
                    Ok(0) => tracing::info!("every ticket is spent"),
                    Ok(tickets) => tracing::warn!(tickets, "left with tickets unspent"),
                    Err(error) => tracing::warn!(%error, "could not drain"),
                }
                false
            }
            reason = lost => {
                tracing::error!(reason, "leaving at once: no ticket can be spent any more");
                true
            }
            () = signals.next() => {
                tracing::warn!("leaving at once");
                false
            }
        }
    };
    if is_lost {
        // Sessions are not asked, for lanes may wait for the device: connections end with the process.
        if let Err(error) = cache.order(CloseCache).await {
            tracing::warn!(%error, "the cache could not be closed in order");
        }
    }
    Phase::Stopping.enter();
    drop((operators, metrics));
    if let Some(recorder) = recorder {
        recorder.close(RECORDS_PATIENCE);
    }
    actix::System::current().stop();
    outcome
}

/// Why a device is lost, if one is; and has them asked for a sign of life, by which a stall is known later.
fn lost_after_a_beat(devices: &Devices, stall_limit: Duration) -> Option<String> {
    if !stall_limit.is_zero() {
        devices.beat(Instant::now(), stall_limit);
    }
    devices.lost()
}

/// The next connection. Failures to accept pass, such as a peer that is gone or a shortage of descriptors.
async fn accept(socket: &UnixListener) -> (UnixStream, Peer) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => match Peer::of(&stream) {
                Ok(peer) => return (stream, peer),
                Err(error) => tracing::warn!(%error, "connection refused"),
            },
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // With no descriptor left the next attempt fails at once: give others time to close some.
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn admit(stream: UnixStream, peer: Peer, access: &Access, supervisor: &Handle<Supervisor>) {
    if !access.admits(&peer) {
        tracing::warn!(uid = peer.uid, pid = peer.pid, "trainer refused");
        return refuse(stream, &DaemonError::Refused { uid: peer.uid }).await;
    }
    match supervisor.ask(AdmitSession { stream, peer }).await {
        Ok(Ok(_)) => {}
        Ok(Err(RefusedSession { stream, error })) => {
            tracing::warn!(%error, pid = peer.pid, "session refused");
            refuse(stream, &error).await;
        }
        Err(error) => tracing::warn!(%error, pid = peer.pid, "session refused"),
    }
}

/// Tells a peer why it is not served, and closes.
async fn refuse(stream: UnixStream, error: &dyn Fault) {
    let reply: Reply<()> = Reply::Error(ErrorReply::from_fault(error));
    if let Ok(frame) = encode(FrameKind::Reply, 0, &reply) {
        // It fits a socket's empty buffer, and one that does not take it is gone.
        let _ = stream.try_write(&frame);
    }
}
