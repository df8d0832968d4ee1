//! What a convolution is, in the library's descriptors.

use std::{ffi::c_int, sync::Arc};

use super::{
    super::{
        super::{ConvolutionSpec, Direction, DriverError},
        binding::{Binding as _, Owned},
    },
    functions::{Convolve, Descriptor, Functions, Measure, Suggest},
};
use crate::tensor::DType;

// cudnnDataType_t.
const FLOAT: c_int = 0;
const DOUBLE: c_int = 1;
const HALF: c_int = 2;
const BFLOAT16: c_int = 9;
/// `cudnnTensorFormat_t`.
const NCHW: c_int = 0;
/// `cudnnConvolutionMode_t`: the kernel is not turned round.
const CROSS_CORRELATION: c_int = 1;
// cudnnMathType_t. Under FMA no factor is rounded on the way; by default those of float32 may be, to TF32; under TENSOR_OP
// halves go to tensor cores; and what ALLOW_CONVERSION allows, to round float32 to halves, is never asked for.
const DEFAULT_MATH: c_int = 0;
const TENSOR_OP_MATH: c_int = 1;
const FMA_MATH: c_int = 3;

/// A kind of convolution.
#[derive(Debug)]
pub(super) struct Description {
    functions: Arc<Functions>,
    direction: Direction,
    x: Owned<Functions>,
    w: Owned<Functions>,
    y: Owned<Functions>,
    convolution: Owned<Functions>,
}

