//! Rules that a value's type cannot express: ranges, and keys that must agree.

use std::{path::Path, time::Duration};

use super::{
    breaker::Breaker,
    metrics::MetricsAddress,
    origin::{Origin, OriginKind},
    resolved::Config,
    section::Reader,
    units::ByteSize,
};

/// Notes every rule that `config` breaks, at the place where the key was written.
pub(super) fn validate(config: &Config, reader: &mut Reader<'_>) {
    paths(config, reader);
    counts(config, reader);
    breaker("cache.breaker", &config.cache.breaker, reader);
    breaker("origin.breaker", &config.origin.breaker, reader);
    times(config, reader);
    sizes(config, reader);
    modules(config, reader);
    s3(config, reader);
    shared_tiers(config, reader);
    origin(&config.origin, reader);
    metrics(config, reader);
    users(config, reader);
    device(config, reader);
    if config.validator.require_signature && config.validator.trusted_keys.is_empty() {
        let message = "is set, but validator.trusted_keys is empty, so that no kernel would pass: list a key";
        reader.refuse("validator.require_signature", message.to_owned());
    }
}

fn paths(config: &Config, reader: &mut Reader<'_>) {
    let sqlite_path = &config.cache.sqlite.path;
    for (key, path, may_be_empty) in [
        ("daemon.socket", &config.daemon.socket, false),
        ("daemon.control_socket", &config.daemon.control_socket, false),
        ("daemon.state_dir", &config.daemon.state_dir, false),
        ("origin.path", &config.origin.path, false),
        ("origin.urza.token_file", &config.origin.urza.token_file, true),
        ("origin.urza.ca_file", &config.origin.urza.ca_file, true),
        ("origin.s3.credentials_file", &config.origin.s3.credentials_file, true),
        ("cache.sqlite.path", sqlite_path, true),
        ("cache.redis.password_file", &config.cache.redis.password_file, true),
        ("cache.redis.ca_file", &config.cache.redis.ca_file, true),
        ("cache.redis.client_cert_file", &config.cache.redis.client_cert_file, true),
        ("cache.redis.client_key_file", &config.cache.redis.client_key_file, true),
        ("cache.postgres.password_file", &config.cache.postgres.password_file, true),
        ("cache.postgres.ca_file", &config.cache.postgres.ca_file, true),
        ("device.image_folder", &config.device.image_folder, true),
        ("engine.record_failures", &config.engine.record_failures, true),
    ] {
        let empty = path.as_os_str().is_empty();
        if !(path.is_absolute() || (empty && may_be_empty)) {
            reader.refuse(key, format!("{:?} is not absolute: write a path from the root", path.display()));
        }
    }
    for (key, path) in
        [("daemon.socket", &config.daemon.socket), ("daemon.control_socket", &config.daemon.control_socket)]
    {
        if let Some(message) = too_long_for_a_socket(path) {
            reader.refuse(key, message);
        }
    }
    if config.daemon.socket == config.daemon.control_socket {
        let message = "is daemon.socket too: give the control socket a path of its own";
        reader.refuse("daemon.control_socket", message.to_owned());
    }
}

fn too_long_for_a_socket(path: &Path) -> Option<String> {
    // sun_path holds 108 bytes, one of them the final zero.
    let bytes = path.as_os_str().len();
    (bytes > 107).then(|| format!("has {bytes} bytes: a socket's path may have 107"))
}

fn counts(config: &Config, reader: &mut Reader<'_>) {
    for (key, count, most) in [
        ("cache.max_entries", config.cache.max_entries as u64, 1_000_000),
        ("cache.postgres.connections", config.cache.postgres.connections.into(), 100),
        ("origin.retry.attempts", config.origin.retry.attempts.into(), 100),
        ("origin.s3.parallel_parts", config.origin.s3.parallel_parts.into(), 64),
        ("validator.max_archive_entries", config.validator.max_archive_entries as u64, 65_535),
        ("validator.max_parameters", config.validator.max_parameters, 1 << 40),
        ("validator.max_flops", config.validator.max_flops, i64::MAX as u64),
        ("validator.max_trial_flops", config.validator.max_trial_flops, i64::MAX as u64),
        ("engine.error_threshold", config.engine.error_threshold.into(), 1_000_000),
        ("engine.series_every", config.engine.series_every.into(), 1_000_000),
        ("engine.max_tickets_per_layer", config.engine.max_tickets_per_layer as u64, 1_000_000),
        ("limits.max_sessions", config.limits.max_sessions as u64, 65_536),
        ("limits.max_layers_per_session", config.limits.max_layers_per_session as u64, 65_536),
        ("limits.max_seeds_per_layer", config.limits.max_seeds_per_layer as u64, 64),
    ] {
        if !(1..=most).contains(&count) {
            reader.refuse(key, format!("{count} is out of range: write 1 to {most}"));
        }
    }
    for (key, count, most) in [
        ("device.threads", config.device.threads as u64, 1024),
        ("engine.series_length", config.engine.series_length as u64, 16_384),
        ("engine.gradient_norm_every", config.engine.gradient_norm_every.into(), 1_000_000),
        ("engine.recovery_attempts", config.engine.recovery_attempts.into(), 1000),
        ("data_plane.spin_us", config.data_plane.spin_us, 1_000_000),
        ("engine.concurrent_passes", config.engine.concurrent_passes as u64, 65_536),
        ("limits.max_sessions_per_uid", config.limits.max_sessions_per_uid, 65_536),
        ("limits.max_layers_per_uid", config.limits.max_layers_per_uid, 1 << 32),
        ("limits.max_seeds_per_session", config.limits.max_seeds_per_session, 1 << 32),
        ("limits.max_seeds_per_uid", config.limits.max_seeds_per_uid, 1 << 32),
        ("limits.max_tickets_per_uid", config.limits.max_tickets_per_uid, 1 << 48),
        ("origin.blob.max_redirects", config.origin.blob.max_redirects.into(), 20),
    ] {
        if count > most {
            reader.refuse(key, format!("{count} is out of range: write 0 to {most}"));
        }
    }
}

