//! Golden archives with damage inside of their files and checksums that are right again, so that it reaches
//! the readers behind the zip.

use std::{path::PathBuf, sync::Arc};

use super::{
    Mode, ReadLimits, read, rewrite,
    zip::{
        Archive,
        writer::{Entry, write},
    },
};
use crate::{graph::Limits, tensor::DType};

/// A small generator, so that every run damages alike.
pub(crate) struct Random(pub(crate) u64);

impl Random {
    /// A number below a bound, and 0 below 0.
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % bound.max(1) as u64) as usize
    }
}

fn archives() -> Vec<Arc<[u8]>> {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/golden");
    let mut archives = Vec::new();
    for folder in [folder.clone(), folder.join("scripted"), folder.join("decomposed")] {
        let mut files: Vec<_> =
            std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        let is_archive = |path: &PathBuf| path.extension().is_some_and(|e| e == "pt" || e == "pt2");
        archives.extend(files.into_iter().filter(is_archive).map(|path| std::fs::read(path).unwrap().into()));
    }
    archives
}

/// Bytes that mean something in code, JSON or pickles.
const TELLING: &[u8] = b"0919-.,()[]{}\"\n eat(q\x85Rb";

/// Flips a bit, cuts, repeats a piece elsewhere, or puts in a byte that means something to the readers.
fn damage(content: &mut Vec<u8>, random: &mut Random) {
    let at = random.below(content.len());
    match random.below(5) {
        0 => content.truncate(at),
        1 => {
            let len = random.below(64).min(content.len() - at);
            let piece = content[at..at + len].to_vec();
            let to = random.below(content.len());
            content.splice(to..to, piece);
        }
        2 => {
            if let Some(byte) = content.get_mut(at) {
                *byte = TELLING[random.below(TELLING.len())];
            }
        }
        _ => {
            if let Some(byte) = content.get_mut(at) {
                *byte ^= 1 << random.below(8);
            }
        }
    }
}

/// An archive with one file damaged behind a checksum that is right again: flipped, cut, and, one time in four,
/// with a piece of the same kind of file from another archive put into it.
fn damaged(archives: &[Arc<[u8]>], round: usize, limits: &ReadLimits, random: &mut Random) -> Vec<u8> {
    let archive = Archive::open(&archives[round % archives.len()], limits).unwrap();
    let names: Vec<&str> = archive.names().collect();
    let is_read = |name: &str| [".py", ".pkl", ".json"].iter().any(|ending| name.ends_with(ending));
    let targets: Vec<&&str> = names.iter().filter(|name| is_read(name)).collect();
    let target = *targets[random.below(targets.len())];
    let entries = names.iter().map(|name| {
        let mut content = archive.file(name).unwrap().into_owned();
        if *name == target {
            if random.below(4) == 0 {
                let other = Archive::open(&archives[random.below(archives.len())], limits).unwrap();
                let kind = name.rsplit('.').next().unwrap();
                let piece = other.names().find(|name| name.rsplit('.').next() == Some(kind));
                let piece = piece.map(|name| other.file(name).unwrap().into_owned()).unwrap_or_default();
                let (from, to) = (random.below(piece.len()), random.below(content.len()));
                let end = (from + random.below(200)).min(piece.len());
                content.splice(to..to, piece[from..end].iter().copied());
            }
            for _ in 0..=random.below(3) {
                damage(&mut content, random);
            }
        }
        Entry::new(&format!("k/{name}"), content)
    });
    write(&entries.collect::<Vec<_>>())
}

#[test]
fn ten_thousand_damaged_archives_are_refused_or_read_and_never_panic() {
    let archives = archives();
    assert!(archives.len() > 100, "the golden data is in place");
    let mut random = Random(0x5EED_CAFE);
    let limits = ReadLimits { fuel: 20_000, ..ReadLimits::default() };
    let (mut refused, mut failed, mut lowered) = (0, 0, 0);
    for round in 0..10_000 {
        let bytes = match round % 4 {
            // The archive itself, checksums and all.
            0 => {
                let mut bytes = archives[random.below(archives.len())].to_vec();
                damage(&mut bytes, &mut random);
                bytes
            }
            _ => damaged(&archives, round, &limits, &mut random),
        };
        let Ok(module) = read(bytes.into(), &limits) else {
            refused += 1;
            continue;
        };
        let parameters = module.parameters().iter().map(|p| (p.name.clone(), p.tensor.clone()));
        let buffers = module.buffers().iter().map(|b| (b.name.clone(), b.tensor.clone()));
        // Its own weights fit, wherever the damage has them lie.
        rewrite(module.archive(), &parameters.chain(buffers).collect(), &limits).unwrap();
        for shape in [&[2, 4, 8, 8][..], &[3, 5, 8]] {
            match module.lower(&[(shape.into(), DType::F32)], Mode::Train, &Limits::default()) {
                Ok(_) => lowered += 1,
                Err(_) => failed += 1,
            }
        }
    }
    let counts = format!("{refused} refused, {failed} did not lower, {lowered} lowered");
    assert!(refused > 2500 && failed > 1000 && lowered > 100, "the damage reaches every stage: {counts}");
}
