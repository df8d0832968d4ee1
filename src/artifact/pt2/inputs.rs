//! Whether the inputs given are those that a program was exported for.

use std::collections::HashMap;

use super::{
    Program,
    expression::{Sizes, Trouble, evaluate},
    program::Binding,
    schema::{Range, Size},
};
use crate::{
    artifact::{
        ArtifactError,
        aten::{Lowering, Value},
    },
    tensor::{DType, Shape},
};

/// One input: its name, the shape and type given.
struct Input<'p> {
    index: usize,
    name: &'p str,
    shape: Shape,
    dtype: DType,
}

/// What is known of sizes so far.
struct Known<'p, 'i> {
    symbols: HashMap<&'p str, i64>,
    inputs: &'i [Input<'p>],
    /// A value that a symbol is tried with.
    trial: Option<(&'i str, i64)>,
}

impl Sizes for Known<'_, '_> {
    fn symbol(&self, name: &str) -> Option<i64> {
        let trial = self.trial.filter(|(tried, _)| *tried == name).map(|(_, value)| value);
        trial.or_else(|| self.symbols.get(name).copied())
    }

    fn size(&self, input: &str, dim: usize) -> Option<i64> {
        let input = self.inputs.iter().find(|known| known.name == input)?;
        i64::try_from(*input.shape.get(dim)?).ok()
    }
}

impl Program {
    /// Fixed sizes must be met, sizes that share a symbol be equal and in range, derived sizes be what their
    /// expression gives, and the guards hold.
    pub(super) fn check_inputs(
        &self,
        lowering: &mut Lowering<'_>,
        given: &[Value],
    ) -> Result<(), ArtifactError> {
        if given.len() != self.symbols.len() {
            return Err(ArtifactError::InputCount { expected: self.symbols.len(), actual: given.len() });
        }
        let mut inputs = Vec::new();
        for binding in &self.bindings {
            if let Binding::Input(name, index) = binding
                && let Some((shape, dtype)) = lowering.info(&given[*index])
            {
                inputs.push(Input { index: *index, name, shape, dtype });
            }
        }
        let mut known = Known { symbols: HashMap::new(), inputs: &inputs, trial: None };
        for input in &inputs {
            self.check_plain(input, &mut known)?;
        }
        for input in &inputs {
            self.check_derived(input, &mut known)?;
        }
        for guard in &self.program.guards_code {
            lowering.burn(1 + guard.len() as u64 / 16, || "guards".into())?;
            let hint = match evaluate(guard, &known) {
                Ok(0) => format!("it was exported for sizes where {}", short(guard)),
                Ok(_) => continue,
                Err(_) => {
                    format!("its guard {} is not understood; export it with fewer free sizes", short(guard))
                }
            };
            if let Some(input) = inputs.first() {
                return Err(self.refusal(input, hint));
            }
        }
        Ok(())
    }

    fn sizes<'p>(&'p self, input: &Input<'p>) -> &'p [Size] {
        let values = &self.program.graph_module.graph.tensor_values;
        values.get(input.name).map_or(&[], |meta| &meta.sizes)
    }

    fn refusal(&self, input: &Input<'_>, hint: String) -> ArtifactError {
        let sizes = self.sizes(input).iter().map(|size| match size {
            Size::AsInt(size) => size.to_string(),
            Size::AsExpr(expression) => {
                size.symbol().map_or_else(|| short(&expression.expr_str), str::to_owned)
            }
        });
        let expected = format!("[{}]", sizes.collect::<Vec<_>>().join(", "));
        ArtifactError::InputShape { index: input.index, actual: input.shape.clone(), expected, hint }
    }

