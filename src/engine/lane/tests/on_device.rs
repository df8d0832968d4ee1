//! Trainers whose tensors lie in the device's memory: a pass begins when their streams have come to it.

use std::{sync::Arc, time::Duration};

use super::{
    kernels::{kernel, live},
    trainer::{Trainer, status, until},
};
use crate::{
    backend::{Backend, HostMemory, Memory, Region, test_device::device},
    engine::{EngineConfig, LaneCommand, LaneEnd, LaneEvent, LaneLimits},
    wire::{Blend, Block, Status, Submission, Wake},
};

const X: [f32; 3] = [1.0, 2.0, 3.0];
const BYTES: usize = 4 << 20;

/// A trainer with one live seed, and the memory of the device that its tensors lie in.
fn on_device() -> (Trainer, Arc<dyn Backend>, Arc<dyn Memory>) {
    let backend = device(2);
    let memory: Arc<dyn Memory> = Arc::from(backend.allocate(BYTES));
    let config = EngineConfig::default();
    let mut trainer = Trainer::start(backend.clone(), config, LaneLimits::default(), Some(memory.clone()));
    trainer.open(Blend::Residual, 1).unwrap();
    let (seed, _) = live(&kernel("k", [2.0; 3], [0.5; 3]), 1);
    trainer.attach(0, seed, 1.0).unwrap();
    (trainer, backend, memory)
}

fn part(memory: &dyn Memory, offset: u64) -> Region<'_> {
    memory.region().part(offset as usize, 12).unwrap()
}

fn write(backend: &dyn Backend, to: Region<'_>, values: [f32; 3]) {
    let mut queue = backend.open_queue(false);
    queue.write(&values.map(f32::to_le_bytes).concat(), to).unwrap();
    queue.finish(None).unwrap();
}

fn read(backend: &dyn Backend, from: Region<'_>) -> Vec<f32> {
    let copy = HostMemory::new(12);
    let mut queue = backend.open_queue(false);
    queue.copy(from, copy.region()).unwrap();
    queue.finish(None).unwrap();
    let mut bytes = [0; 12];
    assert!(copy.region().read(&mut bytes));
    bytes.chunks(4).map(|word| f32::from_le_bytes(word.try_into().unwrap())).collect()
}

/// Publishes the n-th submission and waits until the lane has taken it.
fn publish(trainer: &mut Trainer, n: u64, submission: Submission) {
    trainer.lane.publish(&Submission { sequence: n, ..submission }).unwrap();
    let arena = trainer.lane.arena().clone();
    until(|| arena.taken() == n + 1);
}

#[test]
fn a_pass_reads_what_is_there_when_its_word_is_set() {
    let (mut trainer, backend, memory) = on_device();
    // More than the ring is long: each word is used again.
    for n in 0..130 {
        let (submission, _) = trainer.forward_request(&[f32::NAN; 3], 0);
        write(&*backend, part(&*memory, submission.input_offset), [9.0; 3]);
        publish(&mut trainer, n, submission);
        // The stream comes to it only now.
        let x = X.map(|value| value + n as f32);
        write(&*backend, part(&*memory, submission.input_offset), x);
        trainer.lane.arena().set_ready(n);
        let Wake::Item(completion) = trainer.lane.wait(Duration::ZERO, None).unwrap() else {
            panic!("it is answered")
        };
        assert_eq!((completion.sequence, status(&completion)), (n, Status::Ok));
        let y = read(&*backend, part(&*memory, submission.output_offset));
        assert_eq!(y, x.map(|x| 2.0 * x + 0.5), "pass {n}");
        let words = trainer.lane.arena().floats(Block { offset: submission.output_offset, bytes: 12 });
        assert_eq!(words.unwrap().to_vec(), [0.0; 3], "nothing is copied through the host");
    }
}

#[test]
fn a_refused_pass_changes_nothing_once_its_word_is_set() {
    let (mut trainer, backend, memory) = on_device();
    trainer.handle.send(LaneCommand::Drain).unwrap();
    for n in 0..2 {
        let (submission, _) = trainer.forward_request(&X, 0);
        let output = part(&*memory, submission.output_offset);
        publish(&mut trainer, n, submission);
        // The last reader of a block that is used again.
        write(&*backend, output, [9.0; 3]);
        assert_eq!(read(&*backend, output), [9.0; 3]);
        trainer.lane.arena().set_ready(n);
        let Wake::Item(completion) = trainer.lane.wait(Duration::ZERO, None).unwrap() else {
            panic!("it is answered")
        };
        assert_eq!(status(&completion), Status::Draining);
        assert_eq!(read(&*backend, output), [0.0; 3]);
        assert_eq!(trainer.lane.arena().done_and_rest(n), (n + 1, 1.0));
    }
}

#[test]
fn a_word_that_never_comes_holds_no_lane_beyond_its_trainer() {
    for is_stopped in [true, false] {
        let (mut trainer, backend, memory) = on_device();
        let (submission, _) = trainer.forward_request(&X, 0);
        let output = part(&*memory, submission.output_offset);
        write(&*backend, output, [9.0; 3]);
        publish(&mut trainer, 0, submission);
        let Trainer { lane, handle, events, .. } = trainer;
        if is_stopped {
            handle.stop();
        } else {
            drop(lane);
        }
        let end = events.iter().find_map(|event| match event {
            LaneEvent::Ended(end) => Some(end),
            _ => None,
        });
        let is_expected = match end {
            Some(LaneEnd::Stopped) => is_stopped,
            Some(LaneEnd::PeerGone) => !is_stopped,
            _ => false,
        };
        assert!(is_expected, "{end:?}");
        assert_eq!(read(&*backend, output), [9.0; 3], "it was not begun");
    }
}
