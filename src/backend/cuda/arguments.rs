//! What a launch is given: one record for each family of kernels, the same bytes in Rust and in C++.
//!
//! There is one definition, here. [`header`] writes it for C++, with the sizes and offsets that Rust has given
//! it, which the compiler of every source checks.

use std::fmt::Write as _;

use super::driver::RoutineArguments;
use crate::{
    backend::plan::{LinkOp, MOST_INPUTS, MOST_LINKS, MOST_OUTPUTS},
    graph::{Binary, Compare, MAX_RANK, Reduction, Unary},
    tensor::DType,
};

/// The most dimensions of a walk: as many as a graph's values may have, so that no plan has too many.
pub(super) const RANK: usize = MAX_RANK;

/// An address on the device.
pub(super) type Pointer = u64;
/// One number for each dimension.
pub(super) type Dims = [u64; RANK];
/// The strided operands of an elementwise operation.
pub(super) type Views = [View; 3];
/// Those of a chain, its results and its operations.
pub(super) type Operands = [View; MOST_INPUTS];
pub(super) type Results = [Pointer; MOST_OUTPUTS];
pub(super) type Links = [Link; MOST_LINKS];

/// A record whose bytes a kernel reads.
///
/// # Safety
/// The type must be `repr(C)` without padding, so that all its bytes are defined.
pub(super) unsafe trait Record: Copy {
    /// All bytes of the record.
    fn bytes(&self) -> &[u8] {
        // SAFETY: the type has no padding, by the trait's promise; the bytes live as long as the borrow.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(self).cast(), size_of::<Self>()) }
    }
}

const _: () = assert!(size_of::<RoutineArguments>() == 5 * size_of::<Pointer>(), "it has no padding");
// SAFETY: `repr(C)`, and the assertion above has found no padding. No source of ours reads it.
unsafe impl Record for RoutineArguments {}

