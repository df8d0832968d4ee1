//! Memory of the device: how much, what is in it, when it is given back, and what a trainer sees of it.

use std::{
    os::unix::fs::FileExt as _,
    sync::Arc,
    time::{Duration, Instant},
};

use super::options;
use crate::{
    backend::{
        Backend as _, BuildError, HostMemory, Memory as _, RunError,
        cuda::{
            CudaOptions,
            driver::host::HostDriver,
            testing::{OPTIONS, backend_on, held_backend, recorded_backend, settled_bytes, stream_of},
        },
    },
    graph::{Binary, Builder, Op, Sink, Source},
    tensor::{ALIGNMENT_BYTES, DType, PackedLayout},
};

/// What the size of memory that is shared is a multiple of.
const GRAIN: usize = 2 << 20;

#[test]
fn memory_is_zeroed_aligned_and_the_devices() {
    let (backend, driver) = held_backend();
    let mut queue = backend.open_queue(false);
    for _ in 0..2 {
        let memory = backend.allocate(1000);
        assert_eq!(memory.lack(), None);
        let region = memory.region();
        assert_eq!((region.len_bytes(), region.is_host()), (1000, false));
        assert!(region.start().addr().is_multiple_of(ALIGNMENT_BYTES));
        let mut bytes = [1; 1000];
        assert!(!region.read(&mut bytes), "the host does not reach it");
        queue.read(region, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 1000]);
        queue.write(&[7; 1000], region).unwrap();
    }
    assert_eq!((settled_bytes(&backend), driver.allocated()), (0, 0));
    assert_eq!(backend.allocate(0).region().len_bytes(), 0);
}

#[test]
fn no_more_is_taken_than_was_allowed() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, CudaOptions { memory_bytes: 2048, ..OPTIONS });
    assert_eq!((settled_bytes(&backend), backend.budget_bytes()), (0, 2048));
    let first = backend.allocate(1000);
    assert_eq!((first.lack(), settled_bytes(&backend)), (None, 1024), "in steps of 256");
    let second = backend.allocate(1025);
    let lack = second.lack().unwrap();
    let device = "cuda:0".to_owned();
    assert_eq!(*lack, RunError::OutOfMemory { device, needed_bytes: 1025, free_bytes: 1024 });
    assert_eq!((second.region().len_bytes(), driver.allocated()), (0, 1));
    assert!(backend.allocate(usize::MAX).lack().is_some());
    drop(first);
    assert_eq!(settled_bytes(&backend), 0);
    let all = backend.allocate(2048);
    assert_eq!(all.lack(), None);

    // Constants are memory too.
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [3].into(), DType::F32).unwrap();
    let two = builder.apply(Op::Full { shape: [3].into(), dtype: DType::F32, value: 2.0 }, &[]).unwrap();
    let y = builder.apply(Op::Binary(Binary::Mul), &[x, two]).unwrap();
    builder.sink(Sink::Output(0), y);
    let (graph, none) = (builder.finish(), PackedLayout::default());
    let refused = backend.compile(&graph, &options(&none)).unwrap_err();
    assert!(
        matches!(&refused, BuildError::Device { reason, .. } if reason.contains("0 bytes left")),
        "{refused}"
    );
    let shared = backend.share(Arc::new(HostMemory::new(8))).unwrap_err();
    assert!(matches!(shared, RunError::OutOfMemory { needed_bytes: 8, free_bytes: 0, .. }), "{shared}");
    drop(all);
    let executable = backend.compile(&graph, &options(&none)).unwrap();
    assert_eq!(settled_bytes(&backend), 256);
    drop(executable);
    assert_eq!(settled_bytes(&backend), 0);
}

#[test]
fn what_the_driver_has_not_is_said_and_not_counted() {
    let driver = Arc::new(HostDriver::with_memory(2048));
    let backend = backend_on(&driver, OPTIONS);
    let first = backend.allocate(1500);
    let second = backend.allocate(600);
    let lack = second.lack().unwrap();
    assert!(matches!(lack, RunError::OutOfMemory { needed_bytes: 600, free_bytes: 548, .. }), "{lack}");
    driver.fail_next("allocate");
    let broken = backend.allocate(8);
    assert!(matches!(broken.lack(), Some(RunError::Device { .. })), "{:?}", broken.lack());
    drop(first);
    assert_eq!(settled_bytes(&backend), 0);
    assert_eq!(backend.allocate(2000).lack(), None);
}

