//! `kasmina keygen` and `kasmina sign`: who vouches for a kernel.

use std::{
    fs::OpenOptions,
    io::{ErrorKind, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use super::{
    CliError, Exit,
    subject::signature_path,
    table::{complain, say},
};
use crate::{
    digest::Digest,
    signature::{PublicKey, SecretKey},
};

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
    let public = public_path(&options.out);
    // Both or neither.
    if let Some(there) = [&options.out, &public].into_iter().find(|path| path.symlink_metadata().is_ok()) {
        return Err(there_already(there));
    }
    write_new(&options.out, &key.to_pem(), 0o600)?;
    write_new(&public, &key.public().to_pem(), 0o644)?;
    say(&format!("private key  {}, keep it where kernels are compiled\n", options.out.display()));
    say(&settings(&public, &key.public()));
    Ok(Exit::Ok)
}

/// Prints the line that `validator.trusted_keys` takes for a private key that is there, and writes the public
/// key's file where it is missing.
///
/// # Errors
/// [`CliError`] when the file holds no key or the public key's cannot be written.
pub fn show(file: &Path) -> Result<Exit, CliError> {
    let key = read_key(file)?.public();
    let public = public_path(file);
    if public.symlink_metadata().is_err() {
        write_new(&public, &key.to_pem(), 0o644)?;
    }
    say(&settings(&public, &key));
    Ok(Exit::Ok)
}

fn public_path(file: &Path) -> PathBuf {
    let mut public = file.as_os_str().to_owned();
    public.push(".pub");
    public.into()
}

fn settings(public: &Path, key: &PublicKey) -> String {
    let public = public.display();
    format!("public key   {public}\n\nfor kasmina.toml:\n\n[validator]\ntrusted_keys = [\"{key}\"]\n")
}

/// Writes `FILE.sig` beside each artifact: the signature over its SHA-256. One that cannot be read or written is
/// complained about and the rest are signed; the exit code then says so.
///
/// # Errors
/// [`CliError`] when the key is none.
pub fn sign(options: &SignOptions) -> Result<Exit, CliError> {
    let key = read_key(&options.key)?;
    let mut exit = Exit::Ok;
    for file in &options.files {
        match sign_one(file, &key) {
            Ok(line) => say(&line),
            Err(error) => {
                complain(&error.to_string());
                exit = Exit::Unusable;
            }
        }
    }
    Ok(exit)
}

fn sign_one(file: &Path, key: &SecretKey) -> Result<String, CliError> {
    let bytes = std::fs::read(file).map_err(CliError::file(file))?;
    let digest = Digest::of(&bytes);
    let path = signature_path(file);
    // Signing again is no harm: it is the same signature.
    std::fs::write(&path, format!("{}\n", key.sign(&digest))).map_err(CliError::file(&path))?;
    Ok(format!("{digest}  {}\n", path.display()))
}

fn there_already(path: &Path) -> CliError {
    CliError::usage(format!("{}: it is there already, name another file", path.display()))
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
        ErrorKind::AlreadyExists => there_already(path),
        _ => CliError::file(path)(error),
    })
}
