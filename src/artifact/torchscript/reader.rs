//! From an archive to a module tree and its code.

use std::collections::HashMap;

use super::{
    Program,
    objects::{Tree, TreeReader},
    parser::parse,
    program::Sources,
};
use crate::artifact::{
    ArtifactError, Format, Module, ReadLimits, module,
    pickle::{self, Item},
    pickled,
    storage::{Places, Storages},
    zip::Archive,
};

/// Reads a TorchScript archive, and where its tensors lie.
///
/// # Errors
/// [`ArtifactError`] naming the file and what is wrong with it.
pub(crate) fn read(archive: &Archive<'_>, limits: &ReadLimits) -> Result<(Module, Places), ArtifactError> {
    if archive.contains("byteorder") && archive.text("byteorder", 64, "bytes")?.trim() != "little" {
        return Err(ArtifactError::rejected(
            "byteorder",
            "a big-endian archive",
            "save it on a little-endian machine",
        ));
    }
    let sources = sources(archive, limits)?;
    let mut storages = Storages::new(archive, limits);
    let data = pickle::read(
        "data.pkl",
        &archive.small("data.pkl", limits.pickle_bytes, "bytes of pickle")?,
        limits,
    )?;
    let mut reader = TreeReader {
        place: "data.pkl",
        document: &data,
        storages: &mut storages,
        sources: &sources,
        nesting: limits.nesting,
        tree: Tree::default(),
        known: HashMap::new(),
        tied: HashMap::new(),
        same_buffers: HashMap::new(),
        storages_of_buffers: Vec::new(),
        storages_of_others: Vec::new(),
        unfolded: 0,
        name_bytes: 0,
    };
    reader.object(data.root(), "", 0)?;
    let Tree { objects, parameters, mut buffers, mut types, places } = reader.tree;
    pickled::note_shared(&mut buffers, &reader.storages_of_buffers, &reader.storages_of_others);
    types.sort();
    let constants = constants(archive, &mut storages, limits)?;
    let ops = sources.ops();
    let module = Module {
        format: Format::TorchScript,
        parameters,
        buffers,
        types,
        ops,
        declared: None,
        program: module::Program::TorchScript(Program { sources, objects, constants }),
        limits: *limits,
        archive: archive.bytes().clone(),
        copied_bytes: 0,
    };
    Ok((module, places))
}

fn sources(archive: &Archive<'_>, limits: &ReadLimits) -> Result<Sources, ArtifactError> {
    let mut sources = Sources::default();
    let mut left = limits.code_bytes;
    for name in archive.names().filter(|name| name.starts_with("code/") && name.ends_with(".py")) {
        limits.check_time(name)?;
        let text = archive.text(name, left, "bytes of code")?;
        left -= text.len();
        sources.add(name, parse(name, &text, limits.nesting)?);
    }
    Ok(sources)
}

fn constants(
    archive: &Archive<'_>,
    storages: &mut Storages<'_, '_>,
    limits: &ReadLimits,
) -> Result<Vec<crate::tensor::HostTensor>, ArtifactError> {
    const PLACE: &str = "constants.pkl";
    if !archive.contains(PLACE) {
        return Ok(Vec::new());
    }
    let document =
        pickle::read(PLACE, &archive.small(PLACE, limits.pickle_bytes, "bytes of pickle")?, limits)?;
    let Item::Tuple(items) = document.get(document.root()) else {
        return Err(ArtifactError::malformed(PLACE, "the constants are no tuple"));
    };
    let tensors = items.iter().map(|&item| pickled::tensor(PLACE, &document, storages, item, "constants"));
    tensors.map(|tensor| tensor.map(|pickled| pickled.tensor)).collect()
}
