//! A PostgreSQL server with one role that has a password.

use std::{
    fs,
    os::unix::fs::chown,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use rustix::process::{Signal, geteuid};
use tempfile::TempDir;

use super::{
    certificates::certificates,
    process::{Process, free_port},
};
use crate::cache::PostgresOptions;

/// PostgreSQL refuses to run as root.
const NOBODY: u32 = 65_534;

/// A server with a folder of its own.
pub(in crate::cache) struct PostgresServer {
    folder: TempDir,
    port: u16,
    process: Option<Process>,
}

impl PostgresServer {
    pub(in crate::cache) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let password = folder.path().join("password");
        fs::write(&password, "not so secret\n").unwrap();
        let data = folder.path().join("data");
        fs::create_dir(&data).unwrap();
        let mut command = Command::new("setpriv");
        if let Some(uid) = other_user() {
            for path in [folder.path(), &password, &data] {
                chown(path, Some(uid), Some(uid)).unwrap();
            }
            command.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()]);
        }
        command.arg(binary("initdb"));
        command.args(["-U", "kasmina", "-A", "scram-sha-256", "-E", "UTF8", "--locale=C", "--no-sync"]);
        command.args(["--pwfile", password.to_str().unwrap(), "-D", data.to_str().unwrap()]);
        let output = command.output().expect("setpriv is there");
        assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
        certificates(folder.path());
        for name in ["server.pem", "server.key"] {
            if let Some(uid) = other_user() {
                chown(folder.path().join(name), Some(uid), Some(uid)).unwrap();
            }
        }
        let mut server = Self { folder, port: free_port(), process: None };
        server.restart();
        server
    }

    /// Starts it again, with what it held.
    pub(in crate::cache) fn restart(&mut self) {
        self.process = None;
        let data = self.folder.path().join("data");
        // What a killed server left behind.
        let _ = fs::remove_file(data.join("postmaster.pid"));
        let certificate = |name: &str| self.folder.path().join(name).display().to_string();
        let (key, certificate) = (certificate("server.key"), certificate("server.pem"));
        let (key, certificate) = (format!("ssl_key_file={key}"), format!("ssl_cert_file={certificate}"));
        let arguments = [
            "-c",
            "ssl=on",
            "-c",
            &key,
            "-c",
            &certificate,
            "-D",
            data.to_str().unwrap(),
            "-p",
            &self.port.to_string(),
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "unix_socket_directories=",
            "-c",
            "fsync=off",
        ];
        let program = binary("postgres");
        let ready = "database system is ready to accept connections";
        let process =
            Process::start(program.to_str().unwrap(), &arguments.map(str::to_owned), other_user(), ready);
        self.process = Some(process);
    }

    pub(in crate::cache) fn kill(&mut self) {
        self.process.as_mut().unwrap().kill();
    }

    /// Stops it where it is, as a machine that hangs does; or lets it go on.
    pub(in crate::cache) fn pause(&self, paused: bool) {
        self.process.as_ref().unwrap().signal(if paused { Signal::STOP } else { Signal::CONT });
    }

    /// How a tier reaches it, with short limits.
    pub(in crate::cache) fn options(&self) -> PostgresOptions {
        PostgresOptions {
            user: "kasmina".into(),
            password_file: self.folder.path().join("password"),
            connect_timeout: Duration::from_secs(20),
            timeout: Duration::from_secs(20),
            ..PostgresOptions::new(format!("postgres://127.0.0.1:{}/postgres", self.port))
        }
    }

    /// Who vouches for the server, which is named localhost.
    pub(in crate::cache) fn ca_file(&self) -> PathBuf {
        self.folder.path().join("ca.pem")
    }

    /// Where tests write around the tier.
    pub(in crate::cache) fn url(&self) -> String {
        format!("postgres://kasmina:not%20so%20secret@127.0.0.1:{}/postgres", self.port)
    }
}

fn other_user() -> Option<u32> {
    geteuid().is_root().then_some(NOBODY)
}

/// Debian keeps the server's programs out of the path, one folder a version.
fn binary(name: &str) -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut found: Vec<PathBuf> =
        versions.map(|version| version.path().join("bin").join(name)).filter(|path| path.exists()).collect();
    found.sort();
    found.pop().unwrap_or_else(|| Path::new(name).to_owned())
}
