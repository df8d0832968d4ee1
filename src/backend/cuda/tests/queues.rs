//! Queues: what waits for what, how long, and streams that are shared.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::backend::{
    Backend as _, HostMemory, HostQueue, Memory as _, Queue, Region, RunError,
    cuda::{
        CudaBackend,
        driver::host::HostDriver,
        testing::{OPTIONS, backend_on, held_backend, host_backend, recorded_backend, stream_of},
    },
};

/// How many streams a backend has for queues.
const NORMAL: usize = 32;

fn read(queue: &mut dyn Queue, region: Region<'_>) -> Vec<u8> {
    let mut bytes = vec![0; region.len_bytes()];
    queue.read(region, &mut bytes).unwrap();
    bytes
}

/// A queue whose stream is held back.
fn held(backend: &CudaBackend, driver: &HostDriver) -> Box<dyn Queue> {
    let mut queue = backend.open_queue(false);
    driver.hold(stream_of(backend, &mut *queue));
    queue
}

#[test]
fn what_comes_after_another_waits_for_it() {
    let (backend, driver) = held_backend();
    let (x, y, z) = (backend.allocate(8), backend.allocate(8), backend.allocate(8));
    let mut first = held(&backend, &driver);
    let mut second = backend.open_queue(false);
    let mut third = backend.open_queue(false);
    first.write(&[1; 8], x.region()).unwrap();
    third.copy(x.region(), z.region()).unwrap();
    assert!(third.is_done(), "it waits for nobody");
    second.after(&mut *first).unwrap();
    second.copy(x.region(), y.region()).unwrap();
    third.after(&mut *second).unwrap();
    assert!(!first.is_done() && !second.is_done() && !third.is_done());
    assert_eq!(read(&mut *backend.open_queue(false), z.region()), [0; 8]);
    driver.let_go(stream_of(&backend, &mut *first));
    third.finish(None).unwrap();
    assert_eq!(read(&mut *third, y.region()), [1; 8]);
    // One that has nothing to do is waited for by nobody.
    driver.hold(stream_of(&backend, &mut *first));
    first.finish(None).unwrap();
    second.after(&mut *first).unwrap();
    second.finish(None).unwrap();
    driver.let_go(stream_of(&backend, &mut *first));
}

#[test]
fn the_order_between_queues_satisfies_the_judge() {
    let (backend, recorder) = recorded_backend();
    for is_ordered in [true, false] {
        recorder.take();
        let (x, y) = (backend.allocate(8), backend.allocate(8));
        let [mut first, mut second] = [true, false].map(|goes_first| backend.open_queue(goes_first));
        first.zero(x.region()).unwrap();
        if is_ordered {
            second.after(&mut *first).unwrap();
        }
        second.copy(x.region(), y.region()).unwrap();
        second.finish(None).unwrap();
        drop((x, y));
        assert_eq!(recorder.judge().is_empty(), is_ordered, "{:?}", recorder.judge());
    }
}

#[test]
fn waiting_ends_at_the_deadline_and_the_work_goes_on() {
    let (backend, driver) = held_backend();
    let memory = backend.allocate(8);
    let mut queue = held(&backend, &driver);
    queue.finish(Some(Instant::now())).unwrap();
    queue.write(&[1; 8], memory.region()).unwrap();
    queue.write(&[2; 8], memory.region()).unwrap();
    for _ in 0..2 {
        let late = queue.finish(Some(Instant::now())).unwrap_err();
        assert_eq!(late, RunError::Timeout { done: 0, total: 2 });
    }
    // The mark that was asked for stands before what comes now.
    queue.write(&[3; 8], memory.region()).unwrap();
    driver.allow(stream_of(&backend, &mut *queue), 3);
    assert!(!queue.is_done());
    driver.let_go(stream_of(&backend, &mut *queue));
    queue.finish(Some(Instant::now())).unwrap();
    assert_eq!(read(&mut *queue, memory.region()), [3; 8]);
}

#[test]
fn notes_are_each_queues_own() {
    let (backend, driver) = held_backend();
    let memory = backend.allocate(16);
    let mut all: Vec<_> = (0..=NORMAL).map(|_| backend.open_queue(false)).collect();
    let mut last = all.pop().unwrap();
    let first = &mut all[0];
    let stream = stream_of(&backend, &mut **first);
    assert_eq!(stream_of(&backend, &mut *last), stream);
    assert_eq!(first.noted(), [0; 4]);
    first.write(&[[1; 4], [2; 4], [3; 4], [4; 4]].concat(), memory.region()).unwrap();
    driver.hold(stream);
    first.note(memory.region()).unwrap();
    last.note(memory.region().part(4, 12).unwrap()).unwrap();
    assert!(!first.is_done());
    driver.let_go(stream);
    first.finish(None).unwrap();
    last.finish(None).unwrap();
    assert_eq!((first.noted(), last.noted()), ([1; 4], [2; 4]));
    // The last note counts, and one of the host's memory is a note too.
    first.note(memory.region().part(8, 4).unwrap()).unwrap();
    first.finish(None).unwrap();
    assert_eq!((first.noted(), last.noted()), ([3; 4], [2; 4]));
    let host = HostMemory::new(4);
    assert!(host.region().write(&[9; 4]));
    first.note(host.region()).unwrap();
    assert_eq!(first.noted(), [9; 4]);
    let short = first.note(memory.region().part(0, 3).unwrap()).unwrap_err();
    assert!(matches!(short, RunError::RegionTooSmall { needed_bytes: 4, actual_bytes: 3, .. }), "{short}");
}

