//! Where settings from outside the file come from.

use std::collections::BTreeMap;

/// The prefix of every variable that overrides a key: `KASMINA__CACHE__MAX_BYTES` is `cache.max_bytes`.
pub const PREFIX: &str = "KASMINA__";

/// The variables a configuration may be overridden with; injected, so that loading reads no global.
pub trait Environment {
    /// Every variable, name and value.
    fn variables(&self) -> Vec<(String, String)>;
}

/// The process's own environment. Variables that are not UTF-8 are left out.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessEnvironment;

impl Environment for ProcessEnvironment {
    fn variables(&self) -> Vec<(String, String)> {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        std::env::vars_os().filter_map(utf8).collect()
    }
}

impl Environment for BTreeMap<String, String> {
    fn variables(&self) -> Vec<(String, String)> {
        self.iter().map(|(name, value)| (name.clone(), value.clone())).collect()
    }
}

/// No variables at all.
impl Environment for () {
    fn variables(&self) -> Vec<(String, String)> {
        Vec::new()
    }
}
