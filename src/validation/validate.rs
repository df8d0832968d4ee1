//! From bytes to a verdict.

use std::{
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    time::Instant,
};

use super::{
    Metadata, ModuleUse, Policy, Verdict,
    rules::{self, Probe, Probed, Report},
    trial,
    verdict::{UNKNOWN, listed},
};
use crate::{
    artifact::{self, Module},
    digest::Digest,
    graph::Limits,
};

/// A verdict, and the module where it was accepted.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was found.
    pub verdict: Verdict,
    /// The module, ready to be lowered; only where the verdict accepts it.
    pub module: Option<Arc<Module>>,
}

/// From how many bytes on the digest is made on a thread of its own.
const BESIDE_BYTES: usize = 1 << 18;

/// Judges an artifact.
///
/// Blocking: until done, in time and memory that the policy's limits bound. Nothing of the artifact is
/// executed, and a defect of the validator itself is a failed rule, not a panic.
pub fn validate(bytes: Arc<[u8]>, metadata: Option<&Metadata>, policy: &Policy) -> Outcome {
    judge_by(bytes, metadata, policy, None)
}

/// Judges an artifact about which there is a verdict already, kept beside it by whoever keeps the bytes.
///
/// Every rule is judged anew, for that is what reading the artifact takes anyway; only the trial is not held
/// again, where the earlier verdict is on the same bytes, for the same shape and by the same policy.
///
/// Blocking: as [`validate`].
pub fn validate_again(
    bytes: Arc<[u8]>,
    metadata: Option<&Metadata>,
    policy: &Policy,
    earlier: &Verdict,
) -> Outcome {
    let outcome = judge_by(bytes.clone(), metadata, policy, Some(earlier));
    if outcome.verdict.digest == earlier.digest {
        return outcome;
    }
    // It spoke of other bytes.
    judge_by(bytes, metadata, policy, None)
}

fn judge_by(
    bytes: Arc<[u8]>,
    metadata: Option<&Metadata>,
    policy: &Policy,
    earlier: Option<&Verdict>,
) -> Outcome {
    let mut verdict = unjudged(bytes.len() as u64, policy);
    if let Some(verdict) = too_large(bytes.len() as u64, policy) {
        return Outcome { verdict, module: None };
    }
    // Nothing that the closure may have left half done is used after a panic: the report is dropped with
    // it, and the verdict's facts are written as a whole.
    let signature = metadata.and_then(|metadata| metadata.signature.as_deref());
    let unsigned = signature.is_none() && !policy.require_signature;
    let judged = std::thread::scope(|scope| {
        let judged = |verdict: &mut Verdict| {
            catch_unwind(AssertUnwindSafe(|| judge(bytes.clone(), metadata, policy, earlier, verdict)))
        };
        // The digest of a large artifact takes as long as all the rest. Where no signature hangs on it, both
        // are done at a time.
        if unsigned && bytes.len() >= BESIDE_BYTES {
            let digest = std::thread::Builder::new().spawn_scoped(scope, || Digest::of(&bytes));
            let judged = judged(&mut verdict);
            let digest = digest.ok().and_then(|digest| digest.join().ok());
            verdict.digest = digest.unwrap_or_else(|| Digest::of(&bytes));
            return judged;
        }
        verdict.digest = Digest::of(&bytes);
        judged(&mut verdict)
    });
    let (report, module) = judged.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        let mut report = Report::default();
        report.fail_for_now(
            rules::VALIDATION_COMPLETED,
            format!("the validator failed, please report it: {text}"),
        );
        (report, None)
    });
    verdict.rules = report.finish();
    verdict.accepted = !verdict.rules.is_empty() && verdict.rules.iter().all(|rule| rule.passed);
    let module = module.filter(|_| verdict.accepted).map(Arc::new);
    Outcome { verdict, module }
}

/// The verdict on an artifact that is too large to be read, of which no more than the size is known: nothing else
/// of it is judged. `None` where it is not too large.
pub fn too_large(size_bytes: u64, policy: &Policy) -> Option<Verdict> {
    let mut report = Report::default();
    report.fail(rules::ARCHIVE_LIMITS, rules::size_limited(size_bytes, policy).err()?);
    Some(Verdict { rules: report.finish(), ..unjudged(size_bytes, policy) })
}

fn unjudged(size_bytes: u64, policy: &Policy) -> Verdict {
    Verdict {
        accepted: false,
        rules: Vec::new(),
        digest: UNKNOWN,
        policy: policy.fingerprint(),
        size_bytes,
        format: None,
        parameters: 0,
        buffers: 0,
        constants: 0,
        modules: Vec::new(),
        more_modules: 0,
        ops: Vec::new(),
        more_ops: 0,
        input_shape: None,
        output_shape: None,
        forward: None,
        backward: None,
        trial: None,
    }
}

