//! `kasmina`: the tool beside the daemon.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use kasmina::{
    artifact::Mode,
    cli::{
        self, CliError, ExecOptions, Exit, InspectOptions, KeygenOptions, OperatorOptions, PublishOptions,
        QuickstartOptions, ReplayOptions, SignOptions, SubjectOptions, TrainerOptions, UrzaServerOptions,
        ValidateOptions,
    },
    config::{Config, ProcessEnvironment},
    id::{KernelId, SessionId},
};

/// Works with kernels and with a running kasminad.
///
/// Exit codes: 0 done; 1 the answer is no (a kernel rejected or failed, accuracy not raised); 2 a file or an
/// argument cannot be used; 3 the daemon does not answer or refused; 4 a replayed pass fails in another way.
#[derive(Debug, Parser)]
#[command(name = "kasmina", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs an artifact offline, forward and, given a gradient, backward.
    Exec {
        /// The artifact: a PT2 or TorchScript archive.
        file: PathBuf,
        /// A safetensors file with tensor `input`.
        #[arg(long, value_name = "FILE")]
        input: PathBuf,
        /// A safetensors file with the output's gradient as tensor `output`.
        #[arg(long, value_name = "FILE")]
        grad_output: Option<PathBuf>,
        /// Whether batch norm and dropout train.
        #[arg(long, value_enum, default_value = "eval")]
        mode: ModeArgument,
        /// Where `output`, `grad.…` and `buffer.…` go.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
        /// Threads; 0 is all.
        #[arg(long, default_value_t = 0)]
        threads: usize,
        /// Decides dropout masks.
        #[arg(long, default_value_t = 0)]
        seed: u64,
    },
    /// Judges an artifact by the validator's rules: 0 accepted, 1 rejected, 2 unreadable.
    Validate {
        #[command(flatten)]
        subject: Subject,
        /// Prints the verdict as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Prints an artifact's verdict, module tree, program and costs.
    Inspect {
        #[command(flatten)]
        subject: Subject,
        /// Whether batch norm and dropout train.
        #[arg(long, value_enum, default_value = "eval")]
        mode: ModeArgument,
        /// The batch to show the program for, where it was not exported for another.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65536))]
        batch: u32,
        /// Shows the backward program too.
        #[arg(long)]
        backward: bool,
    },
    /// Runs a pass that a daemon has recorded when it failed: 0 it fails as it did, 1 it does not, 4 it fails in another
    /// way.
    Replay {
        /// The record, a file in the folder that engine.record_failures names.
        file: PathBuf,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
        /// Shows what every operation gave. For an output that is not finite the first one is shown in any case.
        #[arg(long)]
        trace: bool,
        /// How long the pass may take, instead of the limit it had.
        #[arg(long, value_name = "SECONDS", value_parser = seconds)]
        time_limit: Option<Duration>,
    },
    /// Makes an Ed25519 key pair for signing artifacts.
    Keygen {
        /// The private key's file, in PEM; the public key goes to FILE.pub.
        #[arg(long, value_name = "FILE", default_value = "kasmina-signing.pem")]
        out: PathBuf,
        /// Prints the line for `trusted_keys` of the private key in FILE, keygen's or openssl's, instead of making
        /// one; writes FILE.pub where it is missing.
        #[arg(long, value_name = "FILE", conflicts_with = "out")]
        show: Option<PathBuf>,
    },
    /// Signs artifacts: writes FILE.sig beside each.
    Sign {
        /// The artifacts.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The private key, as keygen or `openssl genpkey -algorithm ed25519` writes it.
        #[arg(long, value_name = "FILE")]
        key: PathBuf,
    },
    /// Publishes an artifact: judges it, stores its bytes, registers it. The same bytes again are no error, other
    /// bytes under the same name are.
    Publish {
        #[command(flatten)]
        subject: Subject,
        /// The kernel's id.
        #[arg(long, value_name = "ID")]
        name: KernelId,
        /// The blueprint it is of; made if it is missing. Without one, that of its entry or
        /// of the kernel that it was trained from, else the kernel's own name.
        #[arg(long, value_name = "ID")]
        blueprint: Option<KernelId>,
        /// A private key to sign with; the signature goes into the catalogue's entry.
        #[arg(long, value_name = "KEY")]
        sign: Option<PathBuf>,
        /// Where the bytes go: s3://bucket/prefix or a folder. Without it, the folder of a directory origin.
        #[arg(long, value_name = "PLACE")]
        to: Option<String>,
        /// Urza's address. Without it, the configuration's where its origin is urza.
        #[arg(long, value_name = "URL")]
        urza: Option<String>,
        /// Prints JSON.
        #[arg(long)]
        json: bool,
    },
    /// Serves Urza's REST contract from a folder, for one machine and for tests.
    Urza {
        /// The folder, made if it is missing.
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The address; port 0 takes a free one.
        #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8000")]
        listen: SocketAddr,
        /// Listens where other machines can reach it, though it asks for no password.
        #[arg(long)]
        allow_remote: bool,
    },
    /// Prints how the daemon does.
    Status(Operator),
    /// Shows what each session holds, computes and waits for, each second anew on a terminal.
    Top {
        /// Shows it once.
        #[arg(long)]
        once: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Prints every seed of every session.
    Seeds(Operator),
    /// Prints what happens to seeds, layers and sessions, a line for each event, until the daemon ends.
    Events {
        /// One session instead of all.
        #[arg(long, value_name = "NUMBER")]
        session: Option<u64>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Prints what the cache's tiers hold and how they did.
    Cache(Operator),
    /// Drops kernels from memory and from every tier, unless a seed uses them (then: 1).
    Evict {
        /// The kernels.
        #[arg(required = true)]
        kernels: Vec<KernelId>,
        /// On every node that shares a Redis with this one.
        #[arg(long)]
        fleet: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Drops every kernel from memory that no seed uses and that is not pinned.
    Clear {
        /// Empties the tiers below too, shared ones included.
        #[arg(long)]
        tiers: bool,
        #[command(flatten)]
        operator: Operator,
    },
    /// Loads kernels beside whatever goes on.
    Warm {
        /// The kernels.
        #[arg(required = true)]
        kernels: Vec<KernelId>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Loads kernels and keeps them in memory until they are unpinned or the daemon ends.
    Pin {
        /// The kernels.
        #[arg(required = true)]
        kernels: Vec<KernelId>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Lets pinned kernels go again.
    Unpin {
        /// The kernels.
        #[arg(required = true)]
        kernels: Vec<KernelId>,
        #[command(flatten)]
        operator: Operator,
    },
    /// Prints all that is known of a kernel's supply: copies, holders, loads, evictions, verdict.
    Why {
        /// A kernel, or a seed as session/layer/seed.
        subject: String,
        #[command(flatten)]
        operator: Operator,
    },
    /// Starts a daemon, trains on real digits through it, and grafts two kernels.
    Quickstart {
        /// The folder with kernels, digits and data.
        #[arg(long, value_name = "DIR")]
        examples: Option<PathBuf>,
        #[command(flatten)]
        training: Training,
    },
    /// The trainer that `quickstart` starts.
    #[command(hide = true)]
    QuickstartTrainer {
        #[arg(long)]
        socket: PathBuf,
        #[arg(long)]
        control_socket: PathBuf,
        #[arg(long)]
        examples: PathBuf,
        #[command(flatten)]
        training: Training,
    },
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ModeArgument {
    Eval,
    Train,
}

#[derive(Debug, Args)]
struct Subject {
    /// The artifact; a signature is looked for in the entry, then in FILE.sig.
    file: PathBuf,
    /// The artifact's catalogue entry, a JSON file.
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
    /// The input's sizes without the batch, for archives that do not say: 3,32,32.
    #[arg(long, value_name = "SIZES", value_delimiter = ',')]
    input_shape: Option<Vec<usize>>,
    /// A configuration whose [validator] section decides.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

impl Subject {
    fn options(self) -> Result<SubjectOptions, CliError> {
        let config = Config::load(self.config.as_deref(), &ProcessEnvironment)
            .map_err(|errors| CliError::Usage { reason: errors.to_string() })?;
        Ok(SubjectOptions { file: self.file, entry: self.entry, input_shape: self.input_shape, config })
    }
}

impl From<ModeArgument> for Mode {
    fn from(mode: ModeArgument) -> Self {
        match mode {
            ModeArgument::Eval => Self::Eval,
            ModeArgument::Train => Self::Train,
        }
    }
}

#[derive(Debug, Args)]
struct Operator {
    /// The daemon's control socket.
    #[arg(long, value_name = "PATH")]
    control_socket: Option<PathBuf>,
    /// Prints JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct Training {
    /// Passes over the training set; kernels are grafted half-way.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(2..=1000))]
    epochs: u32,
    /// Decides the order of the samples.
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

impl Operator {
    /// The socket given, else `$KASMINA_CONTROL`, else the configuration's default.
    fn options(self) -> OperatorOptions {
        let named = self.control_socket.or_else(|| std::env::var_os("KASMINA_CONTROL").map(PathBuf::from));
        let control_socket = named.unwrap_or_else(|| Config::default().daemon.control_socket);
        OperatorOptions { control_socket, json: self.json }
    }
}

/// A time in seconds, which may have a fraction.
fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    seconds.ok_or_else(|| format!("{text:?} is no time: write a number of seconds"))
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(exit) => exit.into(),
        Err(error) => {
            cli::complain(&with_causes(&error));
            error.exit().into()
        }
    }
}

fn with_causes(error: &CliError) -> String {
    let (mut text, mut cause) = (error.to_string(), std::error::Error::source(error));
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text = format!("{text}: {next}");
        }
        cause = error.source();
    }
    text
}

fn run(command: Command) -> Result<Exit, CliError> {
    match command {
        Command::Exec { file, input, grad_output, mode, out, threads, seed } => {
            cli::exec(&ExecOptions { file, input, grad_output, mode: mode.into(), out, threads, seed })
        }
        Command::Validate { subject, json } => {
            cli::validate(&ValidateOptions { subject: subject.options()?, json })
        }
        Command::Inspect { subject, mode, batch, backward } => {
            let (subject, batch) = (subject.options()?, batch as usize);
            cli::inspect(&InspectOptions { subject, mode: mode.into(), batch, backward })
        }
        Command::Replay { file, json, trace, time_limit } => {
            cli::replay(&ReplayOptions { file, json, trace, time_limit })
        }
        Command::Keygen { show: Some(file), .. } => cli::show(&file),
        Command::Keygen { out, show: None } => cli::keygen(&KeygenOptions { out }),
        Command::Sign { files, key } => cli::sign(&SignOptions { files, key }),
        Command::Publish { subject, name, blueprint, sign, to, urza, json } => {
            let (subject, key) = (subject.options()?, sign);
            cli::publish(&PublishOptions { subject, name, blueprint, key, to, urza, json })
        }
        Command::Urza { dir, listen, allow_remote } => {
            cli::urza(&UrzaServerOptions { dir, listen, allow_remote })
        }
        Command::Status(operator) => cli::status(&operator.options()),
        Command::Top { once, operator } => cli::top(&operator.options(), once),
        Command::Seeds(operator) => cli::seeds(&operator.options()),
        Command::Events { session, operator } => cli::events(&operator.options(), session.map(SessionId)),
        Command::Cache(operator) => cli::cache(&operator.options()),
        Command::Evict { kernels, fleet, operator } => cli::evict(&operator.options(), &kernels, fleet),
        Command::Clear { tiers, operator } => cli::clear(&operator.options(), tiers),
        Command::Warm { kernels, operator } => cli::warm(&operator.options(), kernels),
        Command::Pin { kernels, operator } => cli::pin(&operator.options(), &kernels, true),
        Command::Unpin { kernels, operator } => cli::pin(&operator.options(), &kernels, false),
        Command::Why { subject, operator } => cli::why(&operator.options(), &subject),
        Command::Quickstart { examples, training } => {
            cli::quickstart(&QuickstartOptions { examples, epochs: training.epochs, seed: training.seed })
        }
        Command::QuickstartTrainer { socket, control_socket, examples, training } => {
            let Training { epochs, seed } = training;
            cli::train(&TrainerOptions { socket, control_socket, examples, epochs, seed })
        }
    }
}
