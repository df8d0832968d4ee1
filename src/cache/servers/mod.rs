//! Real servers for tests: each on a free port of this machine, in a folder of its own, and gone with the
//! test, however that ends.

mod certificates;
mod postgres;
mod process;
mod redis;

pub(crate) use certificates::certificates;
pub(super) use postgres::PostgresServer;
pub(super) use redis::RedisServer;
