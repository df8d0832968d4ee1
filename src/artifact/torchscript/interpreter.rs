//! The abstract interpreter: calls and statements, bounded in steps and depth.

use std::collections::HashMap;

use super::{
    objects::Attribute,
    program::Program,
    syntax::{Expression, Function, Statement, StatementKind},
};
use crate::artifact::{
    ArtifactError, Problem, ReadLimits,
    aten::{Given, Lowering, Scalar, Value},
};

/// How many levels of calls, blocks and expressions together run inside each other. Each takes some of the
/// thread's stack, so this is a constant and no setting.
const MAX_DEPTH: usize = 600;

/// How a statement ends.
enum Flow {
    Next,
    Return(Value),
}

/// The variables of one call.
pub(super) struct Frame<'p> {
    pub(super) file: &'p str,
    pub(super) variables: HashMap<&'p str, Value>,
    pub(super) line: u32,
}

impl Frame<'_> {
    pub(super) fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    pub(super) fn problem(&self, op: &str, source: Problem) -> ArtifactError {
        ArtifactError::Operation { place: self.place(), op: op.to_owned(), source }
    }

    pub(super) fn reject<T>(&self, what: impl Into<String>, hint: &str) -> Result<T, ArtifactError> {
        Err(ArtifactError::rejected(self.place(), what, hint))
    }
}

pub(super) struct Interpreter<'p, 'l, 'a> {
    pub(super) program: &'p Program,
    pub(super) lowering: &'l mut Lowering<'a>,
    /// Constants that have been read already.
    pub(super) constants: HashMap<usize, Value>,
    /// Lists and tuples that are attributes, and tensors that are neither parameter nor buffer.
    pub(super) attributes: HashMap<(u32, &'p str), Value>,
    pub(super) depth: usize,
    pub(super) max_items: usize,
}

impl<'p, 'l, 'a> Interpreter<'p, 'l, 'a> {
    pub(super) fn new(program: &'p Program, lowering: &'l mut Lowering<'a>, limits: &ReadLimits) -> Self {
        let max_items = usize::try_from(limits.fuel).unwrap_or(usize::MAX);
        Self { program, lowering, constants: HashMap::new(), attributes: HashMap::new(), depth: 0, max_items }
    }

    /// Calls `forward` of the root.
    pub(super) fn forward(&mut self, inputs: &[Value]) -> Result<Value, ArtifactError> {
        let class = self.program.objects.first().map_or("", |object| object.class.as_str());
        let Some((_, method)) = self.program.sources.method(class, "forward") else {
            return Err(ArtifactError::malformed("code", format!("class {class:?} has no forward")));
        };
        let taken = method.parameters.len().saturating_sub(1);
        let needed = method.parameters.iter().skip(1).filter(|(_, default)| default.is_none()).count();
        if !(needed..=taken).contains(&inputs.len()) {
            return Err(ArtifactError::InputCount { expected: needed, actual: inputs.len() });
        }
        let given = inputs.iter().map(|input| (None, input.clone())).collect();
        let caller = Frame { file: "forward", variables: HashMap::new(), line: 0 };
        self.method(&caller, 0, "forward", given)
    }

