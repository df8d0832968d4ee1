//! One example call of each signature, for what is said of all of them at once.

use super::{Lowering, ops, value::Value};
use crate::{
    artifact::{Mode, NamedTensor, ReadLimits},
    graph::{Graph, Limits},
    tensor::{DType, HostTensor, Shape},
};

/// An example: the operation's name with its overload, and the graph that the call becomes, or why not.
pub(crate) struct Sample {
    pub(crate) name: &'static str,
    pub(crate) graph: Result<Graph, String>,
}

/// What stands for an argument.
enum Argument {
    /// A tensor of the type asked for.
    Tensor(Vec<usize>),
    /// Indices below 3.
    Indices(Vec<usize>),
    /// Indices of the second dimension in a list that begins with none.
    Index(Vec<usize>),
    Mask(Vec<usize>),
    Tensors(Vec<Vec<usize>>),
    Plain(Value),
    Ints(&'static [i64]),
    Statistic(usize),
    /// What the signature says.
    Default,
}

/// One example call of every signature with tensors of a type, in batches of `n`.
pub(crate) fn samples(dtype: DType, n: usize) -> Vec<Sample> {
    ops::all()
        .map(|entry| {
            let (name, arguments) = entry.signature.split_once('(').expect("a signature has arguments");
            Sample { name, graph: lowered(name, arguments.trim_end_matches(')'), dtype, n) }
        })
        .collect()
}

fn lowered(name: &str, arguments: &str, dtype: DType, n: usize) -> Result<Graph, String> {
    let statistic = |name: &str, value: f32| NamedTensor {
        name: name.into(),
        tensor: HostTensor::from_values([4].into(), &[value; 4]).expect("four values"),
        shared: false,
        aliases: Vec::new(),
        persistent: true,
    };
    let buffers = [statistic("running_mean", 0.0), statistic("running_var", 1.0)];
    let mut lowering = Lowering::new(&[], &buffers, Mode::Train, Limits::default(), &ReadLimits::default());
    let (plain, overload) = name.split_once('.').unwrap_or((name, ""));
    let mut inputs = 0;
    let mut tensor = |lowering: &mut Lowering<'_>, shape: Vec<usize>, dtype| {
        inputs += 1;
        lowering.input(inputs - 1, Shape::from(shape), dtype).map_err(|error| error.to_string())
    };
    let mut given = Vec::new();
    for argument in arguments.split(',').map(str::trim).filter(|text| !text.is_empty() && *text != "*") {
        let (argument, default) = argument.split_once('=').map_or((argument, None), |(a, d)| (a, Some(d)));
        let value = match self::argument(name, argument, default.is_some(), n) {
            Argument::Default => continue,
            Argument::Tensor(shape) => tensor(&mut lowering, shape, dtype)?,
            Argument::Indices(shape) => tensor(&mut lowering, shape, DType::I64)?,
            Argument::Index(shape) => {
                let indices = tensor(&mut lowering, shape, DType::I64)?;
                lowering.list(vec![Value::None, indices])
            }
            Argument::Mask(shape) => tensor(&mut lowering, shape, DType::Bool)?,
            Argument::Tensors(shapes) => {
                let items = shapes.into_iter().map(|shape| tensor(&mut lowering, shape, dtype));
                let items = items.collect::<Result<Vec<_>, _>>()?;
                lowering.list(items)
            }
            Argument::Plain(value) => value,
            Argument::Ints(ints) => lowering.list(ints.iter().map(|&n| Value::int(n)).collect()),
            Argument::Statistic(index) => lowering.buffer(index).map_err(|error| error.to_string())?,
        };
        given.push((Some(argument), value));
    }
    let result = super::call(&mut lowering, plain, overload, &given).map_err(|error| error.to_string())?;
    let outputs = match result {
        Value::List(items) | Value::Tuple(items) => lowering.items(items).to_vec(),
        one => vec![one],
    };
    let tensors: Vec<Value> =
        outputs.into_iter().filter(|value| matches!(value, Value::Tensor(_) | Value::Known(..))).collect();
    lowering.finish(&tensors).map(|ready| ready.graph).map_err(|error| error.to_string())
}

