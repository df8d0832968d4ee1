//! An artifact with other weights in it: what a seed has learnt, as a kernel of its own.
//!
//! Tensors are written where they lie in the archive, in their own element types and strides; the program, names,
//! constants and all other files stay as they are, byte for byte. The result is read again before it is given out.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use super::{
    ArtifactError, Module, ReadLimits, locate,
    storage::{Place, Places},
    zip::Archive,
};
use crate::{
    fault::{ErrorClass, Fault},
    tensor::{DType, HostTensor, Shape},
};

/// Why an artifact does not take other weights.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum RewriteError {
    /// A tensor is not given.
    #[error("no value is given for {name:?}, which the artifact has: give every parameter and buffer")]
    Missing {
        /// Which.
        name: String,
    },
    /// A tensor is given that nothing in the artifact takes.
    #[error("the artifact has no parameter and no buffer {name:?}: give those alone that it has")]
    Unknown {
        /// Which.
        name: String,
    },
    /// A tensor is of another shape or type than the artifact's.
    #[error("{name:?} is {expected_dtype} {expected} in the artifact, and {actual_dtype} {actual} was given")]
    Kind {
        /// Which.
        name: String,
        /// The artifact's shape.
        expected: Shape,
        /// The artifact's element type.
        expected_dtype: DType,
        /// The shape given.
        actual: Shape,
        /// The element type given.
        actual_dtype: DType,
    },
    /// Two tensors share memory in the artifact and are to differ, or one shares memory with itself.
    #[error(
        "{name:?} shares memory in the artifact with another tensor, or is expanded, and the values given cannot lie there together: export the module with that tensor cloned"
    )]
    Shared {
        /// The tensor that would not be what was given.
        name: String,
    },
    /// The artifact itself cannot be read or written.
    #[error(transparent)]
    Artifact(#[from] ArtifactError),
}

impl Fault for RewriteError {
    fn class(&self) -> ErrorClass {
        match self {
            Self::Artifact(error) => error.class(),
            _ => ErrorClass::Invalid,
        }
    }

    fn code(&self) -> &'static str {
        match self {
            Self::Artifact(error) => error.code(),
            Self::Shared { .. } => "kernel.shared",
            _ => "kernel.shape",
        }
    }
}

/// The artifact with other values of its parameters and buffers, all of which are to be given, each by its name or by
/// another that it is reached by.
///
/// Its size stays the same, unless weights are packed in it, which are not in the result.
///
/// # Errors
/// [`RewriteError`] naming the tensor, or the file of the archive.
pub fn rewrite(
    bytes: &Arc<[u8]>,
    values: &BTreeMap<String, HostTensor>,
    limits: &ReadLimits,
) -> Result<Arc<[u8]>, RewriteError> {
    let (module, places) = locate(bytes, limits)?;
    let wanted = wanted(&module, values)?;
    let archive = Archive::open(bytes, limits)?;
    let contents = contents(&archive, &wanted, &places, limits)?;
    let written = archive.with(&contents)?;
    // Each of them as large as weights are, and in use no more.
    drop(contents);
    let written: Arc<[u8]> = written.into();
    let (after, _) = locate(&written, limits)?;
    check(&module, &after, &wanted)?;
    Ok(written)
}

/// What is to stand in the artifact: its parameters, then its buffers, in their order.
type Wanted<'a> = Vec<(&'a str, &'a HostTensor)>;

