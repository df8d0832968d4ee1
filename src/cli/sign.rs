//! `kasmina keygen` and `kasmina sign`: who vouches for a kernel.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{CliError, Exit, subject::signature_path, table::say};
use crate::{digest::Digest, signature::SecretKey};

/// Where a new key goes.
#[derive(Debug)]
pub struct KeygenOptions {
    /// The private key's file; the public key goes beside it, with `.pub` after its name.
    pub out: PathBuf,
}

/// What to sign with what.
#[derive(Debug)]
pub struct SignOptions {
    /// The artifacts.
    pub files: Vec<PathBuf>,
    /// The private key's file.
    pub key: PathBuf,
}

/// Makes a key pair and prints the line that `validator.trusted_keys` takes.
///
/// # Errors
/// [`CliError`] when a file cannot be written, or is there already: a key is never written over.
pub fn keygen(options: &KeygenOptions) -> Result<Exit, CliError> {
    let key = SecretKey::generate().map_err(|error| CliError::usage(error.to_string()))?;
    let mut public = options.out.clone().into_os_string();
    public.push(".pub");
    write_new(&options.out, &key.to_pem(), 0o600)?;
    write_new(Path::new(&public), &key.public().to_pem(), 0o644)?;
    say(&format!(
        "private key  {}, keep it where kernels are compiled\npublic key   {}\n\nfor kasmina.toml:\n\n[validator]\ntrusted_keys = [\"{}\"]\n",
        options.out.display(),
        Path::new(&public).display(),
        key.public()
    ));
    Ok(Exit::Ok)
}

/// Writes `FILE.sig` beside each artifact: the signature over its SHA-256.
///
/// # Errors
/// [`CliError`] when a file cannot be read or written, or the key is none.
pub fn sign(options: &SignOptions) -> Result<Exit, CliError> {
    let key = read_key(&options.key)?;
    for file in &options.files {
        let bytes = std::fs::read(file).map_err(CliError::file(file))?;
        let digest = Digest::of(&bytes);
        let path = signature_path(file);
        // Signing again is no harm: it is the same signature.
        std::fs::write(&path, format!("{}\n", key.sign(&digest))).map_err(CliError::file(&path))?;
        say(&format!("{digest}  {}\n", path.display()));
    }
    Ok(Exit::Ok)
}

/// A private key from its file.
pub(super) fn read_key(path: &Path) -> Result<SecretKey, CliError> {
    let text = std::fs::read(path).map_err(CliError::file(path))?;
    let key = SecretKey::from_pem(&String::from_utf8_lossy(&text));
    key.map_err(|error| CliError::usage(format!("{}: {error}", path.display())))
}

fn write_new(path: &Path, text: &str, mode: u32) -> Result<(), CliError> {
    let opened = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = opened.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| match error.kind() {
        ErrorKind::AlreadyExists => {
            CliError::usage(format!("{}: it is there already, name another file", path.display()))
        }
        _ => CliError::file(path)(error),
    })
}
