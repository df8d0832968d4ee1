//! The stand-in's folder: entries as `{id}.json`, blueprints below `blueprints`, blobs wherever entries say.

use std::{
    fs,
    io::{self, ErrorKind, Write as _},
    path::{Component, Path, PathBuf},
};

use serde_json::{Value, json};

use crate::id::KernelId;

/// File endings that an artifact without an entry may have, as the directory origin reads them.
const ENDINGS: [&str; 2] = ["pt2", "pt"];

const BLUEPRINTS: &str = "blueprints";

/// What became of a new file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::origin) enum Added {
    New,
    /// Something of that name was there, and stays.
    There,
}

/// The folder.
#[derive(Clone, Debug)]
pub(super) struct Store {
    root: PathBuf,
}

impl Store {
    pub(super) fn open(root: &Path) -> io::Result<Self> {
        fs::create_dir_all(root.join(BLUEPRINTS))?;
        Ok(Self { root: root.canonicalize()? })
    }

    /// A kernel's entry, its reference an address below `base`.
    pub(super) fn kernel(&self, id: &KernelId, base: &str) -> io::Result<Option<Value>> {
        let found = read_json(&self.root.join(format!("{id}.json")))?;
        let mut entry = match found {
            Some(entry) => entry,
            None => match ENDINGS.map(|ending| format!("{id}.{ending}")).iter().find(|n| self.is_file(n)) {
                Some(name) => json!({"id": id, "status": "validated", "kernel_binary_ref": name}),
                None => return Ok(None),
            },
        };
        for spelling in ["kernel_binary_ref", "binary_ref"] {
            if let Some(Value::String(reference)) = entry.get_mut(spelling)
                && !reference.contains("://")
            {
                *reference = format!("{base}/blobs/{reference}");
            }
        }
        Ok(Some(entry))
    }

    /// Every kernel, by id.
    pub(super) fn kernels(&self, base: &str) -> io::Result<Vec<Value>> {
        let mut ids = Vec::new();
        for file in fs::read_dir(&self.root)? {
            let name = PathBuf::from(file?.file_name());
            let ending = name.extension().and_then(|ending| ending.to_str()).unwrap_or_default();
            let id = name.file_stem().and_then(|stem| stem.to_str()?.parse::<KernelId>().ok());
            if ending == "json" || ENDINGS.contains(&ending) {
                ids.extend(id);
            }
        }
        ids.sort();
        ids.dedup();
        ids.iter().filter_map(|id| self.kernel(id, base).transpose()).collect()
    }

    pub(super) fn add_kernel(&self, id: &KernelId, entry: &Value) -> io::Result<Added> {
        add(&self.root, &format!("{id}.json"), &pretty(entry))
    }

    pub(super) fn blueprint(&self, id: &KernelId) -> io::Result<Option<Value>> {
        read_json(&self.root.join(BLUEPRINTS).join(format!("{id}.json")))
    }

    pub(super) fn add_blueprint(&self, id: &KernelId, blueprint: &Value) -> io::Result<Added> {
        add(&self.root.join(BLUEPRINTS), &format!("{id}.json"), &pretty(blueprint))
    }

    /// A blob's file, if it is a regular one within the folder.
    pub(super) fn blob(&self, name: &str) -> Option<PathBuf> {
        let plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
        let path = self.root.join(name).canonicalize().ok()?;
        (plain && path.starts_with(&self.root) && path.is_file()).then_some(path)
    }

    fn is_file(&self, name: &str) -> bool {
        self.root.join(name).is_file()
    }
}

fn pretty(value: &Value) -> Vec<u8> {
    format!("{value:#}\n").into_bytes()
}

fn read_json(path: &Path) -> io::Result<Option<Value>> {
    match fs::read(path) {
        Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a file that is there whole or not at all, and never over another.
pub(in crate::origin) fn add(folder: &Path, name: &str, bytes: &[u8]) -> io::Result<Added> {
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    // Others read it: the temporary file's mode is its writer's alone.
    file.as_file().set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))?;
    match file.persist_noclobber(folder.join(name)) {
        Ok(_) => Ok(Added::New),
        Err(error) if error.error.kind() == ErrorKind::AlreadyExists => Ok(Added::There),
        Err(error) => Err(error.error),
    }
}
