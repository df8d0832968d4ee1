//! The trial: a kernel is run before it goes live, on the host's processor and an input of our own.
//!
//! Not a matter of safety, which the other rules see to without running anything, but of use: a kernel that
//! overflows on plain numbers, or that gives other numbers each time, is better refused here than unloaded
//! after it has disturbed a training run.

use std::time::Instant;

use half::{bf16, f16};

use super::{
    Trial, TrialPolicy,
    rules::{Lowered, Report, TRIAL_DETERMINISTIC, TRIAL_FINITE, TRIAL_RUNS, all_finite, pass_cost},
};
use crate::{
    artifact::Module,
    backend::{
        Backend as _, BuildError, CompileOptions, Executable, PassBlocks, Region, RunContext, RunError,
        cpu::CpuBackend,
    },
    graph::{Graph, Sink, Source},
    tensor::{DType, HostTensor, PackedLayout, Shape, ShapeError},
};

/// Decides dropout masks; a trial is the same each time it is held.
const SEED: u64 = 1;

/// Bytes of a result that are looked at together.
const PIECE_BYTES: usize = 1 << 16;

/// Why a trial did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Stop {
    #[error(
        "the whole trial needs {needed} floating-point operations, {limit} are allowed: raise validator.max_trial_flops or set validator.trial = false"
    )]
    Flops { needed: u64, limit: u64 },
    #[error(
        "the trial needs {needed} bytes for values, weights, buffers and constants, {limit} are allowed: raise validator.max_trial_bytes or set validator.trial = false"
    )]
    Bytes { needed: u64, limit: u64 },
    #[error(transparent)]
    Shape(#[from] ShapeError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Run(#[from] RunError),
}

/// Tries a program: once in eval mode, twice forward and backward in training mode.
pub(super) fn hold(
    report: &mut Report,
    module: &Module,
    lowered: &Lowered,
    policy: &TrialPolicy,
) -> Option<Trial> {
    match run(module, lowered, policy) {
        Err(stop @ (Stop::Build(BuildError::Time { .. }) | Stop::Run(RunError::Timeout { .. }))) => {
            report.fail_for_now(TRIAL_RUNS, stop.to_string());
            None
        }
        Err(stop) => {
            report.fail(TRIAL_RUNS, stop.to_string());
            None
        }
        Ok(Held { trial, strange, differs }) => {
            let Trial { input_shape, forward_us, backward_us } = &trial;
            report.pass(
                TRIAL_RUNS,
                format!("an input of shape {input_shape} took {forward_us} µs forward and {backward_us} µs backward"),
            );
            report.note(
                TRIAL_FINITE,
                match strange {
                    None => Ok("outputs, gradients and buffers are finite".to_owned()),
                    Some((what, mode)) => Err(format!(
                        "{what} is not finite in {mode} mode for an input of numbers between -1 and 1"
                    )),
                },
            );
            report.note(
                TRIAL_DETERMINISTIC,
                match differs {
                    None => Ok("the second run gave the same bits".to_owned()),
                    Some(what) => Err(format!("{what} differs between two runs on the same input")),
                },
            );
            Some(trial)
        }
    }
}

/// Takes over what a trial of the same program found; it passed, or there would be no such trial.
pub(super) fn recall(report: &mut Report, trial: &Trial) -> Option<Trial> {
    let Trial { input_shape, forward_us, backward_us } = trial;
    report.pass(
        TRIAL_RUNS,
        format!("held before, when an input of shape {input_shape} took {forward_us} µs forward and {backward_us} µs backward"),
    );
    report.pass(TRIAL_FINITE, "outputs, gradients and buffers were finite");
    report.pass(TRIAL_DETERMINISTIC, "the second run gave the same bits");
    Some(trial.clone())
}

