//! The configuration the daemon runs on: every key with a value, every rule satisfied.

use std::{
    fs,
    path::{Path, PathBuf},
};

use super::{
    cache::Cache,
    daemon::Daemon,
    data_plane::DataPlane,
    device::Device,
    engine::Engine,
    environment::Environment,
    keys::Keys,
    limits::Limits,
    log::Log,
    metrics::Metrics,
    origin::Origin,
    problem::{ConfigErrors, Place, Problem},
    raw::RawConfig,
    section::{Entry, Reader, Section},
    validate::validate,
    validator::Validator,
};

/// Every setting of the daemon. [`Config::default`] is what an empty file means.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Config {
    /// Sockets, rights, and the supervisor's patience.
    pub daemon: Daemon,
    /// What kernels run on.
    pub device: Device,
    /// Where kernels are kept.
    pub cache: Cache,
    /// Where kernels come from.
    pub origin: Origin,
    /// What a kernel must satisfy.
    pub validator: Validator,
    /// How seeds run.
    pub engine: Engine,
    /// Memory shared with trainers.
    pub data_plane: DataPlane,
    /// What one session may hold.
    pub limits: Limits,
    /// Metrics by HTTP.
    pub metrics: Metrics,
    /// Log lines.
    pub log: Log,
}

impl Config {
    /// Reads the file, lays the variables over it and checks the whole; without a path, over the
    /// defaults.
    ///
    /// # Errors
    /// Every problem at once, each with its key and where it was written.
    ///
    /// Blocking: reads one file.
    pub fn load(path: Option<&Path>, environment: &impl Environment) -> Result<Self, ConfigErrors> {
        let text = match path.map(fs::read_to_string).transpose() {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                let message = format!("cannot be read, give a readable UTF-8 file: {error}");
                let problem = Problem { place: Place::File, key: String::new(), message };
                return Err(ConfigErrors::new(path, vec![problem]));
            }
        };
        Self::from_toml(&text, path, environment)
    }

    /// As [`Config::load`], with the file's text given; `path` is only for messages.
    ///
    /// # Errors
    /// Every problem at once, each with its key and where it was written; where the text is no TOML, the first
    /// place that is not.
    pub fn from_toml(
        text: &str,
        path: Option<&Path>,
        environment: &impl Environment,
    ) -> Result<Self, ConfigErrors> {
        let keys = Keys::new(Self::default().entries().into_iter().map(|entry| entry.key));
        let mut problems = Vec::new();
        let mut raw = RawConfig::from_toml(text, &keys, &mut problems)
            .map_err(|problem| ConfigErrors::new(path, vec![problem]))?;
        raw.override_with(environment, &keys, &mut problems);
        let mut reader = Reader { raw: &raw, problems: &mut problems };
        let config = Self::resolve(&mut reader);
        validate(&config, &mut reader);
        if problems.is_empty() { Ok(config) } else { Err(ConfigErrors::new(path, problems)) }
    }

    /// The SQLite tier's file: its own path, else `cache.sqlite` in the daemon's folder.
    pub fn sqlite_path(&self) -> PathBuf {
        let path = &self.cache.sqlite.path;
        if path.as_os_str().is_empty() { self.daemon.state_dir.join("cache.sqlite") } else { path.clone() }
    }

    /// Where compiled CUDA kernels are kept: a folder of their own, else `cuda` in the daemon's folder.
    pub fn image_folder(&self) -> PathBuf {
        let folder = &self.device.image_folder;
        if folder.as_os_str().is_empty() { self.daemon.state_dir.join("cuda") } else { folder.clone() }
    }

    /// Every key with its value, in the order of the shipped file.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries = Vec::new();
        let Self { daemon, device, cache, origin, validator, engine, data_plane, limits, metrics, log } =
            self;
        daemon.list(&mut entries, "daemon");
        device.list(&mut entries, "device");
        cache.list(&mut entries, "cache");
        origin.list(&mut entries, "origin");
        validator.list(&mut entries, "validator");
        engine.list(&mut entries, "engine");
        data_plane.list(&mut entries, "data_plane");
        limits.list(&mut entries, "limits");
        metrics.list(&mut entries, "metrics");
        log.list(&mut entries, "log");
        entries
    }

    fn resolve(reader: &mut Reader<'_>) -> Self {
        Self {
            daemon: Section::resolve(reader, "daemon"),
            device: Section::resolve(reader, "device"),
            cache: Section::resolve(reader, "cache"),
            origin: Section::resolve(reader, "origin"),
            validator: Section::resolve(reader, "validator"),
            engine: Section::resolve(reader, "engine"),
            data_plane: Section::resolve(reader, "data_plane"),
            limits: Section::resolve(reader, "limits"),
            metrics: Section::resolve(reader, "metrics"),
            log: Section::resolve(reader, "log"),
        }
    }
}
