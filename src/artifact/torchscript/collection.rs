//! Lists and dictionaries of the language.

use crate::artifact::{
    Problem,
    aten::{Lowering, Scalar, SequenceRef, Value},
};

/// Calls a function of lists or dictionaries; `None` where the name, or the name with these arguments, is none.
pub(super) fn call(
    lowering: &mut Lowering<'_>,
    name: &str,
    values: &[&Value],
    max_items: usize,
) -> Option<Result<Value, Problem>> {
    match values {
        [Value::Dict(pairs), rest @ ..] => of_dict(lowering, name, *pairs, rest, max_items),
        [list @ (Value::List(items) | Value::Tuple(items)), rest @ ..] => {
            of_list(lowering, name, list, *items, rest, max_items)
        }
        _ => None,
    }
}

fn too_long() -> Problem {
    Problem::argument("the list grows past the limit")
}

/// Functions that a tuple has too change nothing.
fn of_list(
    lowering: &mut Lowering<'_>,
    name: &str,
    list: &Value,
    items: SequenceRef,
    rest: &[&Value],
    max_items: usize,
) -> Option<Result<Value, Problem>> {
    let changes =
        matches!(name, "append" | "_set_item" | "add_" | "extend" | "insert" | "pop" | "reverse" | "clear");
    if changes && matches!(list, Value::Tuple(_)) {
        return None;
    }
    let len = lowering.items(items).len();
    lowering.spend(1);
    Some(match (name, rest) {
        ("len", []) => Ok(Value::int(len as i64)),
        ("append", [_]) if len >= max_items => Err(too_long()),
        ("append", [value]) => {
            lowering.items_mut(items).push((*value).clone());
            Ok(list.clone())
        }
        ("_set_item", [index, value]) => place_of(lowering, items, index).map(|at| {
            lowering.items_mut(items)[at] = (*value).clone();
            list.clone()
        }),
        // `l += m` is the same list, longer; whoever holds it sees that.
        ("add_" | "extend", [Value::List(more)]) => {
            let more = lowering.items(*more).to_vec();
            lowering.spend(more.len());
            if len + more.len() > max_items {
                return Some(Err(too_long()));
            }
            lowering.items_mut(items).extend(more);
            Ok(if name == "add_" { list.clone() } else { Value::None })
        }
        ("add", [Value::List(more)]) => {
            let both: Vec<Value> =
                lowering.items(items).iter().chain(lowering.items(*more)).cloned().collect();
            if both.len() > max_items {
                return Some(Err(too_long()));
            }
            Ok(lowering.list(both))
        }
        ("insert", [_, _]) if len >= max_items => Err(too_long()),
        ("insert", [index, value]) => match index.scalar().and_then(Scalar::to_i64) {
            Some(index) => {
                let at = if index < 0 { index.saturating_add(len as i64).max(0) } else { index };
                let at = usize::try_from(at).unwrap_or(len).min(len);
                lowering.spend(len);
                lowering.items_mut(items).insert(at, (*value).clone());
                Ok(Value::None)
            }
            None => Err(Problem::argument("an index must be an int")),
        },
        ("pop", [] | [_]) => {
            let last = Value::int(-1);
            place_of(lowering, items, rest.first().copied().unwrap_or(&last)).map(|at| {
                lowering.spend(len);
                lowering.items_mut(items).remove(at)
            })
        }
        ("reverse", []) => {
            lowering.spend(len);
            lowering.items_mut(items).reverse();
            Ok(Value::None)
        }
        ("clear", []) => {
            lowering.items_mut(items).clear();
            Ok(Value::None)
        }
        ("copy" | "list", []) => {
            let items = lowering.items(items).to_vec();
            Ok(lowering.list(items))
        }
        ("slice", bounds) => slice(lowering, items, bounds).map(|part| match list {
            Value::Tuple(_) => lowering.tuple(part),
            _ => lowering.list(part),
        }),
        _ => return None,
    })
}

