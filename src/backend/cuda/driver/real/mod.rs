//! CUDA's own driver, loaded when a device is opened.

use std::{
    ffi::{CStr, c_char, c_int, c_uint, c_void},
    ptr::null_mut,
    sync::OnceLock,
};

use cudarc::driver::sys as cu;

use super::{
    Address, Code, Driver, DriverError, Event, Function, Launch, Module, Priority, Properties, Replay,
    SharedBlock, Stream,
};

/// How `cuLaunchKernel` is told that all arguments lie in one buffer, and how long that is.
const BUFFER: *mut c_void = std::ptr::without_provenance_mut(1);
const BUFFER_SIZE: *mut c_void = std::ptr::without_provenance_mut(2);

/// A device by CUDA's driver, in the primary context that PyTorch would use in this process too.
#[derive(Debug)]
pub struct RealDriver {
    properties: Properties,
    device: cu::CUdevice,
    context: cu::CUcontext,
    /// Priorities of streams: normal, high.
    priorities: [c_int; 2],
    captures: Captures,
    /// What computes for us, as far as it was found.
    libraries: Libraries,
}

// SAFETY: the driver's functions may be called from any thread; the context is made current on it first.
unsafe impl Send for RealDriver {}
// SAFETY: as above.
unsafe impl Sync for RealDriver {}

/// Calls a function of the driver with arguments that its caller answers for, and names it in the error.
macro_rules! call {
    ($name:ident($($argument:expr),* $(,)?)) => {{
        // SAFETY: out-parameters are variables of the caller's; handles come from the driver and have not been given
        // back; addresses and lengths are what the method's own safety section asks for.
        check(stringify!($name), unsafe { cu::$name($($argument),*) })
    }};
}

// Behind the macro, which they call too.
mod captures;
mod open;
mod shared;

#[macro_use]
mod binding;
mod cublaslt;
mod cudnn;
mod libraries;

use captures::Captures;
use libraries::Libraries;
pub use open::{count, open};

fn check(call: &'static str, result: cu::CUresult) -> Result<(), DriverError> {
    if result == cu::CUresult::CUDA_SUCCESS {
        return Ok(());
    }
    let mut words: *const c_char = std::ptr::null();
    // SAFETY: any result may be asked about; the pointer is ours.
    let known = unsafe { cu::cuGetErrorString(result, &mut words) };
    let reason = if known == cu::CUresult::CUDA_SUCCESS && !words.is_null() {
        // SAFETY: the driver has given a string that stays.
        let words = unsafe { CStr::from_ptr(words) };
        format!("{} ({result:?})", words.to_string_lossy())
    } else {
        format!("{result:?}")
    };
    let error = DriverError::Failed { call, reason };
    if is_for_good(result) && LOST.set(error.clone()).is_ok() {
        tracing::error!(%error, "the GPU has failed: nothing runs on it any more in this process");
    }
    Err(error)
}

/// The first failure after which, as the driver's documentation has it, a process can use CUDA no more and has to be
/// begun anew. It is the process's and not a device's.
static LOST: OnceLock<DriverError> = OnceLock::new();

/// Whether the driver documents of an error that every later call returns it too.
fn is_for_good(result: cu::CUresult) -> bool {
    use cu::CUresult as R;
    matches!(
        result,
        R::CUDA_ERROR_ECC_UNCORRECTABLE
            | R::CUDA_ERROR_NVLINK_UNCORRECTABLE
            | R::CUDA_ERROR_ILLEGAL_ADDRESS
            | R::CUDA_ERROR_LAUNCH_TIMEOUT
            | R::CUDA_ERROR_CONTEXT_IS_DESTROYED
            | R::CUDA_ERROR_ASSERT
            | R::CUDA_ERROR_HARDWARE_STACK_ERROR
            | R::CUDA_ERROR_ILLEGAL_INSTRUCTION
            | R::CUDA_ERROR_MISALIGNED_ADDRESS
            | R::CUDA_ERROR_INVALID_ADDRESS_SPACE
            | R::CUDA_ERROR_INVALID_PC
            | R::CUDA_ERROR_LAUNCH_FAILED
            | R::CUDA_ERROR_MPS_RPC_FAILURE
            | R::CUDA_ERROR_MPS_CLIENT_TERMINATED
    )
}

/// A handle of the driver as a number, and back.
fn number<T>(handle: *mut T) -> u64 {
    handle.expose_provenance() as u64
}

fn handle<T>(number: u64) -> *mut T {
    std::ptr::with_exposed_provenance_mut(number as usize)
}

/// Does something with a launch's arguments as the driver takes them: one buffer and its length.
fn with_arguments<T>(launch: &Launch<'_>, then: impl FnOnce(*mut *mut c_void) -> T) -> T {
    let mut len = launch.arguments.len();
    let mut extra =
        [BUFFER, launch.arguments.as_ptr().cast_mut().cast(), BUFFER_SIZE, (&raw mut len).cast(), null_mut()];
    then(extra.as_mut_ptr())
}

