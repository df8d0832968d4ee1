//! What the bindings to NVIDIA's libraries share: functions that are found when a library is loaded, their statuses, and
//! descriptors.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    fmt,
    path::Path,
    ptr::null_mut,
    sync::Arc,
};

use libloading::Library;

use super::super::DriverError;
use crate::tensor::DType;

/// `cublasStatus_t`, `cudnnStatus_t`: 0 when all went well.
pub(super) type Status = c_int;
/// What a library makes and takes back: its handle, or a descriptor.
pub(super) type Opaque = *mut c_void;

/// Declares a library's functions once: a struct of them, and how it is filled.
macro_rules! functions {
    ($(fn $name:ident($($argument:ty),*) -> $gives:ty;)*) => {
        /// The functions, found once.
        #[derive(Debug)]
        #[expect(non_snake_case, reason = "as in the library's header")]
        pub(super) struct Functions {
            $(pub(super) $name: unsafe extern "C" fn($($argument),*) -> $gives,)*
        }

        impl Functions {
            fn of(library: &'static libloading::Library) -> Result<Self, libloading::Error> {
                Ok(Self {
                    $($name: {
                        let name = concat!(stringify!($name), "\0");
                        // SAFETY: the type is that of the function in the library's header.
                        *unsafe { library.get::<unsafe extern "C" fn($($argument),*) -> $gives>(name.as_bytes()) }?
                    },)*
                })
            }
        }
    };
}

/// A library's functions.
pub(super) trait Binding: Send + Sync + fmt::Debug {
    /// What a status is in the library's own words: a string that stays, or null.
    fn words(&self, status: Status) -> *const c_char;

    /// A status as an error.
    fn check(&self, call: &'static str, status: Status) -> Result<(), DriverError> {
        if status == 0 {
            return Ok(());
        }
        let mut words = self.words(status);
        if words.is_null() {
            words = c"an error without words".as_ptr();
        }
        // SAFETY: it is a string that stays, as implementations promise.
        let words = unsafe { CStr::from_ptr(words) };
        Err(DriverError::Failed { call, reason: format!("{} ({status})", words.to_string_lossy()) })
    }
}

/// Loads the library at a path, for as long as the process lasts: it leaves behind what is to be called when that ends.
pub(super) fn load(call: &'static str, path: &Path) -> Result<&'static Library, DriverError> {
    // SAFETY: the start-up code of NVIDIA's libraries touches nothing of ours. A library that merely bears such a name is
    // one that whoever configured the search path vouches for.
    let library = unsafe { Library::new(path) }.map_err(|error| failed(call, path, &error))?;
    Ok(Box::leak(Box::new(library)))
}

pub(super) fn failed(call: &'static str, path: &Path, error: &libloading::Error) -> DriverError {
    DriverError::Failed { call, reason: format!("{}: {error}", path.display()) }
}

/// Something of a library's that is let go at the end.
#[derive(Debug)]
pub(super) struct Owned<F: Binding> {
    functions: Arc<F>,
    it: Opaque,
    destroy: unsafe extern "C" fn(Opaque) -> Status,
}

// SAFETY: neither handles nor descriptors belong to a thread.
unsafe impl<F: Binding> Send for Owned<F> {}
// SAFETY: descriptors are not changed once they are described, and so may be read by many. What a handle allows its
// library's binding sees to, and so it does for what it changes all the same: the bias of a product, under a lock.
unsafe impl<F: Binding> Sync for Owned<F> {}

impl<F: Binding> Owned<F> {
    /// Has the library make something, by the function of this name.
    ///
    /// # Safety
    /// `create` writes what `destroy` takes.
    pub(super) unsafe fn new(
        functions: &Arc<F>,
        call: &'static str,
        create: impl FnOnce(*mut Opaque) -> Status,
        destroy: unsafe extern "C" fn(Opaque) -> Status,
    ) -> Result<Self, DriverError> {
        let mut it = null_mut();
        functions.check(call, create(&mut it))?;
        Ok(Self { functions: Arc::clone(functions), it, destroy })
    }

    pub(super) fn get(&self) -> Opaque {
        self.it
    }
}

impl<F: Binding> Drop for Owned<F> {
    fn drop(&mut self) {
        // SAFETY: it was made by this library for this function, by the promise of `new`, and is not used again.
        let status = unsafe { (self.destroy)(self.it) };
        if let Err(error) = self.functions.check("letting something of a library's go", status) {
            tracing::debug!(%error, "a handle or a descriptor could not be let go");
        }
    }
}

/// The factors of what is computed and of what the result held before, which 0 says is not to be read: in the type that
/// sums are kept in.
pub(super) fn one_and_zero(dtype: DType) -> [*const c_void; 2] {
    static SINGLE: [f32; 2] = [1.0, 0.0];
    static DOUBLE: [f64; 2] = [1.0, 0.0];
    match dtype {
        DType::F64 => [(&raw const DOUBLE[0]).cast(), (&raw const DOUBLE[1]).cast()],
        _ => [(&raw const SINGLE[0]).cast(), (&raw const SINGLE[1]).cast()],
    }
}