fn breaker(path: &str, breaker: &Breaker, reader: &mut Reader<'_>) {
    for (key, count, least, most) in [
        ("failure_threshold", breaker.failure_threshold, 1, 1_000_000),
        ("success_threshold", breaker.success_threshold, 1, 1_000_000),
        ("trial_calls", breaker.trial_calls, 1, 1000),
        ("failure_rate_threshold", breaker.failure_rate_threshold, 0, 100),
        ("slow_call_rate_threshold", breaker.slow_call_rate_threshold, 0, 100),
        ("sliding_window_size", breaker.sliding_window_size, 1, 10_000),
        ("minimum_number_of_calls", breaker.minimum_number_of_calls, 1, 10_000),
    ] {
        if !(least..=most).contains(&count) {
            reader.refuse(
                &format!("{path}.{key}"),
                format!("{count} is out of range: write {least} to {most}"),
            );
        }
    }
    for (key, time) in [
        ("open_for", breaker.open_for),
        ("max_wait_in_half_open", breaker.max_wait_in_half_open),
        ("slow_call_duration_threshold", breaker.slow_call_duration_threshold),
    ] {
        if time < Duration::from_millis(1) {
            reader.refuse(&format!("{path}.{key}"), "is too short: write at least \"1ms\"".to_owned());
        }
    }
}

fn times(config: &Config, reader: &mut Reader<'_>) {
    let retry = &config.origin.retry;
    for (key, time) in [
        ("daemon.watch_interval", config.daemon.watch_interval),
        ("daemon.restart_window", config.daemon.restart_window),
        ("cache.sqlite.busy_timeout", config.cache.sqlite.busy_timeout),
        ("cache.redis.ttl", config.cache.redis.ttl),
        ("cache.redis.connect_timeout", config.cache.redis.connect_timeout),
        ("cache.redis.timeout", config.cache.redis.timeout),
        ("cache.postgres.connect_timeout", config.cache.postgres.connect_timeout),
        ("cache.postgres.timeout", config.cache.postgres.timeout),
        ("origin.timeout", config.origin.timeout),
        ("cache.fresh_for", config.cache.fresh_for),
        ("cache.warm_window", config.cache.warm_window),
        ("origin.blob.stall_timeout", config.origin.blob.stall_timeout),
        ("origin.blob.timeout", config.origin.blob.timeout),
        ("origin.retry.base_delay", retry.base_delay),
        ("validator.time_limit", config.validator.time_limit),
        ("validator.trial_time_limit", config.validator.trial_time_limit),
        ("engine.time_limit", config.engine.time_limit),
        ("engine.recovery_backoff", config.engine.recovery_backoff),
        ("engine.turn_quantum", config.engine.turn_quantum),
    ] {
        if time < Duration::from_millis(1) {
            reader.refuse(key, "is too short: write at least \"1ms\"".to_owned());
        }
    }
    if retry.max_delay < retry.base_delay {
        let message = "is below origin.retry.base_delay: write at least that".to_owned();
        reader.refuse("origin.retry.max_delay", message);
    }
    if config.engine.recovery_backoff_max < config.engine.recovery_backoff {
        let message = "is below engine.recovery_backoff: write at least that".to_owned();
        reader.refuse("engine.recovery_backoff_max", message);
    }
}

