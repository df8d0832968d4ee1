//! Reaching Redis: one server or a cluster, encrypted or not, with short limits and no queue of retries.

use std::{fmt, path::PathBuf, time::Duration};

use redis::{
    Client, ClientTlsConfig, Cmd, ConnectionAddr, ConnectionInfo, FromRedisValue, IntoConnectionInfo as _,
    Pipeline, RedisError, TlsCertificates,
    aio::{ConnectionManager, ConnectionManagerConfig},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};

use crate::{cache::secret::read_secret, config};

/// Which server, as whom, and for how long to wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedisOptions {
    /// `redis://host:port` or, encrypted, `rediss://host:port`, without a password.
    pub url: String,
    /// Whether it is one server of a Redis Cluster.
    pub cluster: bool,
    /// The ACL user; empty is the default one.
    pub user: String,
    /// The file that holds the password; empty for none.
    pub password_file: PathBuf,
    /// The certificate authority to trust instead of the system's; empty for none.
    pub ca_file: PathBuf,
    /// The certificate and the key to show to the server; empty for none.
    pub client_certificate: (PathBuf, PathBuf),
    /// What every key and channel begins with.
    pub prefix: String,
    /// How long a kernel stays.
    pub ttl: Duration,
    /// Larger artifacts are passed over.
    pub max_artifact_bytes: u64,
    /// How long making a connection may take.
    pub connect_timeout: Duration,
    /// How long one request may take.
    pub timeout: Duration,
}

impl From<&config::CacheRedis> for RedisOptions {
    fn from(settings: &config::CacheRedis) -> Self {
        Self {
            url: settings.url.clone(),
            cluster: settings.cluster,
            user: settings.user.clone(),
            password_file: settings.password_file.clone(),
            ca_file: settings.ca_file.clone(),
            client_certificate: (settings.client_cert_file.clone(), settings.client_key_file.clone()),
            prefix: settings.prefix.clone(),
            ttl: settings.ttl,
            max_artifact_bytes: settings.max_artifact_bytes.0,
            connect_timeout: settings.connect_timeout,
            timeout: settings.timeout,
        }
    }
}

impl RedisOptions {
    /// A server with the settings that the shipped configuration has.
    pub fn new(url: impl Into<String>) -> Self {
        Self { url: url.into(), ..Self::from(&config::CacheRedis::default()) }
    }

    /// Who is asked, with the password read anew.
    async fn connection_info(&self) -> Result<ConnectionInfo, String> {
        let info = self.url.as_str().into_connection_info().map_err(|error| error.to_string())?;
        let mut settings = info.redis_settings().clone();
        if !self.user.is_empty() {
            settings = settings.set_username(&self.user);
        }
        if let Some(password) = read_secret(&self.password_file).await? {
            settings = settings.set_password(&password);
        }
        Ok(info.set_redis_settings(settings))
    }

    async fn certificates(&self) -> Result<TlsCertificates, String> {
        let read = async |path: &PathBuf| {
            tokio::fs::read(path).await.map_err(|error| format!("{} cannot be read: {error}", path.display()))
        };
        let named = |path: &PathBuf| !path.as_os_str().is_empty();
        let (certificate, key) = &self.client_certificate;
        let client_tls = if named(certificate) {
            Some(ClientTlsConfig { client_cert: read(certificate).await?, client_key: read(key).await? })
        } else {
            None
        };
        let root_cert = if named(&self.ca_file) { Some(read(&self.ca_file).await?) } else { None };
        Ok(TlsCertificates { client_tls, root_cert })
    }

    /// A client for one server, whether or not it is part of a cluster: for channels.
    pub(in crate::cache) async fn client(&self) -> Result<Client, String> {
        let info = self.connection_info().await?;
        let client = if self.url.starts_with("rediss:") {
            Client::build_with_tls(info, self.certificates().await?)
        } else {
            Client::open(info)
        };
        client.map_err(|error| error.to_string())
    }

    async fn cluster_client(&self) -> Result<ClusterClient, String> {
        let mut builder = ClusterClient::builder([self.connection_info().await?])
            .connection_timeout(self.connect_timeout)
            .response_timeout(self.timeout)
            // One retry, for a slot that has moved.
            .retries(1);
        if self.url.starts_with("rediss:") {
            builder = builder.certs(self.certificates().await?);
        }
        builder.build().map_err(|error| error.to_string())
    }
}