fn judge(
    bytes: Arc<[u8]>,
    metadata: Option<&Metadata>,
    policy: &Policy,
    earlier: Option<&Verdict>,
    verdict: &mut Verdict,
) -> (Report, Option<Module>) {
    // One for reading, lowering, differentiating, planning and the trial together.
    let deadline = Instant::now() + policy.read.time_limit;
    let mut report = Report::default();
    let signature = metadata.and_then(|metadata| metadata.signature.as_deref());
    let signed =
        rules::signature_trusted(&verdict.digest, signature, &policy.trusted_keys, policy.require_signature);
    if let Some(judged) = signed {
        // Bytes that nobody trusted vouches for are not even read.
        let refused = judged.is_err();
        report.note(rules::SIGNATURE_TRUSTED, judged);
        if refused {
            return (report, None);
        }
    }
    let module = match artifact::read(bytes, &policy.read.until(deadline)) {
        Ok(module) => module,
        Err(error) => {
            report.blame(&error, false);
            return (report, None);
        }
    };
    let constants = module.constants();
    let format = module.format().name();
    verdict.format = Some(format.to_owned());
    report.pass(rules::ARCHIVE_LIMITS, format!("{} bytes, within every limit", verdict.size_bytes));
    report.pass(rules::ARCHIVE_READABLE, format!("read as {format}"));
    report.pass(rules::ARCHIVE_WHITELIST, "nothing in it is off the list");

    let use_of =
        |module: &artifact::ModuleType| ModuleUse { path: module.path.clone(), class: module.class.clone() };
    (verdict.modules, verdict.more_modules) =
        listed(module.types().iter().map(use_of), |module| module.path.len() + module.class.len());
    (verdict.ops, verdict.more_ops) = listed(module.ops().iter().cloned(), String::len);
    verdict.parameters = rules::count(module.parameters().iter().map(|parameter| &parameter.tensor));
    verdict.buffers = rules::count(module.buffers().iter().map(|buffer| &buffer.tensor));
    verdict.constants = rules::count(constants.iter().map(|(_, tensor)| *tensor));

    report.note(rules::MODULES_WHITELIST, rules::modules_allowed(module.types(), &policy.allowed_modules));
    let declared_count = metadata.and_then(|metadata| metadata.parameter_count);
    report.note(
        rules::PARAMETERS_LIMIT,
        rules::parameters_limited(
            verdict.parameters,
            verdict.constants,
            declared_count,
            policy.max_parameters,
        ),
    );
    if policy.require_finite {
        report.note(
            rules::WEIGHTS_FINITE,
            rules::weights_finite(module.parameters(), module.buffers(), &constants),
        );
    }
    let limits = policy.graph.until(deadline);
    let probed = judge_program(&module, metadata, &limits, verdict, &mut report);
    if let Some(Probed { output, forward, backward, lowered }) = probed {
        verdict.output_shape = Some(output);
        (verdict.forward, verdict.backward) = (Some(forward), Some(backward));
        rules::within_limits(&mut report, forward, backward, policy);
        report.pass(rules::OPS_WHITELIST, format!("{} operations, all lowered", module.ops().len()));
        if let Some(limits) = policy.trial.filter(|_| report.accepts()) {
            let limits = limits.until(deadline);
            let known = earlier.filter(|earlier| {
                earlier.accepted
                    && earlier.policy == verdict.policy
                    && earlier.input_shape == verdict.input_shape
            });
            verdict.trial = match known.and_then(|earlier| earlier.trial.as_ref()) {
                Some(trial) => trial::recall(&mut report, trial),
                None => trial::hold(&mut report, &module, &lowered, &limits),
            };
        }
    }
    (report, Some(module))
}

/// Lowers the program for what is declared; without a declaration that waits until a layer names its shape.
fn judge_program(
    module: &Module,
    metadata: Option<&Metadata>,
    limits: &Limits,
    verdict: &mut Verdict,
    report: &mut Report,
) -> Option<Probed> {
    match Probe::declared(metadata, module.declared_inputs()) {
        Err(reason) => {
            report.fail(rules::SHAPES_DECLARED, reason);
            None
        }
        Ok(None) => {
            let detail = "no input shape is declared, the program is lowered when a layer names one";
            report.pass(rules::SHAPES_DECLARED, detail);
            let ops: Vec<String> = module.ops().iter().cloned().collect();
            report.note(rules::OPS_WHITELIST, rules::ops_known(&ops));
            None
        }
        Ok(Some(probe)) => {
            verdict.input_shape = Some(probe.shape.clone());
            let output = metadata.and_then(|metadata| metadata.output_shape.as_ref());
            let lower = |inputs: &[_], mode| module.lower(inputs, mode, limits);
            let graded: Vec<bool> = module.parameters().iter().map(|p| p.requires_grad).collect();
            rules::probe(report, &probe, output, &graded, limits, &lower)
        }
    }
}
