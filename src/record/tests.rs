//! Records go to files and back, and the recorder keeps to its bounds.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use safetensors::{Dtype, SafeTensors, tensor::TensorView};

use super::{
    Counts, Direction, Dropped, MAX_BYTES, Record, RecordError, Recorder, RecorderOptions,
    samples::{backward, record},
};
use crate::{clock::ManualClock, digest::Digest, fault::Fault as _};

const PATIENCE: Duration = Duration::from_secs(60);

fn bytes_of(record: &Record) -> Arc<[u8]> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("record");
    record.write(&path).unwrap();
    fs::read(path).unwrap().into()
}

#[test]
fn a_record_reads_back_as_it_was() {
    for record in [record(), backward()] {
        let back = Record::read(&bytes_of(&record)).unwrap();
        assert_eq!(back, record);
        assert_eq!(back.header.rng_seed, u64::MAX);
    }
}

#[test]
fn other_tools_read_it_too() {
    let bytes = bytes_of(&backward());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let mut names = file.names();
    names.sort_unstable();
    let expected = [
        "artifact",
        "buffer.norm.count",
        "grad_output",
        "input",
        "parameter.bias",
        "parameter.weight",
        "saved",
    ];
    assert_eq!(names, expected);
    assert_eq!(file.tensor("parameter.weight").unwrap().dtype(), Dtype::F32);
    assert_eq!(file.tensor("artifact").unwrap().data(), b"an artifact");
}

