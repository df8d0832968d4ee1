//! An archive whose directory has been checked, and the files in it.

use std::{borrow::Cow, collections::HashMap, io::Read as _, sync::Arc};

use flate2::{Crc, read::DeflateDecoder};

use super::{
    directory::{self, Record, widen},
    fields::Fields,
};
use crate::artifact::{ArtifactError, ReadLimits};

pub(super) const LOCAL: u32 = 0x0403_4b50;
const DESCRIPTOR: u32 = 0x0807_4b50;
pub(super) const HAS_DESCRIPTOR: u16 = 1 << 3;

/// A zip archive in memory; names are relative to the one folder that torch puts everything into.
pub(crate) struct Archive<'a> {
    pub(super) bytes: &'a Arc<[u8]>,
    /// What the directory says of each, and where its bytes begin.
    pub(super) files: HashMap<String, (Record, usize)>,
    pub(super) names: Vec<String>,
}

fn damaged(reason: impl Into<String>) -> ArtifactError {
    ArtifactError::malformed("archive", reason)
}

impl<'a> Archive<'a> {
    /// Checks the directory, every local header, and that no two files share a byte.
    ///
    /// # Errors
    /// [`ArtifactError::Malformed`] where anything disagrees, [`ArtifactError::Limit`] past a limit.
    pub(crate) fn open(bytes: &'a Arc<[u8]>, limits: &ReadLimits) -> Result<Self, ArtifactError> {
        if bytes.len() > limits.archive_bytes {
            return Err(ArtifactError::limit("archive", "bytes", limits.archive_bytes));
        }
        let directory = directory::read(bytes, limits)?;
        let root = match directory.records.first().and_then(|record| record.name.split_once('/')) {
            Some((folder, _)) => format!("{folder}/"),
            None => return Err(damaged("it has no top folder, as torch's archives have")),
        };
        let budget = bytes.len().saturating_mul(limits.inflate_ratio);
        let (mut inflated, mut spans) = (0usize, Vec::new());
        let (mut files, mut names) = (HashMap::new(), Vec::new());
        for record in directory.records {
            if record.deflated {
                inflated = inflated.saturating_add(record.bytes);
                if inflated > budget {
                    return Err(ArtifactError::limit(
                        record.name,
                        "times its own size unpacked",
                        limits.inflate_ratio,
                    ));
                }
            }
            let span = locate(bytes, &record, directory.start)?;
            spans.push((record.header, span.end));
            let Some(name) = record.name.strip_prefix(&root).filter(|name| !name.is_empty()) else {
                return Err(damaged(format!("{:?} is outside of the top folder {root:?}", record.name)));
            };
            let name = name.to_owned();
            if files.insert(name.clone(), (record, span.data)).is_some() {
                return Err(damaged(format!("it holds {name:?} twice")));
            }
            names.push(name);
        }
        spans.sort_unstable();
        if spans.windows(2).any(|pair| pair[0].1 > pair[1].0) {
            return Err(damaged("two of its files overlap"));
        }
        Ok(Self { bytes, files, names })
    }

    /// The archive as it came.
    pub(crate) fn bytes(&self) -> &'a Arc<[u8]> {
        self.bytes
    }

    /// Where a file's content begins in the archive's own bytes, where it is stored as it is.
    pub(crate) fn stored_at(&self, name: &str) -> Option<usize> {
        self.files.get(name).filter(|(record, _)| !record.deflated).map(|&(_, data)| data)
    }

    /// The files' names, in the directory's order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str)
    }

    /// Whether there is such a file.
    pub(crate) fn contains(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// A file's content, borrowed where it is stored, unpacked where it is deflated; its checksum is right.
    ///
    /// # Errors
    /// [`ArtifactError::Malformed`] when the file is missing, its size or its checksum wrong.
    pub(crate) fn file(&self, name: &str) -> Result<Cow<'a, [u8]>, ArtifactError> {
        let (record, packed) = self.packed(name)?;
        let content: Cow<[u8]> =
            if record.deflated { inflate(name, packed, record.bytes)?.into() } else { packed.into() };
        check_sum(name, &content, record)?;
        Ok(content)
    }

    /// A deflated file of `bytes` bytes, in a block that a tensor can keep; `None` where the file is stored as it
    /// is or has another size. No second copy is made on the way, as large as weights may be.
    ///
    /// # Errors
    /// As [`file`](Self::file).
    pub(crate) fn unpacked(&self, name: &str, bytes: usize) -> Result<Option<Arc<[u8]>>, ArtifactError> {
        let (record, packed) = self.packed(name)?;
        if !record.deflated || record.bytes != bytes {
            return Ok(None);
        }
        let mut block: Arc<[u8]> = std::iter::repeat_n(0, bytes).collect();
        let mut decoder = DeflateDecoder::new(packed);
        let content = Arc::get_mut(&mut block).expect("a new block has one owner");
        let damaged = |_| ArtifactError::malformed(name, "the packed bytes are damaged or too few");
        decoder.read_exact(content).map_err(damaged)?;
        if decoder.read(&mut [0]).map_err(damaged)? != 0 || decoder.total_in() != packed.len() as u64 {
            return Err(ArtifactError::malformed(name, ANOTHER_SIZE));
        }
        check_sum(name, content, record)?;
        Ok(Some(block))
    }

    pub(super) fn packed(&self, name: &str) -> Result<(&Record, &'a [u8]), ArtifactError> {
        let (record, data) =
            self.files.get(name).ok_or_else(|| ArtifactError::malformed(name, "the file is missing"))?;
        let packed = data
            .checked_add(record.packed_bytes)
            .and_then(|end| self.bytes.get(*data..end))
            .ok_or_else(|| ArtifactError::malformed(name, "the file is cut short"))?;
        Ok((record, packed))
    }

    /// A file's content, which is unpacked only where it has at most `max_bytes`.
    ///
    /// # Errors
    /// As [`file`](Self::file), and [`ArtifactError::Limit`] past `max_bytes`.
    pub(crate) fn small(
        &self,
        name: &str,
        max_bytes: usize,
        what: &'static str,
    ) -> Result<Cow<'a, [u8]>, ArtifactError> {
        if self.files.get(name).is_some_and(|(record, _)| record.bytes > max_bytes) {
            return Err(ArtifactError::limit(name, what, max_bytes));
        }
        self.file(name)
    }

    /// A file's content as text.
    ///
    /// # Errors
    /// As [`file`](Self::file), and [`ArtifactError::Limit`] past `max_bytes`.
    pub(crate) fn text(
        &self,
        name: &str,
        max_bytes: usize,
        what: &'static str,
    ) -> Result<String, ArtifactError> {
        let bytes = self.small(name, max_bytes, what)?.into_owned();
        String::from_utf8(bytes).map_err(|_| ArtifactError::malformed(name, "the file is not UTF-8 text"))
    }
}

