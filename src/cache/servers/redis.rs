//! A Redis server, empty at every start.

use std::{process::Command, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Process, free_port};

/// A server that keeps nothing on disk.
pub(in crate::cache) struct RedisServer {
    folder: TempDir,
    port: u16,
    arguments: Vec<String>,
    process: Option<Process>,
}

impl RedisServer {
    /// With arguments of `redis-server` beside those that every test needs.
    pub(in crate::cache) fn start(arguments: &[&str]) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, port: free_port(), arguments, process: None };
        server.restart();
        server
    }

    /// Starts it again, empty.
    pub(in crate::cache) fn restart(&mut self) {
        self.process = None;
        let (port, folder) = (self.port.to_string(), self.folder.path().to_str().unwrap());
        let own = ["--bind", "127.0.0.1", "--dir", folder, "--save", "", "--appendonly", "no"];
        let mut arguments = own.map(str::to_owned).to_vec();
        let encrypted = self.arguments.iter().any(|argument| argument == "--tls-port");
        arguments.extend(["--port".to_owned(), if encrypted { "0".to_owned() } else { port.clone() }]);
        arguments.extend(self.arguments.iter().map(|argument| argument.replace("{port}", &port)));
        self.process = Some(Process::start("redis-server", &arguments, None, "Ready to accept connections"));
    }

    pub(in crate::cache) fn kill(&mut self) {
        self.process.as_mut().unwrap().kill();
    }

    /// Stops it where it is, as a machine that hangs does; or lets it go on.
    pub(in crate::cache) fn pause(&self, paused: bool) {
        self.process.as_ref().unwrap().signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    pub(in crate::cache) fn port(&self) -> u16 {
        self.port
    }

    /// Runs a command by Redis's own client and gives its answer.
    pub(in crate::cache) fn cli(&self, arguments: &[&str]) -> String {
        let port = self.port.to_string();
        let output = Command::new("redis-cli").args(["-p", &port]).args(arguments).output();
        let output = output.expect("redis-cli is there; run scripts/deps");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Asks again and again until the answer is what it should become.
    pub(in crate::cache) fn until(&self, arguments: &[&str], wanted: &str) {
        while !self.cli(arguments).contains(wanted) {
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}
