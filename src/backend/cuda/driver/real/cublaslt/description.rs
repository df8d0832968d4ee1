//! What a product is, in the library's descriptors.

use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

use super::{
    super::{
        super::{DriverError, MOST_ALIGNMENT_BYTES, Matrices, ProductSpec},
        binding::{Binding as _, Owned, Status},
    },
    functions::{Descriptor, Functions},
};
use crate::tensor::DType;

// cudaDataType_t.
const R_32F: c_int = 0;
const R_64F: c_int = 1;
const R_16F: c_int = 2;
const R_16BF: c_int = 14;
// cublasComputeType_t. Under 32F neither factors nor sums of float32 are rounded on the way.
const COMPUTE_32F: c_int = 68;
const COMPUTE_64F: c_int = 70;
const COMPUTE_32F_FAST_TF32: c_int = 77;
// cublasLtMatmulDescAttributes_t, and cublasOperation_t.
const TRANSA: c_int = 3;
const TRANSB: c_int = 4;
const EPILOGUE: c_int = 7;
const BIAS_POINTER: c_int = 8;
const OP_T: c_int = 1;
// cublasLtEpilogue_t.
const EPILOGUE_BIAS: u32 = 4;
// cublasLtMatrixLayoutAttribute_t.
const BATCH_COUNT: c_int = 5;
const STRIDED_BATCH_OFFSET: c_int = 6;
// cublasLtMatmulPreferenceAttributes_t: the workspace, reductions, then the alignment of a, b, c and d.
const MAX_WORKSPACE_BYTES: c_int = 1;
const REDUCTION_SCHEME_MASK: c_int = 3;
const MIN_ALIGNMENT_BYTES: [c_int; 4] = [5, 6, 7, 8];
/// Where the inner size is split, the parts are kept in the type that sums have, in the workspace, and joined in their
/// order. Not allowed are parts that are added in place, one after the other in the result's own type, or kept in it:
/// halves would be rounded once for each part. What is not split is always allowed.
const REDUCTION_COMPUTE_TYPE: u32 = 2;

/// How the address of a bias is aligned: it is a parameter, or a copy of one, and begins where its own slot does.
const BIAS_ALIGNMENT_BYTES: u64 = MOST_ALIGNMENT_BYTES as u64;

/// Sets attributes of descriptors of one kind.
type Set = unsafe extern "C" fn(Descriptor, c_int, *const c_void, usize) -> Status;

