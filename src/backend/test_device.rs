//! The device that tests of whatever runs on one take: the CPU, or what `KASMINA_TEST_DEVICE` names.

use std::sync::{Arc, OnceLock};

use super::{Backend, cpu::CpuBackend, cuda::testing::host_backend};

/// The device: `cpu`, which is the default, or `cuda`, whose kernels then run as programs of the host. That one is the same
/// for all tests of the process, because it takes time to open.
///
/// # Panics
/// When the variable names another.
pub(crate) fn device(threads: usize) -> Arc<dyn Backend> {
    static CUDA: OnceLock<Arc<dyn Backend>> = OnceLock::new();
    match std::env::var("KASMINA_TEST_DEVICE").as_deref() {
        Err(_) | Ok("cpu") => Arc::new(CpuBackend::new(threads)),
        Ok("cuda") => Arc::clone(CUDA.get_or_init(|| host_backend() as _)),
        Ok(other) => panic!("KASMINA_TEST_DEVICE is {other}, and there are cpu and cuda"),
    }
}
