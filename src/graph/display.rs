//! Graphs as text: one line a value, as `kasmina inspect` and errors print them.

use std::fmt;

use super::{Conv2d, Graph, Node, Op, Pool2d, Sink, Source, Unary, ValueId};

impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Input(n) => write!(f, "input {n}"),
            Source::Parameter(n) => write!(f, "parameter {n}"),
            Source::Buffer(n) => write!(f, "buffer {n}"),
            Source::Constant(n) => write!(f, "constant {n}"),
            Source::GradOutput(n) => write!(f, "grad_output {n}"),
            Source::Saved(n) => write!(f, "saved {n}"),
        }
    }
}

impl fmt::Display for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sink::Output(n) => write!(f, "output {n}"),
            Sink::BufferUpdate(n) => write!(f, "buffer_update {n}"),
            Sink::Saved(n) => write!(f, "saved {n}"),
            Sink::GradInput(n) => write!(f, "grad_input {n}"),
            Sink::GradParameter(n) => write!(f, "grad_parameter {n}"),
        }
    }
}

/// The short name, then the attributes in braces where there are any:
/// `leaky_relu {slope=0.01}`.
impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let attributes = Attributes::of(self);
        f.write_str(self.name())?;
        attributes.write(f)
    }
}

/// A line for each source, node and sink:
///
/// ```text
/// %0: float32[8, 16] = input 0
/// %1: float32[8, 16] = relu(%0)
/// %2: float32[8, 1] = reduce(%1) {how=mean, dims=[1]}
/// output 0 = %2
/// ```
impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for &(source, value) in &self.sources {
            self.write_results(f, &[value])?;
            writeln!(f, " = {source}")?;
        }
        for node in &self.nodes {
            self.write_node(f, node, &|value| value.to_string())?;
            writeln!(f)?;
        }
        self.sinks.iter().try_for_each(|(sink, value)| writeln!(f, "{sink} = {value}"))
    }
}

impl Graph {
    fn write_results(&self, f: &mut fmt::Formatter<'_>, values: &[ValueId]) -> fmt::Result {
        for (i, &value) in values.iter().enumerate() {
            let info = self.info(value);
            let comma = if i == 0 { "" } else { ", " };
            write!(f, "{comma}{value}: {}{}", info.dtype, info.shape)?;
        }
        Ok(())
    }

    fn write_node(
        &self,
        f: &mut fmt::Formatter<'_>,
        node: &Node,
        operand: &dyn Fn(ValueId) -> String,
    ) -> fmt::Result {
        self.write_results(f, &node.outputs)?;
        write!(f, " = {}(", node.op.name())?;
        for (i, &value) in node.inputs.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { ", " }, operand(value))?;
        }
        f.write_str(")")?;
        Attributes::of(&node.op).write(f)
    }

    /// A node as it stands in the graph's text, with operands named by the caller.
    pub fn line<'a>(
        &'a self,
        node: &'a Node,
        operand: &'a dyn Fn(ValueId) -> String,
    ) -> impl fmt::Display + 'a {
        fmt::from_fn(move |f| self.write_node(f, node, operand))
    }
}

