//! The functions of cuBLASLt, with the types and numbers of cublasLt.h that they are given.
//!
//! All of them are the same from 12.0 to 13.4.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    path::Path,
};

use libloading::Library;

use super::super::super::DriverError;

/// `cublasStatus_t`: 0 when all went well.
pub(super) type Status = c_int;
/// `cublasLtHandle_t`.
pub(super) type Handle = *mut c_void;
/// `cublasLtMatmulDesc_t`, `cublasLtMatrixLayout_t` and `cublasLtMatmulPreference_t`.
pub(super) type Descriptor = *mut c_void;

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

/// Declares the library's functions once: a struct of them, and how it is filled.
macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) -> $gives:ty;)*) => {
        /// The functions, found once. They are good as long as the library is loaded.
        #[derive(Debug)]
        #[expect(non_snake_case, reason = "as in cublasLt.h")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $gives,)*
            /// Behind the functions, which are in it.
            _library: Library,
        }

        impl Functions {
            fn of(library: Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the type is that of the function in cublasLt.h.
                        *unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $gives>(name.as_bytes()) }?
                    },)*
                    _library: library,
                })
            }
        }
    };
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
        let failed = |error: libloading::Error| {
            let reason = format!("{}: {error}", path.display());
            DriverError::Failed { call: "loading cuBLASLt", reason }
        };
        // SAFETY: cuBLASLt's start-up code touches nothing of ours. A library that merely bears its name is one that
        // whoever configured the search path vouches for.
        let library = unsafe { Library::new(path) }.map_err(failed)?;
        Self::of(library).map_err(failed)
    }

    /// A status as an error, in the library's own words.
    pub(super) fn check(&self, call: &'static str, status: Status) -> Result<(), DriverError> {
        if status == 0 {
            return Ok(());
        }
        // SAFETY: any number may be asked about; the answer is a string that stays.
        let words = unsafe {
            let words = (self.cublasLtGetStatusString)(status);
            if words.is_null() { c"an error without words" } else { CStr::from_ptr(words) }
        };
        Err(DriverError::Failed { call, reason: format!("{} ({status})", words.to_string_lossy()) })
    }
}
