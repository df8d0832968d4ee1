//! The folder of records: made for its owner alone, with file names that sort by time.

use std::{
    fs::{self, DirBuilder, DirEntry, File},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
};

use super::{Header, Record, RecordError};

/// The folder within, of files that are being written: what lies there at the start nobody finishes any more.
const UNFINISHED: &str = ".unfinished";

/// Bytes of files in a folder of records.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Used {
    /// Of all, whoever has written them.
    pub(super) all: u64,
    /// Of the records of one user's passes.
    pub(super) own: u64,
}

/// A folder that records go to.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    unfinished: PathBuf,
    /// Records written by this process, for names that differ.
    written: u64,
}

impl Folder {
    /// Makes the folder if it is missing, clears away what a killed daemon left half written, and tries to write.
    pub(super) fn open(path: &Path) -> Result<Self, RecordError> {
        let failed = |source: io::Error| RecordError::Folder { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        let unfinished = path.join(UNFINISHED);
        make(&unfinished).map_err(failed)?;
        for entry in fs::read_dir(&unfinished).map_err(failed)? {
            // Where it stays, it takes room and harms nobody.
            drop(fs::remove_file(entry.map_err(failed)?.path()));
        }
        for folder in [path, &unfinished] {
            tempfile::tempfile_in(folder).map_err(failed)?;
        }
        Ok(Self { path: path.to_owned(), unfinished, written: 0 })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes of all files in it, and of those that are records of a user's passes.
    pub(super) fn used_bytes(&self, uid: u32) -> io::Result<Used> {
        used_by(fs::read_dir(&self.path)?, uid)
    }

    /// Writes a record under a name of its own, which appears when all of it is on disk.
    pub(super) fn write(&mut self, record: &Record) -> Result<PathBuf, RecordError> {
        self.written += 1;
        let (pid, number) = (std::process::id(), self.written);
        let name =
            format!("{}-{}-{pid}-{number}.safetensors", name_of(&record.header), user(record.header.uid));
        let (unfinished, path) = (self.unfinished.join(&name), self.path.join(&name));
        let failed = |reason: String| RecordError::Write { path: path.clone(), reason };
        // Whoever has cleared the folder may have taken this one too.
        make(&self.unfinished).map_err(|error| failed(error.to_string()))?;
        record.write(&unfinished).map_err(failed)?;
        let done = File::open(&unfinished).and_then(|file| {
            file.sync_all()?;
            fs::rename(&unfinished, &path)
        });
        if let Err(error) = done {
            drop(fs::remove_file(&unfinished));
            return Err(failed(error.to_string()));
        }
        Ok(path)
    }
}

/// Makes a folder for its owner alone, unless it is there.
fn make(folder: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(folder) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made,
    }
}

fn used_by(entries: impl Iterator<Item = io::Result<DirEntry>>, uid: u32) -> io::Result<Used> {
    let (mut used, user) = (Used::default(), user(uid));
    for entry in entries {
        let entry = entry?;
        let about = match entry.metadata() {
            // Whoever has looked at a record may delete it at any moment.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            about => about?,
        };
        if !about.is_file() {
            continue;
        }
        used.all = used.all.saturating_add(about.len());
        // From the end, before process and number: a kernel may be named as it likes.
        if entry.file_name().to_string_lossy().rsplit('-').nth(2) == Some(&user) {
            used.own = used.own.saturating_add(about.len());
        }
    }
    Ok(used)
}

/// A user in a file's name.
fn user(uid: u32) -> String {
    format!("u{uid}")
}

/// Time, kernel, error and direction. A kernel's name may have more than fits a file's name beside the rest.
fn name_of(header: &Header) -> String {
    let kernel: String = header.kernel.as_str().chars().take(64).collect();
    let code = header.code.rsplit('.').next().unwrap_or_default();
    let word = |text: &str| text.replace(|c: char| !(c.is_ascii_alphanumeric() || "._-".contains(c)), "_");
    format!("{}-{}-{}-{}", stamp(header.time_unix_ms), word(&kernel), word(code), header.direction)
}

/// A moment as `20261130T101500Z`.
///
/// Days become a date by H. Hinnant's `civil_from_days`.
pub fn stamp(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let days = days + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    // Years that begin in March, so that the leap day is their last one.
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}{month:02}{day:02}T{hour:02}{minute:02}{second:02}Z")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;
    use crate::record::samples::record;

