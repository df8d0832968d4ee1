//! What the fuzz targets call: each reader by itself, on bytes of anybody's.

use std::sync::Arc;

use super::{
    Mode, ReadLimits, pickle, read,
    zip::{
        Archive,
        writer::{Entry, write},
    },
};
use crate::{graph::Limits, tensor::DType};

/// An archive whose program the fuzzer writes.
const PROGRAM: &[u8] = include_bytes!("../../tests/data/golden/mlp_gelu.eval.pt2");

/// Less than the default, so that more runs fit into a second.
fn limits() -> ReadLimits {
    ReadLimits { fuel: 20_000, ..ReadLimits::default() }
}

/// Reads an archive's directory and every file. Checksums are not looked at while fuzzing.
pub fn zip(bytes: &[u8]) {
    let bytes: Arc<[u8]> = bytes.into();
    if let Ok(archive) = Archive::open(&bytes, &limits()) {
        for name in archive.names() {
            drop(archive.file(name));
        }
    }
}

/// Reads a pickle.
pub fn pickle(bytes: &[u8]) {
    drop(pickle::read("fuzz", bytes, &limits()));
}

/// Reads and lowers an exported program.
pub fn pt2(bytes: &[u8]) {
    let archive: Arc<[u8]> = PROGRAM.into();
    let archive = Archive::open(&archive, &limits()).expect("a golden archive is in order");
    let entries = archive.names().map(|name| {
        let content = match name {
            "models/model.json" => bytes.to_vec(),
            name => archive.file(name).expect("a golden archive is in order").into_owned(),
        };
        Entry::new(&format!("k/{name}"), content)
    });
    lower(&write(&entries.collect::<Vec<_>>()), &[2, 5, 12]);
}

/// Reads and lowers a script whose root is of class `K` and has no attributes.
pub fn torchscript(bytes: &[u8]) {
    let files = [
        ("data.pkl", &b"\x80\x02c__torch__\nK\n)\x81}(X\x08\x00\x00\x00training\x89ub."[..]),
        ("code/__torch__.py", bytes),
        ("constants.pkl", b"\x80\x02)."),
    ];
    lower(&write(&files.map(|(name, content)| Entry::new(&format!("k/{name}"), content))), &[2, 4, 8, 8]);
}

fn lower(archive: &[u8], shape: &[usize]) {
    let Ok(module) = read(archive.into(), &limits()) else { return };
    for mode in [Mode::Eval, Mode::Train] {
        drop(module.lower(&[(shape.into(), DType::F32)], mode, &Limits::default()));
    }
}