#[test]
fn memory_that_is_dropped_stays_until_nothing_uses_it() {
    let (backend, recorder) = recorded_backend();
    let [mut first, mut second] = [false, true].map(|goes_first| backend.open_queue(goes_first));
    let (a, b) = (backend.allocate(64), backend.allocate(64));
    first.write(&[1; 64], a.region()).unwrap();
    second.after(&mut *first).unwrap();
    second.copy(a.region(), b.region()).unwrap();
    drop((a, b));
    assert_eq!(settled_bytes(&backend), 0);
    assert_eq!(recorder.judge(), Vec::<String>::new());
}

#[test]
fn whoever_drops_memory_in_use_goes_on_and_whoever_needs_it_waits() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, CudaOptions { memory_bytes: 1024, ..OPTIONS });
    let mut queue = backend.open_queue(false);
    let (memory, stream) = (backend.allocate(768), stream_of(&backend, &mut *queue));
    driver.hold(stream);
    queue.write(&[1; 64], memory.region()).unwrap();
    drop(memory);
    assert_eq!((backend.held_bytes(), driver.allocated()), (768, 1), "it counts until it is given back");
    assert_eq!(backend.allocate(256).lack(), None, "there is enough without it");
    let needs = {
        let backend = Arc::clone(&backend);
        std::thread::spawn(move || backend.allocate(1024).lack().cloned())
    };
    driver.let_go(stream);
    assert_eq!(needs.join().unwrap(), None);
    assert_eq!((settled_bytes(&backend), driver.allocated()), (0, 0));
}

#[test]
fn whoever_needs_memory_that_a_stalled_device_may_use_is_told_of_the_stall() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, CudaOptions { memory_bytes: 1024, ..OPTIONS });
    let mut queue = backend.open_queue(false);
    let (memory, stream) = (backend.allocate(768), stream_of(&backend, &mut *queue));
    let ours = backend.device.streams().for_ourselves();
    [stream, ours].into_iter().for_each(|stream| driver.hold(stream));
    queue.write(&[1; 64], memory.region()).unwrap();
    drop(memory);
    let began = Instant::now();
    [0, 60].into_iter().for_each(|seconds| {
        backend.beat(began + Duration::from_secs(seconds), Duration::from_secs(60));
    });
    let refused = backend.allocate(1024);
    let text = refused.lack().unwrap().to_string();
    assert!(text.ends_with("it has done nothing for 60s (device.stall_limit)"), "{text}");
    [stream, ours].into_iter().for_each(|stream| driver.let_go(stream));
    assert_eq!((backend.held_bytes(), driver.allocated()), (768, 1), "what may be in use is kept");
}

#[test]
fn memory_that_is_shared_again_is_locked_again() {
    let (backend, driver) = held_backend();
    let mut queue = backend.open_queue(false);
    let (locked, theirs) = (driver.locked(), Arc::new(HostMemory::new(256)));
    for _ in 0..8 {
        let shared = backend.share(Arc::clone(&theirs) as _).unwrap();
        assert_eq!(driver.locked() - locked, 1);
        shared.bring(&mut *queue, 0, 256).unwrap();
    }
    settled_bytes(&backend);
    assert_eq!(driver.locked(), locked);
}

#[test]
fn memory_that_the_driver_lacks_may_be_on_its_way_back() {
    let driver = Arc::new(HostDriver::with_memory(1024));
    let backend = backend_on(&driver, OPTIONS);
    for _ in 0..8 {
        assert_eq!(backend.allocate(1000).lack(), None);
    }
}

