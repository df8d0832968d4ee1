//! `kasmina urza`: Urza's REST contract from a folder, for one machine and for tests.

use std::{net::SocketAddr, path::PathBuf};

use super::{CliError, Exit, publish::runtime, table::say};
use crate::origin::StandIn;

/// What to serve where.
#[derive(Debug)]
pub struct UrzaServerOptions {
    /// The folder.
    pub dir: PathBuf,
    /// The address.
    pub listen: SocketAddr,
    /// Whether it may be one that other machines reach.
    pub allow_remote: bool,
}

/// Serves until SIGTERM or SIGINT, after a line that says where.
///
/// # Errors
/// [`CliError`] when the folder or the address cannot be used.
pub fn urza(options: &UrzaServerOptions) -> Result<Exit, CliError> {
    runtime()?.block_on(async {
        let server = StandIn::bind(&options.dir, options.listen, options.allow_remote).await?;
        let signal = |kind| tokio::signal::unix::signal(kind).map_err(|e| CliError::usage(e.to_string()));
        let mut terminate = signal(tokio::signal::unix::SignalKind::terminate())?;
        let mut interrupt = signal(tokio::signal::unix::SignalKind::interrupt())?;
        say(&format!("serving {} at http://{}/api/v1\n", options.dir.display(), server.address()));
        server
            .serve(async move {
                tokio::select! {
                    _ = terminate.recv() => {}
                    _ = interrupt.recv() => {}
                }
            })
            .await?;
        Ok(Exit::Ok)
    })
}
