//! Functions of the language itself: lists, texts, None and conversions.

use super::{collection, text};
use crate::{
    artifact::{
        Problem,
        aten::{self, Given, Lowering, Scalar, SequenceRef, Value, dtype_of_code},
    },
    tensor::{DType, HostTensor},
};

const NAMES: &[&str] = &[
    "Bool",
    "Float",
    "Int",
    "__and__",
    "__contains__",
    "__derive_index",
    "__getitem__",
    "__is__",
    "__isnot__",
    "__not__",
    "__or__",
    "__range_length",
    "_set_item",
    "append",
    "clear",
    "device",
    "dtype",
    "endswith",
    "extend",
    "find",
    "format",
    "get",
    "insert",
    "is_autocast_enabled",
    "is_cpu",
    "is_cuda",
    "is_floating_point",
    "is_grad_enabled",
    "is_nested",
    "is_scripting",
    "is_tracing",
    "items",
    "keys",
    "layout",
    "len",
    "list",
    "max",
    "min",
    "percentFormat",
    "pop",
    "requires_grad",
    "reverse",
    "startswith",
    "unchecked_unwrap_optional",
    "values",
    "warn",
];

/// Whether `torch.name` is of the language and no tensor operation.
pub(super) fn is_builtin(name: &str) -> bool {
    NAMES.contains(&name) && !matches!(name, "max" | "min")
}

