//! A GPU from its driver to a backend.

use std::{
    env, fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

use super::{
    super::{
        CudaBackend, CudaOptions, Driver, DriverError, Found, ImageCache, Nvrtc, Properties, Roots, compile,
        driver::{self, RealDriver},
    },
    LibraryState, OpenError, Unavailable, places,
    survey::{
        CUBLASLT, CUBLASLT_FILE, CUDNN, CUDNN_FILE, LIBCUDA, NVRTC, NVRTC_FILE, candidates, everywhere,
        folders_of, loaded, mapped, survey, unused, version_in_name,
    },
};

/// What a GPU is opened with.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Which, as the driver counts those that it shows.
    pub ordinal: u32,
    /// Bytes that kernels, plans and sessions may take; 0 is nine tenths of what is free.
    pub memory_bytes: u64,
    /// Whether plans are captured once and replayed.
    pub graphs: bool,
    /// Whether libraries may round factors in `float32` to TF32.
    pub tf32: bool,
    /// Whether cuBLASLt and cuDNN compute what they can, where they are found. Without them kernels of ours compute
    /// everything.
    pub libraries: bool,
    /// Where libraries are looked for, in order, as [`places`] gives it.
    pub places: Vec<Roots>,
    /// Where compiled kernels are kept.
    pub image_folder: PathBuf,
}

impl OpenOptions {
    /// The first GPU, as a daemon opens it whose settings say no more than that there is one, for programs that run
    /// beside no daemon: tests and measurements. `KASMINA_IMAGES` names the folder of compiled kernels.
    pub fn of_environment() -> Self {
        let variable = |name: &str| env::var_os(name).map(PathBuf::from);
        Self {
            ordinal: 0,
            memory_bytes: 0,
            graphs: true,
            tf32: false,
            libraries: true,
            places: places(&[], variable, Path::new("/")),
            image_folder: variable("KASMINA_IMAGES")
                .unwrap_or_else(|| env::temp_dir().join("kasmina-images")),
        }
    }
}

/// An open GPU.
#[derive(Debug)]
pub struct Opened {
    /// What runs kernels on it.
    pub backend: Arc<CudaBackend>,
    /// What it is.
    pub properties: Properties,
    /// Bytes that kernels, plans and sessions may take.
    pub budget_bytes: u64,
    /// NVIDIA's libraries on this node.
    pub libraries: Vec<LibraryState>,
}

/// Opens a GPU, compiles the kernels for it or takes them from the disk, and loads them.
///
/// Blocking: up to half a minute where the kernels are not on the disk yet.
///
/// # Errors
/// [`Unavailable`], with what is missing, where it was looked for, and what to do.
pub fn open_device(options: &OpenOptions) -> Result<Opened, Unavailable> {
    let mut libraries = survey(&options.places);
    match open_with(options, &mut libraries) {
        Ok((backend, properties, budget_bytes)) => {
            Ok(Opened { backend: Arc::new(backend), properties, budget_bytes, libraries })
        }
        Err(error) => Err(Unavailable { error, libraries }),
    }
}

fn open_with(
    options: &OpenOptions,
    libraries: &mut [LibraryState],
) -> Result<(CudaBackend, Properties, u64), OpenError> {
    let opened = driver::open(options.ordinal);
    // Whatever came of it: if there is a libcuda, it is loaded now.
    if let Some(path) = mapped(&fs::read_to_string("/proc/self/maps").unwrap_or_default()) {
        loaded(libraries, LIBCUDA, &path, version_in_name("cuda", &path));
    }
    let mut driver = opened?;
    let properties = driver.properties().clone();
    // What they take of the device's memory is not free any more.
    if options.libraries {
        add_libraries(&mut driver, &options.places, libraries);
    }
    let budget_bytes = budget(options.memory_bytes, driver.free_bytes()? as u64, &properties)?;
    let driver: Arc<dyn Driver> = Arc::new(driver);
    let mut first_error = None;
    for Found { path, .. } in candidates(NVRTC_FILE, &options.places, properties.cuda.0) {
        match build(&driver, &path, budget_bytes, options) {
            Ok((backend, (major, minor))) => {
                loaded(libraries, NVRTC, &path, Some(format!("{major}.{minor}")));
                return Ok((backend, properties, budget_bytes));
            }
            Err(error) => {
                tracing::debug!(%error, path = %path.display(), "this NVRTC is of no use here");
                first_error.get_or_insert(error);
            }
        }
    }
    Err(first_error.unwrap_or_else(|| OpenError::NoCompiler { looked_in: folders_of(&options.places) }))
}

/// Has the first cuBLASLt and the first cuDNN that work compute what they can. Without one, kernels of ours do.
fn add_libraries(driver: &mut RealDriver, places: &[Roots], libraries: &mut [LibraryState]) {
    let cuda_major = driver.properties().cuda.0;
    let products = candidates(CUBLASLT_FILE, places, cuda_major);
    add_library(libraries, CUBLASLT, products, |path| driver.use_products(path));
    // By its file's name nobody knows for which CUDA a cuDNN is. One that is too young for the driver says so.
    let convolutions = everywhere(CUDNN_FILE, places);
    add_library(libraries, CUDNN, convolutions, |path| driver.use_convolutions(path));
}