fn wanted<'a>(
    module: &'a Module,
    values: &'a BTreeMap<String, HostTensor>,
) -> Result<Wanted<'a>, RewriteError> {
    let parameters = module.parameters.iter().map(|tensor| (&tensor.name, &tensor.aliases, &tensor.tensor));
    let buffers = module.buffers.iter().map(|tensor| (&tensor.name, &tensor.aliases, &tensor.tensor));
    let (mut wanted, mut known) = (Wanted::new(), HashSet::new());
    for (name, aliases, there) in parameters.chain(buffers) {
        let mut found: Option<&HostTensor> = None;
        for (each, value) in [name].into_iter().chain(aliases).filter_map(|name| values.get_key_value(name)) {
            known.insert(each);
            if (value.shape(), value.dtype()) != (there.shape(), there.dtype()) {
                return Err(RewriteError::Kind {
                    name: each.clone(),
                    expected: there.shape().clone(),
                    expected_dtype: there.dtype(),
                    actual: value.shape().clone(),
                    actual_dtype: value.dtype(),
                });
            }
            if found.is_some_and(|other| other != value) {
                return Err(RewriteError::Shared { name: each.clone() });
            }
            found = Some(value);
        }
        let value = found.ok_or_else(|| RewriteError::Missing { name: name.clone() })?;
        wanted.push((name, value));
    }
    match values.keys().find(|name| !known.contains(name)) {
        Some(name) => Err(RewriteError::Unknown { name: name.clone() }),
        None => Ok(wanted),
    }
}

/// The files that get other content, with all of it.
fn contents(
    archive: &Archive<'_>,
    wanted: &Wanted<'_>,
    places: &Places,
    limits: &ReadLimits,
) -> Result<BTreeMap<String, Vec<u8>>, RewriteError> {
    type Tensors<'t> = Vec<(&'t str, &'t HostTensor, &'t Place)>;
    let mut outer: BTreeMap<&str, Tensors<'_>> = BTreeMap::new();
    let mut inner: BTreeMap<&str, BTreeMap<&str, Tensors<'_>>> = BTreeMap::new();
    let places = places.parameters.iter().chain(&places.buffers);
    for (&(name, value), place) in wanted.iter().zip(places) {
        let files = match &place.within {
            Some(file) => inner.entry(file).or_default(),
            None => &mut outer,
        };
        files.entry(&place.file).or_default().push((name, value, place));
    }
    let filled = |archive: &Archive<'_>, files: BTreeMap<&str, Tensors<'_>>| {
        let mut contents = BTreeMap::new();
        for (file, tensors) in files {
            limits.check_time(file)?;
            let before = archive.file(file)?;
            let mut content = before.to_vec();
            for (name, value, place) in &tensors {
                if !place.view.scatter(&mut content, value.bytes()) {
                    return Err(RewriteError::Shared { name: (*name).to_owned() });
                }
            }
            for (name, value, place) in &tensors {
                let there = place.view.gather(&content, value.bytes().len());
                if there.as_deref() != Some(value.bytes()) {
                    return Err(RewriteError::Shared { name: (*name).to_owned() });
                }
            }
            if content != *before {
                contents.insert(file.to_owned(), content);
            }
        }
        Ok(contents)
    };
    let mut contents = filled(archive, outer)?;
    for (file, files) in inner {
        let bytes: Arc<[u8]> = archive.file(file)?.into();
        let within = Archive::open(&bytes, limits)?;
        let changed = filled(&within, files)?;
        if !changed.is_empty() {
            contents.insert(file.to_owned(), within.with(&changed)?);
        }
    }
    Ok(contents)
}

/// Refuses what came out other than it was to: a constant may lie where a parameter does.
fn check(before: &Module, after: &Module, wanted: &Wanted<'_>) -> Result<(), RewriteError> {
    let parameters = after.parameters.iter().map(|tensor| (&tensor.name[..], &tensor.tensor));
    let weights = parameters.chain(after.buffers.iter().map(|tensor| (&tensor.name[..], &tensor.tensor)));
    let odd =
        weights.zip(wanted).find(|(there, wanted)| there != *wanted).map(|((name, _), _)| name.to_owned());
    let (was, is) = (before.constants(), after.constants());
    let changed = || was.iter().zip(&is).find(|(was, is)| was != is).map(|((name, _), _)| name.clone());
    match odd.or_else(changed) {
        Some(name) => Err(RewriteError::Shared { name }),
        None => Ok(()),
    }
}
