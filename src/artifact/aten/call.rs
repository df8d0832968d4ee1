//! One call of an operation: its arguments by name, and the graph it appends to.

use super::{
    Lowering,
    schema::{self, Default, Given},
    value::{Known, Scalar, TensorRef, Value, dtype_of_code},
};
use crate::{
    artifact::{Mode, Problem},
    graph::{Op, Unary, ValueId},
    tensor::{DType, Shape},
};

/// Operations whose in-place variant changes no element: the tensor becomes the view that they give.
const TURNED: [&str; 6] = ["squeeze", "swapaxes", "swapdims", "t", "transpose", "unsqueeze"];

/// What lowering one operation gives.
pub(super) type Outcome = Result<Value, Problem>;

/// One call while it is lowered.
pub(crate) struct Call<'c, 'a> {
    pub(super) lowering: &'c mut Lowering<'a>,
    arguments: Vec<(&'static str, Value)>,
}

/// An operand of arithmetic: a tensor, or a number that takes part in promotion as a number.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Tensor(ValueId),
    Known(Known),
    Number(Scalar),
}

/// Lowers one operation of a program.
///
/// `name` is ATen's without namespace and overload, such as `conv2d` or `add_`.
///
/// # Errors
/// [`Problem`]; the caller adds the place.
pub(crate) fn call(lowering: &mut Lowering<'_>, name: &str, overload: &str, given: &[Given<'_>]) -> Outcome {
    match schema::bind(name, overload, given) {
        Ok((schema, bound)) => run(lowering, schema, bound),
        Err(Problem::Unknown) => {
            let functional = schema::functional(name).ok_or(Problem::Unknown)?;
            let (schema, bound) = schema::bind(functional, overload, given)?;
            let target = bound.first().and_then(|(_, value, _)| value.clone());
            let result = run(lowering, schema, bound)?;
            match (target, &result) {
                // What is known has no gradient to be cut off from.
                (Some(Value::Known(_)), Value::Known(_)) if functional == "detach" => Ok(result),
                (Some(Value::Tensor(target)), Value::Tensor(view)) if TURNED.contains(&functional) => {
                    lowering.turn(target, *view)?;
                    Ok(Value::Tensor(target))
                }
                (target, _) => write_back(lowering, target, &result),
            }
        }
        Err(problem) => Err(problem),
    }
}

fn run(lowering: &mut Lowering<'_>, schema: &'static schema::Schema, bound: schema::Bound) -> Outcome {
    let mut arguments = Vec::with_capacity(bound.len());
    for (name, value, default) in bound {
        let value = match (value, default) {
            (Some(value), _) => value,
            (None, Default::Required | Default::None) => Value::None,
            (None, Default::Bool(value)) => Value::bool(value),
            (None, Default::Int(value)) => Value::int(value),
            (None, Default::Float(value)) => Value::float(value),
            (None, Default::Str(value)) => Value::Str(value.into()),
            (None, Default::Empty) => lowering.list(Vec::new()),
        };
        arguments.push((name, value));
    }
    (schema.lower)(&mut Call { lowering, arguments })
}

/// The in-place variant writes what the functional one gives.
fn write_back(lowering: &mut Lowering<'_>, target: Option<Value>, result: &Value) -> Outcome {
    let Some(Value::Tensor(target)) = target else {
        return Err(Problem::unsupported("writing in place to what is no tensor of its own"));
    };
    let old = lowering.value(target)?;
    let mut new = lowering.materialise(result)?;
    let (shape, dtype) = (lowering.builder.shape(old).clone(), lowering.builder.dtype(old));
    if *lowering.builder.shape(new) != shape {
        let got = lowering.builder.shape(new);
        return Err(Problem::argument(format!("a result of shape {got} cannot be written to shape {shape}")));
    }
    if lowering.builder.dtype(new) != dtype {
        new = lowering.builder.apply(Op::Cast(dtype), &[new])?;
    }
    if new != old {
        lowering.write(target, new)?;
    }
    Ok(Value::Tensor(target))
}

impl Call<'_, '_> {
    /// An argument by its name in the signature.
    pub(super) fn get(&self, name: &str) -> Value {
        let found = self.arguments.iter().find(|(known, _)| *known == name);
        found.map_or(Value::None, |(_, value)| value.clone())
    }

    fn wrong<T>(&self, name: &str, wanted: &str) -> Result<T, Problem> {
        Err(Problem::argument(format!("argument {name:?} is {}, {wanted} is needed", self.get(name).kind())))
    }

    pub(super) fn mode(&self) -> Mode {
        self.lowering.mode
    }

    pub(super) fn tensor(&mut self, name: &str) -> Result<ValueId, Problem> {
        match self.get(name) {
            value @ (Value::Tensor(_) | Value::Known(..)) => self.lowering.materialise(&value),
            _ => self.wrong(name, "a tensor"),
        }
    }

    pub(super) fn optional_tensor(&mut self, name: &str) -> Result<Option<ValueId>, Problem> {
        if self.get(name) == Value::None { Ok(None) } else { self.tensor(name).map(Some) }
    }

