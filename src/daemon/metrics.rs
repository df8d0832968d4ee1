//! Where metrics are served.

use std::net::TcpListener;

use super::{
    DaemonError,
    listen::{SocketFile, bind},
};
use crate::{
    config::{Metrics, MetricsAddress},
    http::{HttpServer, Probe, Socket},
};

/// A socket for metrics that nobody serves yet.
#[derive(Debug)]
pub(super) struct MetricsSocket {
    socket: Socket,
    file: Option<SocketFile>,
    /// For people and their commands.
    place: String,
}

impl MetricsSocket {
    /// Listens where the settings say, if anywhere.
    pub(super) fn bind(settings: &Metrics) -> Result<Option<Self>, DaemonError> {
        let bound = match &settings.listen {
            MetricsAddress::Off => return Ok(None),
            MetricsAddress::Tcp(address) => {
                let failed = |source| DaemonError::MetricsListen { address: *address, source };
                let listener = TcpListener::bind(address).map_err(failed)?;
                let place = format!("http://{}/metrics", listener.local_addr().map_err(failed)?);
                Self { socket: Socket::Tcp(listener), file: None, place }
            }
            MetricsAddress::Unix(path) => {
                let (listener, file) = bind("metrics.listen", path, settings.socket_mode)?;
                let place = format!("unix:{}", path.display());
                Self { socket: Socket::Unix(listener), file: Some(file), place }
            }
        };
        Ok(Some(bound))
    }

    /// Begins to serve.
    pub(super) fn serve(self, probe: Probe) -> Result<MetricsServer, DaemonError> {
        let failed = |source| DaemonError::Metrics { source };
        let server = HttpServer::start(self.socket, probe).map_err(failed)?;
        tracing::info!(at = self.place, "serving metrics");
        Ok(MetricsServer { _server: server, _file: self.file })
    }
}

/// Metrics are served until this is dropped.
#[derive(Debug)]
pub(super) struct MetricsServer {
    _server: HttpServer,
    _file: Option<SocketFile>,
}