fn sizes(config: &Config, reader: &mut Reader<'_>) {
    // The layout of an arena ends at 1 TiB (wire/layout.rs).
    let arena = ("data_plane.arena_bytes", config.data_plane.arena_bytes, ByteSize::gib(1 << 10));
    let most = ByteSize(1 << 46);
    for (key, size, most) in [
        arena,
        ("cache.max_bytes", config.cache.max_bytes, most),
        ("cache.max_fetch_bytes", config.cache.max_fetch_bytes, most),
        ("cache.sqlite.max_bytes", config.cache.sqlite.max_bytes, most),
        ("cache.redis.max_artifact_bytes", config.cache.redis.max_artifact_bytes, ByteSize::mib(512)),
        ("cache.postgres.max_bytes", config.cache.postgres.max_bytes, most),
        ("validator.max_artifact_bytes", config.validator.max_artifact_bytes, most),
        ("origin.urza.max_entry_bytes", config.origin.urza.max_entry_bytes, ByteSize::mib(64)),
        ("origin.s3.part_size", config.origin.s3.part_size, ByteSize::gib(4)),
        ("validator.max_entry_bytes", config.validator.max_entry_bytes, most),
        ("validator.max_plan_bytes", config.validator.max_plan_bytes, most),
        ("validator.max_trial_bytes", config.validator.max_trial_bytes, most),
        ("engine.record_failures_max_bytes", config.engine.record_failures_max_bytes, most),
        ("limits.max_bytes_per_session", config.limits.max_bytes_per_session, most),
    ] {
        if !(ByteSize::mib(1)..=most).contains(&size) {
            reader.refuse(key, format!("{size} is out of range: write \"1MiB\" to \"{most}\""));
        }
    }
}

fn s3(config: &Config, reader: &mut Reader<'_>) {
    let s3 = &config.origin.s3;
    if s3.anonymous && !s3.credentials_file.as_os_str().is_empty() {
        let message = "is true although origin.s3.credentials_file is set: keep one of the two";
        reader.refuse("origin.s3.anonymous", message.to_owned());
    }
}

fn shared_tiers(config: &Config, reader: &mut Reader<'_>) {
    let (redis, postgres) = (&config.cache.redis, &config.cache.postgres);
    for (key, url, schemes) in [
        ("cache.redis.url", &redis.url, ["redis://", "rediss://"]),
        ("cache.postgres.url", &postgres.url, ["postgres://", "postgresql://"]),
    ] {
        if url.is_empty() {
            continue;
        }
        let [one, other] = schemes;
        let Some(rest) = url.strip_prefix(one).or_else(|| url.strip_prefix(other)) else {
            reader.refuse(key, format!("{url:?} is no such URL: begin it with {one} or {other}"));
            continue;
        };
        // Not repeated in the messages, which go to logs. All of it is looked at: a password may have a "/".
        if rest.rsplit_once('@').is_some_and(|(user, _)| user.contains(':')) {
            let message = "holds a password, which would be seen in logs: name a file in password_file";
            reader.refuse(key, message.to_owned());
        }
        // A driver reads more from there than is meant here: passwords, files, other hosts.
        if rest.contains(['?', '#']) {
            let message = "holds options after a \"?\" or \"#\": leave them out, each has a key of its own";
            reader.refuse(key, message.to_owned());
        }
    }
    let word = |text: &str| text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
    if !(1..=64).contains(&redis.prefix.len()) || !word(&redis.prefix) {
        let message = format!("{:?} is no prefix: write 1 to 64 of A-Z a-z 0-9 . _ -", redis.prefix);
        reader.refuse("cache.redis.prefix", message);
    }
    if redis.client_cert_file.as_os_str().is_empty() != redis.client_key_file.as_os_str().is_empty() {
        let message = "and client_cert_file go together: name both or neither".to_owned();
        reader.refuse("cache.redis.client_key_file", message);
    }
}

