//! `[daemon]`: where the daemon listens, who may connect, and how it starts and stops its actors.

use std::{path::PathBuf, time::Duration};

use super::{section::section, units::FileMode};

section! {
    /// Sockets, rights, and the supervisor's patience.
    Daemon in "daemon" {
        /// The socket trainers connect to.
        socket: PathBuf = PathBuf::from("/run/kasmina/kasmina.sock"), "path", Restart;
        /// The socket `kasmina status` and its like connect to.
        control_socket: PathBuf = PathBuf::from("/run/kasmina/control.sock"), "path", Restart;
        /// Permissions of the trainers' socket. The kernel lets nobody connect who may not write to it.
        socket_mode: FileMode = FileMode(0o660), "octal mode", Restart;
        /// Permissions of the control socket.
        control_mode: FileMode = FileMode(0o600), "octal mode", Restart;
        /// Where the daemon keeps what outlives it.
        state_dir: PathBuf = PathBuf::from("/var/lib/kasmina"), "path", Restart;
        /// Users who may open sessions, besides root and the daemon's own. Empty: whoever the socket's
        /// mode and group let connect.
        allow_uids: Vec<u32> = Vec::new(), "list of user ids", Restart;
        /// Users who may administer, besides root and the daemon's own; the control socket's mode must
        /// let them connect too.
        admin_uids: Vec<u32> = Vec::new(), "list of user ids", Restart;
        /// How long shutdown waits for tickets before it leaves anyway.
        drain_timeout: Duration = Duration::from_secs(10), "time", Restart;
        /// How often the supervisor looks after its actors and gathers their statistics.
        watch_interval: Duration = Duration::from_secs(1), "time", Restart;
        /// How many restarts one actor may have within `restart_window`.
        restart_budget: u32 = 5, "restarts", Restart;
        /// The window over which restarts are counted.
        restart_window: Duration = Duration::from_secs(60), "time", Restart;
    }
}
