//! Opening a device.

use std::{
    ffi::{CStr, c_char, c_int},
    ptr::null_mut,
};

use cudarc::driver::sys as cu;

use super::{
    super::{DriverError, Properties},
    Captures, Libraries, RealDriver, check, shared,
};

/// The oldest CUDA that the driver must know, as the driver counts: 12.0.
const OLDEST: c_int = 12_000;

/// How many devices the driver shows; 0 where there is no driver, or none that can be used.
pub fn count() -> u32 {
    initialise().map_or(0, |(_, count)| count.unsigned_abs())
}

/// Gets the driver ready; its version as it counts, and how many devices it shows.
fn initialise() -> Result<(c_int, c_int), DriverError> {
    let missing = |reason: String| DriverError::Missing { reason };
    // Asked first: without the library every other function of the crate would panic.
    // SAFETY: it loads the library at most, whose start-up code touches nothing of ours.
    if !unsafe { cu::is_culib_present() } {
        return Err(missing("libcuda was not found: install NVIDIA's driver, or use the CPU".into()));
    }
    // SAFETY: it takes no memory of ours.
    let initialised = unsafe { cu::cuInit(0) };
    if initialised == cu::CUresult::CUDA_ERROR_NO_DEVICE {
        return Err(missing("libcuda is there and sees no device: is one given to this container?".into()));
    }
    // Anything else may pass: a node whose driver is still being set up says so here.
    check("cuInit", initialised)?;
    let (mut version, mut count) = (0, 0);
    call!(cuDriverGetVersion(&mut version))?;
    if version < OLDEST {
        let (major, minor) = (version / 1000, version % 1000 / 10);
        return Err(missing(format!(
            "the driver knows CUDA {major}.{minor}, at least 12.0 is needed: update it"
        )));
    }
    call!(cuDeviceGetCount(&mut count))?;
    Ok((version, count))
}

/// Opens a device.
///
/// # Errors
/// [`DriverError::Missing`] where there is no driver or it is too old, [`DriverError::NoDevice`] where it shows no such
/// device.
pub fn open(ordinal: u32) -> Result<RealDriver, DriverError> {
    let (version, count) = initialise()?;
    let wanted = c_int::try_from(ordinal).unwrap_or(c_int::MAX);
    if wanted >= count {
        return Err(DriverError::NoDevice { ordinal, count: count.unsigned_abs() });
    }
    let mut device = 0;
    call!(cuDeviceGet(&mut device, wanted))?;
    let properties = properties(device, wanted, version)?;
    let mut context = null_mut();
    call!(cuDevicePrimaryCtxRetain(&mut context, device))?;
    let captures = Captures::default();
    let libraries = Libraries::default();
    let mut driver = RealDriver { properties, device, context, priorities: [0, 0], captures, libraries };
    driver.bind()?;
    let (mut least, mut greatest) = (0, 0);
    call!(cuCtxGetStreamPriorityRange(&mut least, &mut greatest))?;
    driver.priorities = [least, greatest];
    Ok(driver)
}

fn properties(device: cu::CUdevice, ordinal: c_int, version: c_int) -> Result<Properties, DriverError> {
    use cu::CUdevice_attribute as A;
    let attribute = |attribute| {
        let mut value = 0;
        call!(cuDeviceGetAttribute(&mut value, attribute, device)).map(|()| value.unsigned_abs())
    };
    let mut model = [0 as c_char; 256];
    call!(cuDeviceGetName(model.as_mut_ptr(), model.len() as c_int - 1, device))?;
    let mut memory_bytes = 0;
    call!(cuDeviceTotalMem_v2(&mut memory_bytes, device))?;
    // SAFETY: the driver has written at most all but the last byte, which is 0.
    let model = unsafe { CStr::from_ptr(model.as_ptr()) };
    let mut uuid = cu::CUuuid { bytes: [0; 16] };
    call!(cuDeviceGetUuid_v2(&mut uuid, device))?;
    Ok(Properties {
        name: format!("cuda:{ordinal}"),
        model: model.to_string_lossy().into_owned(),
        capability: (
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(A::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(A::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory_bytes: memory_bytes as u64,
        cuda: (version.unsigned_abs() / 1000, version.unsigned_abs() % 1000 / 10),
        uuid: uuid.bytes.iter().map(|byte| format!("{:02x}", byte.cast_unsigned())).collect(),
        shared_grain_bytes: shared::grain(device)?,
    })
}
