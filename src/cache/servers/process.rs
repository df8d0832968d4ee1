//! A server's process: started, waited for until it says that it is ready, paused, killed.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
};

use rustix::process::{Pid, Signal, kill_process};

/// A running server. Dropped, it and its children are killed; they are too when the test's thread ends.
pub(super) struct Process(Child);

impl Process {
    /// Starts a program, as `uid` where that is given, and waits for a line that holds `ready`.
    pub(super) fn start(program: &str, arguments: &[String], uid: Option<u32>, ready: &str) -> Self {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if let Some(uid) = uid {
            command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()]);
        }
        // One pipe for both, for servers differ in where they say that they are ready.
        let (output, input) = std::io::pipe().unwrap();
        command.arg(program).args(arguments).stdin(Stdio::null());
        command.stdout(input.try_clone().unwrap()).stderr(input);
        let child = command.spawn().unwrap_or_else(|error| panic!("{program}: {error}; run scripts/deps"));
        // The command holds the pipe's other end.
        drop(command);
        let (mut lines, mut said) = (BufReader::new(output).lines(), String::new());
        loop {
            let line = lines.next().unwrap_or_else(|| panic!("{program} ended: {said}")).unwrap();
            said.push_str(&line);
            said.push('\n');
            if line.contains(ready) {
                break;
            }
        }
        // A full pipe would stop the server.
        thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self(child)
    }

    /// Sends a signal to the server and its children.
    pub(super) fn signal(&self, signal: Signal) {
        let own = self.0.id();
        let children =
            std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
        for pid in std::iter::once(own as i32).chain(children) {
            if let Some(pid) = Pid::from_raw(pid) {
                // It may be gone already.
                let _ = kill_process(pid, signal);
            }
        }
    }

    /// Kills it and waits until it is gone.
    pub(super) fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.0.wait().unwrap();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // One that was killed before may have left its number to another.
        if let Ok(None) = self.0.try_wait() {
            self.signal(Signal::KILL);
            let _ = self.0.wait();
        }
    }
}

/// A port that nobody listens on, and that nobody is given while a server of ours is away: each is given once, and none
/// of those that the system hands out itself.
pub(super) fn free_port() -> u16 {
    static GIVEN: AtomicU32 = AtomicU32::new(0);
    // Test binaries may run side by side.
    let first = std::process::id().wrapping_mul(61);
    let next = || 10_000 + (first.wrapping_add(GIVEN.fetch_add(1, Ordering::Relaxed)) % 20_000) as u16;
    let is_free = |port: &u16| TcpListener::bind(("127.0.0.1", *port)).is_ok();
    std::iter::repeat_with(next).find(is_free).expect("there is always a next one")
}
