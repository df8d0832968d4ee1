//! An archive with other content in some of its files.

use std::{collections::BTreeMap, mem::size_of};

use flate2::Crc;

use super::{
    archive::{Archive, HAS_DESCRIPTOR, LOCAL},
    directory::{CENTRAL, END, Record},
};
use crate::artifact::ArtifactError;

/// What torch puts the content of stored files on, so that it can be mapped.
const ALIGNMENT: usize = 64;
/// Names are UTF-8.
const UTF8: u16 = 1 << 11;
/// How hard a file was packed, which says nothing about how to unpack it.
const EFFORT: u16 = 0b110;
/// The first day that a zip archive can name.
const FIRST_DAY: u16 = 0x21;

/// Where a checksum stands: in a local header, behind its signature in a descriptor, in a directory's entry.
const CRC_IN_HEADER: usize = 14;
const CRC_IN_DESCRIPTOR: usize = 4;
const CRC_IN_ENTRY: usize = 16;

impl Archive<'_> {
    /// The archive with other content in some of its files, each as long as it was.
    ///
    /// Where those are stored as they are, which is how torch writes tensors, nothing else of the archive changes but
    /// their checksums. Otherwise it is written anew, in the same order, with every file that has other content
    /// stored, and all stored files where torch would have them.
    ///
    /// # Errors
    /// [`ArtifactError::Malformed`] for a file that is not there or not as long;
    /// [`ArtifactError::Rejected`] where it must be written anew and would be too large for that.
    pub(in crate::artifact) fn with(
        &self,
        contents: &BTreeMap<String, Vec<u8>>,
    ) -> Result<Vec<u8>, ArtifactError> {
        let mut in_place = true;
        for (name, content) in contents {
            let (record, _) = self.packed(name)?;
            in_place &= !record.deflated;
            if record.bytes != content.len() {
                let reason = format!("it has {} bytes and would get {}", record.bytes, content.len());
                return Err(ArtifactError::malformed(name, reason));
            }
        }
        if in_place { Ok(self.mended(contents)) } else { self.anew(contents) }
    }

    /// A copy, with content and checksums written over where they stand. That they do was checked when the archive
    /// was opened.
    fn mended(&self, contents: &BTreeMap<String, Vec<u8>>) -> Vec<u8> {
        let mut out = self.bytes.to_vec();
        for (name, content) in contents {
            let Some((record, data)) = self.files.get(name) else { continue };
            let crc = sum(content).to_le_bytes();
            let mut put = |at: usize, bytes: &[u8]| {
                if let Some(place) = out.get_mut(at..at + bytes.len()) {
                    place.copy_from_slice(bytes);
                }
            };
            put(*data, content);
            put(record.entry + CRC_IN_ENTRY, &crc);
            if record.flags & HAS_DESCRIPTOR != 0 {
                put(data + record.packed_bytes + CRC_IN_DESCRIPTOR, &crc);
            }
            if !self.leaves_sum_out(record) {
                put(record.header + CRC_IN_HEADER, &crc);
            }
        }
        out
    }

    /// Whether a file's header leaves checksum and sizes, twelve bytes, to the descriptor behind the file.
    fn leaves_sum_out(&self, record: &Record) -> bool {
        let at = record.header + CRC_IN_HEADER;
        let fields = self.bytes.get(at..at + 3 * size_of::<u32>());
        record.flags & HAS_DESCRIPTOR != 0 && fields == Some(&[0; 12])
    }

    fn anew(&self, contents: &BTreeMap<String, Vec<u8>>) -> Result<Vec<u8>, ArtifactError> {
        let room = self.bytes.len()
            + contents.values().map(Vec::len).sum::<usize>()
            + self.names.len() * (2 * ALIGNMENT);
        let (mut out, mut directory) = (Vec::with_capacity(room), Vec::new());
        for name in &self.names {
            let (record, packed) = self.packed(name)?;
            let (content, crc, deflated) = match contents.get(name) {
                Some(content) => (&content[..], sum(content), false),
                None => (packed, record.crc, record.deflated),
            };
            let header_at = narrow(out.len())?;
            let flags = record.flags & if deflated { UTF8 | EFFORT } else { UTF8 };
            let method: u16 = if deflated { 8 } else { 0 };
            let name_len = record.name.len() as u16;
            let mut shared = Vec::new();
            for field in [20, flags, method, 0, FIRST_DAY] {
                shared.extend(field.to_le_bytes());
            }
            for field in [crc, narrow(content.len())?, narrow(record.bytes)?] {
                shared.extend(field.to_le_bytes());
            }
            shared.extend(name_len.to_le_bytes());

            out.extend(LOCAL.to_le_bytes());
            out.extend(&shared);
            let padding = if deflated { Vec::new() } else { padding(out.len() + 2 + record.name.len()) };
            out.extend((padding.len() as u16).to_le_bytes());
            out.extend(record.name.bytes());
            out.extend(padding);
            out.extend(content);

            directory.extend(CENTRAL.to_le_bytes());
            directory.extend(20u16.to_le_bytes());
            directory.extend(&shared);
            // Extra field, comment, disk, and attributes: none of them.
            directory.extend([0; 12]);
            directory.extend(header_at.to_le_bytes());
            directory.extend(record.name.bytes());
        }
        let count = u16::try_from(self.names.len()).ok().filter(|&count| count < u16::MAX);
        let count = count.ok_or_else(too_large)?;
        let (start, size) = (narrow(out.len())?, narrow(directory.len())?);
        out.extend(directory);
        out.extend(END.to_le_bytes());
        for field in [0, 0, count, count] {
            out.extend(field.to_le_bytes());
        }
        out.extend(size.to_le_bytes());
        out.extend(start.to_le_bytes());
        out.extend(0u16.to_le_bytes());
        Ok(out)
    }
}

fn sum(content: &[u8]) -> u32 {
    let mut crc = Crc::new();
    crc.update(content);
    crc.sum()
}

/// An extra field that has what comes after it lie where torch puts it; `at` is where it begins.
fn padding(at: usize) -> Vec<u8> {
    let head = 4;
    let fill = (ALIGNMENT - (at + head) % ALIGNMENT) % ALIGNMENT;
    let mut field = b"FB".to_vec();
    field.extend((fill as u16).to_le_bytes());
    field.resize(head + fill, b'Z');
    field
}

fn narrow(size: usize) -> Result<u32, ArtifactError> {
    u32::try_from(size).ok().filter(|&size| size < u32::MAX).ok_or_else(too_large)
}

fn too_large() -> ArtifactError {
    ArtifactError::rejected(
        "archive",
        "packed weights in an archive of 4 GiB or 65535 files",
        "write it again with torch.jit.save or torch.export.save, which do not pack weights",
    )
}
