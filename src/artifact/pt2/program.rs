//! Running an exported graph node by node, sizes being numbers by then.

use std::collections::HashMap;

use super::schema::{
    Argument, ExportedProgram, Float, Name, Node, OptionalTensor, OutputSpec, SymInt, SymNumber, dtype,
};
use crate::{
    artifact::{
        ArtifactError, Problem,
        aten::{self, Given, Lowering, Value},
        limits::MAX_OUTPUTS,
    },
    tensor::HostTensor,
};

/// What an input of the graph is bound to.
#[derive(Debug)]
pub(super) enum Binding {
    Parameter(String, usize),
    Buffer(String, usize),
    Constant(String, HostTensor),
    Input(String, usize),
    Unused,
}

/// An exported graph.
#[derive(Debug)]
pub(crate) struct Program {
    place: String,
    pub(super) program: ExportedProgram,
    pub(super) bindings: Vec<Binding>,
    /// For each input and dimension, the symbol its size is.
    pub(super) symbols: Vec<Vec<Option<String>>>,
}

/// Nodes that state what the exporter knew and compute nothing.
const ASSERTIONS: &[&str] = &[
    "_assert_scalar",
    "_assert_tensor_metadata",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
    "_functional_sym_constrain_range",
];

/// Whether an operation, such as `aten._assert_scalar`, only states what holds.
pub(super) fn is_assertion(op: &str) -> bool {
    op.strip_prefix("aten.").is_some_and(|name| ASSERTIONS.contains(&name))
}

impl Program {
    /// The tensors that the program has by itself.
    pub(crate) fn constants(&self) -> impl Iterator<Item = (String, &HostTensor)> {
        self.bindings.iter().filter_map(|binding| match binding {
            Binding::Constant(name, tensor) => Some((name.clone(), tensor)),
            _ => None,
        })
    }

    pub(super) fn new(
        place: String,
        program: ExportedProgram,
        bindings: Vec<Binding>,
        symbols: Vec<Vec<Option<String>>>,
    ) -> Self {
        Self { place, program, bindings, symbols }
    }

    /// Lowers the whole graph; the outputs in their order.
    ///
    /// # Errors
    /// [`ArtifactError`] naming the node.
    pub(crate) fn run(
        &self,
        lowering: &mut Lowering<'_>,
        inputs: &[Value],
    ) -> Result<Vec<Value>, ArtifactError> {
        self.check_inputs(lowering, inputs)?;
        let mut run = Run { place: &self.place, values: HashMap::new() };
        let mut buffers = HashMap::new();
        for binding in &self.bindings {
            let (name, value) = match binding {
                Binding::Parameter(name, index) => (name, lowering.parameter(*index)?),
                Binding::Buffer(name, index) => {
                    let value = lowering.buffer(*index)?;
                    buffers.insert(*index, value.clone());
                    (name, value)
                }
                Binding::Constant(name, tensor) => (name, lowering.constant(name, tensor)?),
                Binding::Input(name, index) => (name, inputs[*index].clone()),
                Binding::Unused => continue,
            };
            run.values.insert(name, value);
        }
        for (index, node) in self.program.graph_module.graph.nodes.iter().enumerate() {
            lowering.burn(1, || format!("{} node {index}", self.place))?;
            run.node(lowering, index, node)?;
        }
        let mut outputs = Vec::new();
        let specs = &self.program.graph_module.signature.output_specs;
        if specs.len() > MAX_OUTPUTS {
            return Err(ArtifactError::limit(&self.place, "outputs", MAX_OUTPUTS));
        }
        for spec in specs {
            match spec {
                OutputSpec::UserOutput(user) => {
                    match run.argument(lowering, &user.arg).map_err(|e| run.wrap("outputs", "output", e))? {
                        Value::None => {}
                        value => outputs.push(value),
                    }
                }
                OutputSpec::BufferMutation { arg, buffer_name } => {
                    let position = self.bindings.iter().find_map(|binding| match binding {
                        Binding::Buffer(_, index) if lowering.buffer_name(*index) == buffer_name => {
                            Some(*index)
                        }
                        _ => None,
                    });
                    let target = position.and_then(|index| buffers.get(&index));
                    let value = run.tensor(arg).map_err(|e| run.wrap("outputs", "buffer mutation", e))?;
                    let Some(target) = target else {
                        return Err(ArtifactError::malformed(
                            &self.place,
                            format!("there is no buffer {buffer_name:?}"),
                        ));
                    };
                    lowering.assign(target, &value).map_err(|e| run.wrap("outputs", "buffer mutation", e))?;
                }
                _ => {}
            }
        }
        Ok(outputs)
    }
}

