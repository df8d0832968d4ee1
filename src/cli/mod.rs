//! The subcommands of `kasmina`. Each is one file and gives an exit code; `bin/kasmina.rs` reads arguments.

mod device;
mod error;
mod events;
mod exec;
mod inspect;
mod offline;
mod operator;
mod parent;
mod publish;
mod quickstart;
mod replay;
mod sign;
mod subject;
mod supply;
mod table;
mod tensors;
mod top;
mod urza;
mod validate;

pub use error::{CliError, Exit};
pub use events::events;
pub use exec::{ExecOptions, exec};
pub use inspect::{InspectOptions, inspect};
pub use operator::{OperatorOptions, cache, seeds, status};
pub use publish::{PublishOptions, publish};
pub use quickstart::{QuickstartOptions, TrainerOptions, quickstart, train};
pub use replay::{ReplayOptions, replay};
pub use sign::{KeygenOptions, SignOptions, keygen, show, sign};
pub use subject::SubjectOptions;
pub use supply::{clear, evict, pin, warm, why};
pub use table::complain;
pub use top::top;
pub use urza::{UrzaServerOptions, urza};
pub use validate::{ValidateOptions, validate};
