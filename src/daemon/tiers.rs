//! From settings to the tiers below the one in memory.

use std::sync::Arc;

use crate::{
    cache::{Database, GuardedTier, PostgresOptions, RedisOptions, RedisTier, SqlTier, SqliteOptions, Tier},
    clock::Clock,
    config::Config,
    guard::BreakerPolicy,
};

/// The tiers in the order they are asked, each behind its breaker.
#[derive(Debug)]
pub(super) struct Tiers {
    pub(super) tiers: Vec<Arc<dyn Tier>>,
    /// Those to be closed at the end.
    pub(super) databases: Vec<Arc<SqlTier>>,
}

/// Makes the tiers that the settings name. One that cannot be reached is there nevertheless: it is tried
/// again whenever its breaker lets a call pass. Needs a tokio runtime.
pub(super) fn tiers(config: &Config, clock: &Arc<dyn Clock>) -> Tiers {
    let policy = BreakerPolicy::from(&config.cache.breaker);
    let guarded =
        |tier: Arc<dyn Tier>| Arc::new(GuardedTier::new(tier, policy, clock.clone())) as Arc<dyn Tier>;
    let (mut tiers, mut databases) = (Vec::new(), Vec::new());
    if !config.cache.redis.url.is_empty() {
        let tier = Arc::new(RedisTier::new(RedisOptions::from(&config.cache.redis), clock.clone()));
        tiers.push(guarded(tier.clone()));
        tokio::spawn(async move {
            if let Err(error) = tier.open().await {
                tracing::warn!(%error, "going on without this tier until it answers");
            }
        });
    }
    for database in databases_of(config) {
        let tier = Arc::new(SqlTier::new(database, clock.clone()));
        tiers.push(guarded(tier.clone()));
        databases.push(tier.clone());
        // READY does not wait for a server.
        tokio::spawn(async move {
            if let Err(error) = tier.open().await {
                tracing::warn!(%error, "going on without this tier until it can be opened");
            }
        });
    }
    Tiers { tiers, databases }
}

fn databases_of(config: &Config) -> Vec<Database> {
    let (sqlite, postgres) = (&config.cache.sqlite, &config.cache.postgres);
    let file = sqlite.enabled.then(|| {
        Database::from(SqliteOptions {
            path: config.sqlite_path(),
            max_bytes: sqlite.max_bytes.0,
            busy_timeout: sqlite.busy_timeout,
        })
    });
    let server = (!postgres.url.is_empty()).then(|| Database::from(PostgresOptions::from(postgres)));
    file.into_iter().chain(server).collect()
}
