//! The rules, one a file, and their stable names.

mod cost;
mod modules;
mod ops;
mod parameters;
mod report;
mod shapes;
mod signature;
mod size;
mod weights;

pub(super) use cost::{pass_cost, within_limits};
pub(super) use modules::modules_allowed;
pub(super) use ops::ops_known;
pub(super) use parameters::{count, parameters_limited};
pub(super) use report::Report;
pub(super) use shapes::{Lowered, Probe, Probed, probe};
pub(super) use signature::signature_trusted;
pub(super) use size::size_limited;
pub(super) use weights::{all_finite, weights_finite};

/// The catalogue says that the kernel may be used.
pub const CATALOGUE_STATUS: &str = "catalogue.status";
/// The artifact is the one that the catalogue's checksum is of.
pub const CATALOGUE_CHECKSUM: &str = "catalogue.checksum";
/// The archive keeps to the limits of its kind: entries, sizes, depths.
pub const ARCHIVE_LIMITS: &str = "archive.limits";
/// The archive can be read.
pub const ARCHIVE_READABLE: &str = "archive.readable";
/// The archive holds nothing that no kernel may hold, such as a pickle global that is not on the list.
pub const ARCHIVE_WHITELIST: &str = "archive.whitelist";
/// Every module, at every depth, is of an allowed class.
pub const MODULES_WHITELIST: &str = "modules.whitelist";
/// Every operation is on the list and is used in a form that is supported.
pub const OPS_WHITELIST: &str = "ops.whitelist";
/// There are not too many numbers in parameters and constants.
pub const PARAMETERS_LIMIT: &str = "parameters.limit";
/// No parameter is infinite or not a number, no buffer or constant is not a number.
pub const WEIGHTS_FINITE: &str = "weights.finite";
/// The shapes inferred are the ones declared.
pub const SHAPES_DECLARED: &str = "shapes.declared";
/// A pass does not need too much memory.
pub const MEMORY_LIMIT: &str = "memory.limit";
/// A pass does not compute too much.
pub const FLOPS_LIMIT: &str = "flops.limit";
/// It is signed by a key that is trusted.
pub const SIGNATURE_TRUSTED: &str = "signature.trusted";
/// It runs within the trial's limits.
pub const TRIAL_RUNS: &str = "trial.runs";
/// What it gives in a trial is finite: outputs, gradients, buffers.
pub const TRIAL_FINITE: &str = "trial.finite";
/// It gives the same bits when it is run again.
pub const TRIAL_DETERMINISTIC: &str = "trial.deterministic";
/// The validator itself came to an end. Fails only by a defect of ours.
pub const VALIDATION_COMPLETED: &str = "validation.completed";

/// All rules, in the order a verdict lists them.
pub const ALL: [&str; 17] = [
    CATALOGUE_STATUS,
    CATALOGUE_CHECKSUM,
    SIGNATURE_TRUSTED,
    ARCHIVE_LIMITS,
    ARCHIVE_READABLE,
    ARCHIVE_WHITELIST,
    MODULES_WHITELIST,
    OPS_WHITELIST,
    PARAMETERS_LIMIT,
    WEIGHTS_FINITE,
    SHAPES_DECLARED,
    MEMORY_LIMIT,
    FLOPS_LIMIT,
    TRIAL_RUNS,
    TRIAL_FINITE,
    TRIAL_DETERMINISTIC,
    VALIDATION_COMPLETED,
];