    fn check_plain<'p>(&'p self, input: &Input<'p>, known: &mut Known<'p, '_>) -> Result<(), ArtifactError> {
        let meta = &self.program.graph_module.graph.tensor_values[input.name];
        let refuse = |hint: String| Err(self.refusal(input, hint));
        if meta.dtype() != Some(input.dtype) {
            let wanted = meta.dtype().map_or("another type", |dtype| dtype.name());
            return refuse(format!("it takes {wanted} elements, not {}", input.dtype));
        }
        if meta.sizes.len() != input.shape.rank() {
            return refuse(format!("it takes {} dimensions", meta.sizes.len()));
        }
        for (dim, size) in meta.sizes.iter().enumerate() {
            let actual = input.shape[dim];
            if size.fixed().is_some_and(|fixed| fixed != actual) {
                return refuse(format!(
                    "size {dim} is fixed; export it with torch.export.export(module, args, dynamic_shapes=({{{dim}: torch.export.Dim(\"size{dim}\")}},))"
                ));
            }
            let Some(symbol) = self.symbols[input.index][dim].as_deref() else { continue };
            if *known.symbols.entry(symbol).or_insert(actual as i64) != actual as i64 {
                return refuse(format!("every size {symbol} must be the same"));
            }
            if let Some(range) = self.program.range_constraints.get(symbol) {
                check_range(actual as i64, &format!("size {dim}"), *range)
                    .map_err(|hint| self.refusal(input, hint))?;
            }
        }
        Ok(())
    }

    /// Sizes such as `4*s39`: what the expression gives, where its symbol is known; else they tell the symbol.
    fn check_derived<'p>(
        &'p self,
        input: &Input<'p>,
        known: &mut Known<'p, '_>,
    ) -> Result<(), ArtifactError> {
        for (dim, size) in self.sizes(input).iter().enumerate() {
            let (Size::AsExpr(expression), None) = (size, size.symbol()) else { continue };
            let text = expression.expr_str.as_str();
            let actual = input.shape[dim] as i64;
            let refuse = |hint: String| Err(self.refusal(input, hint));
            let symbol = match evaluate(text, known) {
                Ok(value) if value == actual => continue,
                Ok(value) => return refuse(format!("size {dim} is {} and must be {value}", short(text))),
                Err(Trouble::Unknown(symbol)) => symbol,
                Err(_) => return refuse(format!("its size {} is not understood", short(text))),
            };
            let at = |value| {
                let trial = Known {
                    symbols: known.symbols.clone(),
                    inputs: known.inputs,
                    trial: Some((&symbol, value)),
                };
                evaluate(text, &trial).ok()
            };
            // A straight line through three points, solved for the size given.
            let solved = match (at(0), at(1), at(2)) {
                (Some(a), Some(b), Some(c)) if b != a && c.checked_sub(b) == b.checked_sub(a) => {
                    let (over, by) = (actual.checked_sub(a), b.checked_sub(a));
                    over.zip(by).filter(|(over, by)| over % by == 0).map(|(over, by)| over / by)
                }
                _ => return refuse(format!("its size {} is not understood", short(text))),
            };
            let Some(value) = solved else { return refuse(format!("size {dim} must be {}", short(text))) };
            let Some((name, range)) = self.program.range_constraints.get_key_value(symbol.as_str()) else {
                return refuse(format!("the symbol {symbol} has no range"));
            };
            check_range(value, &format!("{symbol} in {}", short(text)), *range)
                .map_err(|hint| self.refusal(input, hint))?;
            known.symbols.insert(name, value);
        }
        Ok(())
    }
}

/// An expression as a person reads it, cut where it is long.
fn short(text: &str) -> String {
    text.replace(", positive=True", "").replace(", integer=True", "").chars().take(200).collect()
}

fn check_range(size: i64, what: &str, range: Range) -> Result<(), String> {
    let (low, high) = (range.min_val.unwrap_or(0), range.max_val.unwrap_or(i64::MAX));
    if (low..=high).contains(&size) {
        return Ok(());
    }
    let high = if high == i64::MAX { "any size".to_owned() } else { high.to_string() };
    Err(format!("{what} may be {low} to {high}; export it with a wider torch.export.Dim"))
}
