//! From settings to the tiers below the one in memory.

use std::sync::Arc;

use crate::{
    actor::{CondemnKernels, DoubtKernels, ForgetKernel, KernelCache, base::Handle},
    backoff::Jitter,
    cache::{
        Database, Evictor, Fleet, GuardedTier, Hear, Heard, PostgresOptions, RedisOptions, RedisTier,
        SharedFault, SqlTier, SqliteOptions, Tier,
    },
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
    /// The nodes that share the Redis.
    pub(super) fleet: Option<Arc<Fleet>>,
}

/// Makes the tiers that the settings name. One that cannot be reached is there nevertheless: it is tried
/// again whenever its breaker lets a call pass. Needs a tokio runtime.
pub(super) fn tiers(config: &Config, clock: &Arc<dyn Clock>) -> Tiers {
    let policy = BreakerPolicy::from(&config.cache.breaker);
    let guarded =
        |tier: Arc<dyn Tier>| Arc::new(GuardedTier::new(tier, policy, clock.clone())) as Arc<dyn Tier>;
    let (mut tiers, mut databases) = (Vec::new(), Vec::new());
    let mut fleet = None;
    if !config.cache.redis.url.is_empty() {
        let options = RedisOptions::from(&config.cache.redis);
        let cursor = config.daemon.state_dir.join("fleet.cursor");
        fleet = Some(Arc::new(Fleet::new(options.clone(), node_name(), Some(cursor))));
        let tier = Arc::new(RedisTier::new(options, clock.clone()));
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
    Tiers { tiers, databases, fleet }
}

/// Has this node forget what others announce, and doubt what it has where it may have missed that, for as long as the
/// daemon lives.
pub(super) fn listen_to_others(fleet: Arc<Fleet>, cache: Handle<KernelCache>) {
    let hear: Hear = Arc::new(move |heard| {
        let cache = cache.clone();
        Box::pin(async move {
            let failed = |error| Arc::new(error) as SharedFault;
            match heard {
                Heard::Gap => cache.order(DoubtKernels).await.map_err(failed),
                Heard::Condemn { kernels } => {
                    let by = |(kernel, name)| (kernel, Evictor::Node { name });
                    let kernels = kernels.into_iter().map(by).collect();
                    cache.order(CondemnKernels(kernels)).await.map_err(failed)
                }
                Heard::Forget { kernel, .. } => {
                    let forgotten = cache.order(ForgetKernel(kernel.clone())).await.map_err(failed)?;
                    forgotten.map_err(|error| Arc::new(error) as SharedFault)?;
                    tracing::info!(%kernel, "kernel forgotten");
                    Ok(())
                }
            }
        })
    });
    tokio::spawn(async move { fleet.listen(hear).await });
}

/// A name that no other node has, nor this one after a restart: it need only tell its own words from others'.
fn node_name() -> String {
    let mut jitter = Jitter::from_process();
    let mut part = || (jitter.unit() * f64::from(u32::MAX)) as u32;
    format!("{:08x}{:08x}-{}", part(), part(), std::process::id())
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
