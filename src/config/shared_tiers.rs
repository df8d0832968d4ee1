//! `[cache.redis]` and `[cache.postgres]`: what nodes share.

use std::{path::PathBuf, time::Duration};

use super::{section::section, setting::words, units::ByteSize};

/// Whether and how a connection to PostgreSQL is encrypted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PostgresTls {
    /// Verified in full, except to this machine itself.
    Auto,
    /// Not at all.
    Off,
    /// Encrypted, the server not verified.
    Require,
    /// By a known authority, under whatever name.
    VerifyCa,
    /// By a known authority, under the name in the URL.
    VerifyFull,
}

words!(PostgresTls {
    Auto = "auto",
    Off = "off",
    Require = "require",
    VerifyCa = "verify-ca",
    VerifyFull = "verify-full",
});

section! {
    /// The tier in Redis, which nodes share.
    CacheRedis in "cache.redis" {
        /// `redis://host:port` or `rediss://host:port` for TLS, without a password; empty is no such tier.
        url: String = String::new(), "URL", Restart;
        /// Whether the server is one of a Redis Cluster.
        cluster: bool = false, "true or false", Restart;
        /// The ACL user; empty is Redis's default user.
        user: String = String::new(), "text", Restart;
        /// The file that holds the password.
        password_file: PathBuf = PathBuf::new(), "path", Restart;
        /// The certificate authority to trust instead of the system's, as PEM.
        ca_file: PathBuf = PathBuf::new(), "path", Restart;
        /// The certificate to show to the server, as PEM.
        client_cert_file: PathBuf = PathBuf::new(), "path", Restart;
        /// Its key, as PEM.
        client_key_file: PathBuf = PathBuf::new(), "path", Restart;
        /// What every key and channel begins with: daemons with the same prefix share kernels.
        prefix: String = "kasmina".to_owned(), "text", Restart;
        /// How long a kernel stays.
        ttl: Duration = Duration::from_secs(7 * 24 * 3600), "time", Restart;
        /// Larger artifacts are passed over.
        max_artifact_bytes: ByteSize = ByteSize::mib(64), "bytes", Restart;
        /// How long making a connection may take.
        connect_timeout: Duration = Duration::from_millis(500), "time", Restart;
        /// How long one request may take.
        timeout: Duration = Duration::from_secs(1), "time", Restart;
    }
}

section! {
    /// The tier in PostgreSQL, which nodes share.
    CachePostgres in "cache.postgres" {
        /// `postgres://host:port/database`, without a password; empty is no such tier.
        url: String = String::new(), "URL", Restart;
        /// The role; empty is the one in the URL.
        user: String = String::new(), "text", Restart;
        /// The file that holds the password.
        password_file: PathBuf = PathBuf::new(), "path", Restart;
        /// How the connection is encrypted; `auto` is `verify-full`, except to this machine itself.
        tls: PostgresTls = PostgresTls::Auto, "auto, off, require, verify-ca or verify-full", Restart;
        /// The certificate authority to trust beside the system's, as PEM.
        ca_file: PathBuf = PathBuf::new(), "path", Restart;
        /// Bytes of artifacts it may hold, of all nodes; the least recently used go first.
        max_bytes: ByteSize = ByteSize::gib(64), "bytes", Restart;
        /// Connections of this node.
        connections: u32 = 4, "connections", Restart;
        /// How long making a connection may take.
        connect_timeout: Duration = Duration::from_secs(1), "time", Restart;
        /// How long one request may take.
        timeout: Duration = Duration::from_secs(5), "time", Restart;
    }
}
