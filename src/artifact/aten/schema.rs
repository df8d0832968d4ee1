//! Signatures of operations: argument names and defaults, so that both formats' arguments bind alike.
//!
//! A signature is written as PyTorch documents it, `"add(self, other, *, alpha=1)"`; an overload's name may
//! stand after a dot. Arguments after `*` are given by name only.

use std::{collections::HashMap, sync::LazyLock};

use super::{Call, Outcome, ops, value::Value};
use crate::artifact::Problem;

/// One operation: its signature and how it becomes graph operations.
#[derive(Clone, Copy)]
pub(super) struct Entry {
    pub(super) signature: &'static str,
    pub(super) lower: fn(&mut Call<'_, '_>) -> Outcome,
}

/// A default of an argument.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Default {
    Required,
    None,
    Bool(bool),
    Int(i64),
    Float(f64),
    Str(&'static str),
    Empty,
}

/// A parsed signature.
pub(super) struct Schema {
    overload: &'static str,
    arguments: Vec<(&'static str, Default)>,
    positional: usize,
    pub(super) lower: fn(&mut Call<'_, '_>) -> Outcome,
}

/// An argument as it is given: by place, or by name.
pub(crate) type Given<'v> = (Option<&'v str>, Value);

/// Arguments in a signature's order: the name, what is given, the default.
pub(super) type Bound = Vec<(&'static str, Option<Value>, Default)>;

static TABLE: LazyLock<HashMap<&'static str, Vec<Schema>>> = LazyLock::new(|| {
    let mut table: HashMap<_, Vec<_>> = HashMap::new();
    for entry in ops::all() {
        let (name, schema) = parse(entry);
        table.entry(name).or_default().push(schema);
    }
    table
});

fn parse(entry: &Entry) -> (&'static str, Schema) {
    let (head, tail) = entry.signature.split_once('(').expect("signatures are written as name(arguments)");
    let (name, overload) = head.split_once('.').unwrap_or((head, ""));
    let mut schema = Schema { overload, arguments: Vec::new(), positional: usize::MAX, lower: entry.lower };
    for argument in tail.trim_end_matches(')').split(',').map(str::trim).filter(|text| !text.is_empty()) {
        if argument == "*" {
            schema.positional = schema.arguments.len();
            continue;
        }
        let (name, default) = match argument.split_once('=') {
            None => (argument, Default::Required),
            Some((name, text)) => (name, default(text)),
        };
        schema.arguments.push((name, default));
    }
    schema.positional = schema.positional.min(schema.arguments.len());
    (name, schema)
}

fn default(text: &'static str) -> Default {
    match text {
        "None" => Default::None,
        "True" => Default::Bool(true),
        "False" => Default::Bool(false),
        "[]" => Default::Empty,
        _ => match (text.parse(), text.parse()) {
            (Ok(int), _) => Default::Int(int),
            (_, Ok(float)) => Default::Float(float),
            _ => Default::Str(text.trim_matches('\'')),
        },
    }
}

/// Whether an operation of this name is on the whitelist, in place or not.
pub(crate) fn is_known(name: &str) -> bool {
    TABLE.contains_key(name) || functional(name).is_some_and(|name| TABLE.contains_key(name))
}

/// The operation that an in-place operation is the variant of: `add` for `add_`.
pub(super) fn functional(name: &str) -> Option<&str> {
    name.strip_suffix('_').filter(|name| !name.is_empty() && !name.ends_with('_'))
}

/// The schema that takes these arguments, and the arguments in its order.
///
/// # Errors
/// [`Problem::Unknown`] for a name that is not on the whitelist, [`Problem::Argument`] when no overload
/// takes the arguments.
pub(super) fn bind(
    name: &str,
    overload: &str,
    given: &[Given<'_>],
) -> Result<(&'static Schema, Bound), Problem> {
    let schemas = TABLE.get(name).ok_or(Problem::Unknown)?;
    let exact = schemas.iter().find(|schema| !overload.is_empty() && schema.overload == overload);
    let candidates: Vec<&Schema> = match exact {
        Some(schema) => vec![schema],
        None => schemas.iter().collect(),
    };
    let mut first_problem = None;
    for schema in candidates {
        match schema.bind(given) {
            Ok(arguments) => return Ok((schema, arguments)),
            Err(problem) => first_problem = first_problem.or(Some(problem)),
        }
    }
    Err(first_problem.unwrap_or(Problem::Unknown))
}

impl Schema {
    fn bind(&self, given: &[Given<'_>]) -> Result<Bound, Problem> {
        let mut bound: Bound = self.arguments.iter().map(|&(name, default)| (name, None, default)).collect();
        let mut place = 0;
        for (name, value) in given {
            let slot = match name {
                None if place < self.positional => {
                    place += 1;
                    place - 1
                }
                None => {
                    let most = self.positional;
                    return Err(Problem::argument(format!("it takes at most {most} arguments by place")));
                }
                Some(name) => match self.arguments.iter().position(|(known, _)| known == name) {
                    Some(slot) => slot,
                    // `dropout` calls it input, and `dropout_` self.
                    None if *name == "self" && self.arguments.first().is_some_and(|a| a.0 == "input") => 0,
                    None => return Err(Problem::argument(format!("it has no argument {name:?}"))),
                },
            };
            if bound[slot].1.replace(value.clone()).is_some() {
                return Err(Problem::argument(format!("argument {:?} is given twice", bound[slot].0)));
            }
        }
        if let Some((name, ..)) =
            bound.iter().find(|(name, value, _)| value.as_ref().is_some_and(|v| misfits(name, v)))
        {
            return Err(Problem::argument(format!("argument {name:?} is of another kind")));
        }
        match bound.iter().find(|(_, value, default)| value.is_none() && *default == Default::Required) {
            Some((name, ..)) => Err(Problem::argument(format!("argument {name:?} is missing"))),
            None => Ok(bound),
        }
    }
}

/// Whether a value tells that another overload is meant: `to` takes a type, a device or a tensor first.
fn misfits(name: &str, value: &Value) -> bool {
    match name {
        "dtype" => matches!(value, Value::Placement | Value::Tensor(_) | Value::Known(..)),
        // `max(x, 1)` reduces a dimension, `max(x, y)` compares with a tensor.
        "dim" => matches!(value, Value::Tensor(_) | Value::Known(..)),
        "device" | "layout" => matches!(value, Value::DType(_) | Value::Tensor(_)),
        _ => false,
    }
}
