//! Graphs of one operation, for whoever tests what runs them.

use crate::{
    graph::{Builder, Conv2d, Graph, Op, Sink, Source},
    tensor::DType,
};

/// A graph of one operation on inputs.
pub(crate) fn single(inputs: &[(&[usize], DType)], op: Op) -> Graph {
    let mut builder = Builder::new();
    let inputs: Vec<_> = inputs
        .iter()
        .enumerate()
        .map(|(n, &(shape, dtype))| builder.source(Source::Input(n as u32), shape.into(), dtype).unwrap())
        .collect();
    for (n, value) in builder.push(op, &inputs).unwrap().into_iter().enumerate() {
        builder.sink(Sink::Output(n as u32), value);
    }
    builder.finish()
}

/// A convolution of x and w, the gradient of x of w and that of y, and the gradient of w of x and that of y.
pub(crate) fn convolutions(conv: Conv2d, x: [usize; 4], w: [usize; 4], dtype: DType) -> [Graph; 3] {
    let kernel_size = [w[2], w[3]];
    let [height, width] = conv.output_size([x[2], x[3]], kernel_size).unwrap();
    let y = [x[0], w[0], height, width];
    let to_input = Op::Conv2dGradInput { conv, input_size: [x[2], x[3]] };
    let to_weight = Op::Conv2dGradWeight { conv, kernel_size };
    [
        single(&[(&x, dtype), (&w, dtype)], Op::Conv2d(conv)),
        single(&[(&w, dtype), (&y, dtype)], to_input),
        single(&[(&x, dtype), (&y, dtype)], to_weight),
    ]
}
