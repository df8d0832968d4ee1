//! Chains of operations on elements: a few hundred elements at a time go through all of them, within the cache.

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
pub(super) const TILE: usize = 256;
/// Operands and results of links.
const VALUES: usize = MOST_INPUTS + MOST_LINKS;

/// Elements of one value.
pub(super) type Tile<T> = [T; TILE];

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

/// A chain over the memory of a run.
pub(super) struct Links<'a, T> {
    chain: &'a Chain,
    /// None for one that whoever runs a tile has put there.
    operands: SmallVec<[Option<Operand<'a, T>>; MOST_INPUTS]>,
    outputs: SmallVec<[Shared<T>; 4]>,
    /// By value: the first output that it is, which the link writes itself.
    written: [Option<usize>; VALUES],
    seed: u64,
}

impl<'a, T: Real + Plain> Links<'a, T> {
    /// Operands and results in the chain's order, over tensors of a shape.
    pub(super) fn new(
        run: &Run<'a>,
        chain: &'a Chain,
        shape: &Shape,
        operands: impl Iterator<Item = Option<&'a Place>>,
        outputs: impl Iterator<Item = Shared<T>>,
    ) -> Self {
        let operands: SmallVec<_> =
            operands.map(|place| place.map(|place| Operand::new(run, place, shape))).collect();
        let mut written = [None; VALUES];
        for (n, &value) in chain.outputs.iter().enumerate().rev() {
            if usize::from(value) >= operands.len() {
                written[usize::from(value)] = Some(n);
            }
        }
        Self { chain, operands, outputs: outputs.collect(), written, seed: run.seed }
    }

    /// Runs a function with tiles for all values; what is one element everywhere stands there already.
    pub(super) fn with_tiles(&self, f: impl FnOnce(&mut [Tile<T>])) {
        // Most are short, and what they do not need is not zeroed for them.
        match self.operands.len() + self.chain.links.len() {
            0..=6 => f(self.repeated(&mut [[T::ZERO; TILE]; 6])),
            7..=10 => f(self.repeated(&mut [[T::ZERO; TILE]; 10])),
            _ => f(self.repeated(&mut [[T::ZERO; TILE]; VALUES])),
        }
    }

    fn repeated<'t>(&self, tiles: &'t mut [Tile<T>]) -> &'t mut [Tile<T>] {
        for (operand, tile) in self.operands.iter().zip(&mut *tiles) {
            if let Some(Operand { from, reading: Reading::Repeated, .. }) = operand {
                tile.fill(from.data[0]);
            }
        }
        tiles
    }

    /// Computes `count` elements from the `start`-th on, of at most a tile, and writes those of the results.
    ///
    /// # Safety
    /// Nobody else may read or write these elements of the results meanwhile, which must still be borrowed.
    pub(super) unsafe fn run(&self, tiles: &mut [Tile<T>], start: usize, count: usize) {
        // By operand: where the elements lie, if not in its tile.
        let mut places: [Option<usize>; MOST_INPUTS] = [None; MOST_INPUTS];
        for ((operand, tile), place) in self.operands.iter().zip(&mut *tiles).zip(&mut places) {
            let Some(Operand { from, walk, reading }) = operand else { continue };
            *place = match reading {
                Reading::InPlace => Some(start),
                Reading::Repeated => None,
                Reading::Strided => {
                    let together = walk.together(start, count);
                    if together.is_none() {
                        gather(*from, walk, start, &mut tile[..count]);
                    }
                    together
                }
            };
        }
        // SAFETY: results do not overlap, and nobody else has these elements, as the caller promises.
        let result = |n: usize| unsafe { self.outputs[n].part(start, count) };
        // SAFETY: as above; what one link has written later ones only read.
        let seen = |n: usize| unsafe { self.outputs[n].seen(start, count) };
        let lying = |n: usize| {
            let place = places.get(n).copied().flatten()?;
            Some(&self.operands[n].as_ref()?.from.data[place..place + count])
        };
        for (link, number) in self.chain.links.iter().zip(self.operands.len()..) {
            let (before, rest) = tiles.split_at_mut(number);
            let y = match self.written[number] {
                Some(n) => result(n),
                None => &mut rest[0][..count],
            };
            let [a, b] = link.args.map(usize::from).map(|arg| match (lying(arg), self.written[arg]) {
                (Some(elements), _) => elements,
                (None, Some(n)) => seen(n),
                (None, None) => &before[arg][..count],
            });
            match link.op {
                LinkOp::Unary(unary) => T::unary(unary, a, y),
                LinkOp::UnaryGrad(unary) => T::unary_grad(unary, a, b, y),
                LinkOp::Binary(binary) => binary_rows(binary, a, b, y),
                LinkOp::Dropout { p, site } => dropout_row((p, site), self.seed, start, a, y),
            }
        }
        // A value that is several outputs, or an operand.
        for (n, value) in self.chain.outputs.iter().map(|&value| usize::from(value)).enumerate() {
            match (lying(value), self.written[value]) {
                (_, Some(first)) if first == n => {}
                (_, Some(first)) => result(n).copy_from_slice(seen(first)),
                (Some(elements), None) => result(n).copy_from_slice(elements),
                (None, None) => result(n).copy_from_slice(&tiles[value][..count]),
            }
        }
    }
}

/// Runs a step that is a chain.
pub(super) fn run<T: Real + Plain>(run: &Run<'_>, chain: &Chain) {
    let shape = run.step.outputs[0].layout.shape();
    let outputs = run.step.outputs.iter().map(|place| Shared::new(run.memory.write::<T>(place)));
    let links = Links::new(run, chain, shape, run.step.inputs.iter().map(Some), outputs);
    let len = shape.elements();
    // Pieces depend on the shape alone, not on the threads.
    run.tasks(len.div_ceil(GRAIN), |n| {
        links.with_tiles(|tiles| {
            let end = len.min((n + 1) * GRAIN);
            for start in (n * GRAIN..end).step_by(TILE) {
                // SAFETY: pieces of different numbers do not overlap, and results are borrowed until all are done.
                unsafe { links.run(tiles, start, TILE.min(end - start)) };
            }
        });
    });
}