struct Held {
    trial: Trial,
    /// The first result that is not finite, and the mode.
    strange: Option<(String, &'static str)>,
    /// The first result that differs between the runs.
    differs: Option<String>,
}

fn run(module: &Module, lowered: &Lowered, policy: &TrialPolicy) -> Result<Held, Stop> {
    let (forward, backward) = (&lowered.train.forward, &lowered.train.backward);
    let deadline = Some(Instant::now() + policy.time_limit);
    let context = RunContext { seed: SEED, deadline, threads: policy.threads };
    let backend = CpuBackend::new(policy.threads);
    let parameters =
        PackedLayout::new(module.parameters().iter().map(|p| (p.tensor.shape(), p.tensor.dtype())))?;
    let buffers = PackedLayout::new(module.buffers().iter().map(|b| (b.tensor.shape(), b.tensor.dtype())))?;
    afford(lowered, parameters.total_bytes().saturating_add(buffers.total_bytes()), policy)?;
    let limit_bytes = usize::try_from(policy.max_bytes).unwrap_or(usize::MAX);
    let options = CompileOptions { parameters: &parameters, buffers: &buffers, limit_bytes, deadline };
    let eval = backend.compile(&lowered.eval, &options)?;
    let [train, gradient] = [backend.compile(forward, &options)?, backend.compile(backward, &options)?];

    let mut blocks = PassBlocks::new(&backend, [&parameters, &buffers], &train.needs().saved);
    for (n, parameter) in module.parameters().iter().enumerate() {
        blocks.feed(Source::Parameter(n as u32), parameter.tensor.bytes())?;
    }
    for (n, buffer) in module.buffers().iter().enumerate() {
        blocks.feed(Source::Buffer(n as u32), buffer.tensor.bytes())?;
    }
    blocks.feed(Source::Input(0), probe_values(&lowered.input, lowered.dtype).bytes())?;
    if let Some(output) = forward.sink(Sink::Output(0)) {
        let info = forward.info(output);
        blocks.feed(Source::GradOutput(0), probe_values(&info.shape, info.dtype).bytes())?;
    }

    let mut results = Results { module, strange: None };
    blocks.run(eval.as_ref(), &lowered.eval, &context)?;
    results.look(&blocks, &lowered.eval, "eval");
    let mut timed = |executable: &dyn Executable, graph: &Graph, blocks: &mut PassBlocks<'_>| {
        let start = Instant::now();
        blocks.run(executable, graph, &context)?;
        let us = u64::try_from(start.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok::<_, RunError>((us, results.look(blocks, graph, "training")))
    };
    let (_, first_forward) = timed(train.as_ref(), forward, &mut blocks)?;
    let (_, first_backward) = timed(gradient.as_ref(), backward, &mut blocks)?;
    let (forward_us, second_forward) = timed(train.as_ref(), forward, &mut blocks)?;
    let (backward_us, second_backward) = timed(gradient.as_ref(), backward, &mut blocks)?;
    let pairs = [(forward, first_forward, second_forward), (backward, first_backward, second_backward)];
    let differs = pairs.into_iter().find_map(|(graph, first, second)| {
        let at = first.iter().zip(&second).position(|(first, second)| first != second)?;
        Some(results.name(graph.sinks[at].0))
    });
    let trial = Trial { input_shape: lowered.input.clone(), forward_us, backward_us };
    Ok(Held { trial, strange: results.strange, differs })
}

/// Refuses what would take too long or too much, before anything is made. `fed_bytes` are those of all
/// parameters and buffers.
fn afford(lowered: &Lowered, fed_bytes: usize, policy: &TrialPolicy) -> Result<(), Stop> {
    let graphs = [&lowered.eval, &lowered.train.forward, &lowered.train.backward];
    let costs = graphs.map(pass_cost);
    let runs = [1, 2, 2];
    let needed = costs
        .iter()
        .zip(runs)
        .fold(0u64, |sum, (cost, runs)| sum.saturating_add(cost.flops.saturating_mul(runs)));
    if needed > policy.max_flops {
        return Err(Stop::Flops { needed, limit: policy.max_flops });
    }
    // A plan needs at most as much as every value with memory of its own. Constants stand in it, one graph's
    // twice while they are laid out; parameters and buffers are copied, with room for gradients and updates.
    let values = costs.iter().map(|cost| cost.peak_bytes).max().unwrap_or(0);
    let constants = graphs.map(constant_bytes);
    let laid_out = constants.iter().copied().max().unwrap_or(0);
    let fed = u64::try_from(fed_bytes).unwrap_or(u64::MAX).saturating_mul(2);
    let needed = constants.into_iter().chain([laid_out, fed]).fold(values, u64::saturating_add);
    if needed > policy.max_bytes {
        return Err(Stop::Bytes { needed, limit: policy.max_bytes });
    }
    Ok(())
}

fn constant_bytes(graph: &Graph) -> u64 {
    graph.constants.iter().fold(0, |sum, constant| sum.saturating_add(constant.bytes().len() as u64))
}

/// Numbers between -1 and 1 in no order, the same each time; integers are 0 and 1.
fn probe_values(shape: &Shape, dtype: DType) -> HostTensor {
    // A linear congruential generator: every number is reached, and nothing depends on a library's version.
    let mut state = 0x2545_f491u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (f64::from(state) / f64::from(u32::MAX)).mul_add(2.0, -1.0)
    };
    let mut bytes = Vec::with_capacity(shape.elements() * dtype.size_bytes());
    for _ in 0..shape.elements() {
        let value = next();
        let bit = u8::from(value > 0.0);
        match dtype {
            DType::F32 => bytes.extend((value as f32).to_le_bytes()),
            DType::F64 => bytes.extend(value.to_le_bytes()),
            DType::BF16 => bytes.extend(bf16::from_f64(value).to_le_bytes()),
            DType::F16 => bytes.extend(f16::from_f64(value).to_le_bytes()),
            DType::I64 => bytes.extend(i64::from(bit).to_le_bytes()),
            DType::I32 => bytes.extend(i32::from(bit).to_le_bytes()),
            DType::U8 | DType::Bool => bytes.push(bit),
        }
    }
    HostTensor::new(shape.clone(), dtype, bytes).expect("as many numbers as the shape has")
}