fn origin(origin: &Origin, reader: &mut Reader<'_>) {
    let endpoints = &origin.urza.endpoints;
    if origin.kind == OriginKind::Urza && endpoints.is_empty() {
        let message = "is empty, so that no kernel would be found: list https://host/api/v1";
        reader.refuse("origin.urza.endpoints", message.to_owned());
    }
    let s3 = Some(&origin.s3.endpoint).filter(|endpoint| !endpoint.is_empty());
    let urls = endpoints.iter().map(|url| ("origin.urza.endpoints", url));
    for (key, url) in urls.chain(s3.map(|url| ("origin.s3.endpoint", url))) {
        let rest = url.strip_prefix("https://").or_else(|| url.strip_prefix("http://"));
        let authority = rest.and_then(|rest| rest.split(['/', '?', '#']).next()).unwrap_or_default();
        if authority.is_empty() || url.contains(['?', '#']) || url.chars().any(char::is_whitespace) {
            reader.refuse(key, format!("{url:?} is no such URL: write https:// or http:// and a host"));
        } else if url.contains('@') {
            // Wherever it stands: a password may have a "/". Not repeated in the message, which goes to logs.
            let message = "holds a user or a password: name files in token_file or credentials_file";
            reader.refuse(key, message.to_owned());
        }
    }
    for url in endpoints.iter().filter(|url| !url.trim_end_matches('/').ends_with("/api/v1")) {
        let message = format!("{url:?} does not end in /api/v1, where the catalogue is");
        reader.refuse("origin.urza.endpoints", message);
    }
    for host in &origin.blob.allowed_hosts {
        let name = host.strip_prefix("*.").unwrap_or(host);
        if name.is_empty() || name.contains(['/', '@', '*', ' ']) {
            let message = format!("{host:?} is no host: write host, host:port or *.domain");
            reader.refuse("origin.blob.allowed_hosts", message);
        }
    }
    for bucket in origin.blob.allowed_buckets.iter().filter(|b| b.is_empty() || b.contains("://")) {
        let message = format!("{bucket:?} is no bucket: write bucket or bucket/prefix");
        reader.refuse("origin.blob.allowed_buckets", message);
    }
    for folder in origin.blob.allowed_folders.iter().filter(|folder| !folder.is_absolute()) {
        let message = format!("{:?} is not absolute: write a path from the root", folder.display());
        reader.refuse("origin.blob.allowed_folders", message);
    }
}

fn metrics(config: &Config, reader: &mut Reader<'_>) {
    let (daemon, key) = (&config.daemon, "metrics.listen");
    match &config.metrics.listen {
        MetricsAddress::Tcp(address) if !address.ip().is_loopback() && !config.metrics.allow_remote => {
            let message = format!(
                "{address} can be reached from other machines, and nobody is asked who he is: write 127.0.0.1 or \
                 unix:/path, or set metrics.allow_remote"
            );
            reader.refuse(key, message);
        }
        MetricsAddress::Unix(path) if *path == daemon.socket || *path == daemon.control_socket => {
            let message = "is daemon.socket or daemon.control_socket too: give it a path of its own";
            reader.refuse(key, message.to_owned());
        }
        MetricsAddress::Unix(path) => {
            if let Some(message) = too_long_for_a_socket(path) {
                reader.refuse(key, message);
            }
        }
        MetricsAddress::Off | MetricsAddress::Tcp(_) => {}
    }
}

fn users(config: &Config, reader: &mut Reader<'_>) {
    let shares = &config.limits.shares;
    for (n, share) in shares.iter().enumerate() {
        if shares[..n].iter().any(|earlier| earlier.uid == share.uid) {
            reader.refuse("limits.shares", format!("user {} stands in it twice: keep one", share.uid));
        }
    }
    let most = ByteSize(1 << 46);
    let per_uid = config.limits.max_bytes_per_uid;
    if per_uid.0 != 0 && !(ByteSize::mib(1)..=most).contains(&per_uid) {
        let message =
            format!("{per_uid} is out of range: write \"1MiB\" to \"{most}\", or \"0B\" for no limit");
        reader.refuse("limits.max_bytes_per_uid", message);
    }
}

fn device(config: &Config, reader: &mut Reader<'_>) {
    let (memory, most) = (config.device.memory, ByteSize(1 << 46));
    if memory.0 != 0 && !(ByteSize::mib(1)..=most).contains(&memory) {
        let message = format!(
            "{memory} is out of range: write \"1MiB\" to \"{most}\", or \"0B\" for nine tenths of what is free"
        );
        reader.refuse("device.memory", message);
    }
    let limit = config.device.stall_limit;
    if !limit.is_zero() && limit < Duration::from_secs(1) {
        let message = "is too short: write at least \"1s\", or \"0s\" for no limit".to_owned();
        reader.refuse("device.stall_limit", message);
    }
    let ordinals = &config.device.ordinals;
    if let Some((_, twice)) =
        ordinals.iter().enumerate().find(|&(n, ordinal)| ordinals[..n].contains(ordinal))
    {
        let message = format!("{twice} stands there twice: name each GPU once");
        reader.refuse("device.ordinals", message);
    }
    for folder in config.device.libraries.iter().filter(|folder| !folder.is_absolute()) {
        let message = format!("{:?} is not absolute: write a path from the root", folder.display());
        reader.refuse("device.libraries", message);
    }
}

fn modules(config: &Config, reader: &mut Reader<'_>) {
    let prefixes = &config.validator.allowed_modules;
    if prefixes.is_empty() {
        let message = "is empty, so that no kernel would pass: write \"*\" to accept every class";
        reader.refuse("validator.allowed_modules", message.to_owned());
    }
    if prefixes.iter().any(String::is_empty) {
        let message = "holds an empty prefix, which matches everything: write \"*\" if that is meant";
        reader.refuse("validator.allowed_modules", message.to_owned());
    }
}