impl RealDriver {
    /// Makes the context current on this thread.
    fn bind(&self) -> Result<(), DriverError> {
        call!(cuCtxSetCurrent(self.context))
    }

    /// Whether the driver knows an address as host memory that stays in its place.
    fn is_locked(&self, address: *const u8) -> Result<bool, DriverError> {
        self.bind()?;
        let mut kind: c_uint = 0;
        let mut attribute = cu::CUpointer_attribute::CU_POINTER_ATTRIBUTE_MEMORY_TYPE;
        let mut into: *mut c_void = (&raw mut kind).cast();
        // The call for several attributes gives 0 for memory that it does not know; that for one fails.
        call!(cuPointerGetAttributes(1, &mut attribute, &mut into, address.addr() as Address))?;
        Ok(kind != 0)
    }
}

impl Drop for RealDriver {
    fn drop(&mut self) {
        self.close_libraries();
        if let Err(error) = call!(cuDevicePrimaryCtxRelease_v2(self.device)) {
            tracing::debug!(%error, "the device's context could not be let go");
        }
    }
}

impl Driver for RealDriver {
    fn properties(&self) -> &Properties {
        &self.properties
    }

    fn lost(&self) -> Option<DriverError> {
        LOST.get().cloned()
    }

    fn free_bytes(&self) -> Result<usize, DriverError> {
        self.bind()?;
        let (mut free, mut total) = (0, 0);
        call!(cuMemGetInfo_v2(&mut free, &mut total))?;
        Ok(free)
    }

