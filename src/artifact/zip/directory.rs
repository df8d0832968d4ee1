//! The central directory: what an archive says it holds.

use super::fields::Fields;
use crate::artifact::{ArtifactError, ReadLimits};

pub(super) const END: u32 = 0x0605_4b50;
const END64: u32 = 0x0606_4b50;
const LOCATOR64: u32 = 0x0706_4b50;
pub(super) const CENTRAL: u32 = 0x0201_4b50;
const END_BYTES: usize = 22;
const ZIP64_EXTRA: u16 = 1;

/// One file as the directory describes it.
#[derive(Clone, Debug)]
pub(super) struct Record {
    pub(super) name: String,
    pub(super) flags: u16,
    pub(super) deflated: bool,
    pub(super) crc: u32,
    pub(super) packed_bytes: usize,
    pub(super) bytes: usize,
    pub(super) header: usize,
    /// Where the directory itself speaks of it.
    pub(super) entry: usize,
}

/// Every file of the directory, and where the directory starts.
pub(super) struct Directory {
    pub(super) records: Vec<Record>,
    pub(super) start: usize,
}

fn damaged(reason: impl Into<String>) -> ArtifactError {
    ArtifactError::malformed("archive", reason)
}

struct End {
    entries: usize,
    size: usize,
    start: usize,
    /// Where the end records begin: the directory must end here.
    position: usize,
}

fn find_end(bytes: &[u8]) -> Result<End, ArtifactError> {
    // No comment is accepted, so the record's place is fixed: searching for it would let two readers
    // find two different ones.
    let position =
        bytes.len().checked_sub(END_BYTES).ok_or_else(|| damaged("it is too short for a zip archive"))?;
    let parse = || {
        let mut f = Fields::at(bytes, position)?;
        let head = (f.u32()?, f.u16()?, f.u16()?, f.u16()?, f.u16()?, f.u32()?, f.u32()?, f.u16()?);
        Some(head)
    };
    let Some((END, disk, first, here, entries, size, start, 0)) = parse() else {
        return Err(damaged("it does not end in a zip directory (cut short, or bytes were appended)"));
    };
    let wide = [here, entries].contains(&u16::MAX) || [size, start].contains(&u32::MAX);
    let wide64 = position.checked_sub(20).and_then(|at| end64(bytes, at));
    if let Some(end) = wide64 {
        // torch writes the zip64 records always; the old fields must agree where they are not saturated.
        let agrees = |old: u32, new: usize, full: u32| old == full || usize::try_from(old) == Ok(new);
        let same = agrees(entries.into(), end.entries, u16::MAX.into())
            && agrees(size, end.size, u32::MAX)
            && agrees(start, end.start, u32::MAX);
        return if same { Ok(end) } else { Err(damaged("its two directory ends disagree")) };
    }
    if wide {
        return Err(damaged("its zip64 directory end is missing"));
    }
    if disk != 0 || first != 0 || here != entries {
        return Err(damaged("it spans several disks"));
    }
    Ok(End { entries: entries.into(), size: size as usize, start: start as usize, position })
}

fn end64(bytes: &[u8], locator: usize) -> Option<End> {
    let mut f = Fields::at(bytes, locator)?;
    if f.u32()? != LOCATOR64 || f.u32()? != 0 {
        return None;
    }
    let position = f.u64_size()?;
    let mut f = Fields::at(bytes, position)?;
    if f.u32()? != END64 || f.u64()? != 44 {
        return None;
    }
    f.take(12)?;
    let here = f.u64_size()?;
    let entries = f.u64_size()?;
    let (size, start) = (f.u64_size()?, f.u64_size()?);
    (here == entries && position.checked_add(56) == Some(locator)).then_some(End {
        entries,
        size,
        start,
        position,
    })
}