/// The values of one run by their names.
struct Run<'p> {
    place: &'p str,
    values: HashMap<&'p str, Value>,
}

impl<'p> Run<'p> {
    fn wrap(&self, node: &str, op: &str, source: Problem) -> ArtifactError {
        ArtifactError::Operation { place: format!("{} {node}", self.place), op: op.to_owned(), source }
    }

    fn named(&self, name: &str) -> Result<Value, Problem> {
        let value = self.values.get(name).cloned();
        value.ok_or_else(|| Problem::argument(format!("{name:?} is not defined before it is read")))
    }

    fn tensor(&self, name: &Name) -> Result<Value, Problem> {
        self.named(&name.name)
    }

    fn optional(&self, tensor: &OptionalTensor) -> Result<Value, Problem> {
        match tensor {
            OptionalTensor::AsTensor(name) => self.tensor(name),
            OptionalTensor::AsNone(_) => Ok(Value::None),
        }
    }

    fn size(&self, size: &SymInt) -> Result<Value, Problem> {
        match size {
            SymInt::AsInt(value) => Ok(Value::int(*value)),
            SymInt::AsName(name) => self.named(name),
        }
    }

    fn argument(&self, lowering: &mut Lowering<'_>, argument: &Argument) -> Result<Value, Problem> {
        let items: Vec<Value> = match argument {
            Argument::AsNone(_) => return Ok(Value::None),
            Argument::AsTensor(name) => return self.tensor(name),
            Argument::AsOptionalTensor(tensor) => return self.optional(tensor),
            Argument::AsInt(value) => return Ok(Value::int(*value)),
            Argument::AsFloat(value) => return Ok(Value::float(value.0)),
            Argument::AsBool(value) => return Ok(Value::bool(*value)),
            Argument::AsString(text) => return Ok(Value::Str(text.as_str().into())),
            Argument::AsSymInt(size) => return self.size(size),
            Argument::AsSymFloat(number) | Argument::AsSymBool(number) => {
                return match number {
                    SymNumber::Name(name) => self.named(name),
                    SymNumber::Float(Float(value)) => Ok(Value::float(*value)),
                    SymNumber::Bool(value) => Ok(Value::bool(*value)),
                };
            }
            Argument::AsScalarType(code) => {
                let known = dtype(*code).map(Value::DType);
                return known.ok_or_else(|| Problem::unsupported(format!("element type {code}")));
            }
            Argument::AsMemoryFormat(_) | Argument::AsLayout(_) | Argument::AsDevice(_) => {
                return Ok(Value::Placement);
            }
            Argument::AsTensors(names) => {
                names.iter().map(|name| self.tensor(name)).collect::<Result<_, _>>()?
            }
            Argument::AsOptionalTensors(tensors) => {
                tensors.iter().map(|tensor| self.optional(tensor)).collect::<Result<_, _>>()?
            }
            Argument::AsInts(values) => values.iter().map(|&value| Value::int(value)).collect(),
            Argument::AsFloats(values) => values.iter().map(|value| Value::float(value.0)).collect(),
            Argument::AsBools(values) => values.iter().map(|&value| Value::bool(value)).collect(),
            Argument::AsSymInts(sizes) => {
                sizes.iter().map(|size| self.size(size)).collect::<Result<_, _>>()?
            }
            _ => return Err(Problem::unsupported("an argument of this kind")),
        };
        Ok(lowering.list(items))
    }

    fn node(
        &mut self,
        lowering: &mut Lowering<'_>,
        index: usize,
        node: &'p Node,
    ) -> Result<(), ArtifactError> {
        let outputs = node.outputs.first().map_or(String::new(), describe);
        let label = format!("node {index} {outputs}");
        self.evaluate(lowering, node).map_err(|source| self.wrap(&label, &node.target, source))
    }

