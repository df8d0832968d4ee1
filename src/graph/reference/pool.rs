//! Pooling, by window.

use std::ops::Range;

use super::tensor::{Tensor, for_each_index};
use crate::{
    graph::{Op, Pool2d},
    tensor::Shape,
};

pub(super) fn run(op: &Op, operands: &[&Tensor]) -> Option<Vec<Tensor>> {
    let x = *operands.first()?;
    let plane = |size: [usize; 2]| Shape::from([x.shape[0], x.shape[1], size[0], size[1]]);
    let result = match op {
        Op::MaxPool2d(pool) => return Some(max_pool(pool, x)),
        Op::MaxPool2dGrad { input_size } => {
            let (indices, gy) = (x, operands[1]);
            let mut gx = Tensor::zeros(plane(*input_size));
            for_each_index(&gy.shape, |index| {
                let flat = indices.at(index) as usize;
                *gx.at_mut(&[index[0], index[1], flat / input_size[1], flat % input_size[1]]) += gy.at(index);
            });
            gx
        }
        Op::AvgPool2d { pool, count_include_pad, divisor } => {
            let input = [x.shape[2], x.shape[3]];
            let shape = plane(pool.output_size(input)?);
            Tensor::build(shape, |to| {
                let windows = [0, 1].map(|i| average_window(pool, i, to[2 + i], input[i]));
                total(x, to, &windows) / count(&windows, *count_include_pad, *divisor)
            })
        }
        Op::AvgPool2dGrad { pool, count_include_pad, divisor, input_size } => {
            let gy = x;
            let mut gx = Tensor::zeros(plane(*input_size));
            for_each_index(&gy.shape, |to| {
                let windows = [0, 1].map(|i| average_window(pool, i, to[2 + i], input_size[i]));
                spread(&mut gx, to, &windows, gy.at(to) / count(&windows, *count_include_pad, *divisor));
            });
            gx
        }
        Op::AdaptiveAvgPool2d { output_size } => {
            let input = [x.shape[2], x.shape[3]];
            Tensor::build(plane(*output_size), |to| {
                let windows = [0, 1].map(|i| adaptive_window(to[2 + i], output_size[i], input[i]));
                total(x, to, &windows) / count(&windows, false, None)
            })
        }
        Op::AdaptiveAvgPool2dGrad { input_size } => {
            let gy = x;
            let output = [gy.shape[2], gy.shape[3]];
            let mut gx = Tensor::zeros(plane(*input_size));
            for_each_index(&gy.shape, |to| {
                let windows = [0, 1].map(|i| adaptive_window(to[2 + i], output[i], input_size[i]));
                spread(&mut gx, to, &windows, gy.at(to) / count(&windows, false, None));
            });
            gx
        }
        _ => return None,
    };
    Some(vec![result])
}

/// A window along one dimension: the part within the input, and its length with padding counted.
struct Window {
    inside: Range<usize>,
    padded_len: usize,
}

fn average_window(pool: &Pool2d, i: usize, to: usize, size: usize) -> Window {
    let start = to * pool.stride[i];
    let end = (start + pool.kernel[i]).min(size + 2 * pool.padding[i]);
    let inside = start.saturating_sub(pool.padding[i])..(end - pool.padding[i].min(end)).min(size);
    Window { inside, padded_len: end - start }
}

fn adaptive_window(to: usize, output: usize, input: usize) -> Window {
    let inside = to * input / output..((to + 1) * input).div_ceil(output);
    Window { padded_len: inside.len(), inside }
}

fn count(windows: &[Window; 2], include_pad: bool, divisor: Option<usize>) -> f64 {
    let len = |w: &Window| if include_pad { w.padded_len } else { w.inside.len() };
    divisor.unwrap_or_else(|| len(&windows[0]) * len(&windows[1])) as f64
}

fn total(x: &Tensor, to: &[usize], windows: &[Window; 2]) -> f64 {
    let rows = windows[0].inside.clone();
    rows.flat_map(|h| windows[1].inside.clone().map(move |w| (h, w)))
        .map(|(h, w)| x.at(&[to[0], to[1], h, w]))
        .sum()
}

fn spread(gx: &mut Tensor, to: &[usize], windows: &[Window; 2], share: f64) {
    for h in windows[0].inside.clone() {
        for w in windows[1].inside.clone() {
            *gx.at_mut(&[to[0], to[1], h, w]) += share;
        }
    }
}

fn max_pool(pool: &Pool2d, x: &Tensor) -> Vec<Tensor> {
    let input = [x.shape[2], x.shape[3]];
    let size = pool.output_size(input).expect("inference has accepted the window");
    let shape: Shape = [x.shape[0], x.shape[1], size[0], size[1]].into();
    let mut indices = Vec::new();
    let y = Tensor::build(shape.clone(), |to| {
        let (mut best, mut at) = (f64::NEG_INFINITY, None);
        for_each_index(&pool.kernel.into(), |tap| {
            let place = |i: usize| {
                (to[2 + i] * pool.stride[i] + tap[i] * pool.dilation[i])
                    .checked_sub(pool.padding[i])
                    .filter(|&p| p < input[i])
            };
            if let (Some(h), Some(w)) = (place(0), place(1)) {
                let value = x.at(&[to[0], to[1], h, w]);
                if at.is_none() || value > best || value.is_nan() {
                    (best, at) = (value, Some(h * input[1] + w));
                }
            }
        });
        indices.push(at.unwrap_or(0) as f64);
        best
    });
    vec![y, Tensor { shape, data: indices }]
}
