//! The sources as libraries of the host.

use std::{ffi::OsString, fs, path::Path, process::Command, sync::OnceLock};

use crate::backend::cuda::{
    compile::each_source,
    source::{Source, headers},
};

/// The libraries of all sources, compiled once for all tests of this process.
///
/// # Panics
/// When there is no compiler, or it complains.
pub(in crate::backend::cuda) fn images() -> &'static [Vec<u8>] {
    static IMAGES: OnceLock<Vec<Vec<u8>>> = OnceLock::new();
    IMAGES.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in headers() {
            fs::write(folder.path().join(name), text).unwrap();
        }
        fs::write(folder.path().join("host.h"), include_str!("../../source/shim/host.h")).unwrap();
        each_source(|source| compile(folder.path(), source))
    })
}

fn compile(folder: &Path, source: Source) -> Vec<u8> {
    let compiler = std::env::var_os("CXX").unwrap_or_else(|| OsString::from("g++"));
    let (file, library) = (folder.join(source.name()), folder.join(format!("{}.so", source.name())));
    fs::write(&file, source.text()).unwrap();
    let output = Command::new(&compiler)
        .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-fvisibility=hidden", "-ffp-contract=off"])
        .args([
            "-DKASMINA_HOST",
            "-Werror",
            "-Wall",
            "-Wextra",
            "-Wno-unknown-pragmas",
            "-Wno-unused-function",
        ])
        .arg("-I")
        .arg(folder)
        .args(["-x", "c++"])
        .arg(&file)
        .arg("-o")
        .arg(&library)
        .output();
    let output = output.unwrap_or_else(|error| {
        panic!(
            "the CUDA sources are tested with a C++ compiler, and {compiler:?} does not start ({error}): \
             run scripts/deps, or name another in CXX"
        )
    });
    let words = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} does not compile for the host:\n{words}", source.name());
    fs::read(library).unwrap()
}