    pub(super) fn enter(&mut self, frame: &Frame<'_>) -> Result<(), ArtifactError> {
        self.lowering.burn(1, || frame.place())?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ArtifactError::limit(frame.place(), "levels of calls", MAX_DEPTH));
        }
        Ok(())
    }

    pub(super) fn method(
        &mut self,
        caller: &Frame<'_>,
        object: u32,
        name: &str,
        mut given: Vec<Given<'p>>,
    ) -> Result<Value, ArtifactError> {
        let class = &self.program.objects[object as usize].class;
        let Some((file, method)) = self.program.sources.method(class, name) else {
            return caller
                .reject(format!("the method {name:?} of {class}"), "the archive has no code for it");
        };
        given.insert(0, (None, Value::Object(object)));
        self.invoke(caller, file, method, given)
    }

    pub(super) fn invoke(
        &mut self,
        caller: &Frame<'_>,
        file: &'p str,
        function: &'p Function,
        given: Vec<Given<'p>>,
    ) -> Result<Value, ArtifactError> {
        self.enter(caller)?;
        let mut frame = Frame { file, variables: HashMap::new(), line: function.line };
        let mut place = 0;
        // Each is looked through once or more.
        self.lowering.burn(function.parameters.len() as u64, || frame.place())?;
        let by_name: HashMap<&str, _> = match given.iter().any(|(name, _)| name.is_some()) {
            true => function.parameters.iter().map(|parameter| (parameter.0.as_str(), parameter)).collect(),
            false => HashMap::new(),
        };
        for (name, value) in given {
            let parameter = match name {
                Some(name) => by_name.get(name).copied(),
                None => function.parameters.get(place),
            };
            place += usize::from(name.is_none());
            let Some((parameter, _)) = parameter else {
                let source = Problem::argument("it is given an argument that it does not take");
                return Err(caller.problem(&function.name, source));
            };
            frame.variables.insert(parameter, value);
        }
        for (parameter, default) in &function.parameters {
            if !frame.variables.contains_key(parameter.as_str()) {
                let Some(default) = default else {
                    let source = Problem::argument(format!("argument {parameter:?} is missing"));
                    return Err(caller.problem(&function.name, source));
                };
                let value = self.evaluate(&mut frame, default)?;
                frame.variables.insert(parameter, value);
            }
        }
        let flow = self.block(&mut frame, &function.body)?;
        self.depth -= 1;
        Ok(match flow {
            Flow::Return(value) => value,
            Flow::Next => Value::None,
        })
    }

    fn block(&mut self, frame: &mut Frame<'p>, statements: &'p [Statement]) -> Result<Flow, ArtifactError> {
        self.enter(frame)?;
        for statement in statements {
            frame.line = statement.line;
            if let Flow::Return(value) = self.statement(frame, statement)? {
                self.depth -= 1;
                return Ok(Flow::Return(value));
            }
        }
        self.depth -= 1;
        Ok(Flow::Next)
    }

    fn statement(&mut self, frame: &mut Frame<'p>, statement: &'p Statement) -> Result<Flow, ArtifactError> {
        match &statement.kind {
            StatementKind::Pass => {}
            StatementKind::Expression(value) => {
                self.evaluate(frame, value)?;
            }
            StatementKind::Return(value) => return Ok(Flow::Return(self.evaluate(frame, value)?)),
            StatementKind::Assign { targets, unpack, value } => {
                let value = self.evaluate(frame, value)?;
                self.assign(frame, targets, *unpack, value)?;
            }
            StatementKind::If { condition, then, otherwise } => {
                let taken = if self.condition(frame, condition)? { then } else { otherwise };
                return self.block(frame, taken);
            }
            StatementKind::While { condition, body } => {
                while self.condition(frame, condition)? {
                    if let Flow::Return(value) = self.block(frame, body)? {
                        return Ok(Flow::Return(value));
                    }
                }
            }
            StatementKind::For { target, iterable, body } => {
                return self.repeat(frame, target, iterable, body);
            }
        }
        Ok(Flow::Next)
    }

    fn repeat(
        &mut self,
        frame: &mut Frame<'p>,
        target: &'p str,
        iterable: &'p Expression,
        body: &'p [Statement],
    ) -> Result<Flow, ArtifactError> {
        if let Expression::Call(call) = iterable
            && call.function == Expression::Name("range".into())
        {
            let given = self.arguments(frame, call)?;
            let ints = given.iter().map(|(_, value)| value.scalar().and_then(Scalar::to_i64));
            let ints = ints.collect::<Option<Vec<_>>>();
            let (start, end, step) = match ints.as_deref() {
                Some(&[end]) => (0, end, 1),
                Some(&[start, end]) => (start, end, 1),
                Some(&[start, end, step]) if step > 0 => (start, end, step),
                _ => return frame.reject("this range", "use a range of known integers with a step above 0"),
            };
            let mut at = start;
            while at < end {
                frame.variables.insert(target, Value::int(at));
                if let Flow::Return(value) = self.block(frame, body)? {
                    return Ok(Flow::Return(value));
                }
                at = at.saturating_add(step);
            }
            return Ok(Flow::Next);
        }
        let (Value::List(items) | Value::Tuple(items)) = self.evaluate(frame, iterable)? else {
            return frame.reject("a loop over what is no list", "loop over a range or a list");
        };
        let items = self.lowering.items(items).to_vec();
        self.lowering.spend(items.len());
        for item in items {
            frame.variables.insert(target, item);
            if let Flow::Return(value) = self.block(frame, body)? {
                return Ok(Flow::Return(value));
            }
        }
        Ok(Flow::Next)
    }

    fn assign(
        &mut self,
        frame: &mut Frame<'p>,
        targets: &'p [Expression],
        unpack: bool,
        value: Value,
    ) -> Result<(), ArtifactError> {
        let values = match (&value, unpack) {
            (Value::List(items) | Value::Tuple(items), true) => self.lowering.items(*items).to_vec(),
            (_, true) => return frame.reject("unpacking what is no tuple", "unpack tuples and lists"),
            (_, false) => vec![value],
        };
        if values.len() != targets.len() {
            let (have, want) = (values.len(), targets.len());
            return frame
                .reject(format!("unpacking {have} values into {want} names"), "use as many names as values");
        }
        for (target, value) in targets.iter().zip(values) {
            match target {
                Expression::Name(name) => {
                    frame.variables.insert(name, value);
                }
                Expression::Attribute(base, name) => {
                    let base = self.evaluate(frame, base)?;
                    self.set_attribute(frame, &base, name, &value)?;
                }
                _ => return frame.reject("an assignment to this", "assign to names"),
            }
        }
        Ok(())
    }

    fn set_attribute(
        &mut self,
        frame: &Frame<'p>,
        base: &Value,
        name: &str,
        value: &Value,
    ) -> Result<(), ArtifactError> {
        let attribute = match base {
            Value::Object(object) => self.program.objects[*object as usize].attributes.get(name),
            _ => None,
        };
        match attribute {
            Some(Attribute::Buffer(index)) => {
                self.lowering.rebind(*index, value).map_err(|source| frame.problem(name, source))
            }
            _ => frame.reject(
                format!("an assignment to attribute {name:?}"),
                "a kernel may change its buffers only, and nothing else of its modules",
            ),
        }
    }

    pub(super) fn condition(
        &mut self,
        frame: &mut Frame<'p>,
        condition: &'p Expression,
    ) -> Result<bool, ArtifactError> {
        let value = self.evaluate(frame, condition)?;
        match value {
            Value::Tensor(_) => frame.reject(
                "a branch on a tensor's data",
                "a kernel's control flow may depend on shapes and modes only",
            ),
            Value::None => Ok(false),
            Value::List(items) | Value::Tuple(items) | Value::Dict(items) => {
                Ok(!self.lowering.items(items).is_empty())
            }
            Value::Str(text) => Ok(!text.is_empty()),
            other => match other.scalar() {
                Some(scalar) => Ok(scalar.to_f64() != 0.0),
                None => frame.reject(format!("a branch on {}", other.kind()), "branch on a bool"),
            },
        }
    }
}
