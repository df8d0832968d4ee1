//! A TorchScript program: sources, the module tree, constants.

use std::collections::{BTreeSet, HashMap};

use super::{
    builtin,
    interpreter::Interpreter,
    objects::{Attribute, Object},
    syntax::{Class, Expression, File, Function, Statement, StatementKind},
};
use crate::{
    artifact::{
        ArtifactError, ReadLimits,
        aten::{Lowering, Value},
        limits::MAX_OUTPUTS,
    },
    tensor::HostTensor,
};

/// Parsed source files by the qualified name of what they define.
#[derive(Debug, Default)]
pub(super) struct Sources {
    /// File names beside their content.
    files: Vec<(String, File)>,
    /// (file, class) by qualified name.
    classes: HashMap<String, (usize, usize)>,
    /// Places of methods in their class, by file, class and name.
    methods: HashMap<(usize, usize), HashMap<String, usize>>,
    /// (file, function) by number.
    functions: Vec<(usize, usize)>,
    /// Numbers of functions by qualified name.
    by_name: HashMap<String, u32>,
}

impl Sources {
    /// Adds the file `code/a/b.py`, whose classes are named `a.b.Class`.
    pub(super) fn add(&mut self, name: &str, file: File) {
        let module = name.trim_start_matches("code/").trim_end_matches(".py").replace('/', ".");
        let number = self.files.len();
        for (i, class) in file.classes.iter().enumerate() {
            self.classes.insert(format!("{module}.{}", class.name), (number, i));
            let methods = self.methods.entry((number, i)).or_default();
            for (place, method) in class.methods.iter().enumerate() {
                methods.entry(method.name.clone()).or_insert(place);
            }
        }
        for (i, function) in file.functions.iter().enumerate() {
            self.by_name.insert(format!("{module}.{}", function.name), self.functions.len() as u32);
            self.functions.push((number, i));
        }
        self.files.push((name.to_owned(), file));
    }

    pub(super) fn class(&self, qualified: &str) -> Option<&Class> {
        let &(file, class) = self.classes.get(qualified)?;
        Some(&self.files[file].1.classes[class])
    }

    /// A method and the file it stands in.
    pub(super) fn method(&self, class: &str, name: &str) -> Option<(&str, &Function)> {
        let &(file, index) = self.classes.get(class)?;
        let &place = self.methods.get(&(file, index))?.get(name)?;
        let method = &self.files[file].1.classes[index].methods[place];
        Some((&self.files[file].0, method))
    }

    /// The number of a free function.
    pub(super) fn function_number(&self, qualified: &str) -> Option<u32> {
        self.by_name.get(qualified).copied()
    }

    /// A free function by its number, and the file it stands in.
    pub(super) fn function(&self, number: u32) -> Option<(&str, &Function)> {
        let &(file, function) = self.functions.get(number as usize)?;
        Some((&self.files[file].0, &self.files[file].1.functions[function]))
    }

    /// The operations called anywhere, such as `aten.conv2d`.
    pub(super) fn ops(&self) -> BTreeSet<String> {
        let mut ops = BTreeSet::new();
        for (_, file) in &self.files {
            let methods = file.classes.iter().flat_map(|class| &class.methods);
            for function in methods.chain(&file.functions) {
                collect(&function.body, &mut ops);
            }
        }
        ops
    }
}

/// Nesting is bounded by the parser, so recursion is too.
fn collect(statements: &[Statement], ops: &mut BTreeSet<String>) {
    for statement in statements {
        match &statement.kind {
            StatementKind::Assign { value, .. }
            | StatementKind::Expression(value)
            | StatementKind::Return(value) => calls(value, ops),
            StatementKind::If { condition, then, otherwise } => {
                calls(condition, ops);
                collect(then, ops);
                collect(otherwise, ops);
            }
            StatementKind::For { iterable, body, .. } => {
                calls(iterable, ops);
                collect(body, ops);
            }
            StatementKind::While { condition, body } => {
                calls(condition, ops);
                collect(body, ops);
            }
            StatementKind::Pass => {}
        }
    }
}

