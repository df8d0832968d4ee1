//! The rules, one a file, and their stable names.

/// The archive keeps to the limits of its kind: entries, sizes, depths.
pub const ARCHIVE_LIMITS: &str = "archive.limits";
/// The archive can be read.
pub const ARCHIVE_READABLE: &str = "archive.readable";
/// The shapes inferred are the ones declared.
pub const SHAPES_DECLARED: &str = "shapes.declared";
