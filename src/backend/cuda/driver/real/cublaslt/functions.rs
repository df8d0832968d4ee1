//! The functions of cuBLASLt, with the types and numbers of cublasLt.h that they are given.
//!
//! All of them are the same from 12.0 to 13.4.

use std::{
    ffi::{c_char, c_int, c_void},
    path::Path,
};

use super::super::{
    super::DriverError,
    binding::{Binding, Opaque, Status, failed, load},
};

/// `cublasLtHandle_t`.
type Handle = Opaque;
/// `cublasLtMatmulDesc_t`, `cublasLtMatrixLayout_t` and `cublasLtMatmulPreference_t`.
pub(super) type Descriptor = Opaque;

/// `cublasLtMatmulAlgo_t`.
pub(super) type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Suggestion {
    pub(super) algorithm: Algorithm,
    pub(super) workspace_bytes: usize,
    /// 0 where the rest counts.
    pub(super) state: Status,
    pub(super) waves: f32,
    pub(super) reserved: [c_int; 4],
}

const _: () = assert!(size_of::<Suggestion>() == 96, "as large as in cublasLt.h");

/// Whether a status says that there is no way to do what was asked: `CUBLAS_STATUS_INVALID_VALUE`, `ARCH_MISMATCH` and
/// `NOT_SUPPORTED`.
pub(super) fn means_no_way(status: Status) -> bool {
    matches!(status, 7 | 8 | 15)
}

functions! {
    fn cublasLtGetVersion() -> usize;
    fn cublasLtGetStatusString(Status) -> *const c_char;
    fn cublasLtCreate(*mut Handle) -> Status;
    fn cublasLtDestroy(Handle) -> Status;
    fn cublasLtMatmulDescCreate(*mut Descriptor, c_int, c_int) -> Status;
    fn cublasLtMatmulDescSetAttribute(Descriptor, c_int, *const c_void, usize) -> Status;
    fn cublasLtMatmulDescDestroy(Descriptor) -> Status;
    fn cublasLtMatrixLayoutCreate(*mut Descriptor, c_int, u64, u64, i64) -> Status;
    fn cublasLtMatrixLayoutSetAttribute(Descriptor, c_int, *const c_void, usize) -> Status;
    fn cublasLtMatrixLayoutDestroy(Descriptor) -> Status;
    fn cublasLtMatmulPreferenceCreate(*mut Descriptor) -> Status;
    fn cublasLtMatmulPreferenceSetAttribute(Descriptor, c_int, *const c_void, usize) -> Status;
    fn cublasLtMatmulPreferenceDestroy(Descriptor) -> Status;
    fn cublasLtMatmulAlgoGetHeuristic(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut Suggestion, *mut c_int
    ) -> Status;
    fn cublasLtMatmul(
        Handle, Descriptor, *const c_void, *const c_void, Descriptor, *const c_void, Descriptor, *const c_void,
        *const c_void, Descriptor, *mut c_void, Descriptor, *const Algorithm, *mut c_void, usize, *mut c_void
    ) -> Status;
}

impl Functions {
    /// Those of the library at a path.
    pub(super) fn load(path: &Path) -> Result<Self, DriverError> {
        let call = "loading cuBLASLt";
        Self::of(load(call, path)?).map_err(|error| failed(call, path, &error))
    }
}

impl Binding for Functions {
    fn words(&self, status: Status) -> *const c_char {
        // SAFETY: any number may be asked about; the answer is a string that stays.
        unsafe { (self.cublasLtGetStatusString)(status) }
    }
}