/// Declares records once for both languages. Field types are names that both know.
macro_rules! records {
    ($($(#[$doc:meta])* struct $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ident,)* })*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug, Default)]
            #[repr(C)]
            pub(super) struct $name {
                $($(#[$field_doc])* pub(super) $field: $type,)*
            }
            const _: () = assert!(
                size_of::<$name>() == 0 $(+ size_of::<$type>())*,
                concat!(stringify!($name), " has padding: reorder its fields or fill the hole"),
            );
            // SAFETY: `repr(C)`, and the assertion above has found no padding.
            unsafe impl Record for $name {}
        )*

        fn write_records(text: &mut String) {
            $(
                text.push_str(concat!("struct ", stringify!($name), " {", $(" ", stringify!($type), " ", stringify!($field), ";",)* " };\n"));
                let _ = writeln!(
                    text,
                    "static_assert(sizeof({0}) == {1}, \"{0} is as large as in Rust\");",
                    stringify!($name),
                    size_of::<$name>()
                );
                $(
                    let _ = writeln!(
                        text,
                        "static_assert(OFFSET_OF({0}, {1}) == {2}, \"{0}.{1} lies as in Rust\");",
                        stringify!($name),
                        stringify!($field),
                        std::mem::offset_of!($name, $field)
                    );
                )*
            )*
        }
    };
}

records! {
    /// The indices of a shape, in order, dimensions merged where all operands allow it.
    struct Walk {
        /// How many indices.
        elements: u64,
        /// How many dimensions, at least 1.
        rank: u32,
        /// Whether indices fit 32 bits.
        is_narrow: u32,
        /// By dimension, outermost first.
        sizes: Dims,
    }

    /// An operand: its first element, and its strides in elements over the dimensions of a walk.
    struct View {
        data: Pointer,
        strides: Dims,
    }

    /// Element by element; the result is contiguous.
    struct Pointwise {
        walk: Walk,
        views: Views,
        out: Pointer,
        /// Which function, or which type.
        code: u32,
        filler: u32,
        /// The function's constants, in the order of its fields.
        first: f64,
        second: f64,
        /// The seed of the pass.
        seed: u64,
        /// A random number of 32 bits below it drops its element.
        bound: u64,
    }

    /// One operation of a chain.
    struct Link {
        /// Which function, or which mask.
        code: u32,
        /// The operation's kind, its two operands' numbers, and which result it is, plus one, or 0: a byte each.
        what: u32,
        /// The function's constants, in the order of its fields; of dropout the factor of what is kept, and what random
        /// numbers of 32 bits drop their elements.
        first: f64,
        second: f64,
    }

    /// Several operations on each element; results are contiguous.
    struct Chain {
        walk: Walk,
        operands: Operands,
        results: Results,
        links: Links,
        /// The seed of the pass.
        seed: u64,
        /// How many operands and links there are.
        inputs: u32,
        count: u32,
    }

    /// Attention; `operands` are queries, keys, values, the result and its gradient over the batch of heads.
    struct Attention {
        walk: Walk,
        operands: Operands,
        /// By operand: from one row to the next, and from one column to the next.
        rows: Dims,
        columns: Dims,
        /// The logarithm of each query's sum of exponentials.
        lse: Pointer,
        /// On the way back, the sum of gy∘y of each query.
        shared: Pointer,
        out: Pointer,
        /// The gradient of values, beside that of keys.
        second_out: Pointer,
        queries: u32,
        keys: u32,
        width: u32,
        value_width: u32,
        is_causal: u32,
        filler: u32,
        /// The factor of the scores.
        scale: f64,
    }

    /// From one strided tensor to another.
    struct Move {
        walk: Walk,
        views: Views,
    }

    /// Along one dimension of contiguous tensors.
    struct Line {
        from: Pointer,
        indices: Pointer,
        out: Pointer,
        /// The product of the sizes before the dimension.
        outer: u64,
        /// Its length in the whole tensor.
        size: u64,
        /// The product of the sizes behind it.
        inner: u64,
        /// Its length in the part.
        len: u64,
        start: u64,
        step: u64,
        /// The bits of what an index out of range gives.
        missing: u64,
    }

    /// A reduction: `views` are the operand over the kept and over the reduced dimensions.
    struct Reduce {
        from: Pointer,
        out: Pointer,
        /// [splits, results] of the type that sums are made in, where there are several splits.
        partial: Pointer,
        kept: Walk,
        gone: Walk,
        views: Views,
        code: u32,
        splits: u32,
        /// How many elements a split takes.
        share: u64,
        divisor: f64,
    }

    /// Joins what splits have left: `[splits, elements]` to `[elements]`.
    struct Fold {
        parts: Pointer,
        out: Pointer,
        elements: u64,
        splits: u64,
        code: u32,
        filler: u32,
        divisor: f64,
    }

    /// Along one dimension of [outer, size, inner].
    struct Softmax {
        /// x, or y on the way back.
        first: Pointer,
        /// gy on the way back.
        second: Pointer,
        out: Pointer,
        outer: u64,
        size: u64,
        inner: u64,
        is_log: u32,
        filler: u32,
    }

    /// How a product of matrices is cut: `[batch]` of m×k by k×n, k in `splits` shares.
    struct Cut {
        /// [splits, results] where there are several splits.
        parts: Pointer,
        batch: u32,
        m: u32,
        n: u32,
        k: u32,
        splits: u32,
        /// How much of k a split takes.
        share: u32,
    }

    /// A product of strided matrices; `views` are the operands over the batch.
    struct MatMul {
        cut: Cut,
        walk: Walk,
        views: Views,
        out: Pointer,
        a_row: u64,
        a_column: u64,
        b_row: u64,
        b_column: u64,
    }

    /// A convolution; `first` and `second` are its operands in their order.
    struct Conv {
        cut: Cut,
        first: Pointer,
        second: Pointer,
        out: Pointer,
        channels: u32,
        outputs: u32,
        groups: u32,
        height: u32,
        width: u32,
        out_height: u32,
        out_width: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        padding_h: u32,
        padding_w: u32,
        dilation_h: u32,
        dilation_w: u32,
        /// Whether neighbours along k lie together in each operand.
        a_along_k: u32,
        b_along_k: u32,
        filler: u32,
    }

    /// A pooling window; `height` and `width` are those of the larger side.
    struct Pool {
        from: Pointer,
        indices: Pointer,
        out: Pointer,
        /// Sums in single precision beside halves.
        scratch: Pointer,
        planes: u64,
        height: u32,
        width: u32,
        out_height: u32,
        out_width: u32,
        kernel_h: u32,
        kernel_w: u32,
        stride_h: u32,
        stride_w: u32,
        padding_h: u32,
        padding_w: u32,
        dilation_h: u32,
        dilation_w: u32,
        counts_padding: u32,
        filler: u32,
        /// 0 where the window's own size counts.
        divisor: u64,
    }

    /// A normalisation.
    struct Norm {
        x: Pointer,
        weight: Pointer,
        bias: Pointer,
        mean: Pointer,
        /// 1/√(variance + eps), or the variance itself where statistics are given.
        rstd: Pointer,
        gy: Pointer,
        out: Pointer,
        out_mean: Pointer,
        out_rstd: Pointer,
        out_var: Pointer,
        out_weight: Pointer,
        out_bias: Pointer,
        parts: Pointer,
        batch: u64,
        channels: u64,
        spatial: u64,
        groups: u64,
        splits: u64,
        share: u64,
        eps: f64,
    }
}

/// Names of the functions of one operand; their number is their code.
const UNARIES: [&str; 32] = [
    "neg",
    "abs",
    "sqrt",
    "rsqrt",
    "reciprocal",
    "exp",
    "expm1",
    "log",
    "log1p",
    "sin",
    "cos",
    "erf",
    "sign",
    "floor",
    "ceil",
    "round",
    "trunc",
    "relu",
    "leaky_relu",
    "elu",
    "gelu",
    "gelu_tanh",
    "silu",
    "sigmoid",
    "tanh",
    "softplus",
    "hardswish",
    "hardsigmoid",
    "hardtanh",
    "add_scalar",
    "mul_scalar",
    "pow_scalar",
];

/// Kinds of a chain's operations; their number is their code.
const LINKS: [&str; 4] = ["unary", "unary_grad", "binary", "dropout"];

const BINARIES: [Binary; 7] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Pow, Binary::Maximum, Binary::Minimum];

const COMPARISONS: [Compare; 6] =
    [Compare::Eq, Compare::Ne, Compare::Lt, Compare::Le, Compare::Gt, Compare::Ge];

const REDUCTIONS: [Reduction; 4] =
    [Reduction::Sum, Reduction::SumOfSquares, Reduction::Mean, Reduction::Amax];

/// The number of a function, and its constants; `None` for one that no source knows.
pub(super) fn unary(unary: &Unary) -> Option<(u32, [f64; 2])> {
    let constants = match *unary {
        Unary::LeakyRelu { slope } => [slope, 0.0],
        Unary::Elu { alpha } => [alpha, 0.0],
        Unary::Softplus { beta, threshold } => [beta, threshold],
        Unary::Hardtanh { min, max } => [min, max],
        Unary::AddScalar { value } | Unary::MulScalar { value } => [value, 0.0],
        Unary::PowScalar { exponent } => [exponent, 0.0],
        _ => [0.0; 2],
    };
    let code = UNARIES.iter().position(|name| *name == unary.name())?;
    Some((code as u32, constants))
}

/// What of a link does not depend on its place: kind, code and constants; `None` for a function that no source knows.
pub(super) fn link(op: LinkOp) -> Option<(u32, u32, [f64; 2])> {
    let of = |kind: u32, (code, constants)| (kind, code, constants);
    Some(match op {
        LinkOp::Unary(function) => of(0, unary(&function)?),
        LinkOp::UnaryGrad(function) => of(1, unary(&function)?),
        LinkOp::Binary(operation) => (2, binary(operation), [0.0; 2]),
        LinkOp::Dropout { p, site } => (3, site, dropout(p)),
    })
}

/// The factor of what dropout keeps, and below what a random number of 32 bits drops its element.
pub(super) fn dropout(p: f64) -> [f64; 2] {
    [if p < 1.0 { 1.0 / (1.0 - p) } else { 0.0 }, (p * 4_294_967_296.0).trunc()]
}

/// The number of an arithmetic operation.
pub(super) fn binary(binary: Binary) -> u32 {
    binary as u32
}

/// The number of a comparison.
pub(super) fn compare(compare: Compare) -> u32 {
    compare as u32
}

/// The number of a reduction.
pub(super) fn reduction(reduction: Reduction) -> u32 {
    reduction as u32
}

/// The number of a type.
pub(super) fn dtype(dtype: DType) -> u32 {
    dtype.code().into()
}

/// `arguments.cuh`: the records and numbers of this file in C++.
pub(super) fn header() -> String {
    let mut text =
        format!("// Written by src/backend/cuda/arguments.rs.\n#pragma once\ntypedef u64 Dims[{RANK}];\n");
    let mut numbers = |kind: &str, names: &mut dyn Iterator<Item = (String, u32)>| {
        for (name, code) in names {
            let _ = writeln!(text, "#define {kind}_{} {code}u", name.to_uppercase());
        }
    };
    numbers("UNARY", &mut UNARIES.iter().zip(0..).map(|(name, code)| ((*name).to_owned(), code)));
    numbers("BINARY", &mut BINARIES.iter().map(|&b| (b.name().to_owned(), binary(b))));
    numbers("COMPARE", &mut COMPARISONS.iter().map(|&c| (format!("{c:?}"), compare(c))));
    numbers("REDUCTION", &mut REDUCTIONS.iter().map(|&r| (format!("{r:?}"), reduction(r))));
    numbers("LINK", &mut LINKS.iter().zip(0..).map(|(name, code)| ((*name).to_owned(), code)));
    numbers("DTYPE", &mut DType::ALL.iter().map(|&d| (format!("{d:?}"), dtype(d))));
    let mut records = String::new();
    write_records(&mut records);
    // A name for three operands, as soon as C++ knows what an operand is.
    let views = "typedef View Views[3];\n";
    let behind = records.find("struct Pointwise").unwrap_or(0);
    records.insert_str(behind, views);
    let lists = format!(
        "typedef View Operands[{MOST_INPUTS}];\ntypedef Pointer Results[{MOST_OUTPUTS}];\ntypedef Link Links[{MOST_LINKS}];\n\
         #define MOST_INPUTS {MOST_INPUTS}\n#define MOST_VALUES {}\n",
        MOST_INPUTS + MOST_LINKS
    );
    let behind = records.find("struct Chain").unwrap_or(0);
    records.insert_str(behind, &lists);
    text + &records
}