    pub(super) fn tensor_ref(&self, name: &str) -> Option<TensorRef> {
        match self.get(name) {
            Value::Tensor(tensor) => Some(tensor),
            _ => None,
        }
    }

    pub(super) fn operand(&mut self, name: &str) -> Result<Operand, Problem> {
        match self.get(name) {
            Value::Number(scalar) => Ok(Operand::Number(scalar)),
            Value::Known(known) => Ok(Operand::Known(known)),
            Value::Tensor(_) => Ok(Operand::Tensor(self.tensor(name)?)),
            _ => self.wrong(name, "a tensor or a number"),
        }
    }

    /// The second operand of +, −, × or ÷, where a constant of the script counts as the number it holds.
    pub(super) fn second(&mut self, name: &str) -> Result<Operand, Problem> {
        Ok(match self.operand(name)? {
            Operand::Known(known) if known.literal => Operand::Number(known.scalar),
            other => other,
        })
    }

    pub(super) fn number(&self, name: &str) -> Result<Scalar, Problem> {
        self.get(name).scalar().map_or_else(|| self.wrong(name, "a number"), Ok)
    }

    pub(super) fn float(&self, name: &str) -> Result<f64, Problem> {
        Ok(self.number(name)?.to_f64())
    }

    pub(super) fn int(&self, name: &str) -> Result<i64, Problem> {
        self.number(name)?.to_i64().map_or_else(|| self.wrong(name, "an int"), Ok)
    }

    pub(super) fn optional_int(&self, name: &str) -> Result<Option<i64>, Problem> {
        if self.get(name) == Value::None { Ok(None) } else { self.int(name).map(Some) }
    }

    pub(super) fn size(&self, name: &str) -> Result<usize, Problem> {
        let value = self.int(name)?;
        usize::try_from(value)
            .map_err(|_| Problem::argument(format!("argument {name:?} is {value}, below 0")))
    }

    pub(super) fn flag(&self, name: &str) -> Result<bool, Problem> {
        match self.get(name) {
            Value::None => Ok(false),
            Value::Number(scalar) => Ok(scalar.to_f64() != 0.0),
            _ => self.wrong(name, "a bool"),
        }
    }

    pub(super) fn text(&self, name: &str) -> Result<std::sync::Arc<str>, Problem> {
        match self.get(name) {
            Value::Str(text) => Ok(text),
            _ => self.wrong(name, "a str"),
        }
    }

    /// A type; `None` where the program leaves it open.
    pub(super) fn dtype(&self, name: &str) -> Result<Option<DType>, Problem> {
        match self.get(name) {
            Value::None => Ok(None),
            Value::DType(dtype) => Ok(Some(dtype)),
            Value::Number(Scalar::Int(code)) => match dtype_of_code(code) {
                Some(dtype) => Ok(Some(dtype)),
                None => Err(Problem::unsupported(format!("the element type with number {code}"))),
            },
            _ => self.wrong(name, "a dtype"),
        }
    }

    /// A list of integers; a single one is a list of one.
    pub(super) fn ints(&self, name: &str) -> Result<Vec<i64>, Problem> {
        match self.get(name) {
            Value::List(items) | Value::Tuple(items) => {
                let ints = self.lowering.items(items).iter().map(|item| item.scalar()?.to_i64());
                ints.collect::<Option<_>>().map_or_else(|| self.wrong(name, "a list of ints"), Ok)
            }
            Value::Number(_) | Value::Known(..) => Ok(vec![self.int(name)?]),
            _ => self.wrong(name, "a list of ints"),
        }
    }

    /// A list of integers, or nothing where it is None or empty.
    pub(super) fn optional_ints(&self, name: &str) -> Result<Option<Vec<i64>>, Problem> {
        if self.get(name) == Value::None {
            return Ok(None);
        }
        Ok(Some(self.ints(name)?).filter(|ints| !ints.is_empty()))
    }

    pub(super) fn sizes(&self, name: &str) -> Result<Vec<usize>, Problem> {
        let ints = self.ints(name)?;
        let sizes = ints.iter().map(|&n| usize::try_from(n).ok()).collect::<Option<_>>();
        sizes.ok_or_else(|| {
            Problem::argument(format!("argument {name:?} is {ints:?}, sizes must not be negative"))
        })
    }

    /// N sizes, where one alone stands for all.
    pub(super) fn repeated<const N: usize>(&self, name: &str) -> Result<[usize; N], Problem> {
        let sizes = self.sizes(name)?;
        match sizes[..] {
            [one] => Ok([one; N]),
            _ => <[usize; N]>::try_from(sizes).map_err(|sizes| {
                Problem::argument(format!("argument {name:?} has {} sizes instead of {N}", sizes.len()))
            }),
        }
    }

