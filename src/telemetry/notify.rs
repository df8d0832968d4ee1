//! The daemon's state to systemd, over the datagram socket that a `Type=notify` unit names.

use std::{
    ffi::OsStr,
    io,
    os::{
        linux::net::SocketAddrExt,
        unix::{
            ffi::OsStrExt,
            net::{SocketAddr, UnixDatagram},
        },
    },
    time::Duration,
};

/// Tells the service manager what the daemon is at; does nothing where none listens.
///
/// Blocking: never; a manager that does not read loses the message. Errors are swallowed on purpose:
/// the daemon serves its trainers whether or not somebody watches it.
#[derive(Debug)]
pub struct Notifier {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// A notifier for the address in `NOTIFY_SOCKET`, which the caller reads; a leading `@` names an
    /// abstract socket.
    ///
    /// # Errors
    /// When the address is no socket address or no socket can be made.
    pub fn new(address: Option<&OsStr>) -> io::Result<Self> {
        let Some(address) = address.filter(|text| !text.is_empty()) else {
            return Ok(Self { socket: None });
        };
        let address = match address.as_bytes() {
            [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
            _ => SocketAddr::from_pathname(address)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket: Some((socket, address)) })
    }

    /// Start-up is over: trainers may connect.
    pub fn ready(&self) {
        self.send("READY=1");
    }

    /// Start-up goes on, and the manager is to wait so long from now before it gives up.
    pub fn extend_start(&self, patience: Duration) {
        self.send(&format!("EXTEND_TIMEOUT_USEC={}", patience.as_micros()));
    }

    /// One line for `systemctl status`; line breaks in it become spaces.
    pub fn status(&self, line: &str) {
        self.send(&format!("STATUS={}", line.replace(['\n', '\r'], " ")));
    }

    /// Shutdown has begun.
    pub fn stopping(&self) {
        self.send("STOPPING=1");
    }

    fn send(&self, message: &str) {
        if let Some((socket, address)) = &self.socket {
            // See the type's comment: nothing useful can be done about a failure.
            let _ = socket.send_to_addr(message.as_bytes(), address);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn received(socket: &UnixDatagram) -> String {
        let mut buffer = [0; 256];
        let length = socket.recv(&mut buffer).unwrap();
        String::from_utf8(buffer[..length].to_vec()).unwrap()
    }

    #[test]
    fn a_manager_hears_each_state_on_a_path_and_on_an_abstract_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let name = format!("@kasmina-notify-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name.as_bytes()[1..]).unwrap();
        let managers = [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), name.into()),
        ];
        for (manager, address) in managers {
            let notifier = Notifier::new(Some(&address)).unwrap();
            notifier.extend_start(Duration::from_secs(3));
            notifier.ready();
            notifier.status("2 sessions\nSTOPPING=1");
            notifier.stopping();
            assert_eq!(received(&manager), "EXTEND_TIMEOUT_USEC=3000000");
            assert_eq!(received(&manager), "READY=1");
            assert_eq!(received(&manager), "STATUS=2 sessions STOPPING=1");
            assert_eq!(received(&manager), "STOPPING=1");
        }
    }

    #[test]
    fn without_a_manager_nothing_happens() {
        Notifier::new(None).unwrap().ready();
        Notifier::new(Some(OsStr::new("/nonexistent/notify"))).unwrap().ready();
    }
}
