//! Chains of operations on elements: a few hundred elements at a time go through all of them, within the cache.

use std::array;

use smallvec::SmallVec;

use super::{
    elementwise::{binary_rows, dropout_row},
    executable::{GRAIN, Run},
    memory::{Plain, Shared, Strided},
    movement::gather,
    real::Real,
    walk::Walk,
};
use crate::{
    backend::plan::{Chain, LinkOp, MOST_INPUTS, MOST_LINKS, Place},
    tensor::Shape,
};

/// Elements that go through at a time.
const TILE: usize = 256;
/// Operands and results of links.
const VALUES: usize = MOST_INPUTS + MOST_LINKS;

/// How an operand is read.
enum Reading {
    /// Where it lies.
    InPlace,
    /// One element for all.
    Repeated,
    /// Gathered.
    Strided,
}

/// An operand, broadcast to the chain's shape.
struct Operand<'a, T> {
    from: Strided<'a, T>,
    walk: Walk<1>,
    reading: Reading,
}

impl<'a, T: Plain> Operand<'a, T> {
    fn new(run: &Run<'a>, place: &'a Place, shape: &Shape) -> Self {
        let walk = Walk::new(shape, [&place.layout]);
        let reading = if place.layout.is_contiguous() && place.layout.shape() == shape {
            Reading::InPlace
        } else if walk.is_repeated() {
            Reading::Repeated
        } else {
            Reading::Strided
        };
        Self { from: run.memory.read_strided(place), walk, reading }
    }
}

pub(super) fn run<T: Real + Plain>(run: &Run<'_>, chain: &Chain) {
    // Most are short, and what they do not need is not zeroed for them.
    match run.step.inputs.len() + chain.links.len() {
        0..=6 => run_within::<T, 6>(run, chain),
        7..=10 => run_within::<T, 10>(run, chain),
        _ => run_within::<T, VALUES>(run, chain),
    }
}

/// Runs a chain of at most `N` values.
fn run_within<T: Real + Plain, const N: usize>(run: &Run<'_>, chain: &Chain) {
    let shape = run.step.outputs[0].layout.shape();
    let operands: SmallVec<[Operand<'_, T>; MOST_INPUTS]> =
        run.step.inputs.iter().map(|place| Operand::new(run, place, shape)).collect();
    let outputs: SmallVec<[Shared<T>; 4]> =
        run.step.outputs.iter().map(|place| Shared::new(run.memory.write::<T>(place))).collect();
    let len = shape.elements();
    // By value: the first output that it is, which the link writes itself.
    let mut written: [Option<usize>; N] = [None; N];
    for (n, &value) in chain.outputs.iter().enumerate().rev() {
        if usize::from(value) >= operands.len() {
            written[usize::from(value)] = Some(n);
        }
    }
    // Pieces depend on the shape alone, not on the threads.
    run.tasks(len.div_ceil(GRAIN), |n| {
        let mut tiles: [[T; TILE]; N] = array::from_fn(|_| [T::ZERO; TILE]);
        for (operand, tile) in operands.iter().zip(&mut tiles) {
            if matches!(operand.reading, Reading::Repeated) {
                tile.fill(operand.from.data[0]);
            }
        }
        let end = len.min((n + 1) * GRAIN);
        for start in (n * GRAIN..end).step_by(TILE) {
            let count = TILE.min(end - start);
            // By operand: where the elements lie, if not in its tile.
            let mut places: [Option<usize>; N] = [None; N];
            for ((operand, tile), place) in operands.iter().zip(&mut tiles).zip(&mut places) {
                *place = match operand.reading {
                    Reading::InPlace => Some(start),
                    Reading::Repeated => None,
                    Reading::Strided => {
                        let together = operand.walk.together(start, count);
                        if together.is_none() {
                            gather(operand.from, &operand.walk, start, &mut tile[..count]);
                        }
                        together
                    }
                };
            }
            // SAFETY: pieces of different numbers do not overlap, and neither do results; they are borrowed until all are
            // done.
            let result = |n: usize| unsafe { outputs[n].part(start, count) };
            // SAFETY: as above; what one link has written later ones only read.
            let seen = |n: usize| unsafe { outputs[n].seen(start, count) };
            for (link, number) in chain.links.iter().zip(operands.len()..) {
                let (before, rest) = tiles.split_at_mut(number);
                let y = match written[number] {
                    Some(n) => result(n),
                    None => &mut rest[0][..count],
                };
                let [a, b] = link.args.map(usize::from).map(|arg| match (places[arg], written[arg]) {
                    (Some(place), _) => &operands[arg].from.data[place..place + count],
                    (None, Some(n)) => seen(n),
                    (None, None) => &before[arg][..count],
                });
                match link.op {
                    LinkOp::Unary(unary) => T::unary(unary, a, y),
                    LinkOp::UnaryGrad(unary) => T::unary_grad(unary, a, b, y),
                    LinkOp::Binary(binary) => binary_rows(binary, a, b, y),
                    LinkOp::Dropout { p, site } => dropout_row((p, site), run.seed, start, a, y),
                }
            }
            // A value that is several outputs, or an operand.
            for (n, value) in chain.outputs.iter().map(|&value| usize::from(value)).enumerate() {
                match (places[value], written[value]) {
                    (_, Some(first)) if first == n => {}
                    (_, Some(first)) => result(n).copy_from_slice(seen(first)),
                    (Some(place), None) => {
                        result(n).copy_from_slice(&operands[value].from.data[place..place + count])
                    }
                    (None, None) => result(n).copy_from_slice(&tiles[value][..count]),
                }
            }
        }
    });
}
