//! What a tensor holds, where the program alone decides: indices and masks that are computed from constants.

use super::Lowering;
use crate::{
    artifact::Problem,
    graph::{Graph, Op, Sink, Source, ValueId, reference},
    tensor::HostTensor,
};

/// The most elements that one value on the way may have.
const MAX_ELEMENTS: usize = 1 << 16;

/// The content of a tensor.
pub(super) struct Content {
    pub(super) tensor: HostTensor,
    /// Whether it is the same at each pass. A buffer's may be another when the graph runs.
    pub(super) fixed: bool,
}

impl Lowering<'_> {
    /// What a value holds, where it is computed from constants and buffers alone.
    ///
    /// # Errors
    /// [`Problem`] when the program's fuel does not pay for it.
    pub(super) fn content(&mut self, value: ValueId) -> Result<Option<Content>, Problem> {
        let whole = self.builder.graph();
        self.charge((whole.nodes.len() + whole.sources.len()) as u64)?;
        let whole = self.builder.graph();
        let mut wanted = vec![false; whole.values.len()];
        wanted[value.0 as usize] = true;
        let (mut nodes, mut elements) = (Vec::new(), 0);
        for node in whole.nodes.iter().rev() {
            if !node.outputs.iter().any(|id| wanted[id.0 as usize]) {
                continue;
            }
            let size = node.outputs.iter().map(|id| whole.info(*id).shape.elements()).max().unwrap_or(0);
            if !is_simple(&node.op) || size > MAX_ELEMENTS {
                return Ok(None);
            }
            elements += size;
            node.inputs.iter().for_each(|id| wanted[id.0 as usize] = true);
            nodes.push(node.clone());
        }
        nodes.reverse();
        let mut fixed = true;
        let mut part = Graph { nodes, sinks: vec![(Sink::Output(0), value)], ..Graph::default() };
        for &(source, id) in whole.sources.iter().filter(|(_, id)| wanted[id.0 as usize]) {
            fixed &= matches!(source, Source::Constant(_));
            if !matches!(source, Source::Constant(_) | Source::Buffer(_))
                || whole.info(id).shape.elements() > MAX_ELEMENTS
            {
                return Ok(None);
            }
            part.sources.push((source, id));
        }
        (part.values, part.constants) = (whole.values.clone(), whole.constants.clone());
        self.charge(elements.saturating_add(part.values.len()) as u64)?;
        let feed = |source: Source| match source {
            Source::Buffer(n) => self.buffers[n as usize].tensor.clone(),
            other => unreachable!("{other:?} was sorted out above"),
        };
        let mut found =
            reference::evaluate(&part, feed, 0).map_err(|error| Problem::argument(error.to_string()))?;
        Ok(found.pop().map(|(_, tensor)| Content { tensor, fixed }))
    }
}

/// Operations that take no more time than their results are large.
fn is_simple(op: &Op) -> bool {
    matches!(
        op,
        Op::Reshape(_)
            | Op::Permute(_)
            | Op::Expand(_)
            | Op::Slice { .. }
            | Op::Cat { .. }
            | Op::Pick { .. }
            | Op::Detach
            | Op::Full { .. }
            | Op::Arange { .. }
            | Op::Cast(_)
            | Op::Unary(_)
            | Op::Binary(_)
            | Op::Compare(_)
            | Op::Where
    )
}