    fn evaluate(&mut self, lowering: &mut Lowering<'_>, node: &'p Node) -> Result<(), Problem> {
        let (name, overload) = target(&node.target).ok_or(Problem::Unknown)?;
        if name == "_assert_scalar" {
            return self.check_assertion(lowering, node);
        }
        if ASSERTIONS.contains(&name) {
            return Ok(());
        }
        let mut given: Vec<Given<'_>> = Vec::with_capacity(node.inputs.len());
        for input in &node.inputs {
            let value = self.argument(lowering, &input.arg)?;
            given.push((
                Some(input.name.as_str()).filter(|name| !name.is_empty() && overload.is_some()),
                value,
            ));
        }
        let result = aten::call(lowering, name, overload.unwrap_or(""), &given)?;
        self.bind(lowering, &node.outputs, result)
    }

    /// What the exporter assumed about sizes must hold for these.
    fn check_assertion(&self, lowering: &mut Lowering<'_>, node: &Node) -> Result<(), Problem> {
        let Some(condition) = node.inputs.first() else { return Ok(()) };
        let value = self.argument(lowering, &condition.arg)?;
        if value.scalar().is_none_or(|scalar| scalar.to_f64() != 0.0) {
            return Ok(());
        }
        let message = node.inputs.iter().find_map(|input| match &input.arg {
            Argument::AsString(text) => Some(text.chars().take(300).collect::<String>()),
            _ => None,
        });
        Err(Problem::argument(message.unwrap_or_else(|| "an assertion of the program fails".into())))
    }

    fn bind(
        &mut self,
        lowering: &Lowering<'_>,
        outputs: &'p [Argument],
        result: Value,
    ) -> Result<(), Problem> {
        let several: Vec<Value> = match (outputs, &result) {
            ([], _) => return Ok(()),
            ([Argument::AsTensors(names)], Value::List(items) | Value::Tuple(items)) => {
                let items = lowering.items(*items).to_vec();
                return self.bind_names(names.iter().map(|name| Some(name.name.as_str())), items);
            }
            ([_], _) => vec![result],
            (_, Value::List(items) | Value::Tuple(items)) => lowering.items(*items).to_vec(),
            _ => return Err(Problem::argument(format!("it gives one value, {} are read", outputs.len()))),
        };
        let names = outputs.iter().map(|output| match output {
            Argument::AsTensor(name) | Argument::AsOptionalTensor(OptionalTensor::AsTensor(name)) => {
                Some(name.name.as_str())
            }
            Argument::AsSymInt(SymInt::AsName(name))
            | Argument::AsSymFloat(SymNumber::Name(name))
            | Argument::AsSymBool(SymNumber::Name(name)) => Some(name.as_str()),
            _ => None,
        });
        self.bind_names(names, several)
    }

    fn bind_names(
        &mut self,
        names: impl ExactSizeIterator<Item = Option<&'p str>>,
        values: Vec<Value>,
    ) -> Result<(), Problem> {
        if names.len() > values.len() {
            return Err(Problem::argument(format!(
                "it gives {} values, {} are read",
                values.len(),
                names.len()
            )));
        }
        for (name, value) in names.zip(values) {
            if let Some(name) = name {
                self.values.insert(name, value);
            }
        }
        Ok(())
    }
}

fn describe(output: &Argument) -> String {
    match output {
        Argument::AsTensor(name) => name.name.clone(),
        Argument::AsSymInt(SymInt::AsName(name)) => name.clone(),
        _ => String::new(),
    }
}

/// The operation's name and overload; Python's own operators have no overload and take arguments by place.
fn target(target: &str) -> Option<(&str, Option<&str>)> {
    if let Some(name) = target.strip_prefix("torch.ops.aten.") {
        return name.split_once('.').map(|(name, overload)| (name, Some(overload)));
    }
    match target {
        "torch.sym_max" => return Some(("maximum", None)),
        "torch.sym_float" => return Some(("sym_float", None)),
        "torch.sym_min" => return Some(("minimum", None)),
        "torch.sym_not" => return Some(("logical_not", None)),
        _ => {}
    }
    let name = target.strip_prefix("_operator.")?;
    Some(match name {
        "and_" => ("logical_and", None),
        "or_" => ("logical_or", None),
        "mod" => ("remainder", None),
        "truediv" => ("div", None),
        "add" | "sub" | "mul" | "floordiv" | "neg" | "eq" | "ne" | "lt" | "le" | "gt" | "ge" | "pow" => {
            (name, None)
        }
        _ => return None,
    })
}
