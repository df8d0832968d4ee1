//! The subcommands of `kasmina`. Each is one file and gives an exit code; `bin/kasmina.rs` reads arguments.

mod error;
mod exec;
mod offline;
mod operator;
mod quickstart;
mod table;
mod tensors;
mod validate;

pub use error::{CliError, Exit};
pub use exec::{ExecOptions, exec};
pub use operator::{OperatorOptions, cache, seeds, status};
pub use quickstart::{QuickstartOptions, TrainerOptions, quickstart, train};
pub use validate::{ValidateOptions, validate};
