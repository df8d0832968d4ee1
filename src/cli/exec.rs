//! `kasmina exec`: runs an artifact offline, forward and backward.

use std::path::PathBuf;

use super::{CliError, Exit, offline::Offline, tensors};
use crate::artifact::Mode;

/// What to run on what.
#[derive(Debug)]
pub struct ExecOptions {
    /// The artifact.
    pub file: PathBuf,
    /// A safetensors file with tensor `input`.
    pub input: PathBuf,
    /// A safetensors file with tensor `output`: the gradient of the output. Without one, only forward runs.
    pub grad_output: Option<PathBuf>,
    /// Training or eval mode.
    pub mode: Mode,
    /// Where results go.
    pub out: PathBuf,
    /// Threads; 0 means all.
    pub threads: usize,
    /// Decides dropout masks.
    pub seed: u64,
}

/// Runs an artifact and writes `output`, `grad.input`, `grad.<parameter>` and `buffer.<name>`.
///
/// Buffers are written as they are after the pass. A gradient that is None in PyTorch is not written.
///
/// # Errors
/// [`CliError`] when a file cannot be used or the artifact does not run.
pub fn exec(options: &ExecOptions) -> Result<Exit, CliError> {
    let mut offline = Offline::open(&options.file, options.threads)?;
    let input = tensors::read(&options.input, "input")?;
    let ran = offline.forward(input, options.mode, options.seed)?;
    let mut results = vec![("output".to_owned(), ran.output.clone())];
    if let Some(path) = &options.grad_output {
        let gradient = tensors::read(path, "output")?;
        if gradient.shape() != ran.output.shape() || gradient.dtype() != ran.output.dtype() {
            let (has, wants) = (&gradient, &ran.output);
            let reason = format!("tensor \"output\" is {has:?}, the output's gradient must be as {wants:?}");
            return Err(CliError::Tensors { path: path.clone(), reason });
        }
        let mut gradients = offline.backward(&ran, &gradient)?;
        results.extend(gradients.input.map(|tensor| ("grad.input".to_owned(), tensor)));
        for (n, parameter) in offline.module().parameters().iter().enumerate() {
            let gradient = gradients.parameters.remove(&n);
            results.extend(gradient.map(|tensor| (format!("grad.{}", parameter.name), tensor)));
        }
    }
    for (buffer, tensor) in offline.module().buffers().iter().zip(&offline.buffers) {
        results.push((format!("buffer.{}", buffer.name), tensor.clone()));
    }
    tensors::write(&options.out, &results)?;
    Ok(Exit::Ok)
}
