//! Expressions: names, attributes, calls of methods, functions, the language and the operations.

use super::{
    builtin, collection,
    interpreter::{Frame, Interpreter},
    objects::Attribute,
    program::{dotted, operation},
    syntax::{Call, Expression},
    text,
};
use crate::artifact::{
    ArtifactError, Mode, Problem,
    aten::{self, Given, Value},
};

impl<'p> Interpreter<'p, '_, '_> {
    pub(super) fn evaluate(
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
                collection::item(self.lowering, &base, &index).map_err(|source| frame.problem("[]", source))
            }
            Expression::Call(call) => self.call(frame, call),
            Expression::Dict(pairs) => {
                let mut items = Vec::with_capacity(2 * pairs.len());
                for (key, value) in pairs {
                    let (key, value) = (self.evaluate(frame, key)?, self.evaluate(frame, value)?);
                    // The later of two equal keys counts.
                    match (0..items.len()).step_by(2).find(|&at| items[at] == key) {
                        Some(at) => items[at + 1] = value,
                        None => items.extend([key, value]),
                    }
                }
                Ok(Value::Dict(self.lowering.sequence(items)))
            }
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
        let value = self.lowering.literal("constants.pkl", tensor)?;
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
        let constant = class.and_then(|class| class.constants.get(name));
        match constant {
            Some(value) => self.evaluate(frame, value),
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

    pub(super) fn arguments(
        &mut self,
        frame: &mut Frame<'p>,
        call: &'p Call,
    ) -> Result<Vec<Given<'p>>, ArtifactError> {
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
        if let Some(class) = self.program.sources.class(path).filter(|class| class.named_tuple) {
            let given = self.arguments(frame, call)?;
            if given.len() != class.attributes.len() || given.iter().any(|(name, _)| name.is_some()) {
                return frame.reject("this named tuple", "give each of its fields a value, in their order");
            }
            return Ok(self.lowering.tuple(given.into_iter().map(|(_, value)| value).collect()));
        }
        let function =
            self.program.sources.function_number(path).or_else(|| self.program.sources.function_number(own));
        let given = self.arguments(frame, call)?;
        if let Some(number) = function {
            return self.call_function(frame, number, given);
        }
        if path == "ops.prim.RaiseException" {
            let message =
                given.first().map_or_else(String::new, |(_, value)| text::display(self.lowering, value));
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