/// Has the first of some files used that can be, and notes which, or why none.
fn add_library(
    libraries: &mut [LibraryState],
    name: &'static str,
    files: Vec<Found>,
    mut load: impl FnMut(&Path) -> Result<String, DriverError>,
) {
    let mut first_error = None;
    for Found { path, .. } in files {
        match load(&path) {
            Ok(version) => return loaded(libraries, name, &path, Some(version)),
            Err(error) => {
                tracing::debug!(%error, library = name, path = %path.display(), "this one is of no use here");
                first_error.get_or_insert(error);
            }
        }
    }
    if let Some(error) = first_error {
        tracing::info!(%error, library = name, "it is not used, and Kasmina's own kernels do its work");
        unused(libraries, name, &error);
    }
}

/// The backend with kernels that one NVRTC compiles, and that NVRTC's version.
fn build(
    driver: &Arc<dyn Driver>,
    nvrtc: &Path,
    budget_bytes: u64,
    options: &OpenOptions,
) -> Result<(CudaBackend, (u32, u32)), OpenError> {
    let nvrtc = Nvrtc::load(nvrtc)?;
    let Properties { name, capability, .. } = driver.properties();
    tracing::info!(
        device = name,
        folder = %options.image_folder.display(),
        "getting the kernels: where the folder does not have them yet, they are compiled, for up to half a minute"
    );
    let begun = Instant::now();
    let images = compile(&nvrtc, *capability, Some(&ImageCache::new(&options.image_folder)))?;
    let seconds = begun.elapsed().as_secs_f64();
    tracing::info!(device = name, seconds, "kernels are there");
    let version = nvrtc.version();
    match backend_of(driver.clone(), &images, budget_bytes, options) {
        Ok(backend) => Ok((backend, version)),
        Err(source) => Err(OpenError::Load { nvrtc: nvrtc.path().to_owned(), version, source }),
    }
}

/// The one place where a backend is made of an open device.
fn backend_of(
    driver: Arc<dyn Driver>,
    images: &[Vec<u8>],
    budget_bytes: u64,
    options: &OpenOptions,
) -> Result<CudaBackend, DriverError> {
    let memory_bytes = usize::try_from(budget_bytes).unwrap_or(usize::MAX);
    let (graphs, tf32) = (options.graphs, options.tf32);
    CudaBackend::new(driver, images, CudaOptions { memory_bytes, graphs, tf32 })
}

/// What may be taken of a device's memory.
fn budget(asked_bytes: u64, free_bytes: u64, device: &Properties) -> Result<u64, OpenError> {
    let memory_bytes = device.memory_bytes;
    if asked_bytes > memory_bytes {
        return Err(OpenError::Memory { device: device.name.clone(), asked_bytes, memory_bytes });
    }
    if asked_bytes > free_bytes {
        tracing::warn!(
            asked_bytes,
            free_bytes,
            "device.memory is more than is free now: others have taken it, and passes may find none"
        );
    }
    Ok(if asked_bytes == 0 { free_bytes / 10 * 9 } else { asked_bytes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::{ErrorClass, Fault as _};

    fn properties() -> Properties {
        Properties {
            uuid: "5a".repeat(16),
            shared_grain_bytes: Some(2 << 20),
            name: "cuda:0".into(),
            model: "a card".into(),
            capability: (9, 0),
            multiprocessors: 132,
            memory_bytes: 1000,
            cuda: (12, 8),
        }
    }

    #[test]
    fn the_budget_is_what_was_asked_for_or_nine_tenths_of_what_is_free() {
        let device = properties();
        assert_eq!(budget(0, 800, &device), Ok(720));
        assert_eq!(budget(500, 800, &device), Ok(500));
        assert_eq!(budget(900, 800, &device), Ok(900), "the others may give theirs back");
        let text = budget(1001, 800, &device).unwrap_err().to_string();
        assert!(text.starts_with("device.memory is 1001 bytes, cuda:0 has 1000: write less"), "{text}");
    }

    #[test]
    fn a_device_that_is_not_there_says_so_and_what_libraries_are() {
        let root = tempfile::tempdir().unwrap();
        let options = OpenOptions {
            // Where there is a driver, it has no device of this number.
            ordinal: 4096,
            memory_bytes: 0,
            graphs: true,
            tf32: false,
            libraries: true,
            places: places(&[], |_| None, root.path()),
            image_folder: root.path().join("images"),
        };
        let refused = open_device(&options).unwrap_err();
        assert_eq!((refused.code(), refused.class()), ("device.unavailable", ErrorClass::Invalid));
        let libcuda = &refused.libraries[0];
        let has_device = refused.to_string().starts_with("there is no device 4096: the driver shows ");
        assert!(has_device || refused.to_string().starts_with("no CUDA driver: "), "{refused}");
        assert_eq!(libcuda.path.is_none(), refused.to_string().contains("libcuda was not found"));
        assert_eq!(libcuda.remark == "the driver", libcuda.path.is_some(), "{libcuda:?}");
        assert!(!options.image_folder.exists(), "nothing is compiled for no device");
    }
}
