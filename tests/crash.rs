//! kill -9 of a trainer that uses the Rust client, in the middle of its passes.

#![expect(clippy::unwrap_used, reason = "all of it is a test, its helpers too")]

use std::{
    cell::{RefCell, RefMut},
    env, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use kasmina::{
    client::{Client, ConnectOptions, Operator, PassRequest},
    id::{KernelId, SeedIndex},
    tensor::Shape,
    wire::{Blend, Wants},
};

/// Where the trainer, which is this test again in another process, finds the daemon.
const SOCKET: &str = "KASMINA_TEST_SOCKET";
const TRAINING: &str = "it trains";
const KERNEL: &str = "conv3x3-bn-relu";
const MAPS: [usize; 3] = [16, 8, 8];

#[test]
fn a_killed_client_leaves_nothing_behind() {
    if let Some(socket) = env::var_os(SOCKET) {
        return train(Path::new(&socket));
    }
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::start(folder.path());
    let before = daemon.held();
    for _ in 0..3 {
        let mut trainer = Command::new(env::current_exe().unwrap())
            .args(["--exact", "a_killed_client_leaves_nothing_behind", "--nocapture"])
            .env(SOCKET, folder.path().join("kasmina.sock"))
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(trainer.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.into_iter().any(|line| line.contains(TRAINING)), "it ended by itself");
        let status = daemon.operator().status().unwrap();
        assert_eq!((status.sessions.len(), status.sessions[0].live_seeds), (1, 2));
        assert!(status.sessions[0].tickets >= 4 && daemon.held() != before);
        trainer.kill().unwrap();
        trainer.wait().unwrap();
        until("the session ends", || daemon.operator().status().unwrap().sessions.is_empty());
        until("its descriptors are closed", || daemon.held() == before);
        assert!(daemon.operator().seeds().unwrap().seeds.is_empty());
        assert!(daemon.operator().cache().unwrap().kernels.iter().all(|kernel| kernel.holders == 0));
    }
}

/// A trainer that holds tickets and goes on until it is killed.
fn train(socket: &Path) {
    let client = Client::connect(socket, &ConnectOptions::default()).unwrap();
    let layer = client.open_layer("killed", 2, Blend::Convex, Some(MAPS.into())).unwrap();
    for seed in 0..2 {
        layer.graft(SeedIndex(seed), &KERNEL.parse::<KernelId>().unwrap(), 0.25, &MAPS.into()).unwrap();
    }
    let shape = Shape::from([8, MAPS[0], MAPS[1], MAPS[2]]);
    let input = vec![0.5; shape.elements()];
    let forward = || {
        let gradients = Some(Wants { input: true, parameters: true, alphas: true });
        let (input_shape, output_shape) = (&shape, &shape);
        let input = &input;
        layer
            .forward(&PassRequest {
                input,
                input_shape,
                output_shape,
                train: true,
                gradients,
                rng_seed: 0,
                alphas: None,
            })
            .unwrap()
    };
    let _kept: Vec<_> = (0..4).map(|_| forward()).collect();
    println!("{TRAINING}");
    loop {
        forward().backward(&input).unwrap();
    }
}

struct Daemon {
    child: Child,
    /// One for the whole test: the daemon closes its end of a connection when it comes to it, and descriptors are counted.
    operator: Option<RefCell<Operator>>,
}

impl Daemon {
    fn start(folder: &Path) -> Self {
        let kernels = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/kernels");
        let config = folder.join("kasmina.toml");
        let [socket, control, state] =
            ["kasmina.sock", "control.sock", "state"].map(|name| folder.join(name));
        let text = format!(
            "[daemon]\nsocket = {socket:?}\ncontrol_socket = {control:?}\nstate_dir = {state:?}\n[origin]\npath = {kernels:?}\n"
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_kasminad"));
        let child = command.arg("--config").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        // Made first: it ends the process whatever comes.
        let mut daemon = Self { child, operator: None };
        let mut found = None;
        until("the daemon answers", || {
            found = Operator::connect(&control).ok();
            found.is_some()
        });
        let mut operator = found.unwrap();
        operator.status().unwrap();
        daemon.operator = Some(RefCell::new(operator));
        daemon
    }

    fn operator(&self) -> RefMut<'_, Operator> {
        self.operator.as_ref().unwrap().borrow_mut()
    }

    /// Its memory files, mappings of such and sockets.
    fn held(&self) -> [usize; 3] {
        let process = Path::new("/proc").join(self.child.id().to_string());
        let links =
            fs::read_dir(process.join("fd")).unwrap().filter_map(|fd| fs::read_link(fd.unwrap().path()).ok());
        let links: Vec<_> = links.map(|link| link.display().to_string()).collect();
        let count = |kind: &str| links.iter().filter(|link| link.contains(kind)).count();
        let maps = fs::read_to_string(process.join("maps")).unwrap().matches("memfd:kasmina").count();
        [count("memfd:"), maps, count("socket:")]
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let patience = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < patience, "{what}: it does not");
        thread::yield_now();
    }
}
