//! Work of cuBLASLt and cuDNN, as far as they were found.

use std::{
    collections::HashMap,
    path::Path,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    super::{DriverError, PlannedRoutine, Routine, RoutineArguments, RoutineSpec, Routines, Stream},
    RealDriver,
    cublaslt::{CublasLt, Product},
    cudnn::{Convolution, Cudnn},
};

/// What a workspace's address has to be a multiple of.
const WORKSPACE_ALIGNMENT_BYTES: usize = 256;

/// The libraries of a driver, and what was planned with them.
#[derive(Debug, Default)]
pub(super) struct Libraries {
    products: Option<CublasLt>,
    convolutions: Option<Cudnn>,
    ready: RwLock<HashMap<Routine, Arc<Ready>>>,
    last: AtomicU64,
}

/// A routine that can be handed over.
#[derive(Debug)]
enum Ready {
    Product(Product),
    Convolution(Convolution),
}

impl Ready {
    fn workspace_bytes(&self) -> usize {
        match self {
            Self::Product(product) => product.workspace_bytes,
            Self::Convolution(convolution) => convolution.workspace_bytes,
        }
    }
}

impl Libraries {
    /// Gets ready for work of a kind; `None` where there is no library for it, or it has no way.
    fn plan(&self, spec: &RoutineSpec) -> Result<Option<PlannedRoutine>, DriverError> {
        let ready = match spec {
            RoutineSpec::Product(spec) => {
                let Some(library) = &self.products else { return Ok(None) };
                library.plan(spec)?.map(Ready::Product)
            }
            RoutineSpec::Convolution(spec) => {
                let Some(library) = &self.convolutions else { return Ok(None) };
                library.plan(spec)?.map(Ready::Convolution)
            }
        };
        let Some(ready) = ready else {
            tracing::debug!(?spec, "its library has no algorithm: a kernel of our own computes it");
            return Ok(None);
        };
        let routine = Routine(self.last.fetch_add(1, Ordering::Relaxed));
        let workspace_bytes = match ready.workspace_bytes() {
            0 => 0,
            // Room to begin at an address that is good for it.
            bytes => bytes + WORKSPACE_ALIGNMENT_BYTES - 1,
        };
        self.ready.write().unwrap_or_else(PoisonError::into_inner).insert(routine, Arc::new(ready));
        Ok(Some(PlannedRoutine { routine, workspace_bytes }))
    }

    fn close(&self, routine: Routine) {
        self.ready.write().unwrap_or_else(PoisonError::into_inner).remove(&routine);
    }

    /// Hands a routine over.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::Driver::launch).
    pub(super) unsafe fn run(
        &self,
        routine: Routine,
        arguments: &[u8],
        stream: Stream,
    ) -> Result<(), DriverError> {
        let ready = self.ready.read().unwrap_or_else(PoisonError::into_inner).get(&routine).cloned();
        let (Some(ready), Some(mut at)) = (ready, RoutineArguments::read(arguments)) else {
            return Err(DriverError::Failed {
                call: "running a routine",
                reason: format!("{routine:?} is not open, or has {} bytes of arguments", arguments.len()),
            });
        };
        at.workspace = match ready.workspace_bytes() {
            0 => 0,
            _ => at.workspace.next_multiple_of(WORKSPACE_ALIGNMENT_BYTES as u64),
        };
        match (&*ready, &self.products, &self.convolutions) {
            // SAFETY: as the caller promises.
            (Ready::Product(product), Some(library), _) => unsafe { library.multiply(product, &at, stream) },
            // SAFETY: as the caller promises.
            (Ready::Convolution(convolution), _, Some(library)) => unsafe {
                library.convolve(convolution, &at, stream)
            },
            _ => Err(DriverError::Failed {
                call: "running a routine",
                reason: format!("the library of {routine:?} is gone"),
            }),
        }
    }
}

impl RealDriver {
    /// Has the cuBLASLt at a path compute products from now on, and gives its version. Blocking: reads a large file.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when it is no cuBLASLt, too old, or one that does not work with this driver.
    pub fn use_products(&mut self, path: &Path) -> Result<String, DriverError> {
        self.bind()?;
        let library = CublasLt::load(path)?;
        let version = library.version();
        self.libraries.products = Some(library);
        Ok(version)
    }

    /// Has the cuDNN at a path convolve from now on, and gives its version. Blocking: reads large files.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when it is no cuDNN, too old, without its parts, or one that does not work with this driver.
    pub fn use_convolutions(&mut self, path: &Path) -> Result<String, DriverError> {
        self.bind()?;
        let library = Cudnn::load(path)?;
        let version = library.version();
        self.libraries.convolutions = Some(library);
        Ok(version)
    }

    /// Lets the libraries go, while their context is there, which they look for on this thread.
    pub(super) fn close_libraries(&mut self) {
        let libraries = std::mem::take(&mut self.libraries);
        match self.bind() {
            Ok(()) => drop(libraries),
            Err(error) => {
                tracing::debug!(%error, "the device's context is gone, and with it what libraries had there");
                std::mem::forget(libraries);
            }
        }
    }
}

impl Routines for RealDriver {
    fn plan_routine(&self, spec: &RoutineSpec) -> Option<PlannedRoutine> {
        match self.bind().and_then(|()| self.libraries.plan(spec)) {
            Ok(planned) => planned,
            Err(error) => {
                tracing::debug!(%error, ?spec, "its library cannot plan: a kernel of our own computes it");
                None
            }
        }
    }

    fn close_routine(&self, routine: Routine) {
        self.libraries.close(routine);
    }
}