/// Looks through what runs give.
struct Results<'a> {
    module: &'a Module,
    strange: Option<(String, &'static str)>,
}

impl Results<'_> {
    /// A fingerprint for each sink of the graph; the first that is not finite is noted. What is saved between
    /// the passes is not a result: a maximum's −∞ may well stand in it.
    fn look(&mut self, blocks: &PassBlocks<'_>, graph: &Graph, mode: &'static str) -> Vec<u64> {
        let looked = graph.sinks.iter().map(|&(sink, value)| {
            if matches!(sink, Sink::Saved(_)) {
                return 0;
            }
            let (fingerprint, finite) = look_through(blocks.of(sink), graph.info(value).dtype);
            if !finite && self.strange.is_none() {
                self.strange = Some((self.name(sink), mode));
            }
            fingerprint
        });
        looked.collect()
    }

    fn name(&self, sink: Sink) -> String {
        let named = |name: Option<&str>, what: &str| format!("{what}{}", name.unwrap_or("it has no name"));
        match sink {
            Sink::Output(_) => "the output".to_owned(),
            Sink::GradInput(_) => "the gradient of the input".to_owned(),
            Sink::GradParameter(n) => {
                let parameter = self.module.parameters().get(n as usize);
                named(parameter.map(|parameter| parameter.name.as_str()), "the gradient of ")
            }
            Sink::BufferUpdate(n) => {
                let buffer = self.module.buffers().get(n as usize);
                named(buffer.map(|buffer| buffer.name.as_str()), "buffer ")
            }
            Sink::Saved(n) => format!("saved value {n}"),
        }
    }
}

/// A fingerprint of the bytes, and whether every number is finite. Copies a piece at a time.
fn look_through(region: Region<'_>, dtype: DType) -> (u64, bool) {
    let (mut fingerprint, mut finite) = (Fingerprint::default(), true);
    let mut piece = vec![0; PIECE_BYTES.min(region.len_bytes())];
    let mut at = 0;
    while at < region.len_bytes() {
        let len = piece.len().min(region.len_bytes() - at);
        let Some(part) = region.part(at, len) else { break };
        part.read(&mut piece[..len]);
        at += len;
        finite &= all_finite(&piece[..len], dtype);
        fingerprint.add(&piece[..len]);
    }
    (fingerprint.finish(), finite)
}

/// Enough to tell two runs apart; nobody gains by a collision. Several sums side by side, as each step of one
/// waits for the step before.
#[derive(Default)]
struct Fingerprint([u64; 8]);

impl Fingerprint {
    fn add(&mut self, bytes: &[u8]) {
        let (blocks, rest) = bytes.as_chunks::<64>();
        for block in blocks {
            for (sum, word) in self.0.iter_mut().zip(block.as_chunks().0) {
                *sum = mix(*sum, u64::from_le_bytes(*word));
            }
        }
        for &byte in rest {
            self.0[0] = mix(self.0[0], byte.into());
        }
    }

    fn finish(self) -> u64 {
        self.0.into_iter().fold(0, mix)
    }
}