fn calls(expression: &Expression, ops: &mut BTreeSet<String>) {
    match expression {
        Expression::Call(call) => {
            match dotted(&call.function) {
                Some(path) => {
                    if let Some(name) = operation(&path).filter(|name| !builtin::is_builtin(name)) {
                        ops.insert(format!("aten.{name}"));
                    } else if path.starts_with("ops.") && !path.starts_with("ops.prim.") {
                        ops.insert(path.trim_start_matches("ops.").to_owned());
                    }
                }
                None => calls(&call.function, ops),
            }
            call.arguments.iter().for_each(|(_, argument)| calls(argument, ops));
        }
        Expression::Attribute(base, _) | Expression::Negative(base) | Expression::Not(base) => {
            calls(base, ops)
        }
        Expression::Subscript(base, index) => {
            calls(base, ops);
            calls(index, ops);
        }
        Expression::List(items) | Expression::Tuple(items) => items.iter().for_each(|item| calls(item, ops)),
        Expression::Dict(pairs) => pairs.iter().for_each(|(key, value)| {
            calls(key, ops);
            calls(value, ops);
        }),
        Expression::Choice(parts) => parts.iter().for_each(|part| calls(part, ops)),
        _ => {}
    }
}

/// The operation's name in a path such as `torch.add` or `ops.aten.add`.
pub(super) fn operation(path: &str) -> Option<&str> {
    let name = path.strip_prefix("torch.").or_else(|| path.strip_prefix("ops.aten."))?;
    (!name.contains('.')).then_some(name)
}

/// A chain of attributes on a name, as a path.
pub(super) fn dotted(expression: &Expression) -> Option<String> {
    match expression {
        Expression::Name(name) => Some(name.clone()),
        Expression::Attribute(base, name) => Some(format!("{}.{name}", dotted(base)?)),
        _ => None,
    }
}

/// A program ready to be lowered.
#[derive(Debug)]
pub(crate) struct Program {
    pub(super) sources: Sources,
    pub(super) objects: Vec<Object>,
    pub(super) constants: Vec<HostTensor>,
}

impl Program {
    /// The tensors that the program has by itself: those of `constants.pkl`, and attributes that are tensors but
    /// neither parameters nor buffers.
    pub(crate) fn constants(&self) -> Vec<(String, &HostTensor)> {
        let numbered = self.constants.iter().enumerate();
        let mut all: Vec<_> = numbered.map(|(n, tensor)| (format!("constants.pkl {n}"), tensor)).collect();
        for Object { class, attributes, .. } in &self.objects {
            let mut attributes: Vec<_> = attributes.iter().collect();
            attributes.sort_unstable_by_key(|(name, _)| *name);
            for (name, attribute) in attributes {
                let mut open = vec![attribute];
                while let Some(attribute) = open.pop() {
                    match attribute {
                        Attribute::Constant(tensor) => all.push((format!("{class}.{name}"), tensor)),
                        Attribute::List(items) | Attribute::Tuple(items) => open.extend(items),
                        _ => {}
                    }
                }
            }
        }
        all
    }

    /// Runs `forward` of the root module; the outputs flat, in their order.
    ///
    /// # Errors
    /// [`ArtifactError`] naming file and line.
    pub(crate) fn run(
        &self,
        lowering: &mut Lowering<'_>,
        inputs: &[Value],
        limits: &ReadLimits,
    ) -> Result<Vec<Value>, ArtifactError> {
        let mut interpreter = Interpreter::new(self, lowering, limits);
        let result = interpreter.forward(inputs)?;
        let mut outputs = Vec::new();
        flatten(lowering, &result, &mut outputs, limits.nesting)?;
        Ok(outputs)
    }
}

fn flatten(
    lowering: &Lowering<'_>,
    value: &Value,
    outputs: &mut Vec<Value>,
    depth: usize,
) -> Result<(), ArtifactError> {
    match value {
        Value::List(items) | Value::Tuple(items) => {
            let Some(depth) = depth.checked_sub(1) else {
                return Err(ArtifactError::limit("forward", "levels in the result", 0));
            };
            lowering.items(*items).iter().try_for_each(|item| flatten(lowering, item, outputs, depth))
        }
        Value::None => Ok(()),
        _ if outputs.len() >= MAX_OUTPUTS => Err(ArtifactError::limit("forward", "outputs", MAX_OUTPUTS)),
        other => {
            outputs.push(other.clone());
            Ok(())
        }
    }
}