/// A dictionary is its keys and values in turn, in the order they came in.
fn of_dict(
    lowering: &mut Lowering<'_>,
    name: &str,
    pairs: SequenceRef,
    rest: &[&Value],
    max_items: usize,
) -> Option<Result<Value, Problem>> {
    let all = lowering.items(pairs).to_vec();
    lowering.spend(all.len() + 1);
    let found = |key: &Value| all.chunks_exact(2).position(|pair| pair[0] == *key);
    let absent = || Problem::argument("the dictionary has no such key");
    Some(match (name, rest) {
        ("len", []) => Ok(Value::int((all.len() / 2) as i64)),
        ("__getitem__", [key]) => found(key).map(|at| all[2 * at + 1].clone()).ok_or_else(absent),
        ("__contains__", [key]) => Ok(Value::bool(found(key).is_some())),
        ("get", [key, otherwise @ ..]) if otherwise.len() < 2 => Ok(match (found(key), otherwise) {
            (Some(at), _) => all[2 * at + 1].clone(),
            (None, [otherwise]) => (*otherwise).clone(),
            (None, _) => Value::None,
        }),
        ("_set_item", [key, value]) => {
            match found(key) {
                Some(at) => lowering.items_mut(pairs)[2 * at + 1] = (*value).clone(),
                None if all.len() >= max_items => return Some(Err(too_long())),
                None => lowering.items_mut(pairs).extend([(*key).clone(), (*value).clone()]),
            }
            Ok(Value::None)
        }
        ("keys", []) => Ok(lowering.list(all.into_iter().step_by(2).collect())),
        ("values", []) => Ok(lowering.list(all.into_iter().skip(1).step_by(2).collect())),
        ("items", []) => {
            let pairs = all.chunks_exact(2).map(|pair| lowering.tuple(pair.to_vec())).collect();
            Ok(lowering.list(pairs))
        }
        ("copy", []) => Ok(Value::Dict(lowering.sequence(all))),
        _ => return None,
    })
}

/// An element of a list, tuple or dictionary.
pub(super) fn item(lowering: &mut Lowering<'_>, base: &Value, index: &Value) -> Result<Value, Problem> {
    match base {
        Value::List(items) | Value::Tuple(items) => {
            place_of(lowering, *items, index).map(|at| lowering.items(*items)[at].clone())
        }
        Value::Dict(pairs) => of_dict(lowering, "__getitem__", *pairs, &[index], 0)
            .unwrap_or_else(|| Err(Problem::unsupported("this index"))),
        _ => Err(Problem::unsupported(format!("indexing {}", base.kind()))),
    }
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

/// `items[start:end:step]`, as Python has it.
fn slice(lowering: &mut Lowering<'_>, items: SequenceRef, bounds: &[&Value]) -> Result<Vec<Value>, Problem> {
    let len = i64::try_from(lowering.items(items).len()).unwrap_or(i64::MAX);
    let bound = |i: usize| match bounds.get(i) {
        None | Some(Value::None) => Ok(None),
        Some(value) => match value.scalar() {
            Some(Scalar::Int(n)) => Ok(Some(n)),
            _ => Err(Problem::argument("a slice takes ints")),
        },
    };
    let step = bound(2)?.unwrap_or(1);
    if step == 0 {
        return Err(Problem::argument("a slice's step is not 0"));
    }
    // Backwards the places in front of the first and behind the last are one further down.
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let place = |n: i64| if n < 0 { n.saturating_add(len).max(low) } else { n.min(high) };
    let (first, last) = if step > 0 { (low, high) } else { (high, low) };
    let mut at = bound(0)?.map_or(first, place);
    let end = bound(1)?.map_or(last, place);
    let mut part = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        if let Some(item) = usize::try_from(at).ok().and_then(|at| lowering.items(items).get(at)) {
            part.push(item.clone());
        }
        at = at.saturating_add(step);
    }
    lowering.spend(part.len());
    Ok(part)
}