/// How many dimensions behind the batch an operation's first tensor has here.
fn base(name: &str, n: usize) -> Vec<usize> {
    let plain = name.split('.').next().unwrap_or(name);
    match plain {
        "mm" | "mv" | "addmm" | "addmv" | "t" | "numpy_T" | "matrix_H" | "linear" | "outer" => vec![n, 4],
        "dot" => vec![4],
        "eye" | "item" | "NumToTensor" | "ScalarImplicit" | "IntImplicit" | "FloatImplicit" => vec![],
        "scaled_dot_product_attention" => vec![n, 2, 3, 4],
        _ if plain.contains("2d")
            || plain.starts_with("pixel_")
            || ["im2col", "convolution", "_convolution", "_convolution_mode", "channel_shuffle"]
                .contains(&plain) =>
        {
            vec![n, 4, 6, 6]
        }
        _ => vec![n, 4, 6],
    }
}

fn argument(name: &str, argument: &str, optional: bool, n: usize) -> Argument {
    use Argument::{Default, Index, Indices, Ints, Mask, Plain, Statistic, Tensor, Tensors};
    let plain = name.split('.').next().unwrap_or(name);
    let shape = base(name, n);
    let int = |value| Plain(Value::int(value));
    let float = |value| Plain(Value::float(value));
    match (plain, argument) {
        ("embedding", "indices") => Indices(vec![n, 2]),
        ("embedding", "weight") => Tensor(vec![5, 4]),
        ("index_select", "index") => Indices(vec![2]),
        ("gather", "index") | ("take_along_dim", "indices") => Indices(vec![n, 2, 6]),
        ("index" | "_unsafe_index", "indices") => Index(vec![3]),
        ("item" | "NumToTensor" | "ScalarImplicit" | "IntImplicit" | "FloatImplicit", _) => int(3),
        ("floordiv", "self" | "other") => int(3),
        ("linear", "weight") => Tensor(vec![3, 4]),
        ("prelu", "weight") => Tensor(vec![4]),
        ("_prelu_kernel", "weight") => Tensor(vec![1, 4, 1]),
        ("matmul", "other") => Tensor(vec![6, 2]),
        ("mm", "mat2") | ("addmm", "mat2") => Tensor(vec![4, 3]),
        ("addmm", "self") => Tensor(vec![3]),
        ("addmm", "mat1") | ("addmv", "mat") => Tensor(vec![n, 4]),
        ("addmv", "self") => Tensor(vec![n]),
        ("mv" | "addmv" | "outer", "vec" | "vec2") => Tensor(vec![4]),
        ("outer", "self") => Tensor(vec![n]),
        ("dot", "tensor") => Tensor(vec![4]),
        ("bmm", "mat2") => Tensor(vec![n, 6, 2]),
        ("baddbmm", "self") => Tensor(vec![n, 4, 2]),
        ("baddbmm", "batch1") => Tensor(vec![n, 4, 6]),
        ("baddbmm", "batch2") => Tensor(vec![n, 6, 2]),
        ("conv1d", "weight") => Tensor(vec![3, 4, 3]),
        ("conv_transpose1d", "weight") => Tensor(vec![4, 3, 3]),
        ("conv_transpose2d", "weight") => Tensor(vec![4, 3, 3, 3]),
        ("conv2d" | "convolution" | "_convolution" | "_convolution_mode", "weight") => {
            Tensor(vec![3, 4, 3, 3])
        }
        ("layer_norm" | "native_layer_norm" | "rms_norm", "weight" | "bias") => Tensor(vec![6]),
        ("layer_norm" | "native_layer_norm" | "rms_norm", "normalized_shape") => Ints(&[6]),
        (_, "weight") if plain.contains("norm") => Tensor(vec![4]),
        ("lerp", "weight") => float(0.3),
        ("linear", "bias") => Tensor(vec![3]),
        (_, "bias") if plain.contains("conv") => Tensor(vec![3]),
        (_, "bias") => Tensor(vec![4]),
        (_, "running_mean") => Statistic(0),
        (_, "running_var") => Statistic(1),
        ("einsum", "tensors") => Tensors(vec![vec![n, 4, 6], vec![n, 6, 3]]),
        ("meshgrid", "tensors") => Tensors(vec![vec![2], vec![3]]),
        (_, "tensors") => Tensors(vec![shape.clone(), shape]),
        ("where", "condition") | ("masked_fill", "mask") => Mask(shape),
        ("masked_fill" | "fill" | "threshold", "value") => float(0.5),
        ("clamp" | "clip" | "clamp_min" | "clamp_max", "min" | "max") if name.contains("Tensor") => {
            Tensor(shape)
        }
        ("clamp" | "clip" | "clamp_min" | "clamp_max", "min") => float(-0.5),
        ("clamp" | "clip" | "clamp_min" | "clamp_max", "max") => float(0.5),
        ("select_scatter", "src") => Tensor(vec![n, 6]),
        ("diagonal_scatter", "src") => Tensor(vec![6, n.min(4)]),
        ("pow", "exponent") => float(2.0),
        ("expand", "size") => Ints(&[-1, -1, 6]),
        ("view" | "_unsafe_view" | "reshape", _) if argument != "self" => Ints(&[-1, 24]),
        ("unflatten", "sizes") => Ints(&[2, 2]),
        ("permute", "dims") => Ints(&[0, 2, 1]),
        ("movedim", "source") => Ints(&[1]),
        ("movedim", "destination") => Ints(&[2]),
        ("split_with_sizes", "split_sizes") => Ints(&[1, 3]),
        ("roll", "shifts" | "dims") => Ints(&[1]),
        ("repeat" | "tile", _) if argument != "self" => Ints(&[1, 2, 1]),
        ("pad" | "constant_pad_nd", "pad") => Ints(&[1, 1]),
        ("reflection_pad1d" | "replication_pad1d", "padding") => Ints(&[1, 1]),
        ("reflection_pad2d" | "replication_pad2d", "padding") => Ints(&[1, 1, 1, 1]),
        ("_convolution_mode", "padding") => Plain(Value::Str("same".into())),
        ("flip", "dims") => Ints(&[1]),
        ("unfold", "step" | "dimension") => int(1),
        ("unfold", "size") => int(2),
        ("convolution" | "_convolution" | "_convolution_mode" | "im2col", "stride" | "dilation") => {
            Ints(&[1, 1])
        }
        ("convolution" | "_convolution" | "im2col", "padding" | "output_padding") => Ints(&[1, 1]),
        ("arange", "end") => int(4),
        ("arange", "start") => int(0),
        ("arange", "step") => int(1),
        ("eye", "n") => int(3),
        ("scalar_tensor", "s") => float(1.0),
        ("native_group_norm", "N") => int(n as i64),
        ("native_group_norm", "C") => int(4),
        ("native_group_norm", "HxW") => int(6),
        ("zeros" | "ones" | "full" | "new_zeros" | "new_ones" | "new_full", "size") => Ints(&[2, 3]),
        (_, "fill_value") => float(1.5),
        (_, "groups") if optional => Default,
        (_, "groups") if plain.contains("conv") => int(1),
        ("split_with_sizes", "dim") => int(1),
        (_, "dtype") if !optional => Plain(Value::DType(DType::F32)),
        (_, "layout" | "device" | "pin_memory") if !optional => Plain(Value::Placement),
        (_, "upscale_factor" | "downscale_factor" | "groups" | "num_groups" | "group" | "chunks") => int(2),
        (_, "transposed" | "half_to_float") => Plain(Value::bool(false)),
        (_, "train" | "training" | "use_input_stats") => Plain(Value::bool(true)),
        (_, "momentum") => float(0.1),
        (_, "eps") if !optional => float(1e-5),
        (_, "p") if !optional => float(0.5),
        (_, "align_corners") => Plain(Value::bool(false)),
        (_, "scale_factors") => Plain(Value::None),
        (_, "output_size") if plain.ends_with("1d") && !optional => Ints(&[5]),
        (_, "output_size") if !optional => Ints(&[5, 4]),
        (_, "kernel_size") if plain.ends_with("1d") => Ints(&[2]),
        (_, "kernel_size") => Ints(&[2, 2]),
        (_, "equation") => Plain(Value::Str("bij,bjk->bik".into())),
        (_, "indexing") => Plain(Value::Str("ij".into())),
        (_, "bound" | "threshold") => float(0.1),
        (_, _) if optional => Default,
        (
            _,
            "self" | "input" | "query" | "key" | "value" | "other" | "end" | "tensor1" | "tensor2" | "src"
            | "exponent",
        ) => Tensor(shape),
        (_, "dim" | "dim0" | "axis0" | "start" | "split_size" | "repeats" | "length") => int(1),
        (_, "dim1" | "axis1") => int(2),
        (_, "sizes" | "size") => Ints(&[2, 2]),
        (_, _) => int(0),
    }
}
