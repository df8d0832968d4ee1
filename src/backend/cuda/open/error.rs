//! Why no GPU can be used.

use std::path::PathBuf;

use super::{
    super::{CompileError, DriverError},
    LibraryState,
};
use crate::fault::{ErrorClass, Fault};

/// Why no GPU can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// The driver is missing, too old, or shows no such device; or it failed.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// There is nothing to compile kernels with.
    #[error(
        "NVRTC, which compiles the kernels, was not found in {}: install it, for example with pip install nvidia-cuda-nvrtc, or name its folder in device.libraries",
        listed(looked_in)
    )]
    NoCompiler {
        /// The folders that were looked in.
        looked_in: Vec<PathBuf>,
    },
    /// The kernels cannot be compiled.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The driver does not take what was compiled.
    #[error(
        "kernels that NVRTC {}.{} at {path} has compiled cannot be loaded: {source}: if NVRTC is newer than the driver, update the driver, or name the folder of an older NVRTC in device.libraries",
        version.0, version.1, path = nvrtc.display()
    )]
    Load {
        /// The compiler.
        nvrtc: PathBuf,
        /// Its version.
        version: (u32, u32),
        /// What the driver says.
        source: DriverError,
    },
    /// More memory is asked for than the device has.
    #[error(
        "device.memory is {asked_bytes} bytes, {device} has {memory_bytes}: write less, or 0B for nine tenths of what is free"
    )]
    Memory {
        /// The device.
        device: String,
        /// What the setting asks for.
        asked_bytes: u64,
        /// What there is.
        memory_bytes: u64,
    },
    /// NVIDIA's libraries or what binds them panicked.
    #[error("opening the GPU panicked: {reason}: set device.kind to cpu, and report it")]
    Panicked {
        /// In its own words.
        reason: String,
    },
}

/// Why no GPU can be used, and what was found of NVIDIA's libraries all the same.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{error}")]
pub struct Unavailable {
    /// Why.
    pub error: OpenError,
    /// The libraries.
    pub libraries: Vec<LibraryState>,
}

impl Fault for Unavailable {
    fn class(&self) -> ErrorClass {
        match &self.error {
            OpenError::Driver(DriverError::Failed { .. } | DriverError::OutOfMemory { .. })
            | OpenError::Load { .. } => ErrorClass::Unavailable,
            OpenError::Compile(CompileError::Source { .. }) | OpenError::Panicked { .. } => ErrorClass::Bug,
            OpenError::Driver(DriverError::Missing { .. } | DriverError::NoDevice { .. })
            | OpenError::Compile(CompileError::Library { .. } | CompileError::Capability { .. })
            | OpenError::NoCompiler { .. }
            | OpenError::Memory { .. } => ErrorClass::Invalid,
        }
    }

    /// `device.unavailable` where the node lacks what the settings ask for and will lack it at the next try too,
    /// `device.failed` where something broke.
    fn code(&self) -> &'static str {
        if self.class() == ErrorClass::Invalid { "device.unavailable" } else { "device.failed" }
    }
}

fn listed(folders: &[PathBuf]) -> String {
    folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_broke_may_be_tried_again_and_what_lacks_may_not() {
        let code = |error| Unavailable { error, libraries: Vec::new() }.code();
        let failed = DriverError::Failed { call: "cuCtxSetCurrent", reason: "busy".into() };
        let load = OpenError::Load { nvrtc: "/n".into(), version: (13, 2), source: failed.clone() };
        assert_eq!((code(failed.into()), code(load)), ("device.failed", "device.failed"));
        let source = CompileError::Source { name: "conv.cu".into(), reason: "no".into() };
        assert_eq!(code(source.into()), "device.failed");
        assert_eq!(code(OpenError::NoCompiler { looked_in: Vec::new() }), "device.unavailable");
        let old = CompileError::Capability { version: (11, 8), capability: (12, 0) };
        assert_eq!(code(old.into()), "device.unavailable");
    }
}