    #[test]
    fn moments_are_written_as_dates() {
        for (unix_s, text) in [
            (0, "19700101T000000Z"),
            (951_782_400, "20000229T000000Z"),
            (1_709_251_199, "20240229T235959Z"),
            (1_709_251_200, "20240301T000000Z"),
            (-1, "19691231T235959Z"),
        ] {
            assert_eq!(stamp(unix_s * 1000), text);
        }
        assert_eq!(stamp(i64::MAX).chars().last(), Some('Z'));
    }

    #[test]
    fn a_folder_is_made_for_its_owner_and_files_appear_whole() {
        let place = tempfile::tempdir().unwrap();
        let path = place.path().join("state/failures");
        let mut folder = Folder::open(&path).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&path), 0o700);
        assert_eq!(folder.used_bytes(1000).unwrap(), Used::default());
        let (one, other) = (folder.write(&record()).unwrap(), folder.write(&record()).unwrap());
        assert_ne!(one, other);
        assert_eq!(mode(&one), 0o600);
        let name = one.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("20270115T080000Z-conv_v1-non_finite-forward-u1000-"), "{name}");
        let bytes: u64 = [&one, &other].iter().map(|path| fs::metadata(path).unwrap().len()).sum();
        assert_eq!(folder.used_bytes(1000).unwrap(), Used { all: bytes, own: bytes });
        assert_eq!(folder.used_bytes(100).unwrap(), Used { all: bytes, own: 0 });
        let unfinished = path.join(UNFINISHED);
        assert_eq!((mode(&unfinished), fs::read_dir(&unfinished).unwrap().count()), (0o700, 0));
        assert_eq!(fs::read_dir(&path).unwrap().count(), 3, "nothing else is left there");
        assert_eq!(Record::read(&fs::read(&one).unwrap().into()).unwrap(), record());
        // An operator who has looked at everything clears everything away.
        fs::remove_dir(&unfinished).unwrap();
        folder.write(&record()).unwrap();
    }

    #[test]
    fn a_file_that_goes_while_the_folder_is_looked_through_is_passed_over() {
        let place = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(place.path()).unwrap();
        let (one, other) = (folder.write(&record()).unwrap(), folder.write(&record()).unwrap());
        let entries: Vec<_> = fs::read_dir(place.path()).unwrap().collect();
        fs::remove_file(one).unwrap();
        let bytes = fs::metadata(other).unwrap().len();
        assert_eq!(used_by(entries.into_iter(), 1000).unwrap(), Used { all: bytes, own: bytes });
    }

    #[test]
    fn what_a_killed_daemon_left_half_written_goes() {
        let place = tempfile::tempdir().unwrap();
        let unfinished = place.path().join(UNFINISHED);
        fs::create_dir(&unfinished).unwrap();
        for name in [".tmpAb12Cd", "20270115T080000Z-k-timeout-forward-u0-1-1.safetensors"] {
            fs::write(unfinished.join(name), b"x").unwrap();
        }
        // Somebody else's: many tools name what they are writing so.
        for name in [".tmpAb12Cd", ".k.part", "kept.safetensors"] {
            fs::write(place.path().join(name), b"x").unwrap();
        }
        let folder = Folder::open(place.path()).unwrap();
        assert_eq!(folder.used_bytes(0).unwrap(), Used { all: 3, own: 0 });
        assert_eq!(fs::read_dir(&unfinished).unwrap().count(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_is_refused_by_the_settings_name() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("file");
        fs::write(&file, b"x").unwrap();
        for path in [file.clone(), file.join("below")] {
            let error = Folder::open(&path).unwrap_err().to_string();
            assert!(error.contains("engine.record_failures") && error.contains("file"), "{error}");
        }
    }
}
