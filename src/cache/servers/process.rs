//! A server's process: started, waited for until it says that it is ready, paused, killed.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::{Child, Command, Stdio},
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
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}

/// A port that nobody listened on a moment ago.
pub(super) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
