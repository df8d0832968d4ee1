//! The devices of a daemon, and which of them each session is on.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use super::ActorError;
use crate::backend::Backend;

/// What kernels may run on: the processor, or one or several GPUs.
#[derive(Debug)]
pub struct Devices {
    backends: Vec<Arc<dyn Backend>>,
    /// How many sessions are on each.
    sessions: Mutex<Vec<usize>>,
}

impl Devices {
    /// The first device, which there always is, and others.
    pub fn new(first: Arc<dyn Backend>, others: impl IntoIterator<Item = Arc<dyn Backend>>) -> Arc<Self> {
        let backends: Vec<_> = std::iter::once(first).chain(others).collect();
        let sessions = Mutex::new(vec![0; backends.len()]);
        Arc::new(Self { backends, sessions })
    }

    /// Why nothing runs on one of them any more before the process has begun anew; `None` as long as all work.
    pub fn lost(&self) -> Option<String> {
        self.backends.iter().find_map(|backend| backend.lost())
    }

    /// Whether there is any but the processor.
    pub fn have_gpu(&self) -> bool {
        self.backends.iter().any(|backend| backend.is_asynchronous())
    }

    /// Asks the GPUs that sessions are on for a sign of life; see [`Backend::beat`]. Never waits: a thread for what blocks
    /// does it.
    ///
    /// # Panics
    /// When it is called outside a runtime.
    pub fn beat(&self, now: Instant, limit: Duration) {
        let counted = self.backends.iter().zip(self.sessions());
        for (backend, _) in counted.filter(|(backend, sessions)| backend.is_asynchronous() && *sessions > 0) {
            let backend = Arc::clone(backend);
            tokio::task::spawn_blocking(move || backend.beat(now, limit));
        }
    }

    /// How many sessions are on each, in order.
    pub fn sessions(&self) -> Vec<usize> {
        self.counts().clone()
    }

    /// Puts a session on the GPU that its trainer's tensors lie on, by its UUID. One whose tensors lie in the host's memory
    /// is put where the fewest are, of several on the first.
    ///
    /// # Errors
    /// [`ActorError::NotShared`] where no device's memory can be mapped by others, [`ActorError::OtherGpu`] where that GPU
    /// is none of these.
    pub fn seat(self: &Arc<Self>, gpu: Option<&str>) -> Result<Seat, ActorError> {
        let mut counts = self.counts();
        let number = match gpu {
            Some(asked) => self.of_uuid(asked)?,
            None => (0..counts.len()).min_by_key(|&number| counts[number]).unwrap_or(0),
        };
        counts[number] += 1;
        Ok(Seat { devices: Arc::clone(self), number })
    }

    fn of_uuid(&self, asked: &str) -> Result<usize, ActorError> {
        let is_it = |backend: &Arc<dyn Backend>| backend.uuid() == Some(asked);
        if let Some(number) = self.backends.iter().position(is_it) {
            return Ok(number);
        }
        let shared =
            self.backends.iter().filter_map(|b| b.uuid().map(|uuid| format!("{uuid} ({})", b.name())));
        let ours: Vec<String> = shared.collect();
        if ours.is_empty() {
            let names: Vec<&str> = self.backends.iter().map(|backend| backend.name()).collect();
            return Err(ActorError::NotShared { devices: names.join(", ") });
        }
        // It is the trainer's word, and ends up in messages.
        let asked = asked.chars().filter(char::is_ascii_alphanumeric).take(32).collect();
        Err(ActorError::OtherGpu { asked, ours: ours.join(", ") })
    }

    fn counts(&self) -> MutexGuard<'_, Vec<usize>> {
        // Nothing that is done within can panic half-way.
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A session's place on a device, for as long as this is kept.
#[derive(Debug)]
pub struct Seat {
    devices: Arc<Devices>,
    number: usize,
}

impl Seat {
    /// The device.
    pub fn backend(&self) -> &Arc<dyn Backend> {
        &self.devices.backends[self.number]
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.devices.counts()[self.number] -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{BuildError, CompileOptions, Executable, cpu::CpuBackend},
        fault::Fault as _,
        graph::Graph,
    };

    /// A GPU by its name and UUID alone.
    #[derive(Debug)]
    struct Gpu(&'static str, Option<&'static str>);

    impl Backend for Gpu {
        fn name(&self) -> &str {
            self.0
        }

        fn compile(&self, _: &Graph, _: &CompileOptions<'_>) -> Result<Arc<dyn Executable>, BuildError> {
            Err(BuildError::Device { device: self.0.into(), reason: "it is no device".into() })
        }

        fn uuid(&self) -> Option<&str> {
            self.1
        }

        fn lost(&self) -> Option<String> {
            (self.0 == "cuda:9").then(|| "it fell off the bus".to_owned())
        }
    }

    fn gpus(them: &[(&'static str, Option<&'static str>)]) -> Arc<Devices> {
        let mut all = them.iter().map(|&(name, uuid)| Arc::new(Gpu(name, uuid)) as Arc<dyn Backend>);
        let first = all.next().unwrap();
        Devices::new(first, all)
    }

    #[test]
    fn tensors_on_a_gpu_decide_and_others_go_where_there_is_room() {
        let devices = gpus(&[("cuda:0", Some("aa")), ("cuda:1", Some("bb")), ("cuda:3", Some("cc"))]);
        let on = |gpu| devices.seat(gpu).unwrap();
        let seats = [on(Some("bb")), on(Some("bb")), on(None), on(None), on(None)];
        let names: Vec<_> = seats.iter().map(|seat| seat.backend().name().to_owned()).collect();
        assert_eq!(names, ["cuda:1", "cuda:1", "cuda:0", "cuda:3", "cuda:0"]);
        assert_eq!(devices.sessions(), [2, 2, 1]);
        drop(seats);
        assert_eq!(devices.sessions(), [0, 0, 0]);
    }

    #[test]
    fn a_gpu_that_is_none_of_these_is_refused_by_name() {
        let devices = gpus(&[("cuda:0", Some("aa")), ("cuda:1", None)]);
        let error = devices.seat(Some("d\u{1b}[31md")).unwrap_err();
        assert!(error.to_string().starts_with("the trainer's tensors lie on the GPU d31md, "), "{error}");
        assert!(error.to_string().contains("on aa (cuda:0): "), "{error}");
        let processor = Devices::new(Arc::new(CpuBackend::new(1)), []);
        let error = processor.seat(Some("aa")).unwrap_err();
        assert_eq!(error.code(), "session.device");
        assert!(
            error.to_string().contains("runs kernels on cpu, whose memory no other process can map"),
            "{error}"
        );
        assert_eq!((devices.sessions(), processor.sessions()), (vec![0, 0], vec![0]), "nobody was seated");
    }

    #[test]
    fn one_that_is_lost_is_told_of() {
        assert_eq!(gpus(&[("cuda:0", None)]).lost(), None);
        assert!(!gpus(&[("cuda:0", None)]).have_gpu(), "these do what they are asked before they return");
        let devices = gpus(&[("cuda:0", None), ("cuda:9", None)]);
        assert_eq!(devices.lost().as_deref(), Some("it fell off the bus"));
    }
}