#[test]
fn a_file_of_the_devices_memory_is_the_same_for_whoever_maps_it_and_outlives_us() {
    let (backend, driver) = held_backend();
    assert_eq!((backend.uuid(), backend.file_bytes(1)), (Some("the host"), GRAIN));
    let file = backend.allocate_file(1000).unwrap();
    assert_eq!((file.len_bytes(), file.region().is_host(), settled_bytes(&backend)), (GRAIN, false, GRAIN));
    let theirs = file.file().try_clone_to_owned().unwrap();
    let theirs = std::fs::File::from(theirs);
    let mut bytes = [1; 1000];
    theirs.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [0; 1000]);
    let mut queue = backend.open_queue(false);
    queue.write(&[7; 1000], file.region()).unwrap();
    queue.finish(None).unwrap();
    drop(file);
    assert_eq!((settled_bytes(&backend), driver.allocated()), (0, 0));
    theirs.read_exact_at(&mut bytes, 0).unwrap();
    assert_eq!(bytes, [7; 1000]);
    // It counts as all other memory does.
    let small = backend_on(&driver, CudaOptions { memory_bytes: GRAIN - 1, ..OPTIONS });
    let lack = small.allocate_file(1).unwrap_err();
    let device = "cuda:0".to_owned();
    assert_eq!(lack, RunError::OutOfMemory { device, needed_bytes: GRAIN, free_bytes: GRAIN - 1 });
    driver.fail_next("share");
    assert!(matches!(backend.allocate_file(1).unwrap_err(), RunError::Device { .. }));
    assert_eq!(settled_bytes(&backend), 0);
}

#[test]
fn shared_memory_is_brought_and_sent() {
    let (backend, driver) = held_backend();
    let locked = driver.locked();
    for is_locked in [true, false] {
        if !is_locked {
            // It is tried again once what was dropped is let go.
            driver.fail_next("register");
            driver.fail_next("register");
        }
        let theirs = Arc::new(HostMemory::new(256));
        assert!(theirs.region().write(&[3; 256]));
        let shared = backend.share(Arc::clone(&theirs) as _).unwrap();
        assert_eq!(driver.locked() - locked, usize::from(is_locked));
        let ours = shared.device();
        assert_eq!((ours.len_bytes(), ours.is_host(), shared.words().is_host()), (256, false, true));
        let mut queue = backend.open_queue(false);
        let mut bytes = [9; 256];
        queue.read(ours, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 256], "nothing was brought yet");
        shared.bring(&mut *queue, 64, 128).unwrap();
        queue.read(ours, &mut bytes).unwrap();
        assert_eq!((bytes[63], bytes[64], bytes[191], bytes[192]), (0, 3, 3, 0));
        queue.write(&[4; 64], ours.part(128, 64).unwrap()).unwrap();
        shared.send(&mut *queue, 128, 64).unwrap();
        queue.finish(None).unwrap();
        assert!(theirs.region().read(&mut bytes));
        assert_eq!((bytes[127], bytes[128], bytes[191], bytes[192]), (3, 4, 4, 3));
        // What does not lie within is nobody's.
        shared.bring(&mut *queue, 200, 64).unwrap();
        shared.send(&mut *queue, 0, 257).unwrap();
        assert!(queue.is_done());
        drop((shared, queue));
        assert_eq!((settled_bytes(&backend), driver.locked(), driver.allocated()), (0, locked, 0));
    }
    assert_eq!(backend.share(Arc::new(HostMemory::new(0))).unwrap().device().len_bytes(), 0);
}

#[test]
fn locked_memory_is_read_when_the_stream_comes_to_it_and_other_memory_before() {
    let (backend, driver) = held_backend();
    let theirs = Arc::new(HostMemory::new(64));
    let shared = backend.share(Arc::clone(&theirs) as _).unwrap();
    let (plain, copy) = (HostMemory::new(64), backend.allocate(64));
    let mut queue = backend.open_queue(false);
    let stream = stream_of(&backend, &mut *queue);
    driver.hold(stream);
    let mut bytes = vec![1; 32];
    shared.bring(&mut *queue, 0, 64).unwrap();
    queue.copy(plain.region().part(0, 32).unwrap(), copy.region()).unwrap();
    queue.write(&bytes, copy.region().part(32, 32).unwrap()).unwrap();
    // A trainer must not do this; the daemon's own memory may be used again at once.
    assert!(theirs.region().write(&[5; 64]) && plain.region().write(&[5; 64]));
    bytes.fill(5);
    driver.let_go(stream);
    let mut read = [0; 64];
    queue.read(shared.device(), &mut read).unwrap();
    assert_eq!(read, [5; 64]);
    queue.read(copy.region(), &mut read).unwrap();
    assert_eq!(read, [[0; 32], [1; 32]].concat()[..]);
    drop(shared);
}
