//! `[metrics]`: where the daemon tells of itself by HTTP.

use std::{fmt, net::SocketAddr, path::PathBuf};

use super::{section::section, units::FileMode};

/// Where to listen for scrapes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum MetricsAddress {
    /// Nowhere.
    #[default]
    Off,
    /// An address and a port; port 0 takes one that is free.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

impl MetricsAddress {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Ok(Self::Off);
        }
        if let Some(path) = text.strip_prefix("unix:") {
            return match path.starts_with('/') {
                true => Ok(Self::Unix(PathBuf::from(path))),
                false => Err(format!("{path:?} is not absolute: write unix: and a path from the root")),
            };
        }
        let address = text.parse().map(Self::Tcp);
        address.map_err(|_| {
            format!(
                "{text:?} is no address: write \"127.0.0.1:9464\", \"[::1]:9464\", \"unix:/path\" or \"\""
            )
        })
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => Ok(()),
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

section! {
    /// Metrics for Prometheus, and whether the daemon lives and is ready (docs/metrics.md).
    Metrics in "metrics" {
        /// Where `/metrics`, `/livez` and `/readyz` are served, such as "127.0.0.1:9464" or
        /// "unix:/run/kasmina/metrics.sock"; empty is nowhere.
        listen: MetricsAddress = MetricsAddress::Off, "address", Restart;
        /// Whether `listen` may be an address that other machines reach. Nobody is asked who he is.
        allow_remote: bool = false, "true or false", Restart;
        /// Permissions of the socket, where `listen` is one.
        socket_mode: FileMode = FileMode(0o660), "octal mode", Restart;
    }
}
