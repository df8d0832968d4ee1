//! Writes zip archives for tests, honest ones and others.

use flate2::{Compress, Compression, Crc, FlushCompress};

/// One file of an archive to be written.
#[derive(Clone)]
pub(in crate::artifact) struct Entry {
    pub(in crate::artifact) name: String,
    pub(in crate::artifact) content: Vec<u8>,
    pub(in crate::artifact) deflate: bool,
    /// The size that directory and header claim instead of the true one.
    pub(in crate::artifact) claimed_bytes: Option<u32>,
    /// The name that the local header has instead.
    pub(in crate::artifact) local_name: Option<String>,
    /// The place that the directory points to instead.
    pub(in crate::artifact) header_at: Option<u32>,
}

impl Entry {
    pub(in crate::artifact) fn new(name: &str, content: impl Into<Vec<u8>>) -> Self {
        let content = content.into();
        let name = name.to_owned();
        Self { name, content, deflate: false, claimed_bytes: None, local_name: None, header_at: None }
    }

    pub(in crate::artifact) fn deflated(name: &str, content: impl Into<Vec<u8>>) -> Self {
        Self { deflate: true, ..Self::new(name, content) }
    }
}

/// The archive of some files.
pub(in crate::artifact) fn write(entries: &[Entry]) -> Vec<u8> {
    let (mut out, mut directory) = (Vec::new(), Vec::new());
    for entry in entries {
        let at = entry.header_at.unwrap_or(out.len() as u32);
        let packed = if entry.deflate { deflate(&entry.content) } else { entry.content.clone() };
        let mut crc = Crc::new();
        crc.update(&entry.content);
        let size = entry.claimed_bytes.unwrap_or(entry.content.len() as u32);
        let method = if entry.deflate { 8u16 } else { 0 };
        let shared = |name: &str| {
            let mut head = Vec::new();
            for field in [0u16, method, 0, 0] {
                head.extend(field.to_le_bytes());
            }
            for field in [crc.sum(), packed.len() as u32, size] {
                head.extend(field.to_le_bytes());
            }
            head.extend((name.len() as u16).to_le_bytes());
            head.extend(0u16.to_le_bytes());
            head
        };
        let local = entry.local_name.as_ref().unwrap_or(&entry.name);
        out.extend(0x0403_4b50u32.to_le_bytes());
        out.extend(20u16.to_le_bytes());
        out.extend(shared(local));
        out.extend(local.bytes());
        out.extend(&packed);
        directory.extend(0x0201_4b50u32.to_le_bytes());
        directory.extend([20, 0, 20, 0]);
        directory.extend(shared(&entry.name));
        directory.extend([0; 10]);
        directory.extend(at.to_le_bytes());
        directory.extend(entry.name.bytes());
    }
    let start = out.len() as u32;
    out.extend(&directory);
    out.extend(0x0605_4b50u32.to_le_bytes());
    out.extend([0; 4]);
    let count = entries.len() as u16;
    out.extend(count.to_le_bytes());
    out.extend(count.to_le_bytes());
    out.extend((directory.len() as u32).to_le_bytes());
    out.extend(start.to_le_bytes());
    out.extend([0; 2]);
    out
}

fn deflate(content: &[u8]) -> Vec<u8> {
    let mut packed = Vec::with_capacity(content.len() + 1024);
    let mut compress = Compress::new(Compression::best(), false);
    compress.compress_vec(content, &mut packed, FlushCompress::Finish).expect("a vector takes every byte");
    packed
}