/// A connection that makes itself anew; clones share it.
#[derive(Clone)]
pub(in crate::cache) enum Link {
    Single(ConnectionManager),
    /// With the host that was named, which stands for a server that announces none.
    Cluster(ClusterConnection, String),
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if matches!(self, Self::Single(_)) { "Link(single)" } else { "Link(cluster)" })
    }
}

impl Link {
    /// For one server nothing is asked yet; a cluster is asked for its slots.
    pub(in crate::cache) async fn open(options: &RedisOptions) -> Result<Self, String> {
        if options.cluster {
            let connection = options.cluster_client().await?.get_async_connection().await;
            let connection = connection.map_err(|error| super::trouble::explain(&error))?;
            let host = match options.connection_info().await?.addr() {
                ConnectionAddr::Tcp(host, _) | ConnectionAddr::TcpTls { host, .. } => host.clone(),
                _ => String::new(),
            };
            return Ok(Self::Cluster(connection, host));
        }
        let limits = ConnectionManagerConfig::new()
            .set_connection_timeout(Some(options.connect_timeout))
            .set_response_timeout(Some(options.timeout))
            // The breaker decides when to try again.
            .set_number_of_retries(0);
        let manager = ConnectionManager::new_lazy_with_config(options.client().await?, limits);
        manager.map(Self::Single).map_err(|error| error.to_string())
    }

    /// Sends a command. Where the server had left since the last one, it is sent once more.
    pub(in crate::cache) async fn query<T: FromRedisValue>(
        &mut self,
        command: &Cmd,
    ) -> Result<T, RedisError> {
        match self.send(command).await {
            Err(error) if has_left(&error) => self.send(command).await,
            result => result,
        }
    }

    async fn send<T: FromRedisValue>(&mut self, command: &Cmd) -> Result<T, RedisError> {
        match self {
            Self::Single(manager) => command.query_async(manager).await,
            Self::Cluster(connection, _) => command.query_async(connection).await,
        }
    }

    /// Sends commands about one key, all or none.
    pub(in crate::cache) async fn change(&mut self, commands: &Pipeline) -> Result<(), RedisError> {
        match self.send_all(commands).await {
            Err(error) if has_left(&error) => self.send_all(commands).await,
            result => result,
        }
    }

    async fn send_all(&mut self, commands: &Pipeline) -> Result<(), RedisError> {
        match self {
            Self::Single(manager) => commands.query_async(manager).await,
            Self::Cluster(connection, _) => commands.query_async(connection).await,
        }
    }

    /// Every key that matches a pattern, on whichever server.
    pub(in crate::cache) async fn keys(&mut self, pattern: &str) -> Result<Vec<Vec<u8>>, RedisError> {
        let mut found = Vec::new();
        for server in self.servers().await? {
            let mut cursor = 0u64;
            loop {
                let mut scan = redis::cmd("SCAN");
                scan.arg(cursor).arg("MATCH").arg(pattern).arg("COUNT").arg(1000);
                let (next, keys): (u64, Vec<Vec<u8>>) = match (&mut *self, &server) {
                    (Self::Cluster(connection, _), Some((host, port))) => {
                        let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
                        let answer = connection.route_command(scan, RoutingInfo::SingleNode(node)).await?;
                        redis::from_redis_value(answer)?
                    }
                    (link, _) => link.query(&scan).await?,
                };
                found.extend(keys);
                cursor = next;
                if cursor == 0 {
                    break;
                }
            }
        }
        // A key that moved while it was looked for is seen twice.
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The primaries of a cluster; for one server, nothing by which to choose it.
    async fn servers(&mut self) -> Result<Vec<Option<(String, u16)>>, RedisError> {
        let named = match &*self {
            Self::Single(_) => return Ok(vec![None]),
            Self::Cluster(_, host) => host.clone(),
        };
        let ranges: Vec<Vec<redis::Value>> = self.query(redis::cmd("CLUSTER").arg("SLOTS")).await?;
        let mut servers = Vec::new();
        for range in ranges {
            // First slot, last slot, the primary, its replicas.
            let Some(redis::Value::Array(primary)) = range.into_iter().nth(2) else { continue };
            let mut primary = primary.into_iter();
            if let (Some(host), Some(port)) = (primary.next(), primary.next()) {
                let host = redis::from_redis_value::<Option<String>>(host)?.filter(|host| !host.is_empty());
                let server = Some((host.unwrap_or_else(|| named.clone()), redis::from_redis_value(port)?));
                if !servers.contains(&server) {
                    servers.push(server);
                }
            }
        }
        Ok(servers)
    }
}

fn has_left(error: &RedisError) -> bool {
    error.is_connection_dropped() && !error.is_timeout()
}