/// Calls a function of the language; `None` where the name, or the name with these arguments, is none.
pub(super) fn call(
    lowering: &mut Lowering<'_>,
    name: &str,
    given: &[Given<'_>],
    max_items: usize,
) -> Option<Result<Value, Problem>> {
    let values: Vec<&Value> = given.iter().map(|(_, value)| value).collect();
    if let Some(result) = text::call(lowering, name, &values) {
        return Some(result);
    }
    if let Some(result) = collection::call(lowering, name, &values, max_items) {
        return Some(result);
    }
    Some(match (name, &values[..]) {
        ("int" | "Int", [value]) => convert(value, |scalar| match scalar {
            Scalar::Float(value) if value.abs() < 9e18 => Some(Scalar::Int(value as i64)),
            Scalar::Float(_) => None,
            other => other.to_i64().map(Scalar::Int),
        }),
        ("float" | "Float", [value]) => match value {
            Value::Str(text) => {
                let number = text.parse().map_err(|_| Problem::argument(format!("{text:?} is no float")));
                number.map(Value::float)
            }
            value => convert(value, |scalar| Some(Scalar::Float(scalar.to_f64()))),
        },
        ("bool" | "Bool", [value]) => convert(value, |scalar| Some(Scalar::Bool(scalar.to_f64() != 0.0))),
        ("len", [tensor]) => match lowering.info(tensor) {
            Some((shape, _)) if shape.rank() > 0 => Ok(Value::int(shape[0] as i64)),
            _ => Err(Problem::argument("it has no length")),
        },
        ("__is__", [a, b]) => Ok(Value::bool((**a == Value::None) == (**b == Value::None) && *a == *b)),
        ("__isnot__", [a, b]) => Ok(Value::bool(*a != *b)),
        ("__not__", [value]) => convert(value, |scalar| Some(Scalar::Bool(scalar.to_f64() == 0.0))),
        ("__and__", [a, b]) if a.scalar().is_some() => truth(a, b, |a, b| a && b),
        ("__or__", [a, b]) if a.scalar().is_some() => truth(a, b, |a, b| a || b),
        ("__getitem__", [base, index]) => collection::item(lowering, base, index),
        ("__contains__", [Value::List(items), value]) => {
            lowering.spend(lowering.items(*items).len());
            let mut left = MAX_COMPARISONS;
            let mut items = lowering.items(*items).iter();
            Ok(Value::bool(items.any(|item| equal(lowering, item, value, 8, &mut left))))
        }
        ("__derive_index" | "__range_length", [a, b, c]) => {
            let ints = [*a, *b, *c].map(|value| value.scalar().and_then(Scalar::to_i64));
            let [Some(a), Some(b), Some(c)] = ints else {
                return Some(Err(Problem::argument("it takes ints")));
            };
            let result = if name == "__derive_index" { derive_index(a, b, c) } else { range_length(a, b, c) };
            result.map(Value::int).ok_or_else(|| Problem::argument("the range overflows or has a step of 0"))
        }
        ("any" | "all", [Value::List(items)]) => {
            let items = lowering.items(*items).to_vec();
            lowering.spend(items.len());
            let holds = |value: &Value| value.scalar().is_some_and(|scalar| scalar.to_f64() != 0.0);
            Ok(Value::bool(if name == "any" { items.iter().any(holds) } else { items.iter().all(holds) }))
        }
        ("sum", [Value::List(items)]) => sum(lowering, *items),
        ("mul", [Value::List(list), count]) | ("mul", [count, Value::List(list)]) => {
            let items = lowering.items(*list);
            let count = count.scalar().and_then(Scalar::to_i64).and_then(|n| usize::try_from(n.max(0)).ok());
            match count.filter(|n| n.saturating_mul(items.len()) <= 65_536) {
                Some(count) => {
                    let items = items.iter().cycle().take(count * items.len()).cloned().collect();
                    Ok(lowering.list(items))
                }
                None => Err(Problem::argument("the list grows past the limit")),
            }
        }
        ("eq" | "ne", [a, b]) if !comparable(a) || !comparable(b) => {
            let mut left = MAX_COMPARISONS;
            let same = equal(lowering, a, b, 8, &mut left);
            if left == 0 {
                let problem = Problem::argument(format!("more than {MAX_COMPARISONS} elements are compared"));
                return Some(Err(problem));
            }
            Ok(Value::bool(same == (name == "eq")))
        }
        ("max" | "min", [a, b]) if a.scalar().is_some() && b.scalar().is_some() => {
            extreme(&[(*a).clone(), (*b).clone()], name == "max")
        }
        ("max" | "min", [Value::List(items)]) => {
            let items = lowering.items(*items).to_vec();
            lowering.spend(items.len());
            extreme(&items, name == "max")
        }
        ("warn", _) => Ok(Value::None),
        ("device" | "layout", _) => Ok(Value::Placement),
        ("dtype", [value]) => match lowering.info(value) {
            Some((_, dtype)) => Ok(Value::DType(dtype)),
            None => Err(Problem::argument("it takes a tensor")),
        },
        ("is_floating_point", [value]) => match lowering.info(value) {
            Some((_, dtype)) => Ok(Value::bool(dtype.is_floating_point())),
            None => Err(Problem::argument("it takes a tensor")),
        },
        ("requires_grad", [_]) | ("is_grad_enabled" | "is_scripting", []) => Ok(Value::bool(true)),
        // What runs here is one device's plain tensors, whatever the program was made on.
        ("is_nested" | "is_cuda" | "is_mkldnn" | "is_quantized" | "is_sparse", [_])
        | ("is_autocast_enabled" | "is_tracing", _) => Ok(Value::bool(false)),
        ("type", [Value::Placement]) => Ok(Value::Str("cpu".into())),
        ("is_cpu", [_]) => Ok(Value::bool(true)),
        ("tensor", [value, ..]) => return tensor(lowering, value, given),
        ("unchecked_unwrap_optional", [value]) => Ok((*value).clone()),
        _ => return None,
    })
}

/// The index-th number of a range.
fn derive_index(index: i64, start: i64, step: i64) -> Option<i64> {
    index.checked_mul(step)?.checked_add(start)
}

/// How many numbers a range has.
fn range_length(low: i64, high: i64, step: i64) -> Option<i64> {
    let (low, high, step) = (i128::from(low), i128::from(high), i128::from(step));
    let length = match step {
        0 => return None,
        1.. => (high - low + step - 1) / step,
        _ => (low - high - step - 1) / -step,
    };
    i64::try_from(length.max(0)).ok()
}

fn convert(value: &Value, f: impl Fn(Scalar) -> Option<Scalar>) -> Result<Value, Problem> {
    match value.scalar() {
        Some(scalar) => match f(scalar) {
            Some(result) => Ok(Value::Number(result)),
            None => Err(Problem::argument("the number does not fit")),
        },
        None if matches!(value, Value::Tensor(_)) => {
            Err(Problem::unsupported("reading a tensor's data as a number"))
        }
        None => Err(Problem::argument(format!("{} is no number", value.kind()))),
    }
}

fn truth(a: &Value, b: &Value, f: fn(bool, bool) -> bool) -> Result<Value, Problem> {
    match (a.scalar(), b.scalar()) {
        (Some(a), Some(b)) => Ok(Value::bool(f(a.to_f64() != 0.0, b.to_f64() != 0.0))),
        _ => Err(Problem::argument("it takes two bools")),
    }
}

/// Whether the table of tensor operations compares such a value.
fn comparable(value: &Value) -> bool {
    matches!(value, Value::Tensor(_) | Value::Known(..) | Value::Number(_))
}

/// The most comparisons that one `==` may take. Lists of lists of one list would take any number.
const MAX_COMPARISONS: u32 = 100_000;

/// Whether two values are equal; counts `left` down to 0, where it gives up.
fn equal(lowering: &Lowering<'_>, a: &Value, b: &Value, depth: usize, left: &mut u32) -> bool {
    *left = left.saturating_sub(1);
    match (a, b) {
        _ if *left == 0 => false,
        (Value::List(x) | Value::Tuple(x), Value::List(y) | Value::Tuple(y)) => {
            let (x, y) = (lowering.items(*x), lowering.items(*y));
            depth > 0
                && x.len() == y.len()
                && x.len() <= 1000
                && x.iter().zip(y).all(|(a, b)| equal(lowering, a, b, depth - 1, left))
        }
        (Value::Dict(x), Value::Dict(y)) => {
            let (x, y) = (lowering.items(*x), lowering.items(*y));
            depth > 0
                && x.len() == y.len()
                && x.len() <= 1000
                && x.chunks_exact(2).all(|pair| {
                    let other = y.chunks_exact(2).find(|other| other[0] == pair[0]);
                    other.is_some_and(|other| equal(lowering, &pair[1], &other[1], depth - 1, left))
                })
        }
        // A type is an int in scripts: `x.dtype == torch.float32` is written `eq(dtype(x), 6)`.
        (Value::DType(dtype), Value::Number(Scalar::Int(code)))
        | (Value::Number(Scalar::Int(code)), Value::DType(dtype)) => dtype_of_code(*code) == Some(*dtype),
        (Value::Number(a), Value::Number(b)) => a.to_f64() == b.to_f64(),
        _ => a == b,
    }
}

fn extreme(values: &[Value], largest: bool) -> Result<Value, Problem> {
    let mut best: Option<Scalar> = None;
    for value in values {
        let Some(scalar) = value.scalar() else { return Err(Problem::argument("it takes numbers")) };
        let better = best.is_none_or(|best| {
            if largest { scalar.to_f64() > best.to_f64() } else { scalar.to_f64() < best.to_f64() }
        });
        if better {
            best = Some(scalar);
        }
    }
    best.map(Value::Number).ok_or_else(|| Problem::argument("it takes at least one number"))
}

fn sum(lowering: &mut Lowering<'_>, items: SequenceRef) -> Result<Value, Problem> {
    let scalars = lowering.items(items).iter().map(Value::scalar).collect::<Option<Vec<_>>>();
    let scalars = scalars.ok_or_else(|| Problem::argument("it takes a list of numbers"))?;
    lowering.spend(scalars.len());
    let ints = scalars.iter().map(|scalar| scalar.to_i64()).collect::<Option<Vec<_>>>();
    match ints {
        Some(ints) => {
            let sum = ints.iter().try_fold(0i64, |sum, &n| sum.checked_add(n));
            sum.map(Value::int).ok_or_else(|| Problem::argument("the sum overflows"))
        }
        None => Ok(Value::float(scalars.iter().map(|scalar| scalar.to_f64()).sum())),
    }
}

/// `torch.tensor` of a number, or of a flat list of them.
fn tensor(lowering: &mut Lowering<'_>, value: &Value, given: &[Given<'_>]) -> Option<Result<Value, Problem>> {
    let named = given.iter().find(|(name, _)| *name == Some("dtype")).map(|(_, value)| value);
    let dtype = match named {
        Some(Value::DType(dtype)) => Some(*dtype),
        Some(Value::Number(Scalar::Int(code))) => dtype_of_code(*code),
        _ => None,
    };
    if let Some(scalar) = value.scalar() {
        let dtype = dtype.unwrap_or(scalar.dtype());
        return Some(Ok(Value::known(scalar, dtype)));
    }
    let mut shape = Vec::new();
    let mut scalars = Vec::new();
    if !flatten(lowering, value, 0, &mut shape, &mut scalars) {
        return Some(Err(Problem::argument("it takes numbers, or lists of them that are equally long")));
    }
    lowering.spend(scalars.len());
    let own = match scalars.first() {
        Some(first) if scalars.iter().all(|scalar| scalar.to_i64().is_some()) => first.dtype(),
        _ => DType::F32,
    };
    let dtype = dtype.unwrap_or(own);
    let made = if dtype.is_floating_point() {
        let values: Vec<f64> = scalars.iter().map(|scalar| scalar.to_f64()).collect();
        HostTensor::from_values(shape.into(), &values)
    } else {
        let values: Vec<i64> =
            scalars.iter().map(|scalar| scalar.cast(dtype).to_i64().unwrap_or(0)).collect();
        HostTensor::from_values(shape.into(), &values)
    };
    let made = made.map_err(|error| Problem::argument(error.to_string())).and_then(|made| {
        let made = lowering.constant("tensor", &made);
        made.map_err(|error| Problem::argument(error.to_string()))
    });
    Some(
        made.and_then(|made| {
            aten::call(lowering, "to", "dtype", &[(None, made), (None, Value::DType(dtype))])
        }),
    )
}

/// The shape and the numbers of lists in lists; `false` where they are no tensor.
fn flatten(
    lowering: &Lowering<'_>,
    value: &Value,
    depth: usize,
    shape: &mut Vec<usize>,
    scalars: &mut Vec<Scalar>,
) -> bool {
    let Value::List(items) = value else {
        let scalar = value.scalar();
        scalars.extend(scalar);
        return scalar.is_some() && depth == shape.len();
    };
    let items = lowering.items(*items);
    // The first list of each depth says how long all are.
    if depth == shape.len() && scalars.is_empty() && depth < MAX_RANK {
        shape.push(items.len());
    }
    depth < shape.len()
        && shape[depth] == items.len()
        && scalars.len() <= MAX_SCALARS
        && items.iter().all(|item| flatten(lowering, item, depth + 1, shape, scalars))
}

/// The most dimensions and numbers of a tensor that a script writes out.
const MAX_RANK: usize = 8;
const MAX_SCALARS: usize = 1 << 16;