    pub(super) fn tensors(&mut self, name: &str) -> Result<Vec<ValueId>, Problem> {
        match self.get(name) {
            Value::List(items) | Value::Tuple(items) => {
                let items = self.lowering.items(items).to_vec();
                self.lowering.spend(items.len());
                items.iter().map(|item| self.lowering.materialise(item)).collect()
            }
            _ => self.wrong(name, "a list of tensors"),
        }
    }

    pub(super) fn shape(&self, value: ValueId) -> Shape {
        self.lowering.builder.shape(value).clone()
    }

    pub(super) fn dtype_of(&self, value: ValueId) -> DType {
        self.lowering.builder.dtype(value)
    }

    /// A dimension argument, counted from the front.
    pub(super) fn dim(&self, name: &str, shape: &Shape) -> Result<usize, Problem> {
        Ok(shape.resolve_dim(self.int(name)?)?)
    }

    /// Dimensions, ascending and each once; all of them where the argument is None or empty.
    pub(super) fn dims(&self, name: &str, shape: &Shape) -> Result<Vec<usize>, Problem> {
        let Some(given) = self.optional_ints(name)? else { return Ok((0..shape.rank()).collect()) };
        let mut dims = given.iter().map(|&dim| shape.resolve_dim(dim)).collect::<Result<Vec<_>, _>>()?;
        dims.sort_unstable();
        if dims.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(Problem::argument(format!("a dimension stands twice in {given:?}")));
        }
        // A scalar takes dimension 0 and has none.
        dims.retain(|&dim| dim < shape.rank());
        Ok(dims)
    }

    pub(super) fn apply(&mut self, op: Op, inputs: &[ValueId]) -> Result<ValueId, Problem> {
        Ok(self.lowering.builder.apply(op, inputs)?)
    }

    pub(super) fn push(&mut self, op: Op, inputs: &[ValueId]) -> Result<Vec<ValueId>, Problem> {
        Ok(self.lowering.builder.push(op, inputs)?.to_vec())
    }

    pub(super) fn unary(&mut self, unary: Unary, x: ValueId) -> Result<ValueId, Problem> {
        self.apply(Op::Unary(unary), &[x])
    }

    pub(super) fn scale(&mut self, x: ValueId, by: f64) -> Result<ValueId, Problem> {
        if by == 1.0 { Ok(x) } else { self.unary(Unary::MulScalar { value: by }, x) }
    }

    pub(super) fn cast(&mut self, x: ValueId, dtype: DType) -> Result<ValueId, Problem> {
        if self.dtype_of(x) == dtype { Ok(x) } else { self.apply(Op::Cast(dtype), &[x]) }
    }

    pub(super) fn reshape(&mut self, x: ValueId, shape: Shape) -> Result<ValueId, Problem> {
        if self.shape(x) == shape { Ok(x) } else { self.apply(Op::Reshape(shape), &[x]) }
    }

    pub(super) fn expand(&mut self, x: ValueId, shape: &Shape) -> Result<ValueId, Problem> {
        if self.shape(x) == *shape { Ok(x) } else { self.apply(Op::Expand(shape.clone()), &[x]) }
    }

    pub(super) fn permute(&mut self, x: ValueId, order: Vec<usize>) -> Result<ValueId, Problem> {
        let still = order.iter().enumerate().all(|(i, &d)| i == d);
        if still && order.len() == self.shape(x).rank() {
            Ok(x)
        } else {
            self.apply(Op::Permute(order), &[x])
        }
    }

    pub(super) fn full(&mut self, shape: Shape, dtype: DType, value: f64) -> Result<ValueId, Problem> {
        self.apply(Op::Full { shape, dtype, value }, &[])
    }

    /// The result as a tensor of its own.
    pub(super) fn fresh(&mut self, value: ValueId) -> Outcome {
        Ok(self.lowering.fresh(value))
    }

    /// The result as a view of an argument.
    pub(super) fn view(&mut self, name: &str, value: ValueId) -> Outcome {
        match self.tensor_ref(name) {
            Some(base) => Ok(self.lowering.view_of(base, value)),
            None => self.fresh(value),
        }
    }

    /// The result as what PyTorch makes a view or a copy, by how the argument lies in memory.
    pub(super) fn maybe_view(&mut self, name: &str, value: ValueId) -> Outcome {
        match self.tensor_ref(name) {
            Some(base) => Ok(self.lowering.maybe_view_of(base, value)),
            None => self.fresh(value),
        }
    }

    /// The result as what may share memory with one tensor of a list.
    pub(super) fn maybe_view_of_item(&mut self, name: &str, index: usize, value: ValueId) -> Value {
        let base = match self.get(name) {
            Value::List(items) | Value::Tuple(items) => self.lowering.items(items).get(index).cloned(),
            _ => None,
        };
        match base {
            Some(Value::Tensor(base)) => self.lowering.maybe_view_of(base, value),
            _ => self.lowering.fresh(value),
        }
    }

    /// Several results as a tuple.
    pub(super) fn fresh_tuple(&mut self, values: &[ValueId]) -> Outcome {
        let items = values.iter().map(|&value| self.lowering.fresh(value)).collect();
        Ok(self.lowering.tuple(items))
    }
}
