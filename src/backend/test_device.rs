//! The device that tests of whatever runs on one take: the CPU, or what `KASMINA_TEST_DEVICE` names.

use std::sync::{Arc, OnceLock};

use super::{
    Backend,
    cpu::{CpuBackend, Winograd},
    cuda::{
        CudaBackend,
        testing::{gpu_backend, host_backend},
    },
};

/// The CUDA device of all tests of the process, because it takes time to open: one that is the host, or this machine's GPU
/// where `KASMINA_TEST_DEVICE` says `gpu`, or `gpu-alone` for one without cuBLASLt and cuDNN.
pub(crate) fn cuda() -> &'static Arc<CudaBackend> {
    static CUDA: OnceLock<Arc<CudaBackend>> = OnceLock::new();
    CUDA.get_or_init(|| match &*named() {
        "gpu" => gpu_backend(true),
        "gpu-alone" => gpu_backend(false),
        _ => host_backend(),
    })
}

fn named() -> String {
    std::env::var("KASMINA_TEST_DEVICE").unwrap_or_else(|_| "cpu".to_owned())
}

/// The device: `cpu`, which is the default, with `cpu-winograd` for all 3×3 convolutions that can go by Winograd's algorithm and
/// `cpu-direct` for none; `cuda`, whose kernels then run as programs of the host; `gpu` or `gpu-alone`.
///
/// # Panics
/// When the variable names another.
pub(crate) fn device(threads: usize) -> Arc<dyn Backend> {
    match &*named() {
        "cpu" => Arc::new(CpuBackend::new(threads)),
        "cpu-winograd" => Arc::new(CpuBackend::new(threads).with_winograd(Winograd::Always)),
        "cpu-direct" => Arc::new(CpuBackend::new(threads).with_winograd(Winograd::Never)),
        "cuda" | "gpu" | "gpu-alone" => cuda().clone(),
        other => panic!(
            "KASMINA_TEST_DEVICE is {other}, and there are cpu, cpu-winograd, cpu-direct, cuda, gpu and gpu-alone"
        ),
    }
}
