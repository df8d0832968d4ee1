//! The backend where no GPU is, for tests of whatever runs on a device: its kernels as programs of the host, and every
//! call written down where a test asks for it.

use std::sync::Arc;

use super::{
    CudaBackend, CudaOptions, Driver, OpenOptions, Stream,
    driver::{
        host::{HostDriver, images},
        record::{Did, Recorder},
    },
    open_device,
    queue::CudaQueue,
};
use crate::backend::Queue;

/// Enough for any test.
pub(crate) const OPTIONS: CudaOptions = CudaOptions { memory_bytes: 1 << 29, graphs: true, tf32: false };

/// A backend on a driver of a test's.
pub(crate) fn backend_on(driver: &Arc<impl Driver + 'static>, options: CudaOptions) -> Arc<CudaBackend> {
    Arc::new(CudaBackend::new(Arc::clone(driver) as _, images(), options).unwrap())
}

/// A device that is the host.
pub(crate) fn driver() -> HostDriver {
    HostDriver::new()
}

/// A backend whose device is the host, with libraries.
pub(crate) fn host_backend() -> Arc<CudaBackend> {
    backend_on(&Arc::new(HostDriver::new()), OPTIONS)
}

/// The same without libraries: everything is computed by our kernels.
pub(crate) fn backend_without_libraries() -> Arc<CudaBackend> {
    backend_on(&Arc::new(HostDriver::without_libraries()), OPTIONS)
}

/// One with libraries, and its driver, which can hold streams back and fail.
pub(crate) fn held_backend() -> (Arc<CudaBackend>, Arc<HostDriver>) {
    let driver = Arc::new(HostDriver::new());
    (backend_on(&driver, OPTIONS), driver)
}

/// A backend on this machine's GPU, with the libraries that are found, or with none.
///
/// # Panics
/// When there is no GPU.
pub(crate) fn gpu_backend(libraries: bool) -> Arc<CudaBackend> {
    let options = OpenOptions { libraries, ..OpenOptions::of_environment() };
    open_device(&options).unwrap_or_else(|error| panic!("{error}")).backend
}

/// A backend whose device is the host, and who writes all its calls down.
pub(crate) fn recorded_backend() -> (Arc<CudaBackend>, Arc<Recorder>) {
    let recorder = Arc::new(Recorder::new(Arc::new(HostDriver::new())));
    (backend_on(&recorder, OPTIONS), recorder)
}

/// How many captures a recorder has seen since it was last asked, and how many replays.
pub(crate) fn captures_and_replays(recorder: &Recorder) -> (usize, usize) {
    let counts = (
        recorder.count(|did| matches!(did, Did::BeginCapture(_))),
        recorder.count(|did| matches!(did, Did::Replay(..))),
    );
    recorder.take();
    counts
}

/// Bytes of the device's memory that are taken once all that was dropped has been given back.
pub(crate) fn settled_bytes(backend: &CudaBackend) -> usize {
    backend.device.settle().unwrap();
    backend.held_bytes()
}

/// The stream of a queue, for [`HostDriver::hold`].
///
/// # Panics
/// When the queue is of another backend.
pub(crate) fn stream_of(backend: &CudaBackend, queue: &mut dyn Queue) -> Stream {
    CudaQueue::of(&backend.device, queue).unwrap().stream()
}
