//! What whole passes of a layer allocate, copy and zero.

use crate::{
    counted,
    layer::Layer,
    subject::{CHANNELS, INNER, OUTER, Subject},
};

/// Passes before those that are counted.
const WARM: usize = 3;
/// Passes of a round, and rounds, of which the one that allocates least counts: threads that a layer has started allocate when
/// they come to it.
const COUNTED: usize = 16;
const ROUNDS: usize = 3;

/// What a pass costs.
#[derive(Clone, Copy, PartialEq)]
struct Costs {
    allocations: usize,
    /// Bytes from one place of memory to another.
    copied: usize,
    /// Bytes of zeros.
    zeroed: usize,
    /// Bytes between memory and the engine itself.
    exchanged: usize,
}

/// The whole block of the parameters' gradients is zeroed before any is written.
const PERCEPTRON_GRADIENTS: usize = 4 * (OUTER * INNER + INNER + INNER * OUTER + OUTER);
const CONVOLUTION_GRADIENTS: usize = 4 * (CHANNELS * CHANNELS * 9 + CHANNELS + CHANNELS);
/// Running mean and variance, from where a pass writes them to where the seed has them.
const RUNNING: usize = 4 * 2 * CHANNELS;
/// The sum of squares of a seed's output.
const NOTE: usize = 4;

/// The factors of a blend of so many seeds, forward and backward, a cache line each, and that of what is not theirs.
const fn factors(seeds: usize) -> usize {
    2 * 64 * (seeds + 1)
}

type Case = (&'static str, Subject, &'static [f32], bool, Costs);

/// Name, kernel, blend factors, and whether a backward follows.
const CASES: [Case; 6] = [
    (
        "perceptron, forward",
        Subject::Perceptron,
        &[1.0],
        false,
        Costs { allocations: 0, copied: 0, zeroed: 0, exchanged: NOTE },
    ),
    (
        "perceptron, forward and backward",
        Subject::Perceptron,
        &[1.0],
        true,
        Costs { allocations: 0, copied: 0, zeroed: PERCEPTRON_GRADIENTS, exchanged: NOTE },
    ),
    (
        "convolution, forward",
        Subject::Convolution,
        &[1.0],
        false,
        Costs { allocations: 0, copied: 0, zeroed: 0, exchanged: NOTE },
    ),
    (
        "convolution, forward and backward",
        Subject::Convolution,
        &[1.0],
        true,
        Costs { allocations: 0, copied: RUNNING, zeroed: CONVOLUTION_GRADIENTS, exchanged: NOTE },
    ),
    // What is blended has the gradient of 1 − A zeroed too.
    (
        "perceptron at half, forward and backward",
        Subject::Perceptron,
        &[0.5],
        true,
        Costs { allocations: 0, copied: 0, zeroed: PERCEPTRON_GRADIENTS + 4, exchanged: NOTE + factors(1) },
    ),
    (
        "two perceptrons, forward and backward",
        Subject::Perceptron,
        &[0.5, 0.25],
        true,
        Costs {
            allocations: 0,
            copied: 0,
            zeroed: 2 * PERCEPTRON_GRADIENTS + 4,
            exchanged: 2 * NOTE + factors(2),
        },
    ),
];

/// Which passes of layers cost other than they should.
pub(crate) fn check() -> Vec<String> {
    CASES.iter().filter_map(check_case).collect()
}

fn check_case(&(name, subject, alphas, both, expected): &Case) -> Option<String> {
    let mut layer = Layer::new(subject, alphas, both);
    (0..WARM).for_each(|_| layer.pass());
    let before = layer.traffic();
    let rounds = (0..ROUNDS).map(|_| counted(|| (0..COUNTED).for_each(|_| layer.pass())).1);
    let allocations = rounds.min().unwrap_or_default();
    let after = layer.traffic();
    let [copied, zeroed, exchanged] = [0, 1, 2].map(|n| after[n] - before[n]);
    let all = ROUNDS * COUNTED;
    let is_as_expected = allocations == expected.allocations * COUNTED
        && [copied, zeroed, exchanged]
            == [expected.copied, expected.zeroed, expected.exchanged].map(|n| n * all);
    // What only some passes do shows as one that all do.
    let found = Costs {
        allocations: allocations.div_ceil(COUNTED),
        copied: copied.div_ceil(all),
        zeroed: zeroed.div_ceil(all),
        exchanged: exchanged.div_ceil(all),
    };
    println!("{}: a layer of {name}", say(found));
    (!is_as_expected)
        .then(|| format!("a layer of {name}: {}, where it should be {}", say(found), say(expected)))
}

fn say(Costs { allocations, copied, zeroed, exchanged }: Costs) -> String {
    format!("{allocations:4} allocations, {copied} bytes copied, {zeroed} zeroed, {exchanged} exchanged")
}