const ANOTHER_SIZE: &str = "the file unpacks to another size than the directory says";

fn check_sum(name: &str, content: &[u8], record: &Record) -> Result<(), ArtifactError> {
    let mut crc = Crc::new();
    crc.update(content);
    // A fuzzer would hardly guess a checksum, and never reach what lies behind.
    if crc.sum() != record.crc && !cfg!(fuzzing) {
        return Err(ArtifactError::malformed(name, "the checksum is wrong"));
    }
    Ok(())
}

fn inflate(name: &str, packed: &[u8], bytes: usize) -> Result<Vec<u8>, ArtifactError> {
    let wrong = |reason: &str| ArtifactError::malformed(name, reason);
    // Capacity follows what really comes out, so a size that lies costs nothing.
    let mut content = Vec::new();
    let mut decoder = DeflateDecoder::new(packed);
    let limit = u64::try_from(bytes).unwrap_or(u64::MAX).saturating_add(1);
    decoder
        .by_ref()
        .take(limit)
        .read_to_end(&mut content)
        .map_err(|_| wrong("the packed bytes are damaged"))?;
    if content.len() != bytes || decoder.total_in() != packed.len() as u64 {
        return Err(wrong(ANOTHER_SIZE));
    }
    Ok(content)
}

struct Span {
    data: usize,
    end: usize,
}

/// Checks a local header against the directory and finds where the file's bytes lie.
fn locate(bytes: &[u8], record: &Record, limit: usize) -> Result<Span, ArtifactError> {
    let disagree = || damaged(format!("the header of {:?} disagrees with the directory", record.name));
    let bytes = bytes.get(..limit).ok_or_else(disagree)?;
    let mut f = Fields::at(bytes, record.header).ok_or_else(disagree)?;
    let mut parse = || {
        let signature = f.u32()?;
        f.take(2)?;
        let (flags, method) = (f.u16()?, f.u16()?);
        f.take(4)?;
        let (crc, packed, size) = (f.u32()?, f.u32()?, f.u32()?);
        let (name_len, extra_len) = (f.u16()?, f.u16()?);
        let name = f.take(name_len.into())?;
        let extra = f.take(extra_len.into())?;
        Some((signature, flags, method, crc, [size, packed], name, extra, f.remaining()))
    };
    let (signature, flags, method, crc, sizes, name, extra, remaining) = parse().ok_or_else(disagree)?;
    let same = signature == LOCAL
        && flags == record.flags
        && method == if record.deflated { 8 } else { 0 }
        && name == record.name.as_bytes();
    if !same {
        return Err(disagree());
    }
    // With a descriptor behind the data the header may leave checksum and sizes at zero.
    let deferred = flags & HAS_DESCRIPTOR != 0 && crc == 0 && sizes == [0, 0];
    if !deferred && (crc != record.crc || widen(sizes, extra) != Some([record.bytes, record.packed_bytes])) {
        return Err(disagree());
    }
    let data = bytes.len() - remaining;
    let mut end =
        data.checked_add(record.packed_bytes).filter(|&end| end <= bytes.len()).ok_or_else(disagree)?;
    if flags & HAS_DESCRIPTOR != 0 {
        end = descriptor(bytes, end, record).ok_or_else(disagree)?;
    }
    Ok(Span { data, end })
}

/// The end of the data descriptor at `at`, in either width, where it agrees with the directory.
fn descriptor(bytes: &[u8], at: usize, record: &Record) -> Option<usize> {
    let mut f = Fields::at(bytes, at)?;
    if f.u32()? != DESCRIPTOR || f.u32()? != record.crc {
        return None;
    }
    let mut narrow = f;
    if let (Some(packed), Some(size)) = (narrow.u32(), narrow.u32())
        && packed as usize == record.packed_bytes
        && size as usize == record.bytes
    {
        return Some(at + 16);
    }
    (f.u64_size()? == record.packed_bytes && f.u64_size()? == record.bytes).then_some(at + 24)
}
