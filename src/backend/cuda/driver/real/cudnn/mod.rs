//! cuDNN, a library of convolutions: found at run time, called through its C functions.
//!
//! Bound as cuBLASLt is, by the functions that versions 8 and 9 have in common. What is relied on, beside the types in its
//! headers: a handle has the stream as a setting and may be used by one thread at a time, and what it was given to do goes on
//! when it is given another stream; descriptors that nobody changes may be read by several; a call works on the context that
//! is current on its thread and in the workspace that it is given, only hands over, and may be captured once the same call
//! has been made before; tensors and workspaces begin where memory of CUDA's own may.

mod description;
mod functions;

use std::{
    ffi::{c_int, c_void},
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use super::{
    super::{ConvolutionSpec, DriverError, RoutineArguments, Stream},
    binding::{Binding as _, Owned, one_and_zero},
    handle,
};
use crate::tensor::DType;

use description::{Description, may_use, wanted_math};
use functions::{Functions, Suggestion};

/// The oldest that is used, as the library counts: 8.0, which knows TF32 and how to do without. From 9 on it counts in tens
/// of thousands.
const OLDEST: usize = 8_000;
/// What every algorithm may take for itself while it runs, however small its tensors.
const LEAST_WORKSPACE_BYTES: usize = 8 << 20;
/// What it may take for each byte of x, w and y: those for tensor cores turn them round to have channels lie together, and
/// keep sums in float32.
const WORKSPACE_FOR_EACH_BYTE: u64 = 2;
/// How many algorithms are asked for: more than there are, each with several kinds of arithmetic.
const SUGGESTIONS: usize = 32;
/// `cudnnDeterminism_t`: the same bits in every run.
const DETERMINISTIC: c_int = 1;

/// A loaded cuDNN.
#[derive(Debug)]
pub(super) struct Cudnn {
    functions: Arc<Functions>,
    /// What convolutions are handed over and captured by, so that what a handle takes at its first call is there before a
    /// capture; PyTorch, too, captures with a thread's only one. Held from the setting of the stream to the call.
    running: Mutex<Owned<Functions>>,
    /// What they are planned by, which may take long: no pass waits for it.
    planning: Mutex<Owned<Functions>>,
}

/// A convolution that can be handed over.
#[derive(Debug)]
pub(super) struct Convolution {
    description: Description,
    algorithm: c_int,
    /// Bytes that it takes for itself while it runs.
    pub(super) workspace_bytes: usize,
    dtype: DType,
}

impl Cudnn {
    /// Loads the library at a path, for the device whose context is current.
    pub(super) fn load(path: &Path) -> Result<Self, DriverError> {
        let functions = Functions::load(path)?;
        // SAFETY: it takes nothing.
        let version = unsafe { (functions.cudnnGetVersion)() };
        if version < OLDEST {
            let reason = format!("its number is {version}, at least {OLDEST} is needed, which is 8.0");
            return Err(DriverError::Failed { call: "cudnnGetVersion", reason });
        }
        let functions = Arc::new(functions);
        let open = || {
            // SAFETY: the two functions belong together.
            unsafe {
                Owned::new(
                    &functions,
                    "cudnnCreate",
                    |it| (functions.cudnnCreate)(it),
                    functions.cudnnDestroy,
                )
            }
        };
        let [running, planning] = [open()?, open()?].map(Mutex::new);
        Ok(Self { functions, running, planning })
    }

    /// Its version, as its file is named.
    pub(super) fn version(&self) -> String {
        // SAFETY: it takes nothing.
        words(unsafe { (self.functions.cudnnGetVersion)() })
    }

    /// Gets ready for convolutions of a kind; `None` where the library has no algorithm for them.
    pub(super) fn plan(&self, spec: &ConvolutionSpec) -> Result<Option<Convolution>, DriverError> {
        let description = Description::new(&self.functions, spec)?;
        let (calls, [a, b, out]) = (description.calls(), description.tensors());
        let mut suggestions = [Suggestion::default(); SUGGESTIONS];
        let mut count = 0;
        let handle = lock(&self.planning);
        let (name, suggest) = calls.suggest;
        // SAFETY: handle and descriptors are open, and there is room for as many suggestions as are asked for.
        let status = unsafe {
            suggest(
                handle.get(),
                a,
                b,
                description.convolution(),
                out,
                SUGGESTIONS as c_int,
                &mut count,
                suggestions.as_mut_ptr(),
            )
        };
        if functions::means_no_way(status) {
            return Ok(None);
        }
        self.functions.check(name, status)?;
        // The fastest first, by the library's own guess.
        for suggested in suggestions.iter().take(count.max(0) as usize).filter(|one| is_good(one, spec)) {
            description.set_math(suggested.math)?;
            let (name, measure) = calls.measure;
            let mut workspace_bytes = 0;
            // SAFETY: handle and descriptors are open, and the out-parameter is a variable of this function's.
            let status = unsafe {
                measure(
                    handle.get(),
                    a,
                    b,
                    description.convolution(),
                    out,
                    suggested.algorithm,
                    &mut workspace_bytes,
                )
            };
            if let Err(error) = self.functions.check(name, status) {
                tracing::debug!(%error, ?suggested, "a suggestion of cuDNN's is none");
                continue;
            }
            if workspace_bytes <= most_workspace_bytes(spec) {
                let (algorithm, dtype) = (suggested.algorithm, spec.dtype);
                return Ok(Some(Convolution { description, algorithm, workspace_bytes, dtype }));
            }
        }
        Ok(None)
    }

    /// Hands a convolution over.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::super::Driver::launch).
    pub(super) unsafe fn convolve(
        &self,
        convolution: &Convolution,
        at: &RoutineArguments,
        stream: Stream,
    ) -> Result<(), DriverError> {
        let Convolution { description, algorithm, workspace_bytes, dtype } = convolution;
        let [a, b, out] = description.tensors();
        let ([one, zero], (name, convolve)) = (one_and_zero(*dtype), description.calls().convolve);
        let library = lock(&self.running);
        // SAFETY: the handle is open, and nobody else's until this function is done with it; the caller promises for the
        // stream.
        let status = unsafe { (self.functions.cudnnSetStream)(library.get(), handle::<c_void>(stream.0)) };
        self.functions.check("cudnnSetStream", status)?;
        // SAFETY: the descriptors are open and those that the algorithm was suggested for; the factors stay; for the
        // addresses and the workspace the caller promises.
        let status = unsafe {
            convolve(
                library.get(),
                one,
                a,
                handle::<c_void>(at.a),
                b,
                handle::<c_void>(at.b),
                description.convolution(),
                *algorithm,
                handle::<c_void>(at.workspace),
                *workspace_bytes,
                zero,
                out,
                handle::<c_void>(at.out),
            )
        };
        self.functions.check(name, status)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether an algorithm works, gives the same bits each time, and rounds no more than was asked for.
fn is_good(suggested: &Suggestion, spec: &ConvolutionSpec) -> bool {
    suggested.state == 0
        && suggested.determinism == DETERMINISTIC
        && may_use(wanted_math(spec), suggested.math)
}

/// The most bytes that an algorithm may take for itself, which depends on its tensors alone. Each live seed holds for its
/// plan what the hungriest of its convolutions takes.
fn most_workspace_bytes(spec: &ConvolutionSpec) -> usize {
    let for_tensors = spec.tensor_bytes().saturating_mul(WORKSPACE_FOR_EACH_BYTE);
    usize::try_from(for_tensors).unwrap_or(usize::MAX).max(LEAST_WORKSPACE_BYTES)
}

/// A version as people write it: 8907 is 8.9.7, and 92600 is 9.26.0.
fn words(version: usize) -> String {
    let thousands = if version < 10_000 { 1_000 } else { 10_000 };
    format!("{}.{}.{}", version / thousands, version % thousands / 100, version % 100)
}

#[cfg(test)]
mod tests;
