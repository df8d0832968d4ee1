//! Whether a program's values are each made once, and before they are read.

use std::collections::HashSet;

use super::schema::{Argument, ExportedProgram, Name, OptionalTensor, OutputSpec, SymInt, SymNumber};
use crate::artifact::ArtifactError;

/// Checks the order of the nodes: no cycle, no reference forward, no name given twice.
///
/// # Errors
/// [`ArtifactError::Malformed`] naming the node and the value.
pub(super) fn check<'p>(
    place: &str,
    program: &'p ExportedProgram,
    inputs: impl IntoIterator<Item = &'p str>,
) -> Result<(), ArtifactError> {
    let graph = &program.graph_module.graph;
    let mut made: HashSet<&str> = HashSet::new();
    let twice = |name: &str, at: &str| {
        ArtifactError::malformed(format!("{place} {at}"), format!("value {name:?} is made a second time"))
    };
    for name in inputs {
        if !made.insert(name) {
            return Err(twice(name, "inputs"));
        }
    }
    let unmade = |name: &str, at: &str| {
        let reason = format!("value {name:?} is read before it is made, or never made");
        ArtifactError::malformed(format!("{place} {at}"), reason)
    };
    let mut names = Vec::new();
    for (index, node) in graph.nodes.iter().enumerate() {
        names.clear();
        node.inputs.iter().for_each(|input| collect(&input.arg, &mut names));
        if let Some(name) = names.iter().find(|name| !made.contains(*name)) {
            return Err(unmade(name, &format!("node {index}")));
        }
        names.clear();
        node.outputs.iter().for_each(|output| collect(output, &mut names));
        if let Some(name) = names.iter().find(|name| !made.insert(name)) {
            return Err(twice(name, &format!("node {index}")));
        }
    }
    names.clear();
    for spec in &program.graph_module.signature.output_specs {
        match spec {
            OutputSpec::UserOutput(user) => collect(&user.arg, &mut names),
            OutputSpec::BufferMutation { arg, .. } => names.push(&arg.name),
            _ => {}
        }
    }
    match names.iter().find(|name| !made.contains(*name)) {
        Some(name) => Err(unmade(name, "outputs")),
        None => Ok(()),
    }
}

/// Appends the names of the values that an argument is, or that a node gives as it.
fn collect<'p>(argument: &'p Argument, names: &mut Vec<&'p str>) {
    let mut optional = |tensor: &'p OptionalTensor| {
        if let OptionalTensor::AsTensor(Name { name }) = tensor {
            names.push(name);
        }
    };
    match argument {
        Argument::AsOptionalTensor(tensor) => optional(tensor),
        Argument::AsOptionalTensors(tensors) => tensors.iter().for_each(optional),
        Argument::AsTensor(Name { name })
        | Argument::AsSymInt(SymInt::AsName(name))
        | Argument::AsSymFloat(SymNumber::Name(name))
        | Argument::AsSymBool(SymNumber::Name(name)) => names.push(name),
        Argument::AsTensors(tensors) => names.extend(tensors.iter().map(|tensor| tensor.name.as_str())),
        Argument::AsSymInts(sizes) => names.extend(sizes.iter().filter_map(|size| match size {
            SymInt::AsName(name) => Some(name.as_str()),
            SymInt::AsInt(_) => None,
        })),
        _ => {}
    }
}
