//! Compiling the kernels for a device.

use std::{
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use super::{
    cache::{ImageCache, key},
    nvrtc::{Compiled, Nvrtc},
    source::{Source, headers},
};

/// The most sources that are compiled at a time.
const MOST_THREADS: usize = 4;

/// Why there are no kernels for a device.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// NVRTC cannot be used.
    #[error("NVRTC at {path}: {reason}", path = path.display())]
    Library {
        /// Where it was loaded from.
        path: PathBuf,
        /// What is wrong, in its own words.
        reason: String,
    },
    /// NVRTC has no code for the device, nor for one that the device could take for its own.
    #[error(
        "NVRTC {}.{} makes no code for compute capability {}.{}: install one that does",
        version.0, version.1, capability.0, capability.1
    )]
    Capability {
        /// NVRTC's version.
        version: (u32, u32),
        /// The device's capability.
        capability: (u32, u32),
    },
    /// A source does not compile.
    #[error("{name} does not compile: {reason}")]
    Source {
        /// The source.
        name: String,
        /// What the compiler said.
        reason: String,
    },
}

/// What to compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Architecture {
    /// 10·major + minor.
    number: u32,
    /// Whether the driver has to make machine code of PTX, for a device younger than the compiler.
    is_ptx: bool,
}

impl Architecture {
    /// That of a device, or the latest before it that the compiler knows.
    pub(super) fn of(supported: &[u32], capability: (u32, u32)) -> Option<Self> {
        let wanted = capability.0 * 10 + capability.1;
        let number = supported.iter().copied().filter(|&number| number <= wanted).max()?;
        Some(Self { number, is_ptx: number != wanted })
    }

    fn options(self) -> Vec<String> {
        let kind = if self.is_ptx { "compute" } else { "sm" };
        vec![format!("--gpu-architecture={kind}_{}", self.number), "--std=c++17".into()]
    }
}

/// Images of every source for a device, in the order that [`CudaBackend::new`](super::CudaBackend::new) takes.
///
/// Blocking: half a minute of work for one processor where the cache has nothing yet.
///
/// # Errors
/// [`CompileError`].
pub fn compile(
    nvrtc: &Nvrtc,
    capability: (u32, u32),
    cache: Option<&ImageCache>,
) -> Result<Vec<Vec<u8>>, CompileError> {
    let Some(architecture) = Architecture::of(&nvrtc.capabilities()?, capability) else {
        return Err(CompileError::Capability { version: nvrtc.version(), capability });
    };
    each_source(|source| cached(nvrtc, source, architecture, cache)).into_iter().collect()
}

