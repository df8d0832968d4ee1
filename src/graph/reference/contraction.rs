//! Matrix products and convolutions, by their definitions.

use super::tensor::{Tensor, for_each_index};
use crate::{
    graph::{Conv2d, Op},
    tensor::Shape,
};

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    let [a, b] = operands else { return None };
    let result = match op {
        Op::MatMul { transpose_a, transpose_b } => matmul(a, b, *transpose_a, *transpose_b),
        Op::Conv2d(conv) => {
            let size = conv.output_size([a.shape[2], a.shape[3]], [b.shape[2], b.shape[3]])?;
            let mut y = Tensor::zeros([a.shape[0], b.shape[0], size[0], size[1]].into());
            let y_shape = y.shape.clone();
            for_each_tap(conv, &a.shape, &b.shape, &y_shape, |x, w, to| *y.at_mut(to) += a.at(x) * b.at(w));
            y
        }
        Op::Conv2dGradInput { conv, input_size } => {
            let (w, gy) = (a, b);
            let shape = [gy.shape[0], w.shape[1] * conv.groups, input_size[0], input_size[1]].into();
            let mut gx = Tensor::zeros(shape);
            let shape = gx.shape.clone();
            for_each_tap(conv, &shape, &w.shape, &gy.shape, |x, tap, y| {
                *gx.at_mut(x) += w.at(tap) * gy.at(y)
            });
            gx
        }
        Op::Conv2dGradWeight { conv, kernel_size } => {
            let (x, gy) = (a, b);
            let shape = [gy.shape[1], x.shape[1] / conv.groups, kernel_size[0], kernel_size[1]].into();
            let mut gw = Tensor::zeros(shape);
            let shape = gw.shape.clone();
            for_each_tap(conv, &x.shape, &shape, &gy.shape, |at, tap, y| {
                *gw.at_mut(tap) += x.at(at) * gy.at(y)
            });
            gw
        }
        _ => return None,
    };
    Some(vec![result])
}

fn matmul(a: &Tensor, b: &Tensor, transpose_a: bool, transpose_b: bool) -> Tensor {
    let batch = a.shape.rank() - 2;
    let side =
        |t: &Tensor, transposed: bool, which: usize| t.shape[batch + (which ^ usize::from(transposed))];
    let (m, k, n) = (side(a, transpose_a, 0), side(a, transpose_a, 1), side(b, transpose_b, 1));
    let shape: Shape = a.shape[..batch].iter().copied().chain([m, n]).collect();
    let read = |t: &Tensor, outer: &[usize], transposed: bool, i: usize, j: usize| {
        let (i, j) = if transposed { (j, i) } else { (i, j) };
        t.at(&[outer, &[i, j]].concat())
    };
    Tensor::build(shape, |index| {
        let (outer, i, j) = (&index[..batch], index[batch], index[batch + 1]);
        (0..k).map(|l| read(a, outer, transpose_a, i, l) * read(b, outer, transpose_b, l, j)).sum()
    })
}

/// Calls the function with the indices of x, w and y of every product that a convolution sums.
fn for_each_tap(
    conv: &Conv2d,
    x: &Shape,
    w: &Shape,
    y: &Shape,
    mut f: impl FnMut(&[usize], &[usize], &[usize]),
) {
    let outputs_a_group = y[1] / conv.groups;
    for_each_index(y, |to| {
        let group = to[1] / outputs_a_group;
        for_each_index(&[w[1], w[2], w[3]].into(), |tap| {
            let place = |i: usize| {
                (to[2 + i] * conv.stride[i] + tap[1 + i] * conv.dilation[i])
                    .checked_sub(conv.padding[i])
                    .filter(|&p| p < x[2 + i])
            };
            if let (Some(h), Some(v)) = (place(0), place(1)) {
                f(&[to[0], group * w[1] + tap[0], h, v], &[to[1], tap[0], tap[1], tap[2]], to);
            }
        });
    });
}
