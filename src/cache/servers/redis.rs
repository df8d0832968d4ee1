//! A Redis server, empty at every start.

use std::{net::TcpListener, process::Command, time::Duration};

use rustix::process::Signal;
use tempfile::TempDir;

use super::process::{Process, free_port};

/// The slots of a cluster.
const SLOTS: u32 = 16_384;
/// The first of the ports that the system hands out itself.
const EPHEMERAL: u16 = 32_768;

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
        Self::start_at(free_port(), arguments)
    }

    fn start_at(port: u16, arguments: Vec<String>) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut server = Self { folder, port, arguments, process: None };
        server.restart();
        server
    }

    /// A cluster of so many primaries, each with its share of the slots.
    pub(in crate::cache) fn cluster(nodes: u16) -> Vec<Self> {
        let arguments = ["--cluster-enabled", "yes"].map(str::to_owned);
        // Beside its port, each needs the one 10,000 above, where they talk with each other: one that no connection is given
        // in between.
        let ports = std::iter::repeat_with(free_port).filter(|&port| {
            port + 10_000 < EPHEMERAL && TcpListener::bind(("127.0.0.1", port + 10_000)).is_ok()
        });
        let servers: Vec<Self> =
            ports.take(nodes.into()).map(|port| Self::start_at(port, arguments.to_vec())).collect();
        for (n, server) in (0..).zip(&servers) {
            let first = |n: u16| (u32::from(n) * SLOTS / u32::from(nodes)).to_string();
            let last = (u32::from(n + 1) * SLOTS / u32::from(nodes) - 1).to_string();
            server.cli(&["CLUSTER", "ADDSLOTSRANGE", &first(n), &last]);
            server.cli(&["CLUSTER", "MEET", "127.0.0.1", &servers[0].port.to_string()]);
        }
        for server in &servers {
            server.until(&["CLUSTER", "INFO"], "cluster_state:ok");
            server.until(&["CLUSTER", "INFO"], &format!("cluster_size:{nodes}"));
        }
        servers
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
