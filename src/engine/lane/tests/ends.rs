//! How lanes end, and that nothing is left when they have.

use std::sync::Arc;

use super::{
    kernels::{kernel, live},
    trainer::{ALL, LAYER, Trainer, status, until},
};
use crate::{
    engine::{EngineConfig, EngineError, LaneCommand, LaneEnd, LaneEvent},
    wire::{Blend, Status, Submission},
};

const X: [f32; 3] = [1.0, 2.0, 3.0];

/// A trainer with one live seed and a ticket, and what tells whether that seed is still held.
fn busy() -> (Trainer, impl Fn() -> bool) {
    let mut trainer = Trainer::with_layer(Blend::Convex, 2, EngineConfig::default());
    let (seed, _) = live(&kernel("k", [1.0; 3], [0.0; 3]), 1);
    let held = Arc::downgrade(&seed);
    trainer.attach(0, seed, 1.0).unwrap();
    assert_eq!(status(&trainer.forward(&X, true, Some(ALL)).completion), Status::Ok);
    assert!(matches!(trainer.events.recv().unwrap(), LaneEvent::Planned { .. }));
    (trainer, move || held.strong_count() > 0)
}

fn end(trainer: &Trainer) -> LaneEnd {
    match trainer.event() {
        LaneEvent::Ended(end) => end,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_dead_trainer_leaves_nothing_behind() {
    let (trainer, is_held) = busy();
    let Trainer { lane, handle, events, .. } = trainer;
    drop(lane);
    let end = events.recv().unwrap();
    assert!(matches!(end, LaneEvent::Ended(LaneEnd::PeerGone)), "{end:?}");
    assert!(!is_held(), "it is free before the end is told");
    assert_eq!((handle.gauges().tickets(), handle.gauges().saved_bytes()), (0, 0));
    until(|| handle.is_ended());
    assert_eq!(handle.send(LaneCommand::Drain), Err(EngineError::LaneGone));
}

#[test]
fn a_breach_of_the_protocol_is_answered_once_and_ends_the_lane() {
    let breaches: [fn(&mut Submission); 5] = [
        |s| s.verb = 9,
        |s| s.reserved[0] = 1,
        |s| s.input_offset = 0,
        |s| s.output_offset = u64::MAX - 63,
        |s| s.input_bytes -= 4,
    ];
    for breach in breaches {
        let (mut trainer, is_held) = busy();
        let (mut submission, _) = trainer.forward_request(&X, 0);
        breach(&mut submission);
        let completion = trainer.submit(submission);
        assert_eq!(status(&completion), Status::Protocol);
        assert!(!completion.message().is_empty());
        assert!(trainer.hung_up());
        let end = end(&trainer);
        assert!(matches!(end, LaneEnd::Wire(_)), "{end:?}");
        assert_eq!(end.code(), Some("session.protocol"));
        assert!(!is_held());
    }
}

#[test]
fn a_lane_that_is_stopped_or_dropped_hangs_up() {
    let (mut trainer, is_held) = busy();
    trainer.handle.send(LaneCommand::Stop).unwrap();
    assert!(trainer.hung_up());
    assert!(matches!(end(&trainer), LaneEnd::Stopped) && !is_held());

    let (trainer, is_held) = busy();
    let Trainer { mut lane, handle, events, .. } = trainer;
    drop(handle);
    let told = events.recv().unwrap();
    assert!(matches!(told, LaneEvent::Ended(LaneEnd::Stopped)), "{told:?}");
    assert!(!is_held());
    assert_eq!(lane.wait(std::time::Duration::ZERO, None).unwrap(), crate::wire::Wake::Gone);

    let (trainer, is_held) = busy();
    trainer.joined();
    assert!(!is_held());
}

#[test]
fn while_draining_tickets_are_spent_and_none_is_taken() {
    let mut trainer = Trainer::with_layer(Blend::Convex, 1, EngineConfig::default());
    trainer.attach(0, live(&kernel("k", [1.0; 3], [0.0; 3]), 1).0, 1.0).unwrap();
    let pass = trainer.forward(&X, true, Some(ALL));
    trainer.handle.send(LaneCommand::Drain).unwrap();
    let refused = trainer.forward(&X, true, Some(ALL)).completion;
    assert_eq!(status(&refused), Status::Draining);
    assert_eq!(refused.ticket, 0);
    assert_eq!(status(&trainer.backward(&pass, &X, ALL).completion), Status::Ok);
    assert_eq!(trainer.handle.gauges().tickets(), 0);
}

#[test]
fn a_closed_layer_takes_its_tickets_with_it() {
    let (mut trainer, is_held) = busy();
    let close = |trainer: &Trainer| trainer.ask(|answer| LaneCommand::CloseLayer { layer: LAYER, answer });
    assert_eq!(close(&trainer), Ok(()));
    assert!(!is_held());
    let snapshot = trainer.snapshot();
    assert_eq!((snapshot.layers.len(), snapshot.tickets, snapshot.saved_bytes), (0, 0, 0));
    assert_eq!(close(&trainer), Err(EngineError::LayerUnknown { layer: LAYER }));
    let completion = trainer.forward(&X, true, None).completion;
    assert_eq!(status(&completion), Status::LayerUnknown);
}

#[test]
fn an_answer_that_never_comes_is_dropped() {
    let (trainer, _) = busy();
    let (sender, answer) = crossbeam_channel::bounded::<()>(1);
    // The first command holds the lane until the second is in the mailbox behind the order to stop.
    let (go, wait) = crossbeam_channel::bounded::<()>(1);
    let hold = Box::new(move |_| wait.recv().unwrap());
    trainer.handle.send(LaneCommand::Snapshot { answer: hold }).unwrap();
    trainer.handle.send(LaneCommand::Stop).unwrap();
    let forgotten = Box::new(move |_| sender.send(()).unwrap());
    trainer.handle.send(LaneCommand::Snapshot { answer: forgotten }).unwrap();
    go.send(()).unwrap();
    assert!(answer.recv().is_err());
}