fn mix(sum: u64, word: u64) -> u64 {
    (sum.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use std::{path::PathBuf, time::Duration};

    use super::*;
    use crate::{
        artifact::{self, ReadLimits},
        graph::{Binary, Builder, Op, Unary, Wants, differentiate},
    };

    const POLICY: TrialPolicy = TrialPolicy {
        max_flops: 1_000_000,
        max_bytes: 100_000,
        time_limit: Duration::from_secs(60),
        threads: 1,
    };

    /// A module without weights: what is tried is the graph beside it.
    fn module() -> Module {
        let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden/activations.eval.pt2");
        artifact::read(std::fs::read(path).unwrap().into(), &ReadLimits::default()).unwrap()
    }

    fn lowered(build: impl Fn(&mut Builder, crate::graph::ValueId) -> crate::graph::ValueId) -> Lowered {
        let mut builder = Builder::new();
        let input = Shape::from([2, 300]);
        let x = builder.source(Source::Input(0), input.clone(), DType::F32).unwrap();
        let y = build(&mut builder, x);
        builder.sink(Sink::Output(0), y);
        let eval = builder.finish();
        let train = differentiate(&eval, &Wants { inputs: &[true], parameters: &[] }).unwrap();
        Lowered { input, dtype: DType::F32, eval, train }
    }

    fn verdict(lowered: &Lowered, policy: &TrialPolicy) -> (Option<Trial>, Vec<(String, bool, String)>) {
        let mut report = Report::default();
        let trial = hold(&mut report, &module(), lowered, policy);
        (trial, report.finish().into_iter().map(|rule| (rule.name, rule.passed, rule.detail)).collect())
    }

    #[test]
    fn a_kernel_of_plain_numbers_passes_and_is_timed() {
        let tanh = lowered(|builder, x| builder.apply(Op::Unary(Unary::Tanh), &[x]).unwrap());
        let (trial, rules) = verdict(&tanh, &POLICY);
        assert_eq!(trial.unwrap().input_shape, [2, 300].into());
        let passed: Vec<_> = rules.iter().filter(|rule| rule.1).map(|rule| rule.0.as_str()).collect();
        assert_eq!(passed, [TRIAL_RUNS, TRIAL_FINITE, TRIAL_DETERMINISTIC], "{rules:?}");
    }

    #[test]
    fn infinities_are_found_in_outputs_and_in_gradients() {
        // A logarithm of negative numbers; a root whose slope is infinite at zero.
        let log = lowered(|builder, x| builder.apply(Op::Unary(Unary::Log), &[x]).unwrap());
        let steep = lowered(|builder, x| {
            let zero = builder.apply(Op::Binary(Binary::Sub), &[x, x]).unwrap();
            builder.apply(Op::Unary(Unary::Sqrt), &[zero]).unwrap()
        });
        for (lowered, what) in [(log, "the output"), (steep, "the gradient of the input")] {
            let (_, rules) = verdict(&lowered, &POLICY);
            let failed: Vec<_> = rules.iter().filter(|rule| !rule.1).collect();
            assert_eq!(failed.len(), 1, "{rules:?}");
            assert!(failed[0].0 == TRIAL_FINITE && failed[0].2.starts_with(what), "{failed:?}");
        }
    }

    #[test]
    fn a_trial_that_would_cost_too_much_is_not_begun() {
        let tanh = lowered(|builder, x| builder.apply(Op::Unary(Unary::Tanh), &[x]).unwrap());
        for (policy, key) in [
            (TrialPolicy { max_flops: 600, ..POLICY }, "max_trial_flops"),
            (TrialPolicy { max_bytes: 600, ..POLICY }, "max_trial_bytes"),
            (TrialPolicy { time_limit: Duration::ZERO, ..POLICY }, "time limit passed"),
        ] {
            let (trial, rules) = verdict(&tanh, &policy);
            assert!(trial.is_none());
            assert_eq!((rules[0].0.as_str(), rules[0].1), (TRIAL_RUNS, false));
            assert!(rules[0].2.contains(key), "{rules:?}");
        }
    }

    #[test]
    fn what_a_trial_copies_is_counted() {
        // 300 numbers in each of three graphs, and once more while they are laid out.
        let shifted = lowered(|builder, x| {
            let shift = builder.constant(HostTensor::from_values([300].into(), &[1.0f32; 300]).unwrap());
            let sum = builder.apply(Op::Binary(Binary::Mul), &[x, shift.unwrap()]).unwrap();
            builder.apply(Op::Unary(Unary::Tanh), &[sum]).unwrap()
        });
        let plain = lowered(|builder, x| builder.apply(Op::Unary(Unary::Tanh), &[x]).unwrap());
        let needed = |lowered: &Lowered, fed_bytes| match afford(
            lowered,
            fed_bytes,
            &TrialPolicy { max_bytes: 0, ..POLICY },
        ) {
            Err(Stop::Bytes { needed, .. }) => needed,
            other => panic!("{other:?}"),
        };
        assert!(needed(&shifted, 0) >= needed(&plain, 0) + 4 * 1200);
        assert_eq!(needed(&plain, 1000), needed(&plain, 0) + 2000);
        assert_eq!(needed(&plain, usize::MAX), u64::MAX);
    }

    #[test]
    fn a_changed_bit_changes_the_fingerprint() {
        let mut bytes = vec![0u8; PIECE_BYTES + 13];
        let (zeros, finite) = look_through(Region::from_mut(&mut bytes), DType::F32);
        assert!(finite);
        for at in [0, 100, PIECE_BYTES, PIECE_BYTES + 12] {
            bytes[at] = 1;
            assert_ne!(look_through(Region::from_mut(&mut bytes), DType::F32).0, zeros, "{at}");
            bytes[at] = 0;
        }
        bytes[PIECE_BYTES..PIECE_BYTES + 4].copy_from_slice(&f32::NAN.to_le_bytes());
        assert!(!look_through(Region::from_mut(&mut bytes), DType::F32).1);
    }
}
