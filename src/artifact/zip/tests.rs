//! Archives that must be read, and those that must not.

use std::sync::Arc;

use super::{
    Archive,
    writer::{Entry, write},
};
use crate::artifact::{ArtifactError, ReadLimits};

fn refusal(bytes: &[u8]) -> String {
    let limits = ReadLimits::default();
    match Archive::open(&bytes.into(), &limits) {
        Err(error) => error.to_string(),
        Ok(archive) => {
            let names: Vec<String> = archive.names().map(str::to_owned).collect();
            let error = names.iter().find_map(|name| archive.file(name).err());
            error.expect("the archive is refused").to_string()
        }
    }
}

#[test]
fn stored_and_deflated_files_are_read() {
    let bytes: Arc<[u8]> =
        write(&[Entry::new("k/a", "one"), Entry::deflated("k/b/c", "two ".repeat(50))]).into();
    let archive = Archive::open(&bytes, &ReadLimits::default()).unwrap();
    assert_eq!(archive.names().collect::<Vec<_>>(), ["a", "b/c"]);
    let stored = archive.file("a").unwrap();
    assert_eq!(*stored, *b"one");
    assert!(matches!(stored, std::borrow::Cow::Borrowed(_)), "stored files are not copied");
    assert_eq!(archive.text("b/c", 1000, "bytes").unwrap(), "two ".repeat(50));
    assert!(matches!(archive.text("b/c", 100, "bytes"), Err(ArtifactError::Limit { .. })));
    assert!(archive.file("d").is_err());
}

#[test]
fn damage_is_noticed() {
    let whole = write(&[Entry::new("k/a", "content that is checked")]);
    for len in 0..whole.len() {
        refusal(&whole[..len]);
    }
    let mut flipped = whole.clone();
    let at = flipped.windows(7).position(|w| w == b"content").unwrap();
    flipped[at] ^= 1;
    assert!(refusal(&flipped).contains("checksum"), "{}", refusal(&flipped));
    let mut appended = whole;
    appended.push(0);
    assert!(refusal(&appended).contains("does not end in a zip directory"));
}

#[test]
fn names_that_two_readers_would_take_differently_are_refused() {
    let twice = write(&[Entry::new("k/a", "1"), Entry::new("k/a", "2")]);
    assert!(refusal(&twice).contains("twice"));
    for name in ["k/../a", "/a", "k/./a", "k\\a", "C:/a", "k/"] {
        let bytes = write(&[Entry::new("k/first", ""), Entry::new(name, "1")]);
        refusal(&bytes);
    }
    let other = write(&[Entry::new("k/a", "1"), Entry::new("elsewhere/b", "2")]);
    assert!(refusal(&other).contains("outside of the top folder"));
    let renamed = write(&[Entry { local_name: Some("k/b".into()), ..Entry::new("k/a", "1") }]);
    assert!(refusal(&renamed).contains("disagrees"));
}

#[test]
fn overlapping_files_are_refused() {
    // The second file's bytes are a whole archive entry, to which the third one points.
    let inner = write(&[Entry::new("k/c", "inner")]);
    let inner = &inner[..30 + 3 + 5];
    let outer_at = 30 + 3 + 1;
    let inner_at = outer_at + 30 + 3;
    let bytes = write(&[
        Entry::new("k/a", "1"),
        Entry::new("k/b", inner),
        Entry { header_at: Some(inner_at as u32), ..Entry::new("k/c", "inner") },
    ]);
    assert!(refusal(&bytes).contains("overlap"), "{}", refusal(&bytes));
}

#[test]
fn a_packed_file_is_checked_whichever_way_it_is_unpacked() {
    let limits = ReadLimits { inflate_ratio: 100_000, ..ReadLimits::default() };
    let unpack = |entry: Entry, bytes: usize| {
        let archive = write(&[entry]).into();
        Archive::open(&archive, &limits).and_then(|archive| archive.unpacked("a", bytes))
    };
    let packed = || Entry::deflated("k/a", vec![7; 5000]);
    assert_eq!(unpack(packed(), 5000).unwrap().as_deref(), Some(&[7; 5000][..]));
    assert_eq!(unpack(packed(), 4999).unwrap(), None);
    assert_eq!(unpack(Entry::new("k/a", vec![7; 5000]), 5000).unwrap(), None);
    for claimed in [10, 4999, 5001, 9000] {
        let liar = Entry { claimed_bytes: Some(claimed), ..packed() };
        assert!(unpack(liar, claimed as usize).is_err(), "{claimed}");
    }
}

#[test]
fn bombs_are_refused_before_they_unpack() {
    let bomb = write(&[Entry::deflated("k/a", vec![0; 4 << 20])]);
    assert!(bomb.len() < 16 << 10);
    assert!(refusal(&bomb).contains("times its own size"));
    // A size that lies low is found when more comes out.
    let liar = write(&[Entry { claimed_bytes: Some(10), ..Entry::deflated("k/a", vec![0; 4 << 20]) }]);
    assert!(refusal(&liar).contains("another size"));
    let limits = ReadLimits { archive_bytes: 100, ..ReadLimits::default() };
    assert!(matches!(Archive::open(&bomb.into(), &limits), Err(ArtifactError::Limit { limit: 100, .. })));
    let limits = ReadLimits { entries: 1, ..ReadLimits::default() };
    let two = write(&[Entry::new("k/a", ""), Entry::new("k/b", "")]);
    assert!(matches!(Archive::open(&two.into(), &limits), Err(ArtifactError::Limit { what: "files", .. })));
    let limits = ReadLimits { name_bytes: 8, ..ReadLimits::default() };
    let long = write(&[Entry::new("k/very-long-name", "")]);
    assert!(matches!(Archive::open(&long.into(), &limits), Err(ArtifactError::Limit { .. })));
}
