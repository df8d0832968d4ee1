//! cuBLASLt, a library of matrix products: found at run time, called through its C functions.
//!
//! Bound here and not through cudarc, which looks for libraries by name alone. What is relied on, beside the types in
//! cublasLt.h: a handle may be used by several threads at once, as it has no settings that a call could change;
//! descriptors and algorithms that nobody changes may too; a call works on the context that is current on its thread, on
//! the stream and in the workspace that it is given, allocates nothing, and may be captured.

mod description;
mod functions;

use std::{
    ffi::c_void,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use super::{
    super::{DriverError, ProductSpec, RoutineArguments, Stream},
    binding::{Binding as _, Owned, one_and_zero},
    handle,
};
use crate::tensor::DType;

use description::Description;
use functions::{Algorithm, Functions, Suggestion};

/// The oldest that is used, as the library counts: 12.0, with which the driver has to be at least as young. Older ones
/// count otherwise.
const OLDEST: usize = 120_000;
/// The most bytes that an algorithm may take for itself while it runs, which each live seed holds for its plan. Four
/// mebibytes are what NVIDIA recommends for most cards.
const MOST_WORKSPACE_BYTES: usize = 4 << 20;
/// How many algorithms are asked for. The first one is the fastest, by the library's own guess, and may not work.
const SUGGESTIONS: usize = 8;

/// A loaded cuBLASLt.
#[derive(Debug)]
pub(super) struct CublasLt {
    functions: Arc<Functions>,
    handle: Owned<Functions>,
}

/// A product that can be handed over.
#[derive(Debug)]
pub(super) struct Product {
    description: Description,
    algorithm: Algorithm,
    /// Bytes that it takes for itself while it runs.
    pub(super) workspace_bytes: usize,
    dtype: DType,
    /// Held from where the bias is set to where the library has read it; absent where there is none.
    bias: Option<Mutex<()>>,
}

impl CublasLt {
    /// Loads the library at a path, for the device whose context is current.
    pub(super) fn load(path: &Path) -> Result<Self, DriverError> {
        let functions = Functions::load(path)?;
        // SAFETY: it takes nothing.
        let version = unsafe { (functions.cublasLtGetVersion)() };
        if version < OLDEST {
            let reason = format!("its number is {version}, at least {OLDEST} is needed, which is 12.0");
            return Err(DriverError::Failed { call: "cublasLtGetVersion", reason });
        }
        let functions = Arc::new(functions);
        // SAFETY: the two functions belong together.
        let handle = unsafe {
            Owned::new(
                &functions,
                "cublasLtCreate",
                |it| (functions.cublasLtCreate)(it),
                functions.cublasLtDestroy,
            )
        }?;
        Ok(Self { functions, handle })
    }

    /// Its version, as its file is named.
    pub(super) fn version(&self) -> String {
        // SAFETY: it takes nothing.
        words(unsafe { (self.functions.cublasLtGetVersion)() })
    }

    /// Gets ready for products of a kind; `None` where the library has no algorithm for them.
    pub(super) fn plan(&self, spec: &ProductSpec) -> Result<Option<Product>, DriverError> {
        let description = Description::new(&self.functions, spec)?;
        let preference = description.preference(spec, MOST_WORKSPACE_BYTES)?;
        let mut suggestions = [Suggestion::default(); SUGGESTIONS];
        let mut count = 0;
        // SAFETY: the descriptors are open, and there is room for as many suggestions as are asked for.
        let status = unsafe {
            (self.functions.cublasLtMatmulAlgoGetHeuristic)(
                self.handle.get(),
                description.operation(),
                description.a(),
                description.b(),
                description.out(),
                description.out(),
                preference.get(),
                SUGGESTIONS as i32,
                suggestions.as_mut_ptr(),
                &mut count,
            )
        };
        if functions::means_no_way(status) {
            return Ok(None);
        }
        self.functions.check("cublasLtMatmulAlgoGetHeuristic", status)?;
        let given = suggestions.iter().take(count.max(0) as usize);
        let mut good =
            given.filter(|found| found.state == 0 && found.workspace_bytes <= MOST_WORKSPACE_BYTES);
        let dtype = spec.dtype;
        Ok(good.next().map(|&Suggestion { algorithm, workspace_bytes, .. }| Product {
            description,
            algorithm,
            workspace_bytes,
            dtype,
            bias: spec.adds_bias.then(Mutex::default),
        }))
    }

    /// Hands a product over.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::super::Driver::launch).
    pub(super) unsafe fn multiply(
        &self,
        product: &Product,
        at: &RoutineArguments,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let Product { description, algorithm, workspace_bytes, dtype, bias } = product;
        let _calling = bias.as_ref().map(|bias| bias.lock().unwrap_or_else(PoisonError::into_inner));
        if bias.is_some() {
            description.set_bias(at.bias)?;
        }
        let [one, zero] = one_and_zero(*dtype);
        // SAFETY: the descriptors are open and those that the algorithm was suggested for; the factors stay; for the
        // addresses and the workspace the caller promises.
        let status = unsafe {
            (self.functions.cublasLtMatmul)(
                self.handle.get(),
                description.operation(),
                one,
                handle::<c_void>(at.a),
                description.a(),
                handle::<c_void>(at.b),
                description.b(),
                zero,
                handle::<c_void>(at.out),
                description.out(),
                handle::<c_void>(at.out),
                description.out(),
                algorithm,
                handle::<c_void>(at.workspace),
                *workspace_bytes,
                handle::<c_void>(stream.0),
            )
        };
        self.functions.check("cublasLtMatmul", status)
    }
}

/// A version as people write it: 130401 is 13.4.1.
fn words(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::backend::cuda::{
        driver::Matrices,
        libraries::{Roots, find},
    };

    /// cuBLASLt as the daemon would find it, in the environment that the tests are run in.
    fn functions() -> Arc<Functions> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let roots = Roots::of_environment(root.join(".venv"));
        let found = find("cublasLt", &roots);
        let first = found.first().unwrap_or_else(|| {
            panic!("no cuBLASLt among {roots:?}: run scripts/venv, which installs PyTorch with it")
        });
        Arc::new(Functions::load(&first.path).unwrap())
    }

    /// What a library does without a GPU: it checks every attribute's number and length.
    #[test]
    fn the_library_knows_every_function_attribute_and_length() {
        let functions = functions();
        // SAFETY: it takes nothing.
        let version = unsafe { (functions.cublasLtGetVersion)() };
        assert!(version >= OLDEST, "{version}");
        let matrices = |lead, apart| Matrices { lead, apart, alignment_bytes: 16 };
        for dtype in [DType::F32, DType::F64, DType::F16, DType::BF16] {
            for (tf32, turns, batch) in [(false, true, 1), (true, false, 3)] {
                let spec = ProductSpec {
                    dtype,
                    tf32: tf32 && dtype == DType::F32,
                    batch,
                    m: 5,
                    n: 7,
                    k: 6,
                    transposes_a: turns,
                    transposes_b: !turns,
                    a: matrices(8, 64),
                    b: matrices(8, 0),
                    out: matrices(5, 35),
                    adds_bias: turns,
                };
                let description = Description::new(&functions, &spec).unwrap();
                description.preference(&spec, MOST_WORKSPACE_BYTES).unwrap();
                if turns {
                    description.set_bias(1 << 20).unwrap();
                }
            }
        }
        let whole = ProductSpec {
            dtype: DType::I64,
            tf32: false,
            batch: 1,
            m: 1,
            n: 1,
            k: 1,
            transposes_a: false,
            transposes_b: false,
            a: matrices(1, 0),
            b: matrices(1, 0),
            out: matrices(1, 0),
            adds_bias: false,
        };
        let error = Description::new(&functions, &whole).unwrap_err().to_string();
        assert!(error.ends_with("there are no products of int64"), "{error}");
    }

    #[test]
    fn errors_have_the_librarys_words() {
        let error = functions().check("cublasLtMatmul", 15).unwrap_err().to_string();
        assert_eq!(error, "cublasLtMatmul failed: the requested functionality is not supported (15)");
        let error = CublasLt::load(Path::new("/nowhere/libcublasLt.so.12")).unwrap_err().to_string();
        assert!(error.starts_with("loading cuBLASLt failed: /nowhere/libcublasLt.so.12: "), "{error}");
    }

    #[test]
    fn a_version_is_written_as_files_are_named() {
        assert_eq!((words(130_401), words(120_004)), ("13.4.1".to_owned(), "12.0.4".to_owned()));
    }
}