/// Does something for every source, several at a time, and gives the results in the sources' order.
pub(super) fn each_source<T: Send>(work: impl Fn(Source) -> T + Sync) -> Vec<T> {
    let (next, done) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MOST_THREADS);
    std::thread::scope(|scope| {
        let work = || {
            while let Some(&source) = Source::ALL.get(next.fetch_add(1, Ordering::Relaxed)) {
                let result = work(source);
                done.lock().unwrap_or_else(PoisonError::into_inner).push((source as usize, result));
            }
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        // A scope waits for its closures alone. What a compiler's library does as a thread ends has to be over before the
        // library is closed.
        for worker in workers {
            if let Err(panic) = worker.join() {
                std::panic::resume_unwind(panic);
            }
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn cached(
    nvrtc: &Nvrtc,
    source: Source,
    architecture: Architecture,
    cache: Option<&ImageCache>,
) -> Result<Vec<u8>, CompileError> {
    let Some(cache) = cache else {
        return compile_one(nvrtc, source, architecture).map(|compiled| compiled.image);
    };
    let (headers, version) = (headers(), format!("{:?}", nvrtc.version()));
    let options = architecture.options().join(" ");
    let parts = [version.as_bytes(), options.as_bytes(), source.name().as_bytes(), source.text().as_bytes()];
    let key = key(parts.into_iter().chain(headers.iter().map(|(_, text)| text.as_bytes())));
    if let Some(image) = cache.get(key) {
        return Ok(image);
    }
    let compiled = compile_one(nvrtc, source, architecture)?;
    if let Err(error) = cache.put(key, &compiled.image) {
        tracing::warn!(%error, source = source.name(), "compiled kernels cannot be kept: the next start compiles again");
    }
    Ok(compiled.image)
}

/// Compiles one source.
pub(super) fn compile_one(
    nvrtc: &Nvrtc,
    source: Source,
    architecture: Architecture,
) -> Result<Compiled, CompileError> {
    let compiled = nvrtc.compile(
        source.name(),
        source.text(),
        &headers(),
        &architecture.options(),
        architecture.is_ptx,
    )?;
    if !compiled.log.is_empty() {
        tracing::debug!(source = source.name(), log = compiled.log, "NVRTC had something to say");
    }
    Ok(compiled)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::cuda::libraries::{Roots, find};

    /// NVRTC as the daemon would find it, in the environment that the tests are run in.
    fn nvrtc() -> Nvrtc {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let roots = Roots::of_environment(root.join(".venv"));
        let found = find("nvrtc", &roots);
        let first = found.first().unwrap_or_else(|| {
            panic!("no NVRTC among {roots:?}: run scripts/venv, which installs PyTorch with it")
        });
        Nvrtc::load(&first.path).unwrap()
    }

    #[test]
    fn every_source_compiles_for_sm_80_and_sm_90_without_a_warning() {
        let nvrtc = nvrtc();
        let supported = nvrtc.capabilities().unwrap();
        for capability in [(8, 0), (9, 0)] {
            let architecture = Architecture::of(&supported, capability).unwrap();
            assert!(!architecture.is_ptx, "{capability:?} is among {supported:?}");
            for compiled in each_source(|source| compile_one(&nvrtc, source, architecture).unwrap()) {
                assert_eq!(compiled.log, "");
                assert_eq!(&compiled.image[..4], b"\x7fELF");
            }
        }
    }

    #[test]
    fn a_wrong_source_says_where_and_an_image_is_made_once() {
        let nvrtc = nvrtc();
        let supported = nvrtc.capabilities().unwrap();
        let options = Architecture::of(&supported, (8, 0)).unwrap().options();
        let wrong = nvrtc.compile("wrong.cu", "int a = ;", &[], &options, false).unwrap_err().to_string();
        assert!(wrong.contains("wrong.cu does not compile") && wrong.contains("wrong.cu(1)"), "{wrong}");
        let folder = tempfile::tempdir().unwrap();
        let cache = ImageCache::new(folder.path());
        // A device younger than any compiler gets PTX.
        let future = Architecture::of(&supported, (99, 0)).unwrap();
        assert!(future.is_ptx);
        let first = cached(&nvrtc, Source::Movement, future, Some(&cache)).unwrap();
        assert!(String::from_utf8_lossy(&first).contains(".version"));
        let kept = fs_names(folder.path());
        assert_eq!(kept.len(), 1);
        assert_eq!(cached(&nvrtc, Source::Movement, future, Some(&cache)).unwrap(), first);
        assert_eq!(fs_names(folder.path()), kept);
        let other = Architecture::of(&supported, (8, 0)).unwrap();
        assert_ne!(cached(&nvrtc, Source::Movement, other, Some(&cache)).unwrap(), first);
        assert_eq!(fs_names(folder.path()).len(), 2);
    }

    fn fs_names(folder: &Path) -> Vec<std::ffi::OsString> {
        std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    }

    #[test]
    fn the_latest_architecture_before_the_device_is_taken() {
        let known = [75, 80, 90, 120];
        let of = |capability| Architecture::of(&known, capability);
        assert_eq!(of((9, 0)), Some(Architecture { number: 90, is_ptx: false }));
        assert_eq!(of((8, 6)), Some(Architecture { number: 80, is_ptx: true }));
        assert_eq!(of((7, 0)), None);
        assert_eq!(of((9, 0)).unwrap().options()[0], "--gpu-architecture=sm_90");
        assert_eq!(of((8, 6)).unwrap().options()[0], "--gpu-architecture=compute_80");
    }

    #[test]
    fn what_is_no_nvrtc_is_refused() {
        let error = Nvrtc::load(Path::new("/nowhere/libnvrtc.so.12")).unwrap_err();
        assert!(error.to_string().starts_with("NVRTC at /nowhere/libnvrtc.so.12: "), "{error}");
    }
}
