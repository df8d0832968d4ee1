//! Memory that processes share: physical memory with a file descriptor, mapped at addresses of our own.
//!
//! CUDA counts who has it: what one process lets go lasts as long as another has it open or mapped. The older handles of
//! `cuIpcGetMemHandle` leave that undefined.

use std::{
    ffi::c_int,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    ptr::null_mut,
};

use cudarc::driver::sys as cu;

use super::{
    super::{Address, DriverError, SharedBlock},
    check,
};

const FILE: cu::CUmemAllocationHandleType =
    cu::CUmemAllocationHandleType_enum::CU_MEM_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR;

fn location(device: cu::CUdevice) -> cu::CUmemLocation {
    cu::CUmemLocation { type_: cu::CUmemLocationType_enum::CU_MEM_LOCATION_TYPE_DEVICE, id: device }
}

fn description(device: cu::CUdevice) -> cu::CUmemAllocationProp {
    cu::CUmemAllocationProp {
        type_: cu::CUmemAllocationType_enum::CU_MEM_ALLOCATION_TYPE_PINNED,
        requestedHandleTypes: FILE,
        location: location(device),
        win32HandleMetaData: null_mut(),
        allocFlags: cu::CUmemAllocationProp_st__bindgen_ty_1 {
            compressionType: 0,
            gpuDirectRDMACapable: 0,
            usage: 0,
            reserved: [0; 4],
        },
    }
}

/// What sizes are multiples of; `None` where a device or its driver has no such memory.
pub(super) fn grain(device: cu::CUdevice) -> Result<Option<usize>, DriverError> {
    use cu::CUdevice_attribute as A;
    for attribute in [
        A::CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED,
        A::CU_DEVICE_ATTRIBUTE_HANDLE_TYPE_POSIX_FILE_DESCRIPTOR_SUPPORTED,
    ] {
        let mut has: c_int = 0;
        call!(cuDeviceGetAttribute(&mut has, attribute, device))?;
        if has == 0 {
            return Ok(None);
        }
    }
    let (mut bytes, description) = (0, description(device));
    let least = cu::CUmemAllocationGranularity_flags::CU_MEM_ALLOC_GRANULARITY_MINIMUM;
    call!(cuMemGetAllocationGranularity(&mut bytes, &description, least))?;
    Ok(Some(bytes.max(1)))
}

/// Memory of at least so many bytes, mapped here.
pub(super) fn allocate(device: cu::CUdevice, asked: usize, grain: usize) -> Result<SharedBlock, DriverError> {
    let out_of_memory = DriverError::OutOfMemory { needed_bytes: asked };
    let Some(bytes) = asked.checked_next_multiple_of(grain) else { return Err(out_of_memory) };
    let (mut handle, description) = (0, description(device));
    // SAFETY: the out-parameter and the description are variables of this function's.
    let result = unsafe { cu::cuMemCreate(&mut handle, bytes, &description, 0) };
    if result == cu::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
        return Err(out_of_memory);
    }
    check("cuMemCreate", result)?;
    let shared = map(device, handle, bytes).and_then(|address| {
        let file = file(handle).inspect_err(|_| let_go(free(address, bytes)))?;
        Ok(SharedBlock { address, bytes, file })
    });
    // Mapping and file hold it from now on; where there is none it is freed.
    let_go(call!(cuMemRelease(handle)));
    shared
}

fn map(
    device: cu::CUdevice,
    handle: cu::CUmemGenericAllocationHandle,
    bytes: usize,
) -> Result<Address, DriverError> {
    let mut address = 0;
    call!(cuMemAddressReserve(&mut address, bytes, 0, 0, 0))?;
    if let Err(error) = call!(cuMemMap(address, bytes, 0, handle, 0)) {
        let_go(call!(cuMemAddressFree(address, bytes)));
        return Err(error);
    }
    let flags = cu::CUmemAccess_flags_enum::CU_MEM_ACCESS_FLAGS_PROT_READWRITE;
    let access = cu::CUmemAccessDesc { location: location(device), flags };
    call!(cuMemSetAccess(address, bytes, &access, 1)).inspect_err(|_| let_go(free(address, bytes)))?;
    Ok(address)
}

fn file(handle: cu::CUmemGenericAllocationHandle) -> Result<OwnedFd, DriverError> {
    let mut descriptor: RawFd = -1;
    call!(cuMemExportToShareableHandle((&raw mut descriptor).cast(), handle, FILE, 0))?;
    // SAFETY: the driver has made it for us just now.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Ends a mapping. Nothing under way may use it.
pub(super) fn free(address: Address, bytes: usize) -> Result<(), DriverError> {
    call!(cuMemUnmap(address, bytes))?;
    call!(cuMemAddressFree(address, bytes))
}

fn let_go(result: Result<(), DriverError>) {
    if let Err(error) = result {
        tracing::debug!(%error, "shared memory could not be let go");
    }
}
