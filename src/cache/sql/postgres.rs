//! Reaching a PostgreSQL server.

use std::{net::IpAddr, path::PathBuf, str::FromStr as _, time::Duration};

use sqlx::{
    ConnectOptions as _,
    migrate::MigrateError,
    postgres::{PgConnectOptions, PgPoolOptions, PgSslMode},
};

use super::{
    connection::Pool,
    migrations::{Dialect, migrate},
    trouble::trouble,
};
use crate::{
    cache::secret::read_secret,
    config::{self, PostgresTls},
};

/// Which database, as whom, and for how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PostgresOptions {
    /// `postgres://host:port/database`, without a password.
    pub url: String,
    /// The role; empty is the one in the URL.
    pub user: String,
    /// The file that holds its password; empty for none.
    pub password_file: PathBuf,
    /// Whether and how the connection is encrypted.
    pub tls: PostgresTls,
    /// The certificate authority to trust beside the system's; empty for none.
    pub ca_file: PathBuf,
    /// The most bytes of artifacts and their descriptions together, of all nodes.
    pub max_bytes: u64,
    /// Connections of this node.
    pub connections: u32,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take.
    pub timeout: Duration,
}

impl From<&config::CachePostgres> for PostgresOptions {
    fn from(settings: &config::CachePostgres) -> Self {
        Self {
            url: settings.url.clone(),
            user: settings.user.clone(),
            password_file: settings.password_file.clone(),
            tls: settings.tls,
            ca_file: settings.ca_file.clone(),
            max_bytes: settings.max_bytes.0,
            connections: settings.connections,
            connect_timeout: settings.connect_timeout,
            timeout: settings.timeout,
        }
    }
}

impl PostgresOptions {
    /// A database with 64 GiB, four connections, 1 s to connect and 5 s for a request.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            user: String::new(),
            password_file: PathBuf::new(),
            tls: PostgresTls::Auto,
            ca_file: PathBuf::new(),
            max_bytes: 64 << 30,
            connections: 4,
            connect_timeout: Duration::from_secs(1),
            timeout: Duration::from_secs(5),
        }
    }

    /// Connects and brings the tables up to date.
    pub(super) async fn open(&self) -> Result<Pool, String> {
        let options = self.connect_options().await?;
        let pool = PgPoolOptions::new()
            .max_connections(self.connections)
            .acquire_timeout(self.connect_timeout)
            .connect_with(options)
            .await
            .map_err(|error| with_advice(&error))?;
        let migrated = tokio::time::timeout(self.timeout, migrate(&pool, Dialect::Postgres)).await;
        match migrated {
            Ok(Ok(())) => Ok(Pool::Postgres(pool)),
            // A standby, or a role that may only read: if the tables are there, they can be read.
            Ok(Err(MigrateError::Execute(error))) if is_read_only(&error) => Ok(Pool::Postgres(pool)),
            Ok(Err(error)) => Err(error.to_string()),
            Err(_) => Err(format!("its tables took more than {} ms", self.timeout.as_millis())),
        }
    }

    async fn connect_options(&self) -> Result<PgConnectOptions, String> {
        let mut options = PgConnectOptions::from_str(&self.url)
            .map_err(|error| format!("{error}; write postgres://host:port/database"))?;
        if !self.user.is_empty() {
            options = options.username(&self.user);
        }
        if let Some(password) = read_secret(&self.password_file).await? {
            options = options.password(&password);
        }
        if !self.ca_file.as_os_str().is_empty() {
            options = options.ssl_root_cert(&self.ca_file);
        }
        let near = options.get_socket().is_some() || is_loopback(options.get_host());
        let tls = match self.tls {
            PostgresTls::Auto if near => PgSslMode::Prefer,
            PostgresTls::Auto | PostgresTls::VerifyFull => PgSslMode::VerifyFull,
            PostgresTls::VerifyCa => PgSslMode::VerifyCa,
            PostgresTls::Require => PgSslMode::Require,
            PostgresTls::Off => PgSslMode::Disable,
        };
        // The server ends what nobody waits for any more, the client what the server does not end.
        let limit = format!("{}ms", self.timeout.as_millis());
        Ok(options
            .ssl_mode(tls)
            .application_name("kasmina")
            .options([("statement_timeout", &limit), ("lock_timeout", &limit)])
            .disable_statement_logging())
    }
}

fn is_read_only(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|error| error.code()).is_some_and(|code| code == "25006")
}

fn with_advice(error: &sqlx::Error) -> String {
    match trouble(error).1 {
        Some(advice) => format!("{error}; {advice}"),
        None => error.to_string(),
    }
}

fn is_loopback(host: &str) -> bool {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || host.starts_with('/') || bare.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_server_elsewhere_has_to_prove_who_it_is() {
        for (host, mode) in [
            ("db.example.org", PgSslMode::VerifyFull),
            ("10.0.0.7", PgSslMode::VerifyFull),
            ("127.0.0.1", PgSslMode::Prefer),
            ("[::1]", PgSslMode::Prefer),
            ("localhost", PgSslMode::Prefer),
        ] {
            let options = PostgresOptions::new(format!("postgres://{host}:5432/kasmina"));
            let mode_of = options.connect_options().await.unwrap().get_ssl_mode();
            assert_eq!(format!("{mode_of:?}"), format!("{mode:?}"), "{host}");
        }
    }
}
