//! Damaged records: whatever a file holds, it is read or refused.

use std::sync::Arc;

use super::{
    Record,
    samples::{backward, record},
};
use crate::artifact::mutation_tests::Random;

/// Bytes that mean something in JSON and in offsets.
const TELLING: &[u8] = b"0919-.,[]{}\":eE\0\xff";

fn damaged(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // Mostly in the header: behind it is data, of which any will do.
    let header = 8 + u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
    for _ in 0..=random.below(3) {
        let reach = if random.below(8) == 0 { bytes.len() } else { header };
        let at = random.below(reach.min(bytes.len()));
        match random.below(6) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = TELLING[random.below(TELLING.len())],
            2 => {
                bytes.remove(at);
            }
            3 => bytes.insert(at, TELLING[random.below(TELLING.len())]),
            4 => {
                let end = (at + random.below(16)).min(bytes.len());
                let piece = bytes[at..end].to_vec();
                let to = random.below(bytes.len());
                bytes.splice(to..to, piece);
            }
            _ => bytes[at] = b'0' + random.below(10) as u8,
        }
        // A length that is right again lets the damage through to the reader of the header.
        if random.below(2) == 0 {
            let length = header as u64 - 8;
            bytes[..8].copy_from_slice(&length.to_le_bytes());
        }
    }
    bytes
}

#[test]
fn twenty_thousand_damaged_records_are_read_or_refused_and_never_panic() {
    let records: Vec<Vec<u8>> = [record(), backward()]
        .iter()
        .map(|record| {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("record");
            record.write(&path).unwrap();
            std::fs::read(path).unwrap()
        })
        .collect();
    let mut random = Random(0x5EED_CAFE);
    let (mut read, mut refused, mut by_header) = (0, 0, 0);
    for round in 0..20_000 {
        let bytes: Arc<[u8]> = damaged(&records[round % 2], &mut random).into();
        match Record::read(&bytes) {
            Ok(_) => read += 1,
            Err(error) if error.to_string().contains("no safetensors file") => refused += 1,
            Err(_) => by_header += 1,
        }
    }
    let counts = format!("{read} read, {refused} no files, {by_header} refused by their header");
    assert!(read > 100 && refused > 1000 && by_header > 500, "the damage reaches every stage: {counts}");
}