/// Reads the whole directory.
pub(super) fn read(bytes: &[u8], limits: &ReadLimits) -> Result<Directory, ArtifactError> {
    let end = find_end(bytes)?;
    if end.entries > limits.entries {
        return Err(ArtifactError::limit("archive", "files", limits.entries));
    }
    if end.start.checked_add(end.size) != Some(end.position) {
        return Err(damaged("its directory does not end where it should"));
    }
    let mut fields = Fields::at(&bytes[..end.position], end.start)
        .ok_or_else(|| damaged("its directory starts past its end"))?;
    let mut records = Vec::new();
    for index in 0..end.entries {
        let entry = end.position - fields.remaining();
        records.push(record(&mut fields, index, entry, limits)?);
    }
    if fields.remaining() != 0 {
        return Err(damaged("its directory has more entries than it says"));
    }
    Ok(Directory { records, start: end.start })
}

fn record(
    fields: &mut Fields<'_>,
    index: usize,
    entry: usize,
    limits: &ReadLimits,
) -> Result<Record, ArtifactError> {
    let mut parse = || {
        let signature = fields.u32()?;
        fields.take(4)?;
        let (flags, method) = (fields.u16()?, fields.u16()?);
        fields.take(4)?;
        let (crc, packed, bytes) = (fields.u32()?, fields.u32()?, fields.u32()?);
        let (name, extra, comment) = (fields.u16()?, fields.u16()?, fields.u16()?);
        let disk = fields.u16()?;
        fields.take(6)?;
        let header = fields.u32()?;
        let name = fields.take(name.into())?;
        let extra = fields.take(extra.into())?;
        fields.take(comment.into())?;
        if signature != CENTRAL || disk != 0 {
            return None;
        }
        let [bytes, packed_bytes, header] = widen([bytes, packed, header], extra)?;
        Some((flags, method, crc, packed_bytes, bytes, name, header))
    };
    let Some((flags, method, crc, packed_bytes, bytes, name, header)) = parse() else {
        return Err(damaged(format!("directory entry {index} is damaged")));
    };
    if name.len() > limits.name_bytes {
        return Err(ArtifactError::limit("archive", "bytes in a file's name", limits.name_bytes));
    }
    let name = std::str::from_utf8(name).map_err(|_| damaged("a file's name is not UTF-8"))?;
    check_name(name)?;
    if flags & !0x080e != 0 {
        return Err(damaged(format!("{name:?} is encrypted or uses unknown zip features")));
    }
    let deflated = match method {
        0 => false,
        8 => true,
        _ => return Err(damaged(format!("{name:?} is packed by method {method}, only 0 and 8 are read"))),
    };
    if bytes > limits.entry_bytes {
        return Err(ArtifactError::limit(name, "bytes in a file", limits.entry_bytes));
    }
    if !deflated && bytes != packed_bytes {
        return Err(damaged(format!("{name:?} is stored with two different sizes")));
    }
    Ok(Record { name: name.to_owned(), flags, deflated, crc, packed_bytes, bytes, header, entry })
}

/// Replaces saturated 32-bit fields by those of the zip64 extra field, in its fixed order.
pub(super) fn widen<const N: usize>(narrow: [u32; N], extra: &[u8]) -> Option<[usize; N]> {
    let mut out = narrow.map(|n| n as usize);
    if !narrow.contains(&u32::MAX) {
        return Some(out);
    }
    let mut fields = Fields::at(extra, 0)?;
    while fields.remaining() > 0 {
        let (id, len) = (fields.u16()?, fields.u16()?);
        let mut body = Fields::at(fields.take(len.into())?, 0)?;
        if id == ZIP64_EXTRA {
            for (slot, narrow) in out.iter_mut().zip(narrow) {
                if narrow == u32::MAX {
                    *slot = body.u64_size()?;
                }
            }
            return Some(out);
        }
    }
    None
}

/// Names are keys and never become paths, yet one that would leave its folder is no honest name.
fn check_name(name: &str) -> Result<(), ArtifactError> {
    let bad = name.is_empty()
        || name.starts_with('/')
        || name.contains(['\\', '\0', ':'])
        || name.split('/').any(|part| part == ".." || part == ".");
    if bad { Err(damaged(format!("{name:?} is not a file name within the archive"))) } else { Ok(()) }
}