/// An operation's attributes by name, in the order they are declared.
#[derive(Default)]
struct Attributes(Vec<(&'static str, String)>);

impl Attributes {
    fn write(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return Ok(());
        }
        f.write_str(" {")?;
        for (i, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}={value}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("}")
    }

    fn with(mut self, name: &'static str, value: impl fmt::Debug) -> Self {
        self.0.push((name, format!("{value:?}")));
        self
    }

    fn word(mut self, name: &'static str, value: impl fmt::Display) -> Self {
        self.0.push((name, value.to_string().to_lowercase()));
        self
    }

    fn conv(self, conv: &Conv2d) -> Self {
        self.with("stride", conv.stride)
            .with("padding", conv.padding)
            .with("dilation", conv.dilation)
            .with("groups", conv.groups)
    }

    fn pool(self, pool: &Pool2d) -> Self {
        self.with("kernel", pool.kernel)
            .with("stride", pool.stride)
            .with("padding", pool.padding)
            .with("dilation", pool.dilation)
            .with("ceil", pool.ceil)
    }

    fn unary(self, unary: &Unary) -> Self {
        match unary {
            Unary::LeakyRelu { slope } => self.with("slope", slope),
            Unary::Elu { alpha } => self.with("alpha", alpha),
            Unary::Softplus { beta, threshold } => self.with("beta", beta).with("threshold", threshold),
            Unary::Hardtanh { min, max } => self.with("min", min).with("max", max),
            Unary::AddScalar { value } | Unary::MulScalar { value } => self.with("value", value),
            Unary::PowScalar { exponent } => self.with("exponent", exponent),
            _ => self,
        }
    }

    fn of(op: &Op) -> Self {
        let none = Self::default();
        match op {
            Op::Unary(unary) => none.unary(unary),
            Op::UnaryGrad(unary) => none.word("of", unary.name()).unary(unary),
            Op::Compare(compare) => none.word("how", format!("{compare:?}")),
            Op::Cast(dtype) => none.word("to", dtype),
            Op::Reshape(shape) | Op::Expand(shape) => none.with("shape", shape),
            Op::Permute(order) => none.with("order", order),
            Op::Slice { dim, start, len, step } => {
                none.with("dim", dim).with("start", start).with("len", len).with("step", step)
            }
            Op::Unslice { dim, size, start, step } => {
                none.with("dim", dim).with("size", size).with("start", start).with("step", step)
            }
            Op::Reduce { reduction, dims } => none.word("how", format!("{reduction:?}")).with("dims", dims),
            Op::Unpick { dim, size } => none.with("dim", dim).with("size", size),
            Op::Cat { dim }
            | Op::Pick { dim }
            | Op::Softmax { dim }
            | Op::SoftmaxGrad { dim }
            | Op::LogSoftmax { dim }
            | Op::LogSoftmaxGrad { dim } => none.with("dim", dim),
            Op::MatMul { transpose_a, transpose_b } => {
                none.with("transpose_a", transpose_a).with("transpose_b", transpose_b)
            }
            Op::Conv2d(conv) => none.conv(conv),
            Op::Conv2dGradInput { conv, input_size } => none.conv(conv).with("input_size", input_size),
            Op::Conv2dGradWeight { conv, kernel_size } => none.conv(conv).with("kernel_size", kernel_size),
            Op::Attention { causal, scale } | Op::AttentionGrad { causal, scale } => {
                none.with("causal", causal).with("scale", scale)
            }
            Op::MaxPool2d(pool) => none.pool(pool),
            Op::AvgPool2d { pool, count_include_pad, divisor } => {
                none.pool(pool).with("count_include_pad", count_include_pad).with("divisor", divisor)
            }
            Op::AvgPool2dGrad { pool, count_include_pad, divisor, input_size } => none
                .pool(pool)
                .with("count_include_pad", count_include_pad)
                .with("divisor", divisor)
                .with("input_size", input_size),
            Op::MaxPool2dGrad { input_size } | Op::AdaptiveAvgPool2dGrad { input_size } => {
                none.with("input_size", input_size)
            }
            Op::AdaptiveAvgPool2d { output_size } => none.with("output_size", output_size),
            Op::BatchNorm { eps } | Op::BatchNormEval { eps } | Op::BatchNormEvalGrad { eps } => {
                none.with("eps", eps)
            }
            Op::LayerNorm { dims, eps } => none.with("dims", dims).with("eps", eps),
            Op::LayerNormGrad { dims } => none.with("dims", dims),
            Op::GroupNorm { groups, eps } => none.with("groups", groups).with("eps", eps),
            Op::GroupNormGrad { groups } => none.with("groups", groups),
            Op::Dropout { p, site } => none.with("p", p).with("site", site),
            Op::Full { value, .. } => none.with("value", value),
            Op::Arange { start, step, .. } => none.with("start", start).with("step", step),
            Op::Binary(_) | Op::Where | Op::Detach | Op::BatchNormGrad => none,
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::{
        graph::{Builder, Op, Pool2d, Reduction, Sink, Source, Unary},
        tensor::DType,
    };

    #[test]
    fn a_graph_prints_as_one_line_a_value() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [1, 2, 4, 4].into(), DType::F32).unwrap();
        let y = builder.apply(Op::Unary(Unary::LeakyRelu { slope: 0.1 }), &[x]).unwrap();
        let pool = Pool2d { kernel: [2, 2], stride: [2, 2], padding: [0, 0], dilation: [1, 1], ceil: false };
        let pooled = builder.push(Op::MaxPool2d(pool), &[y]).unwrap();
        let mean =
            builder.apply(Op::Reduce { reduction: Reduction::Mean, dims: vec![2, 3] }, &[pooled[0]]).unwrap();
        builder.sink(Sink::Output(0), mean);
        let expected = "\
%0: float32[1, 2, 4, 4] = input 0
%1: float32[1, 2, 4, 4] = leaky_relu(%0) {slope=0.1}
%2: float32[1, 2, 2, 2], %3: int64[1, 2, 2, 2] = max_pool2d(%1) {kernel=[2, 2], stride=[2, 2], \
padding=[0, 0], dilation=[1, 1], ceil=false}
%4: float32[1, 2, 1, 1] = reduce(%2) {how=mean, dims=[2, 3]}
output 0 = %4
";
        assert_eq!(builder.finish().to_string(), expected);
    }
}
