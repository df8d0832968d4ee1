//! The abstract interpreter: statements and expressions, bounded in steps and depth.

use std::collections::HashMap;

use super::{
    builtin,
    objects::Attribute,
    program::{Program, dotted, operation},
    syntax::{Call, Expression, Function, Statement, StatementKind},
};
use crate::artifact::{
    ArtifactError, Mode, Problem, ReadLimits,
    aten::{self, Given, Lowering, Scalar, Value},
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
struct Frame<'p> {
    file: &'p str,
    variables: HashMap<&'p str, Value>,
    line: u32,
}

impl Frame<'_> {
    fn place(&self) -> String {
        format!("{}:{}", self.file, self.line)
    }

    fn problem(&self, op: &str, source: Problem) -> ArtifactError {
        ArtifactError::Operation { place: self.place(), op: op.to_owned(), source }
    }

    fn reject<T>(&self, what: impl Into<String>, hint: &str) -> Result<T, ArtifactError> {
        Err(ArtifactError::rejected(self.place(), what, hint))
    }
}

pub(super) struct Interpreter<'p, 'l, 'a> {
    program: &'p Program,
    lowering: &'l mut Lowering<'a>,
    /// Constants that have been read already.
    constants: HashMap<usize, Value>,
    /// Lists and tuples that are attributes, and tensors that are neither parameter nor buffer.
    attributes: HashMap<(u32, &'p str), Value>,
    depth: usize,
    max_items: usize,
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

    fn enter(&mut self, frame: &Frame<'_>) -> Result<(), ArtifactError> {
        self.lowering.burn(1, || frame.place())?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(ArtifactError::limit(frame.place(), "levels of calls", MAX_DEPTH));
        }
        Ok(())
    }

    fn method(
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

    fn invoke(
        &mut self,
        caller: &Frame<'_>,
        file: &'p str,
        function: &'p Function,
        given: Vec<Given<'p>>,
    ) -> Result<Value, ArtifactError> {
        self.enter(caller)?;
        let mut frame = Frame { file, variables: HashMap::new(), line: function.line };
        let mut place = 0;
        for (name, value) in given {
            let parameter = match name {
                Some(name) => function.parameters.iter().find(|(known, _)| known == name),
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
                let target = self.lowering.buffer(*index)?;
                self.lowering.assign(&target, value).map_err(|source| frame.problem(name, source))
            }
            _ => frame.reject(
                format!("an assignment to attribute {name:?}"),
                "a kernel may change its buffers only, and nothing else of its modules",
            ),
        }
    }

    fn condition(&mut self, frame: &mut Frame<'p>, condition: &'p Expression) -> Result<bool, ArtifactError> {
        let value = self.evaluate(frame, condition)?;
        match value {
            Value::Tensor(_) => frame.reject(
                "a branch on a tensor's data",
                "a kernel's control flow may depend on shapes and modes only",
            ),
            Value::None => Ok(false),
            Value::List(items) | Value::Tuple(items) => Ok(!self.lowering.items(items).is_empty()),
            Value::Str(text) => Ok(!text.is_empty()),
            other => match other.scalar() {
                Some(scalar) => Ok(scalar.to_f64() != 0.0),
                None => frame.reject(format!("a branch on {}", other.kind()), "branch on a bool"),
            },
        }
    }

    fn evaluate(
        &mut self,
        frame: &mut Frame<'p>,
        expression: &'p Expression,
    ) -> Result<Value, ArtifactError> {
        self.enter(frame)?;
        let value = self.expression(frame, expression)?;
        self.depth -= 1;
        Ok(value)
    }

    fn all(&mut self, frame: &mut Frame<'p>, items: &'p [Expression]) -> Result<Vec<Value>, ArtifactError> {
        items.iter().map(|item| self.evaluate(frame, item)).collect()
    }

    fn expression(
        &mut self,
        frame: &mut Frame<'p>,
        expression: &'p Expression,
    ) -> Result<Value, ArtifactError> {
        match expression {
            Expression::None => Ok(Value::None),
            Expression::Bool(value) => Ok(Value::bool(*value)),
            Expression::Int(value) => Ok(Value::int(*value)),
            Expression::Float(value) => Ok(Value::float(*value)),
            Expression::Str(text) => Ok(Value::Str(text.as_str().into())),
            Expression::Name(name) => match frame.variables.get(name.as_str()) {
                Some(value) => Ok(value.clone()),
                None => {
                    Err(ArtifactError::malformed(frame.place(), format!("the name {name:?} is not defined")))
                }
            },
            Expression::List(items) => {
                let items = self.all(frame, items)?;
                Ok(self.lowering.list(items))
            }
            Expression::Tuple(items) => {
                let items = self.all(frame, items)?;
                Ok(self.lowering.tuple(items))
            }
            Expression::Negative(value) => {
                let value = self.evaluate(frame, value)?;
                self.operation(frame, "neg", &[(None, value)])
            }
            Expression::Not(value) => Ok(Value::bool(!self.condition(frame, value)?)),
            Expression::Choice(parts) => {
                let [condition, then, otherwise] = &**parts;
                let taken = if self.condition(frame, condition)? { then } else { otherwise };
                self.evaluate(frame, taken)
            }
            Expression::Attribute(base, name) => self.attribute(frame, expression, base, name),
            Expression::Subscript(base, index) => {
                let (base, index) = (self.evaluate(frame, base)?, self.evaluate(frame, index)?);
                builtin::item(self.lowering, &base, &index).map_err(|source| frame.problem("[]", source))
            }
            Expression::Call(call) => self.call(frame, call),
            Expression::Dict(_) => frame.reject("a dictionary", "use tuples and lists"),
        }
    }

    /// `base.name`, where base is a module, or the whole a path such as `CONSTANTS.c0`.
    fn attribute(
        &mut self,
        frame: &mut Frame<'p>,
        whole: &'p Expression,
        base: &'p Expression,
        name: &'p str,
    ) -> Result<Value, ArtifactError> {
        if let Some(path) = outer_path(frame, whole) {
            if let Some(number) = path.strip_prefix("CONSTANTS.c").and_then(|n| n.parse().ok()) {
                return self.constant(frame, number);
            }
            if let Some(number) = self.program.sources.function_number(path.trim_start_matches("__torch__."))
            {
                return Ok(Value::Function(number));
            }
            if let Some(number) = self.program.sources.function_number(&path) {
                return Ok(Value::Function(number));
            }
            return Err(ArtifactError::malformed(frame.place(), format!("the name {path:?} is not defined")));
        }
        let base = self.evaluate(frame, base)?;
        self.read_attribute(frame, &base, name)
    }

    fn constant(&mut self, frame: &Frame<'p>, number: usize) -> Result<Value, ArtifactError> {
        if let Some(known) = self.constants.get(&number) {
            return Ok(known.clone());
        }
        let Some(tensor) = self.program.constants.get(number) else {
            return Err(ArtifactError::malformed(frame.place(), format!("there is no constant {number}")));
        };
        let value = self.lowering.constant("constants.pkl", tensor)?;
        self.constants.insert(number, value.clone());
        Ok(value)
    }

    fn read_attribute(
        &mut self,
        frame: &mut Frame<'p>,
        base: &Value,
        name: &'p str,
    ) -> Result<Value, ArtifactError> {
        let Value::Object(object) = *base else {
            return frame.reject(
                format!("the attribute {name:?} of {}", base.kind()),
                "read attributes of modules only",
            );
        };
        // The mode asked for stands above what was saved.
        if name == "training" {
            return Ok(Value::bool(self.lowering.mode() == Mode::Train));
        }
        let program = self.program;
        let owner = &program.objects[object as usize];
        if let Some(attribute) = owner.attributes.get(name) {
            if let Some(known) = self.attributes.get(&(object, name)) {
                return Ok(known.clone());
            }
            let value = self.value_of(frame, attribute)?;
            if matches!(attribute, Attribute::List(_) | Attribute::Tuple(_) | Attribute::Constant(_)) {
                self.attributes.insert((object, name), value.clone());
            }
            return Ok(value);
        }
        let class = program.sources.class(&owner.class);
        let constant = class.and_then(|class| class.constants.iter().find(|(known, _)| known == name));
        match constant {
            Some((_, value)) => self.evaluate(frame, value),
            None => Err(ArtifactError::malformed(
                frame.place(),
                format!("module {} has no attribute {name:?}", owner.class),
            )),
        }
    }

    fn value_of(&mut self, frame: &Frame<'p>, attribute: &Attribute) -> Result<Value, ArtifactError> {
        Ok(match attribute {
            Attribute::None => Value::None,
            Attribute::Bool(value) => Value::bool(*value),
            Attribute::Int(value) => Value::int(*value),
            Attribute::Float(value) => Value::float(*value),
            Attribute::Str(text) => Value::Str(text.clone()),
            Attribute::Parameter(index) => self.lowering.parameter(*index)?,
            Attribute::Buffer(index) => self.lowering.buffer(*index)?,
            Attribute::Constant(tensor) => self.lowering.constant("data.pkl", tensor)?,
            Attribute::Module(object) => Value::Object(*object),
            Attribute::List(items) => {
                let items = items.iter().map(|item| self.value_of(frame, item)).collect::<Result<_, _>>()?;
                self.lowering.list(items)
            }
            Attribute::Tuple(items) => {
                let items = items.iter().map(|item| self.value_of(frame, item)).collect::<Result<_, _>>()?;
                self.lowering.tuple(items)
            }
            Attribute::Opaque(what) => {
                return frame.reject(*what, "use tensors, numbers, texts and lists of them");
            }
        })
    }

    fn arguments(&mut self, frame: &mut Frame<'p>, call: &'p Call) -> Result<Vec<Given<'p>>, ArtifactError> {
        let mut given = Vec::with_capacity(call.arguments.len());
        for (name, value) in &call.arguments {
            given.push((name.as_deref(), self.evaluate(frame, value)?));
        }
        Ok(given)
    }

    fn call(&mut self, frame: &mut Frame<'p>, call: &'p Call) -> Result<Value, ArtifactError> {
        frame.line = call.line;
        if let Some(path) = outer_path(frame, &call.function) {
            return self.call_path(frame, &path, call);
        }
        if let Expression::Attribute(base, name) = &call.function {
            let base = self.evaluate(frame, base)?;
            let Value::Object(object) = base else {
                return frame.reject(
                    format!("the method {name:?} of {}", base.kind()),
                    "call methods of modules only",
                );
            };
            let given = self.arguments(frame, call)?;
            return self.method(frame, object, name, given);
        }
        let Value::Function(number) = self.evaluate(frame, &call.function)? else {
            return frame.reject("a call of what is no function", "call functions and methods");
        };
        let given = self.arguments(frame, call)?;
        self.call_function(frame, number, given)
    }

    fn call_function(
        &mut self,
        frame: &Frame<'p>,
        number: u32,
        given: Vec<Given<'p>>,
    ) -> Result<Value, ArtifactError> {
        match self.program.sources.function(number) {
            Some((file, function)) => self.invoke(frame, file, function, given),
            None => frame.reject("a call of an unknown function", "the archive has no code for it"),
        }
    }

    /// A call of something that is no local variable.
    fn call_path(
        &mut self,
        frame: &mut Frame<'p>,
        path: &str,
        call: &'p Call,
    ) -> Result<Value, ArtifactError> {
        // The first argument of these is a type, not a value.
        if matches!(path, "annotate" | "unchecked_cast") && call.arguments.len() == 2 {
            return self.evaluate(frame, &call.arguments[1].1);
        }
        if path == "uninitialized" {
            return Ok(Value::None);
        }
        if path == "getattr"
            && let [(_, base), (_, Expression::Str(name))] = &call.arguments[..]
        {
            let base = self.evaluate(frame, base)?;
            return self.read_attribute(frame, &base, name);
        }
        let own = path.strip_prefix("__torch__.").unwrap_or(path);
        let function =
            self.program.sources.function_number(path).or_else(|| self.program.sources.function_number(own));
        let given = self.arguments(frame, call)?;
        if let Some(number) = function {
            return self.call_function(frame, number, given);
        }
        if path == "ops.prim.RaiseException" {
            let message =
                given.first().map_or_else(String::new, |(_, value)| builtin::display(self.lowering, value));
            return Err(ArtifactError::Raised { place: frame.place(), message });
        }
        let name = operation(path).or_else(|| path.strip_prefix("ops.prim.")).unwrap_or(path);
        if let Some(result) = builtin::call(self.lowering, name, &given, self.max_items) {
            return result.map_err(|source| frame.problem(path, source));
        }
        if operation(path).is_none() && !path.starts_with("ops.prim.") {
            return Err(frame.problem(path, Problem::Unknown));
        }
        self.operation(frame, name, &given)
    }

    fn operation(
        &mut self,
        frame: &Frame<'p>,
        name: &str,
        given: &[Given<'_>],
    ) -> Result<Value, ArtifactError> {
        aten::call(self.lowering, name, "", given)
            .map_err(|source| frame.problem(&format!("aten.{name}"), source))
    }
}

/// The path of an expression whose root is no local variable.
fn outer_path(frame: &Frame<'_>, expression: &Expression) -> Option<String> {
    let path = dotted(expression)?;
    let root = path.split('.').next().unwrap_or_default();
    (!frame.variables.contains_key(root)).then_some(path)
}