#[test]
fn a_queue_that_is_dropped_waits_for_nothing_and_disturbs_nobody() {
    let (backend, driver) = held_backend();
    let memory = backend.allocate(8);
    let mut queue = backend.open_queue(false);
    let stream = stream_of(&backend, &mut *queue);
    queue.write(&[1, 1, 1, 1, 2, 2, 2, 2], memory.region()).unwrap();
    driver.hold(stream);
    queue.note(memory.region()).unwrap();
    assert!(!queue.is_done());
    drop(queue);
    // The next one has the stream, and perhaps the place of the note that is still under way.
    let mut next = backend.open_queue(false);
    assert_eq!(stream_of(&backend, &mut *next), stream);
    next.note(memory.region().part(4, 4).unwrap()).unwrap();
    driver.let_go(stream);
    next.finish(None).unwrap();
    assert_eq!(next.noted(), [2; 4]);
}

#[test]
fn streams_are_shared_evenly_when_there_are_no_more() {
    let backend = host_backend();
    let open = |goes_first| {
        let mut queue = backend.open_queue(goes_first);
        let stream = stream_of(&backend, &mut *queue).0;
        (queue, stream)
    };
    let mut all: Vec<_> = (0..NORMAL).map(|_| open(false)).collect();
    let mut streams: Vec<_> = all.iter().map(|(_, stream)| *stream).collect();
    streams.sort_unstable();
    streams.dedup();
    assert_eq!(streams.len(), NORMAL);
    let (_first, urgent) = open(true);
    assert!(!streams.contains(&urgent));
    let shared: Vec<_> = (0..2 * NORMAL).map(|_| open(false)).collect();
    for stream in &streams {
        assert_eq!(shared.iter().filter(|(_, other)| other == stream).count(), 2);
    }
    let (dropped, stream) = all.swap_remove(5);
    drop(dropped);
    assert_eq!(open(false).1, stream, "it has the fewest");
}

#[test]
fn a_queue_is_done_when_its_own_work_is() {
    let (backend, driver) = held_backend();
    let (x, y) = (backend.allocate(8), backend.allocate(8));
    let mut all: Vec<_> = (0..=NORMAL).map(|_| backend.open_queue(false)).collect();
    let mut busy = all.pop().unwrap();
    let ours = &mut all[0];
    let stream = stream_of(&backend, &mut **ours);
    driver.hold(stream);
    ours.write(&[1; 8], x.region()).unwrap();
    assert!(!ours.is_done());
    busy.write(&[2; 8], y.region()).unwrap();
    driver.allow(stream, 2);
    assert!(ours.is_done(), "its write and its mark are done");
    assert!(!busy.is_done());
    // Of two queues on a stream one comes after the other anyhow.
    let mut other = backend.open_queue(true);
    ours.after(&mut *busy).unwrap();
    other.after(&mut *busy).unwrap();
    assert!(!other.is_done());
    driver.let_go(stream);
    other.finish(None).unwrap();
    assert_eq!(read(&mut *other, y.region()), [2; 8]);
}