/// The library's functions for one direction.
#[derive(Clone, Copy, Debug)]
pub(super) struct Calls {
    pub(super) suggest: (&'static str, Suggest),
    pub(super) measure: (&'static str, Measure),
    pub(super) convolve: (&'static str, Convolve),
}

impl Description {
    pub(super) fn new(functions: &Arc<Functions>, spec: &ConvolutionSpec) -> Result<Self, DriverError> {
        let it = Self {
            functions: Arc::clone(functions),
            direction: spec.direction,
            x: tensor(functions, spec.dtype, spec.x)?,
            w: filter(functions, spec.dtype, spec.w)?,
            y: tensor(functions, spec.dtype, spec.y)?,
            convolution: convolution(functions, spec)?,
        };
        it.set_math(wanted_math(spec))?;
        it.check_result(spec)?;
        Ok(it)
    }

    /// The operands in their order, then the result.
    pub(super) fn tensors(&self) -> [Descriptor; 3] {
        let all = match self.direction {
            Direction::Forward => [&self.x, &self.w, &self.y],
            Direction::BackwardData => [&self.w, &self.y, &self.x],
            Direction::BackwardFilter => [&self.x, &self.y, &self.w],
        };
        all.map(Owned::get)
    }

    pub(super) fn convolution(&self) -> Descriptor {
        self.convolution.get()
    }

    pub(super) fn calls(&self) -> Calls {
        let f = &*self.functions;
        macro_rules! calls {
            ($suggest:ident, $measure:ident, $convolve:ident) => {
                Calls {
                    suggest: (stringify!($suggest), f.$suggest),
                    measure: (stringify!($measure), f.$measure),
                    convolve: (stringify!($convolve), f.$convolve),
                }
            };
        }
        match self.direction {
            Direction::Forward => calls!(
                cudnnGetConvolutionForwardAlgorithm_v7,
                cudnnGetConvolutionForwardWorkspaceSize,
                cudnnConvolutionForward
            ),
            Direction::BackwardData => calls!(
                cudnnGetConvolutionBackwardDataAlgorithm_v7,
                cudnnGetConvolutionBackwardDataWorkspaceSize,
                cudnnConvolutionBackwardData
            ),
            Direction::BackwardFilter => calls!(
                cudnnGetConvolutionBackwardFilterAlgorithm_v7,
                cudnnGetConvolutionBackwardFilterWorkspaceSize,
                cudnnConvolutionBackwardFilter
            ),
        }
    }

    /// Says what arithmetic may be used: an algorithm is what it was suggested as only with the kind that came with it.
    pub(super) fn set_math(&self, math: c_int) -> Result<(), DriverError> {
        // SAFETY: the descriptor is open, and nobody else has it yet.
        let status = unsafe { (self.functions.cudnnSetConvolutionMathType)(self.convolution.get(), math) };
        self.functions.check("cudnnSetConvolutionMathType", status)
    }

    /// Holds the library's own idea of y's sizes against ours. Were they to differ, it would touch memory that is not there.
    fn check_result(&self, spec: &ConvolutionSpec) -> Result<(), DriverError> {
        let call = "cudnnGetConvolution2dForwardOutputDim";
        let [mut n, mut c, mut h, mut w] = [0; 4];
        // SAFETY: the descriptors are open, and the out-parameters are variables of this function's.
        let status = unsafe {
            (self.functions.cudnnGetConvolution2dForwardOutputDim)(
                self.convolution.get(),
                self.x.get(),
                self.w.get(),
                &mut n,
                &mut c,
                &mut h,
                &mut w,
            )
        };
        self.functions.check(call, status)?;
        let theirs = [n, c, h, w];
        if theirs.iter().zip(spec.y).all(|(&theirs, ours)| u64::try_from(theirs) == Ok(ours)) {
            return Ok(());
        }
        Err(DriverError::Failed { call, reason: format!("it gives {theirs:?} for {spec:?}") })
    }
}

/// The most that factors may be rounded.
pub(super) fn wanted_math(spec: &ConvolutionSpec) -> c_int {
    match spec.dtype {
        DType::F16 | DType::BF16 => TENSOR_OP_MATH,
        DType::F32 if !spec.tf32 => FMA_MATH,
        _ => DEFAULT_MATH,
    }
}

/// Whether an algorithm that is suggested for some arithmetic rounds no more than what was asked for. Without tensor cores
/// is always good.
pub(super) fn may_use(wanted: c_int, suggested: c_int) -> bool {
    match wanted {
        FMA_MATH => suggested == FMA_MATH,
        _ => matches!(suggested, DEFAULT_MATH | TENSOR_OP_MATH | FMA_MATH),
    }
}

/// The library's number for a type.
fn number(dtype: DType) -> Result<c_int, DriverError> {
    match dtype {
        DType::F32 => Ok(FLOAT),
        DType::F64 => Ok(DOUBLE),
        DType::F16 => Ok(HALF),
        DType::BF16 => Ok(BFLOAT16),
        other => {
            let reason = format!("there are no convolutions of {other}");
            Err(DriverError::Failed { call: "cudnnSetTensor4dDescriptor", reason })
        }
    }
}

/// Sizes as the library takes them.
fn sizes<const N: usize>(all: [u64; N]) -> Result<[c_int; N], DriverError> {
    let mut sizes = [0; N];
    for (size, from) in sizes.iter_mut().zip(all) {
        *size = c_int::try_from(from).map_err(|_| DriverError::Failed {
            call: "describing a convolution",
            reason: format!("{from} is more than the library counts"),
        })?;
    }
    Ok(sizes)
}

fn tensor(
    functions: &Arc<Functions>,
    dtype: DType,
    shape: [u64; 4],
) -> Result<Owned<Functions>, DriverError> {
    let (dtype, [n, c, h, w]) = (number(dtype)?, sizes(shape)?);
    // SAFETY: the two functions belong together.
    let tensor = unsafe {
        Owned::new(
            functions,
            "cudnnCreateTensorDescriptor",
            |it| (functions.cudnnCreateTensorDescriptor)(it),
            functions.cudnnDestroyTensorDescriptor,
        )
    }?;
    // SAFETY: the descriptor is open.
    let status = unsafe { (functions.cudnnSetTensor4dDescriptor)(tensor.get(), NCHW, dtype, n, c, h, w) };
    functions.check("cudnnSetTensor4dDescriptor", status)?;
    Ok(tensor)
}

fn filter(
    functions: &Arc<Functions>,
    dtype: DType,
    shape: [u64; 4],
) -> Result<Owned<Functions>, DriverError> {
    let (dtype, [o, c, h, w]) = (number(dtype)?, sizes(shape)?);
    // SAFETY: the two functions belong together.
    let filter = unsafe {
        Owned::new(
            functions,
            "cudnnCreateFilterDescriptor",
            |it| (functions.cudnnCreateFilterDescriptor)(it),
            functions.cudnnDestroyFilterDescriptor,
        )
    }?;
    // SAFETY: the descriptor is open. Here the type stands before the format.
    let status = unsafe { (functions.cudnnSetFilter4dDescriptor)(filter.get(), dtype, NCHW, o, c, h, w) };
    functions.check("cudnnSetFilter4dDescriptor", status)?;
    Ok(filter)
}

fn convolution(functions: &Arc<Functions>, spec: &ConvolutionSpec) -> Result<Owned<Functions>, DriverError> {
    let [padding, stride, dilation] = [sizes(spec.padding)?, sizes(spec.stride)?, sizes(spec.dilation)?];
    let [groups] = sizes([spec.groups])?;
    let compute = if spec.dtype == DType::F64 { DOUBLE } else { FLOAT };
    // SAFETY: the two functions belong together.
    let convolution = unsafe {
        Owned::new(
            functions,
            "cudnnCreateConvolutionDescriptor",
            |it| (functions.cudnnCreateConvolutionDescriptor)(it),
            functions.cudnnDestroyConvolutionDescriptor,
        )
    }?;
    // SAFETY: the descriptor is open.
    let status = unsafe {
        (functions.cudnnSetConvolution2dDescriptor)(
            convolution.get(),
            padding[0],
            padding[1],
            stride[0],
            stride[1],
            dilation[0],
            dilation[1],
            CROSS_CORRELATION,
            compute,
        )
    };
    functions.check("cudnnSetConvolution2dDescriptor", status)?;
    // SAFETY: as above.
    let status = unsafe { (functions.cudnnSetConvolutionGroupCount)(convolution.get(), groups) };
    functions.check("cudnnSetConvolutionGroupCount", status)?;
    Ok(convolution)
}