/// The file of a record with one tensor changed; `None` takes it away.
fn with(record: &Record, name: &str, changed: Option<(Dtype, Vec<usize>, Vec<u8>)>) -> Arc<[u8]> {
    let bytes = bytes_of(record);
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut tensors: Vec<(String, TensorView<'_>)> = file.tensors();
    tensors.retain(|(known, _)| known != name);
    if let Some((dtype, shape, bytes)) = &changed {
        tensors.push((name.to_owned(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    }
    safetensors::serialize(tensors, metadata.metadata().clone()).unwrap().into()
}

fn with_header(from: &str, to: &str) -> Arc<[u8]> {
    let bytes = bytes_of(&record());
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let (_, metadata) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut metadata = metadata.metadata().clone().unwrap();
    let text = metadata.get_mut("kasmina.record").unwrap();
    assert!(text.contains(from), "{text}");
    *text = text.replace(from, to);
    safetensors::serialize(file.tensors(), Some(metadata)).unwrap().into()
}

#[test]
fn what_is_no_record_is_refused_with_a_reason() {
    let (one, other) = (record(), backward());
    let bytes = bytes_of(&one);
    let floats = |count: usize| Some((Dtype::F32, vec![count], vec![0; 4 * count]));
    let huge = [&(64u64 << 20).to_le_bytes()[..], &[b' '; 64]].concat();
    let bare = safetensors::serialize(SafeTensors::deserialize(&bytes).unwrap().tensors(), None).unwrap();
    for (bytes, reason) in [
        (Arc::from(&b""[..]), "no safetensors file"),
        (b"PK\x03\x04 something else entirely, and long enough".as_slice().into(), "header"),
        (bytes[..bytes.len() - 1].into(), "no safetensors file"),
        (huge.into(), "67108864 bytes"),
        (bare.into(), "has no kasmina.record"),
        (with_header("\"kernel\":\"conv:v1\"", "\"kernel\":\"../conv\""), "kernel id"),
        (with_header("\"alpha\":0.5", "\"alpha\":\"half\""), "kasmina.record"),
        (with_header("\"float32\"", "\"float128\""), "float128"),
        (with(&one, "artifact", None), "no tensor \"artifact\""),
        (with(&one, "artifact", Some((Dtype::U8, vec![2], vec![1, 2]))), "SHA-256"),
        (with(&one, "artifact", floats(1)), "no list of bytes"),
        (with(&one, "input", None), "no tensor \"input\""),
        (with(&one, "input", floats(6)), "it says float32 [2, 3]"),
        (with(&one, "parameter.weight", Some((Dtype::F8_E4M3, vec![1], vec![0]))), "which no kernel has"),
        (with(&one, "whatever", floats(1)), "which no record has"),
        (with(&other, "grad_output", None), "no tensor \"grad_output\""),
        (with(&other, "grad_output", floats(6)), "it says float32 [2, 3]"),
        (with(&other, "saved", floats(1)), "no list of bytes"),
    ] {
        let error = Record::read(&bytes).unwrap_err();
        assert_eq!(error.code(), "record.damaged", "{error}");
        assert!(error.to_string().contains(reason), "{error}, expected {reason}");
    }
    let error = Record::read(&with_header("\"format\":1", "\"format\":2")).unwrap_err();
    assert!(matches!(error, RecordError::Version { found: 2 }), "{error}");
}

struct Bench {
    _folder: tempfile::TempDir,
    path: PathBuf,
    clock: ManualClock,
    recorder: Arc<Recorder>,
}

impl Bench {
    fn new(max_bytes: u64) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (path, clock) = (folder.path().join("failures"), ManualClock::default());
        let options = RecorderOptions { folder: path.clone(), max_bytes };
        let recorder = Recorder::start(options, Arc::new(clock.clone())).unwrap();
        Self { _folder: folder, path, clock, recorder }
    }

    /// Records a failure of the n-th kernel; whether there was a place for it.
    fn fail(&self, n: u8) -> bool {
        self.fail_of(n, record().header.uid)
    }

    fn fail_of(&self, n: u8, uid: u32) -> bool {
        let digest = Digest::of(&[n]);
        let mut record = record();
        record.header.uid = uid;
        let place = self.recorder.place(7, digest, "kernel.non_finite", Direction::Forward, 100);
        place.map(|place| place.hand(record)).is_some()
    }

    /// Waits until so much has become of failures.
    fn settled(&self, count: u64) -> Counts {
        loop {
            let counts = self.recorder.counts();
            if counts.written + counts.dropped.iter().sum::<u64>() >= count {
                return counts;
            }
            std::thread::yield_now();
        }
    }

    fn closed(&self) -> Counts {
        self.recorder.close(PATIENCE);
        self.recorder.counts()
    }
}

fn files(path: &Path) -> usize {
    paths(path).len()
}

fn paths(path: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().path());
    paths.filter(|path| path.is_file()).collect()
}

fn dropped(reasons: &[(Dropped, u64)]) -> [u64; Dropped::ALL.len()] {
    let mut counts = [0; Dropped::ALL.len()];
    reasons.iter().for_each(|(why, count)| counts[*why as usize] = *count);
    counts
}

#[test]
fn repeated_failures_are_recorded_no_more_and_counted() {
    let bench = Bench::new(1 << 30);
    let given: Vec<bool> = (0..5).map(|_| bench.fail(0)).collect();
    assert_eq!(given, [true, true, true, false, false]);
    assert!(bench.fail(1));
    bench.clock.advance(Duration::from_secs(3600));
    assert!(bench.fail(0));
    assert_eq!(bench.closed(), Counts { written: 5, dropped: dropped(&[(Dropped::Repeated, 2)]) });
    assert_eq!(files(&bench.path), 5);
}

#[test]
fn a_full_folder_takes_no_more_and_keeps_what_it_has() {
    let (bytes, most) = (bytes_of(&record()).len() as u64, record().file_bytes());
    assert!((bytes..3 * bytes).contains(&most), "{most}");
    // One more than a user may have: her own count twice.
    let bench = Bench::new(2 * bytes + most);
    (0..4).for_each(|n| assert!(bench.fail_of(n, 1000)));
    bench.settled(4);
    (4..7).for_each(|n| assert!(bench.fail_of(n, 1001)));
    assert_eq!(bench.closed(), Counts { written: 3, dropped: dropped(&[(Dropped::Full, 4)]) });
    let mut names: Vec<String> = paths(&bench.path).iter().map(|path| path.display().to_string()).collect();
    names.retain(|name| name.contains("-u1001-"));
    assert_eq!((files(&bench.path), names.len()), (3, 1), "one user does not take it from another");
}

#[test]
fn failures_are_recorded_again_when_a_full_folder_was_emptied() {
    let most = record().file_bytes();
    let bench = Bench::new(most);
    assert!(bench.fail(0));
    bench.settled(1);
    for n in 0..3 {
        assert!(bench.fail(9));
        bench.settled(2 + 2 * n);
        assert!(!bench.fail(9), "each try costs a copy");
        bench.clock.advance(Duration::from_secs(60));
    }
    paths(&bench.path).iter().for_each(|path| fs::remove_file(path).unwrap());
    assert!(bench.fail(9));
    assert_eq!(bench.closed(), Counts { written: 2, dropped: dropped(&[(Dropped::Full, 6)]) });
    assert_eq!(files(&bench.path), 1);
}

#[test]
fn a_disk_that_takes_nothing_is_counted() {
    let bench = Bench::new(1 << 30);
    fs::remove_dir_all(&bench.path).unwrap();
    assert!(bench.fail(0));
    assert_eq!(bench.closed(), Counts { written: 0, dropped: dropped(&[(Dropped::Disk, 1)]) });
}

#[test]
fn what_would_take_too_much_memory_is_left_out() {
    let bench = Bench::new(u64::MAX);
    let place = |n: u8, bytes| {
        bench.recorder.place(7, Digest::of(&[n]), "kernel.timeout", Direction::Backward, bytes)
    };
    assert!(place(0, MAX_BYTES + 1).is_none());
    let first = place(1, MAX_BYTES - 10).unwrap();
    assert!(place(2, 11).is_none(), "as much as may wait waits already");
    let second = place(3, 10).unwrap();
    drop((first, second));
    assert!(place(2, MAX_BYTES).is_some(), "it was not counted as recorded, and there is room again");
    let reasons = [(Dropped::Large, 1), (Dropped::Busy, 1), (Dropped::Lost, 3)];
    assert_eq!(bench.closed(), Counts { written: 0, dropped: dropped(&reasons) });
    assert_eq!(files(&bench.path), 0);
}