#[test]
fn copies_go_every_way_in_their_turn() {
    let (backend, driver) = held_backend();
    let (device, other) = (backend.allocate(8), backend.allocate(8));
    let (host, back) = (HostMemory::new(8), HostMemory::new(8));
    let mut queue = backend.open_queue(false);
    assert!(host.region().write(&[1; 8]));
    queue.copy(host.region(), device.region()).unwrap();
    queue.copy(device.region(), other.region()).unwrap();
    queue.zero(device.region().part(0, 4).unwrap()).unwrap();
    queue.copy(other.region(), back.region()).unwrap();
    queue.copy(back.region().part(0, 2).unwrap(), host.region().part(4, 2).unwrap()).unwrap();
    queue.zero(back.region().part(6, 2).unwrap()).unwrap();
    queue.write(&[7; 2], host.region()).unwrap();
    assert_eq!(read(&mut *queue, host.region()), [7, 7, 1, 1, 1, 1, 1, 1]);
    assert_eq!(read(&mut *queue, back.region()), [1, 1, 1, 1, 1, 1, 0, 0]);
    assert_eq!(read(&mut *queue, device.region()), [0, 0, 0, 0, 1, 1, 1, 1]);
    assert_eq!(read(&mut *queue, other.region()), [1; 8]);
    // What does not fit is handed over by no way, and nothing is nothing.
    driver.hold(stream_of(&backend, &mut *queue));
    let (whole, half) = (device.region(), other.region().part(0, 4).unwrap());
    let too_small = RunError::RegionTooSmall { name: "of a copy".into(), needed_bytes: 8, actual_bytes: 4 };
    assert_eq!(queue.copy(whole, half).unwrap_err(), too_small);
    assert_eq!(queue.write(&[0; 8], half).unwrap_err(), too_small);
    assert_eq!(queue.read(half, &mut [0; 8]).unwrap_err(), too_small);
    queue.copy(Region::EMPTY, whole).unwrap();
    queue.write(&[], whole).unwrap();
    queue.read(whole, &mut []).unwrap();
    queue.zero(Region::EMPTY).unwrap();
    assert!(queue.is_done());
    driver.let_go(stream_of(&backend, &mut *queue));
}

#[test]
fn what_fails_on_the_device_is_told_by_who_waits() {
    let (backend, driver) = held_backend();
    let memory = backend.allocate(8);
    let mut queue = held(&backend, &driver);
    let stream = stream_of(&backend, &mut *queue);
    queue.write(&[1; 8], memory.region()).unwrap();
    driver.fail_next("work");
    assert!(!queue.is_done());
    driver.let_go(stream);
    assert!(queue.is_done(), "it will never be");
    let failed = queue.finish(None).unwrap_err();
    assert_eq!(failed.to_string(), "cuda:0 failed: work failed: a test wants it so");
    assert!(queue.zero(memory.region()).is_err());
    // Nothing panics on the way down.
    drop((memory, queue, backend));
}

#[test]
fn queues_of_other_devices_are_refused() {
    let [one, two] = [host_backend(), host_backend()];
    let (mut ours, mut theirs) = (one.open_queue(false), two.open_queue(false));
    let others: [&mut dyn Queue; 2] = [&mut *theirs, &mut HostQueue::default()];
    for other in others {
        let error = ours.after(other).unwrap_err();
        assert_eq!(error.to_string(), "cuda:0 failed: a queue of another device was given");
    }
}

#[test]
fn a_device_that_is_closed_gives_everything_back() {
    let driver = Arc::new(HostDriver::new());
    let backend = backend_on(&driver, OPTIONS);
    assert!(backend.is_asynchronous());
    let memory = backend.allocate(8);
    let mut queue = backend.open_queue(true);
    let mut other = backend.open_queue(false);
    queue.note(memory.region()).unwrap();
    other.after(&mut *queue).unwrap();
    other.zero(memory.region()).unwrap();
    assert!(other.is_done());
    drop(backend);
    assert!(driver.open() > 0, "queues and memory hold the device");
    drop((queue, other, memory));
    assert_eq!((driver.open(), driver.locked(), driver.allocated()), (0, 0, 0));
    // One that cannot be opened leaves nothing behind.
    driver.fail_next("open_stream");
    let options = OPTIONS;
    let images = crate::backend::cuda::driver::host::images();
    let refused = CudaBackend::new(Arc::clone(&driver) as _, images, options).unwrap_err();
    assert!(refused.to_string().contains("open_stream"), "{refused}");
    assert_eq!(driver.open(), 0);
}

#[test]
fn a_device_that_does_nothing_is_lost_and_waited_for_by_nobody() {
    let (backend, driver) = held_backend();
    let (began, limit) = (Instant::now(), Duration::from_secs(60));
    let beat = |seconds| backend.beat(began + Duration::from_secs(seconds), limit);
    // It works: each mark is reached by the next time, whenever that is.
    [0, 100, 200].into_iter().for_each(beat);
    assert_eq!(backend.lost(), None);
    let memory = backend.allocate(8);
    let ours = backend.device.streams().for_ourselves();
    let mut queue = held(&backend, &driver);
    driver.hold(ours);
    queue.write(&[1; 8], memory.region()).unwrap();
    [300, 330, 359].into_iter().for_each(beat);
    assert_eq!(backend.lost(), None, "it has the time that it has");
    beat(360);
    let reason = "it has done nothing for 60s (device.stall_limit)";
    assert!(backend.lost().unwrap().ends_with(reason), "{:?}", backend.lost());
    let error = queue.finish(None).unwrap_err();
    assert!(error.to_string().ends_with(reason), "{error}");
    let held_bytes = backend.held_bytes();
    drop(memory);
    assert_eq!(backend.held_bytes(), held_bytes, "what may be in use is kept");
    driver.let_go(stream_of(&backend, &mut *queue));
    driver.let_go(ours);
}
