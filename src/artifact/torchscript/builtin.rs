//! Functions of the language itself: lists, texts, None and conversions.

use crate::{
    artifact::{
        Problem,
        aten::{Given, Known, Lowering, Scalar, SequenceRef, Value, dtype_of_code},
        limits::MAX_TEXT_BYTES,
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
    "device",
    "dtype",
    "format",
    "is_autocast_enabled",
    "is_cpu",
    "is_cuda",
    "is_floating_point",
    "is_grad_enabled",
    "is_nested",
    "is_scripting",
    "is_tracing",
    "len",
    "layout",
    "list",
    "max",
    "min",
    "requires_grad",
    "unchecked_unwrap_optional",
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
        ("str", [value]) => Ok(Value::Str(display(lowering, value).into())),
        ("len", [Value::List(items) | Value::Tuple(items)]) => {
            Ok(Value::int(lowering.items(*items).len() as i64))
        }
        ("len", [Value::Str(text)]) => Ok(Value::int(text.chars().count() as i64)),
        ("len", [tensor]) => match lowering.info(tensor) {
            Some((shape, _)) if shape.rank() > 0 => Ok(Value::int(shape[0] as i64)),
            _ => Err(Problem::argument("it has no length")),
        },
        ("__is__", [a, b]) => Ok(Value::bool((**a == Value::None) == (**b == Value::None) && *a == *b)),
        ("__isnot__", [a, b]) => Ok(Value::bool(*a != *b)),
        ("__not__", [value]) => convert(value, |scalar| Some(Scalar::Bool(scalar.to_f64() == 0.0))),
        ("__and__", [a, b]) if a.scalar().is_some() => truth(a, b, |a, b| a && b),
        ("__or__", [a, b]) if a.scalar().is_some() => truth(a, b, |a, b| a || b),
        ("__getitem__", [base, index]) => item(lowering, base, index),
        ("__contains__", [Value::List(items), value]) => {
            lowering.spend(lowering.items(*items).len());
            Ok(Value::bool(lowering.items(*items).contains(value)))
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
        ("append", [list @ Value::List(items), value]) => {
            let (items, value) = (*items, (*value).clone());
            if lowering.items(items).len() >= max_items {
                return Some(Err(Problem::argument("the list grows past the limit")));
            }
            let list = (*list).clone();
            lowering.spend(1);
            lowering.items_mut(items).push(value);
            Ok(list)
        }
        ("copy", [Value::List(items)]) => {
            let items = lowering.items(*items).to_vec();
            Ok(lowering.list(items))
        }
        ("_set_item", [list @ Value::List(items), index, value]) => {
            let (list, items, value) = ((*list).clone(), *items, (*value).clone());
            place_of(lowering, items, index).map(|at| {
                lowering.items_mut(items)[at] = value;
                list
            })
        }
        ("sum", [Value::List(items)]) => sum(lowering, *items),
        ("list", [Value::List(items) | Value::Tuple(items)]) => {
            let items = lowering.items(*items).to_vec();
            Ok(lowering.list(items))
        }
        ("add" | "add_", [Value::List(a), Value::List(b)]) => {
            let items: Vec<Value> = lowering.items(*a).iter().chain(lowering.items(*b)).cloned().collect();
            if items.len() > max_items {
                return Some(Err(Problem::argument("the list grows past the limit")));
            }
            Ok(lowering.list(items))
        }
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
        ("slice", [Value::List(items), bounds @ ..]) => slice(lowering, *items, bounds),
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
        ("format", [Value::Str(pattern), values @ ..]) => {
            let mut text = pattern.to_string();
            // However many values there are and however long they print, the text stays short.
            for value in values {
                if text.len() > MAX_TEXT_BYTES || !text.contains("{}") {
                    break;
                }
                text = text.replacen("{}", &display(lowering, value), 1);
            }
            Ok(Value::Str(text.chars().take(1000).collect::<String>().into()))
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

/// An element of a list or tuple.
pub(super) fn item(lowering: &Lowering<'_>, base: &Value, index: &Value) -> Result<Value, Problem> {
    let (Value::List(items) | Value::Tuple(items)) = base else {
        return Err(Problem::unsupported(format!("indexing {}", base.kind())));
    };
    place_of(lowering, *items, index).map(|at| lowering.items(*items)[at].clone())
}

/// Which element an index means.
fn place_of(lowering: &Lowering<'_>, items: SequenceRef, index: &Value) -> Result<usize, Problem> {
    let items = lowering.items(items);
    let Some(index) = index.scalar().and_then(Scalar::to_i64) else {
        return Err(Problem::argument("an index must be an int"));
    };
    let at = if index < 0 { index.checked_add(items.len() as i64) } else { Some(index) };
    at.and_then(|at| usize::try_from(at).ok())
        .filter(|&at| at < items.len())
        .ok_or_else(|| Problem::argument(format!("index {index} is out of range for {} items", items.len())))
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
    let Value::List(items) = value else { return None };
    let items = lowering.items(*items).to_vec();
    lowering.spend(items.len());
    let scalars = items.iter().map(Value::scalar).collect::<Option<Vec<_>>>()?;
    let own = if scalars.iter().any(|scalar| scalar.to_i64().is_none()) {
        DType::F32
    } else {
        scalars.first().map_or(DType::F32, |scalar| scalar.dtype())
    };
    let dtype = dtype.unwrap_or(own);
    let made = if dtype == DType::I64 {
        let values: Vec<i64> =
            scalars.iter().map(|scalar| scalar.cast(dtype).to_i64().unwrap_or(0)).collect();
        HostTensor::from_values([values.len()].into(), &values)
    } else if dtype == DType::F32 {
        let values: Vec<f32> = scalars.iter().map(|scalar| scalar.to_f64() as f32).collect();
        HostTensor::from_values([values.len()].into(), &values)
    } else {
        return Some(Err(Problem::unsupported(format!("a list as a tensor of {}", dtype.name()))));
    };
    Some(match made {
        Ok(made) => lowering.constant("tensor", &made).map_err(|error| Problem::argument(error.to_string())),
        Err(error) => Err(Problem::argument(error.to_string())),
    })
}

fn slice(lowering: &mut Lowering<'_>, items: SequenceRef, bounds: &[&Value]) -> Result<Value, Problem> {
    let len = lowering.items(items).len();
    let bound = |i: usize, otherwise: usize| match bounds.get(i).map(|value| (value.scalar(), value)) {
        None | Some((None, Value::None)) => Ok(otherwise),
        Some((Some(Scalar::Int(n)), _)) => {
            let n = if n < 0 { n.saturating_add(len as i64) } else { n };
            Ok(usize::try_from(n.max(0)).unwrap_or(0).min(len))
        }
        Some(_) => Err(Problem::argument("a slice takes ints")),
    };
    let (start, end) = (bound(0, 0)?, bound(1, len)?);
    if bounds.get(2).is_some_and(|step| step.scalar() != Some(Scalar::Int(1))) {
        return Err(Problem::unsupported("slicing a list with a step"));
    }
    let part = lowering.items(items).get(start..end.max(start)).unwrap_or(&[]).to_vec();
    Ok(lowering.list(part))
}

/// A value as text for messages; long lists are cut.
pub(super) fn display(lowering: &Lowering<'_>, value: &Value) -> String {
    match value {
        Value::Number(scalar) | Value::Known(Known { scalar, .. }) => match scalar {
            Scalar::Bool(value) => value.to_string(),
            Scalar::Int(value) => value.to_string(),
            Scalar::Float(value) => value.to_string(),
        },
        Value::Str(text) => text.chars().take(1000).collect(),
        Value::List(items) | Value::Tuple(items) => {
            let parts = lowering.items(*items).iter().take(16).map(|item| match item {
                Value::List(_) | Value::Tuple(_) => "[…]".to_owned(),
                item => display(lowering, item),
            });
            format!("[{}]", parts.collect::<Vec<_>>().join(", "))
        }
        other => other.kind().to_owned(),
    }
}
