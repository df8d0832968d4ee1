//! Tensors as torch pickles them: alone, in a module's state, or in a dictionary that `torch.save` wrote.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::{
    ArtifactError, NamedTensor, ReadLimits,
    pickle::{self, Document, Item, ItemId},
    storage::{Place, Storages, View},
    zip::Archive,
};
use crate::tensor::{DType, HostTensor};

/// A tensor that was read.
#[derive(Clone)]
pub(super) struct Pickled {
    pub(super) tensor: HostTensor,
    /// Whether it wants a gradient.
    pub(super) requires_grad: bool,
    /// Where its elements lie: equal for tied weights, and for nothing else.
    pub(super) at: String,
    /// The storage it lies in.
    pub(super) storage: String,
    /// The same for whoever writes there.
    pub(super) place: Place,
}

/// Reads a tensor, or a parameter, whose storage is a file of `folder`.
///
/// # Errors
/// [`ArtifactError`] when it is written otherwise than torch does, or does not lie in its storage.
pub(super) fn tensor(
    place: &str,
    document: &Document,
    storages: &mut Storages<'_, '_>,
    id: ItemId,
    folder: &str,
) -> Result<Pickled, ArtifactError> {
    let malformed = || ArtifactError::malformed(place, "a tensor is not written as torch writes it");
    let Item::Call { function, arguments } = document.get(id) else { return Err(malformed()) };
    let arguments = document.elements(*arguments).ok_or_else(malformed)?;
    if document.global(*function) == Some(("torch._utils", "_rebuild_parameter")) {
        let &[data, requires_grad, ..] = arguments else { return Err(malformed()) };
        // A parameter's data is a tensor and no parameter again, or one could be wrapped without end.
        let Item::Call { function, .. } = document.get(data) else { return Err(malformed()) };
        if document.global(*function) != Some(("torch._utils", "_rebuild_tensor_v2")) {
            return Err(malformed());
        }
        let data = tensor(place, document, storages, data, folder)?;
        return Ok(Pickled { requires_grad: *document.get(requires_grad) == Item::Bool(true), ..data });
    }
    if document.global(*function) != Some(("torch._utils", "_rebuild_tensor_v2")) {
        return Err(malformed());
    }
    let &[storage, offset, sizes, strides, requires_grad, ..] = arguments else { return Err(malformed()) };
    let Item::Persistent(storage) = document.get(storage) else { return Err(malformed()) };
    let &[_, kind, key, ..] = document.elements(*storage).ok_or_else(malformed)? else {
        return Err(malformed());
    };
    let (_, kind) = document.global(kind).ok_or_else(malformed)?;
    let view = View {
        dtype: storage_dtype(kind).ok_or_else(malformed)?,
        sizes: document.sizes(sizes).ok_or_else(malformed)?,
        strides: document.sizes(strides).ok_or_else(malformed)?,
        offset: document.int(offset).and_then(|n| usize::try_from(n).ok()).ok_or_else(malformed)?,
    };
    let file = format!("{folder}/{}", document.text(key).ok_or_else(malformed)?);
    let tensor = storages.tensor(&file, &view)?;
    let at = format!("{file} {:?} {:?} {}", view.sizes, view.strides, view.offset);
    let requires_grad = *document.get(requires_grad) == Item::Bool(true);
    let place = Place { within: None, file: file.clone(), view };
    Ok(Pickled { tensor, requires_grad, at, storage: file, place })
}

fn storage_dtype(kind: &str) -> Option<DType> {
    Some(match kind {
        "FloatStorage" => DType::F32,
        "DoubleStorage" => DType::F64,
        "HalfStorage" => DType::F16,
        "BFloat16Storage" => DType::BF16,
        "LongStorage" => DType::I64,
        "IntStorage" => DType::I32,
        "ByteStorage" => DType::U8,
        "BoolStorage" => DType::Bool,
        _ => return None,
    })
}

/// Notes which buffers share a storage with another tensor. `of_buffers` are the storages they lie in, in their
/// order, `others` those of tensors that are no buffers.
pub(super) fn note_shared(buffers: &mut [NamedTensor], of_buffers: &[String], others: &[String]) {
    let mut count = HashMap::new();
    for storage in of_buffers.iter().chain(others) {
        *count.entry(storage.as_str()).or_insert(0) += 1;
    }
    for (buffer, storage) in buffers.iter_mut().zip(of_buffers) {
        buffer.shared = count.get(storage.as_str()).is_some_and(|&n| n > 1);
    }
}

/// What `torch.save` wrote into one file of an archive, itself an archive: tensors by name, or one tensor
/// under the empty name. Values that are no tensors are passed over.
///
/// # Errors
/// [`ArtifactError`] naming the outer file.
pub(super) fn saved(
    outer: &Archive<'_>,
    file: &str,
    limits: &ReadLimits,
) -> Result<BTreeMap<String, Pickled>, ArtifactError> {
    // Looked at first: a packed file takes memory of its own as soon as it is opened.
    let stored = outer.stored_at(file).is_some() || !outer.contains(file);
    let bytes = if stored { outer.file(file)? } else { Cow::Borrowed(&[][..]) };
    if !stored || bytes.len() > limits.archive_bytes / 4 * 3 {
        return Err(ArtifactError::rejected(
            file,
            "a packed or very large file of pickled weights",
            "export it again with PyTorch 2.9 or newer, which writes each weight to a file of its own",
        ));
    }
    let bytes: Arc<[u8]> = bytes.into();
    // Nothing in it is packed, so that it takes no more memory than it shows.
    let inner = ReadLimits { archive_bytes: bytes.len().saturating_mul(2), inflate_ratio: 0, ..*limits };
    let within = |error: ArtifactError| match error {
        ArtifactError::Malformed { place, reason } => {
            ArtifactError::Malformed { place: format!("{file}: {place}"), reason }
        }
        ArtifactError::Rejected { place, what, hint } => {
            ArtifactError::Rejected { place: format!("{file}: {place}"), what, hint }
        }
        other => other,
    };
    let archive = Archive::open(&bytes, &inner).map_err(within)?;
    if archive.contains("byteorder") && archive.text("byteorder", 64, "bytes")?.trim() != "little" {
        return Err(ArtifactError::rejected(
            file,
            "big-endian weights",
            "save it on a little-endian machine",
        ));
    }
    let document = pickle::read(
        "data.pkl",
        &archive.small("data.pkl", limits.pickle_bytes, "bytes of pickle").map_err(within)?,
        limits,
    )
    .map_err(within)?;
    let mut storages = Storages::new(&archive, &inner);
    let lies_here = |mut one: Pickled| {
        one.place.within = Some(file.to_owned());
        one
    };
    let mut found = BTreeMap::new();
    let entries = match document.get(document.root()) {
        Item::Dict(pairs) => pairs.clone(),
        Item::Call { .. } => {
            let one =
                tensor("data.pkl", &document, &mut storages, document.root(), "data").map_err(within)?;
            return Ok(BTreeMap::from([(String::new(), lies_here(one))]));
        }
        _ => {
            return Err(ArtifactError::malformed(file, "it holds neither a tensor nor a dictionary of them"));
        }
    };
    for (key, value) in entries {
        if let (Some(name), Item::Call { .. }) = (document.text(key), document.get(value)) {
            let value = tensor("data.pkl", &document, &mut storages, value, "data").map_err(within)?;
            found.insert(name.to_owned(), lies_here(value));
        }
    }
    Ok(found)
}
