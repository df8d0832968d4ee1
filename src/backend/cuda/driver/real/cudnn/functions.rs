//! The functions of cuDNN, with the types and numbers of its headers that they are given.
//!
//! They come from cudnn_ops.h, cudnn_cnn.h and cudnn_graph.h of 9.26 (`nvidia/cudnn/include` of pip's nvidia-cudnn-cu13),
//! and are the same in cudnn_ops_infer.h, cudnn_cnn_infer.h and cudnn_cnn_train.h of 8.9.7, but for the statuses.

use std::{
    ffi::{c_char, c_int, c_void},
    path::Path,
};

use super::super::{
    super::DriverError,
    binding::{Binding, Opaque, Status, failed, load},
};

/// `cudnnHandle_t`.
type Handle = Opaque;
/// `cudnnTensorDescriptor_t`, `cudnnFilterDescriptor_t` and `cudnnConvolutionDescriptor_t`.
pub(super) type Descriptor = Opaque;

/// `cudnnConvolutionFwdAlgoPerf_t`, `cudnnConvolutionBwdDataAlgoPerf_t` and `cudnnConvolutionBwdFilterAlgoPerf_t`, which
/// are alike.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Suggestion {
    pub(super) algorithm: c_int,
    /// 0 where the rest counts.
    pub(super) state: Status,
    pub(super) milliseconds: f32,
    pub(super) workspace_bytes: usize,
    pub(super) determinism: c_int,
    pub(super) math: c_int,
    pub(super) reserved: [c_int; 3],
}

const _: () = assert!(size_of::<Suggestion>() == 48, "as large as in cudnn_cnn.h");

/// `cudnnGetConvolution…Algorithm_v7`: the handle, the operands, the convolution, the result; how many suggestions there is
/// room for, how many were made, and they.
pub(super) type Suggest = unsafe extern "C" fn(
    Handle,
    Descriptor,
    Descriptor,
    Descriptor,
    Descriptor,
    c_int,
    *mut c_int,
    *mut Suggestion,
) -> Status;

/// `cudnnGetConvolution…WorkspaceSize`: the handle, the operands, the convolution, the result; the algorithm; the bytes.
pub(super) type Measure =
    unsafe extern "C" fn(Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut usize) -> Status;

/// `cudnnConvolution…`: the handle; the result's factor; each operand; the convolution and its algorithm; the workspace and
/// its bytes; the factor of what the result held before, and the result.
pub(super) type Convolve = unsafe extern "C" fn(
    Handle,
    *const c_void,
    Descriptor,
    *const c_void,
    Descriptor,
    *const c_void,
    Descriptor,
    c_int,
    *mut c_void,
    usize,
    *const c_void,
    Descriptor,
    *mut c_void,
) -> Status;

/// Whether a status says that there is no way to do what was asked: `CUDNN_STATUS_NOT_SUPPORTED`, 9 before version 9, and
/// from then on one of several.
pub(super) fn means_no_way(status: Status) -> bool {
    status == 9 || (3000..4000).contains(&status)
}

functions! {
    fn cudnnGetVersion() -> usize;
    fn cudnnGetErrorString(Status) -> *const c_char;
    fn cudnnCreate(*mut Handle) -> Status;
    fn cudnnDestroy(Handle) -> Status;
    fn cudnnSetStream(Handle, *mut c_void) -> Status;
    fn cudnnCreateTensorDescriptor(*mut Descriptor) -> Status;
    fn cudnnSetTensor4dDescriptor(Descriptor, c_int, c_int, c_int, c_int, c_int, c_int) -> Status;
    fn cudnnDestroyTensorDescriptor(Descriptor) -> Status;
    fn cudnnCreateFilterDescriptor(*mut Descriptor) -> Status;
    fn cudnnSetFilter4dDescriptor(Descriptor, c_int, c_int, c_int, c_int, c_int, c_int) -> Status;
    fn cudnnDestroyFilterDescriptor(Descriptor) -> Status;
    fn cudnnCreateConvolutionDescriptor(*mut Descriptor) -> Status;
    fn cudnnSetConvolution2dDescriptor(
        Descriptor, c_int, c_int, c_int, c_int, c_int, c_int, c_int, c_int
    ) -> Status;
    fn cudnnSetConvolutionGroupCount(Descriptor, c_int) -> Status;
    fn cudnnSetConvolutionMathType(Descriptor, c_int) -> Status;
    fn cudnnDestroyConvolutionDescriptor(Descriptor) -> Status;
    fn cudnnGetConvolution2dForwardOutputDim(
        Descriptor, Descriptor, Descriptor, *mut c_int, *mut c_int, *mut c_int, *mut c_int
    ) -> Status;
    fn cudnnGetConvolutionForwardAlgorithm_v7(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut c_int, *mut Suggestion
    ) -> Status;
    fn cudnnGetConvolutionBackwardDataAlgorithm_v7(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut c_int, *mut Suggestion
    ) -> Status;
    fn cudnnGetConvolutionBackwardFilterAlgorithm_v7(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut c_int, *mut Suggestion
    ) -> Status;
    fn cudnnGetConvolutionForwardWorkspaceSize(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut usize
    ) -> Status;
    fn cudnnGetConvolutionBackwardDataWorkspaceSize(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut usize
    ) -> Status;
    fn cudnnGetConvolutionBackwardFilterWorkspaceSize(
        Handle, Descriptor, Descriptor, Descriptor, Descriptor, c_int, *mut usize
    ) -> Status;
    fn cudnnConvolutionForward(
        Handle, *const c_void, Descriptor, *const c_void, Descriptor, *const c_void, Descriptor, c_int, *mut c_void,
        usize, *const c_void, Descriptor, *mut c_void
    ) -> Status;
    fn cudnnConvolutionBackwardData(
        Handle, *const c_void, Descriptor, *const c_void, Descriptor, *const c_void, Descriptor, c_int, *mut c_void,
        usize, *const c_void, Descriptor, *mut c_void
    ) -> Status;
    fn cudnnConvolutionBackwardFilter(
        Handle, *const c_void, Descriptor, *const c_void, Descriptor, *const c_void, Descriptor, c_int, *mut c_void,
        usize, *const c_void, Descriptor, *mut c_void
    ) -> Status;
}

/// The parts of a cuDNN of version 8 that these functions lie in, and of 9 and later, by what stands in their files' names.
const PARTS_OF_8: &[&str] = &["ops_infer", "ops_train", "cnn_infer", "cnn_train"];
const PARTS: &[&str] = &["graph", "ops", "cnn"];

impl Functions {
    /// Those of the library at a path, whose file's name has its major version at the end.
    ///
    /// libcudnn itself is a few stubs, which load the parts that the functions lie in once they are called, and end the
    /// process where they do not find one. So the parts beside it are loaded before anything is called.
    pub(super) fn load(path: &Path) -> Result<Self, DriverError> {
        let call = "loading cuDNN";
        let major = path.extension().and_then(|major| major.to_str()).unwrap_or_default();
        let parts = if major == "8" { PARTS_OF_8 } else { PARTS };
        let library = load(call, path)?;
        for part in parts {
            load(call, &path.with_file_name(format!("libcudnn_{part}.so.{major}")))?;
        }
        Self::of(library).map_err(|error| failed(call, path, &error))
    }
}

impl Binding for Functions {
    fn words(&self, status: Status) -> *const c_char {
        // SAFETY: any number may be asked about; the answer is a string that stays.
        unsafe { (self.cudnnGetErrorString)(status) }
    }
}