/// Sets an attribute of a descriptor of the kind that `set` is for.
fn set<T: Copy>(
    functions: &Functions,
    (call, set): (&'static str, Set),
    descriptor: &Owned<Functions>,
    attribute: c_int,
    value: T,
) -> Result<(), DriverError> {
    // SAFETY: the descriptor is open, and the value is as long as is said. The library refuses a wrong length.
    let status = unsafe { set(descriptor.get(), attribute, (&raw const value).cast(), size_of::<T>()) };
    functions.check(call, status)
}

/// A kind of product.
#[derive(Debug)]
pub(super) struct Description {
    functions: Arc<Functions>,
    operation: Owned<Functions>,
    /// The layouts of a, b and the result.
    layouts: [Owned<Functions>; 3],
}

impl Description {
    pub(super) fn new(functions: &Arc<Functions>, spec: &ProductSpec) -> Result<Self, DriverError> {
        let (a, b) = (turned(spec.m, spec.k, spec.transposes_a), turned(spec.k, spec.n, spec.transposes_b));
        Ok(Self {
            functions: Arc::clone(functions),
            operation: operation(functions, spec)?,
            layouts: [
                layout(functions, spec, a, &spec.a)?,
                layout(functions, spec, b, &spec.b)?,
                layout(functions, spec, [spec.m, spec.n], &spec.out)?,
            ],
        })
    }

    /// Says where the bias of the next call lies. To be called by one thread at a time, which makes that call before another
    /// may: the library reads it then.
    pub(super) fn set_bias(&self, address: u64) -> Result<(), DriverError> {
        let with: (_, Set) =
            ("cublasLtMatmulDescSetAttribute", self.functions.cublasLtMatmulDescSetAttribute);
        set(&self.functions, with, &self.operation, BIAS_POINTER, address)
    }

    pub(super) fn operation(&self) -> Descriptor {
        self.operation.get()
    }

    pub(super) fn a(&self) -> Descriptor {
        self.layouts[0].get()
    }

    pub(super) fn b(&self) -> Descriptor {
        self.layouts[1].get()
    }

    pub(super) fn out(&self) -> Descriptor {
        self.layouts[2].get()
    }

    /// What algorithms may do.
    pub(super) fn preference(
        &self,
        spec: &ProductSpec,
        most_workspace_bytes: usize,
    ) -> Result<Owned<Functions>, DriverError> {
        let functions = &self.functions;
        // SAFETY: the two functions belong together.
        let preference = unsafe {
            Owned::new(
                functions,
                "cublasLtMatmulPreferenceCreate",
                |it| (functions.cublasLtMatmulPreferenceCreate)(it),
                functions.cublasLtMatmulPreferenceDestroy,
            )
        }?;
        let with: (_, Set) =
            ("cublasLtMatmulPreferenceSetAttribute", functions.cublasLtMatmulPreferenceSetAttribute);
        set(functions, with, &preference, MAX_WORKSPACE_BYTES, most_workspace_bytes)?;
        set(functions, with, &preference, REDUCTION_SCHEME_MASK, REDUCTION_COMPUTE_TYPE)?;
        for (attribute, matrices) in
            MIN_ALIGNMENT_BYTES.into_iter().zip([&spec.a, &spec.b, &spec.out, &spec.out])
        {
            set(functions, with, &preference, attribute, matrices.alignment_bytes)?;
        }
        Ok(preference)
    }
}

/// Rows and columns as they lie.
fn turned(rows: u64, columns: u64, is_transposed: bool) -> [u64; 2] {
    if is_transposed { [columns, rows] } else { [rows, columns] }
}

/// The library's number for a type.
fn number(dtype: DType) -> Result<c_int, DriverError> {
    match dtype {
        DType::F32 => Ok(R_32F),
        DType::F64 => Ok(R_64F),
        DType::F16 => Ok(R_16F),
        DType::BF16 => Ok(R_16BF),
        other => {
            let reason = format!("there are no products of {other}");
            Err(DriverError::Failed { call: "cublasLtMatrixLayoutCreate", reason })
        }
    }
}

fn operation(functions: &Arc<Functions>, spec: &ProductSpec) -> Result<Owned<Functions>, DriverError> {
    let (compute, scale) = match spec.dtype {
        DType::F64 => (COMPUTE_64F, R_64F),
        DType::F32 if spec.tf32 => (COMPUTE_32F_FAST_TF32, R_32F),
        _ => (COMPUTE_32F, R_32F),
    };
    // SAFETY: the two functions belong together.
    let operation = unsafe {
        Owned::new(
            functions,
            "cublasLtMatmulDescCreate",
            |it| (functions.cublasLtMatmulDescCreate)(it, compute, scale),
            functions.cublasLtMatmulDescDestroy,
        )
    }?;
    let with: (_, Set) = ("cublasLtMatmulDescSetAttribute", functions.cublasLtMatmulDescSetAttribute);
    for (attribute, is_transposed) in [(TRANSA, spec.transposes_a), (TRANSB, spec.transposes_b)] {
        if is_transposed {
            set(functions, with, &operation, attribute, OP_T)?;
        }
    }
    if spec.adds_bias {
        set(functions, with, &operation, EPILOGUE, EPILOGUE_BIAS)?;
        // Where a bias may lie: for whoever chooses an algorithm.
        set(functions, with, &operation, BIAS_POINTER, BIAS_ALIGNMENT_BYTES)?;
    }
    Ok(operation)
}

fn layout(
    functions: &Arc<Functions>,
    spec: &ProductSpec,
    [rows, columns]: [u64; 2],
    matrices: &Matrices,
) -> Result<Owned<Functions>, DriverError> {
    let dtype = number(spec.dtype)?;
    // SAFETY: the two functions belong together.
    let layout = unsafe {
        Owned::new(
            functions,
            "cublasLtMatrixLayoutCreate",
            |it| (functions.cublasLtMatrixLayoutCreate)(it, dtype, rows, columns, matrices.lead as i64),
            functions.cublasLtMatrixLayoutDestroy,
        )
    }?;
    if spec.batch > 1 {
        let with: (_, Set) = ("cublasLtMatrixLayoutSetAttribute", functions.cublasLtMatrixLayoutSetAttribute);
        set(functions, with, &layout, BATCH_COUNT, spec.batch as c_int)?;
        set(functions, with, &layout, STRIDED_BATCH_OFFSET, matrices.apart as i64)?;
    }
    Ok(layout)
}