    fn allocate(&self, bytes: usize) -> Result<Address, DriverError> {
        self.bind()?;
        let mut address = 0;
        // SAFETY: the out-parameter is a variable of this function's.
        let result = unsafe { cu::cuMemAlloc_v2(&mut address, bytes) };
        if result == cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return Err(DriverError::OutOfMemory { needed_bytes: bytes });
        }
        check("cuMemAlloc_v2", result)?;
        Ok(address)
    }

    unsafe fn free(&self, address: Address) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemFree_v2(address))
    }

    fn share(&self, bytes: usize) -> Result<SharedBlock, DriverError> {
        self.bind()?;
        let Some(grain) = self.properties.shared_grain_bytes else {
            let reason = format!("{} cannot share memory with other processes", self.properties.name);
            return Err(DriverError::Failed { call: "cuMemCreate", reason });
        };
        shared::allocate(self.device, bytes, grain)
    }

    unsafe fn unshare(&self, address: Address, bytes: usize) -> Result<(), DriverError> {
        self.bind()?;
        shared::free(address, bytes)
    }

    fn allocate_host(&self, bytes: usize) -> Result<*mut u8, DriverError> {
        self.bind()?;
        let mut start = null_mut();
        call!(cuMemHostAlloc(&mut start, bytes, 0))?;
        // SAFETY: as many bytes have just been allocated.
        unsafe { std::ptr::write_bytes(start.cast::<u8>(), 0, bytes) };
        Ok(start.cast())
    }

    unsafe fn free_host(&self, start: *mut u8) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemFreeHost(start.cast()))
    }

    unsafe fn register(&self, start: *mut u8, bytes: usize) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemHostRegister_v2(start.cast(), bytes, 0))
    }

    unsafe fn unregister(&self, start: *mut u8) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemHostUnregister(start.cast()))
    }

    unsafe fn copy_in(&self, to: Address, from: &[u8], stream: Stream) -> Result<(), DriverError> {
        let is_locked = self.is_locked(from.as_ptr())?;
        // SAFETY: as the caller promises; the bytes have been read when this returns, as they are not locked, or are
        // waited for.
        unsafe { self.bring(to, from.as_ptr(), from.len(), stream) }?;
        if is_locked { self.synchronize(stream) } else { Ok(()) }
    }

    unsafe fn bring(
        &self,
        to: Address,
        from: *const u8,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemcpyHtoDAsync_v2(to, from.cast(), bytes, handle(stream.0)))
    }

    unsafe fn send(
        &self,
        to: *mut u8,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, handle(stream.0)))
    }

    unsafe fn copy_out(&self, to: &mut [u8], from: Address, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemcpyDtoHAsync_v2(to.as_mut_ptr().cast(), from, to.len(), handle(stream.0)))?;
        call!(cuStreamSynchronize(handle(stream.0)))
    }

    unsafe fn copy(
        &self,
        to: Address,
        from: Address,
        bytes: usize,
        stream: Stream,
    ) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, bytes, handle(stream.0)))
    }

    unsafe fn fill(&self, to: Address, byte: u8, bytes: usize, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuMemsetD8Async(to, byte, bytes, handle(stream.0)))
    }

    fn open_stream(&self, priority: Priority) -> Result<Stream, DriverError> {
        self.bind()?;
        let priority = self.priorities[usize::from(priority == Priority::High)];
        let flags = cu::CUstream_flags::CU_STREAM_NON_BLOCKING as c_uint;
        let mut stream = null_mut();
        call!(cuStreamCreateWithPriority(&mut stream, flags, priority))?;
        Ok(Stream(number(stream)))
    }

    fn close_stream(&self, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuStreamDestroy_v2(handle(stream.0)))
    }

    fn synchronize(&self, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuStreamSynchronize(handle(stream.0)))
    }

    fn synchronize_all(&self) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuCtxSynchronize())
    }

    fn open_event(&self) -> Result<Event, DriverError> {
        self.bind()?;
        // Without times, which cost every record and every wait.
        let flags = cu::CUevent_flags::CU_EVENT_DISABLE_TIMING as c_uint;
        let mut event = null_mut();
        call!(cuEventCreate(&mut event, flags))?;
        Ok(Event(number(event)))
    }

    fn close_event(&self, event: Event) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuEventDestroy_v2(handle(event.0)))
    }

    fn record(&self, event: Event, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuEventRecord(handle(event.0), handle(stream.0)))
    }

    fn wait(&self, stream: Stream, event: Event) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuStreamWaitEvent(handle(stream.0), handle(event.0), 0))
    }

    fn reached(&self, event: Event) -> Result<bool, DriverError> {
        self.bind()?;
        // SAFETY: the handle comes from `open_event`.
        match unsafe { cu::cuEventQuery(handle(event.0)) } {
            cu::CUresult::CUDA_ERROR_NOT_READY => Ok(false),
            result => check("cuEventQuery", result).map(|()| true),
        }
    }

    fn load(&self, image: &[u8]) -> Result<Module, DriverError> {
        self.bind()?;
        let mut module = null_mut();
        call!(cuModuleLoadData(&mut module, image.as_ptr().cast()))?;
        Ok(Module(number(module)))
    }

    fn unload(&self, module: Module) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuModuleUnload(handle(module.0)))
    }

    fn function(&self, module: Module, name: &str) -> Result<Function, DriverError> {
        self.bind()?;
        let name = std::ffi::CString::new(name).map_err(|error| DriverError::Failed {
            call: "cuModuleGetFunction",
            reason: error.to_string(),
        })?;
        let mut function = null_mut();
        call!(cuModuleGetFunction(&mut function, handle(module.0), name.as_ptr()))?;
        Ok(Function(number(function)))
    }

    unsafe fn launch(&self, launch: &Launch<'_>, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        match launch.code {
            Code::Kernel { function, grid, block } => {
                let (function, on) = (handle(function.0), handle(stream.0));
                with_arguments(launch, |extra| {
                    call!(cuLaunchKernel(function, grid, 1, 1, block, 1, 1, 0, on, null_mut(), extra))
                })?;
            }
            // SAFETY: as the caller promises.
            Code::Routine(routine) => unsafe { self.libraries.run(routine, launch.arguments, stream) }?,
        }
        self.captures.launched(launch.code, stream)
    }

    fn begin_capture(&self, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        self.captures.begin(stream)
    }

    fn end_capture(&self, stream: Stream) -> Result<Replay, DriverError> {
        self.bind()?;
        self.captures.end(stream)
    }

    unsafe fn update(&self, replay: Replay, nth: usize, launch: &Launch<'_>) -> Result<(), DriverError> {
        self.bind()?;
        self.captures.update(replay, nth, launch)
    }

    unsafe fn replay(&self, replay: Replay, stream: Stream) -> Result<(), DriverError> {
        self.bind()?;
        call!(cuGraphLaunch(handle(replay.0), handle(stream.0)))
    }

    fn close_replay(&self, replay: Replay) -> Result<(), DriverError> {
        self.bind()?;
        self.captures.close(replay)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_that_stay_are_told_from_those_that_pass() {
        assert!(is_for_good(cu::CUresult::CUDA_ERROR_ILLEGAL_ADDRESS));
        assert!(is_for_good(cu::CUresult::CUDA_ERROR_LAUNCH_FAILED));
        assert!(!is_for_good(cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY));
        assert!(!is_for_good(cu::CUresult::CUDA_ERROR_STREAM_CAPTURE_INVALIDATED));
    }

    #[test]
    fn a_machine_without_a_driver_or_device_says_so_and_nothing_panics() {
        // Where there is a device, there is none of this number.
        let error = open(4096).unwrap_err();
        assert!(
            matches!(error, DriverError::Missing { .. } | DriverError::NoDevice { ordinal: 4096, .. }),
            "{error}"
        );
    }
}
