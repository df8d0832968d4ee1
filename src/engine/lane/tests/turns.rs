//! Several lanes that share places.

use std::{sync::Arc, time::Duration};

use super::{
    kernels::{FEATURES, kernel, live},
    trainer::{ALL, Trainer, status, until},
};
use crate::{
    engine::{EngineConfig, Entrant, LaneEnd, LaneEvent, LaneLimits, Turns, TurnsSettings},
    wire::{Blend, Status, Wake},
};

const X: [f32; 6] = [0.5, -1.0, 2.0, 0.25, 3.0, -0.5];
const W: [f32; FEATURES] = [1.5, -0.5, 2.0];

fn one_place() -> Arc<Turns> {
    Turns::new(TurnsSettings { places: 1, quantum: Duration::from_millis(1), weights: Vec::new() })
}

fn trainer(turns: &Arc<Turns>) -> Trainer {
    let limits = LaneLimits { turns: turns.clone(), ..LaneLimits::default() };
    let mut trainer = Trainer::new(EngineConfig::default(), limits);
    trainer.open(Blend::Residual, 2).unwrap();
    for seed in [0, 1] {
        trainer.attach(seed, live(&kernel("k", W, [0.0; FEATURES]), 1).0, 0.5).unwrap();
    }
    trainer
}

/// Another session of the user whose all trainers here are.
fn another_of_the_user(turns: &Arc<Turns>) -> Entrant {
    turns.join(LaneLimits::default().ledger.uid())
}

/// A trainer whose forward pass waits for its turn, which never comes.
fn stuck(turns: &Arc<Turns>) -> Trainer {
    let mut trainer = trainer(turns);
    let (submission, _) = trainer.forward_request(&X, 0);
    trainer.lane.publish(&submission).unwrap();
    until(|| turns.occupancy().waiting == 1);
    trainer
}

#[test]
fn lanes_that_share_a_place_compute_what_one_alone_does() {
    let turns = one_place();
    let alone = {
        let mut trainer = trainer(&one_place());
        let pass = trainer.forward(&X, true, Some(ALL));
        let back = trainer.backward(&pass, &X, ALL);
        (pass.output, back.input, back.parameters, back.alphas)
    };
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let (turns, alone) = (&turns, &alone);
            scope.spawn(move || {
                let mut trainer = trainer(turns);
                for n in 1..=50 {
                    let pass = trainer.forward(&X, true, Some(ALL));
                    let back = trainer.backward(&pass, &X, ALL);
                    assert_eq!((pass.output, back.input, back.parameters, back.alphas), *alone);
                    let gauges = trainer.handle.gauges();
                    assert_eq!(gauges.passes().count(), 2 * n);
                    assert!(gauges.computed() > Duration::ZERO);
                }
                trainer.joined();
            });
        }
    });
    let occupancy = turns.occupancy();
    assert_eq!((occupancy.running, occupancy.waiting), (0, 0));
}

#[test]
fn a_pass_waits_until_there_is_a_place_and_that_is_counted_apart() {
    let turns = one_place();
    let mut elsewhere = another_of_the_user(&turns);
    let turn = elsewhere.begin(|| false).unwrap();
    let mut trainer = stuck(&turns);
    turn.end(false);
    let completion = match trainer.lane.wait(Duration::ZERO, Some(Duration::from_secs(60))).unwrap() {
        Wake::Item(completion) => completion,
        other => panic!("{other:?}"),
    };
    assert_eq!(status(&completion), Status::Ok);
    let gauges = trainer.handle.gauges();
    assert!(gauges.waited() > Duration::ZERO);
    assert_eq!(gauges.passes().count(), 1);
    let answered = Duration::from_nanos(gauges.service().summary().mean_ns);
    assert_eq!(Duration::from_nanos(completion.duration_ns) + gauges.waited(), answered);
}

#[test]
fn a_trainer_that_dies_in_line_is_noticed_there() {
    let turns = one_place();
    let mut elsewhere = another_of_the_user(&turns);
    let _turn = elsewhere.begin(|| false).unwrap();
    let Trainer { lane, handle, events, .. } = stuck(&turns);
    drop(lane);
    let end = loop {
        if let LaneEvent::Ended(end) = events.recv_timeout(Duration::from_secs(60)).unwrap() {
            break end;
        }
    };
    assert!(matches!(end, LaneEnd::PeerGone), "{end:?}");
    until(|| handle.is_ended());
    assert_eq!((turns.occupancy().running, turns.occupancy().waiting), (1, 0), "the place is taken still");
}

#[test]
fn a_lane_that_is_stopped_in_line_ends_there() {
    let turns = one_place();
    let mut elsewhere = another_of_the_user(&turns);
    let _turn = elsewhere.begin(|| false).unwrap();
    let Trainer { mut lane, handle, .. } = stuck(&turns);
    handle.stop();
    match lane.wait(Duration::ZERO, Some(Duration::from_secs(60))).unwrap() {
        Wake::Item(completion) => assert_eq!(status(&completion), Status::Draining),
        other => panic!("{other:?}"),
    }
    assert_eq!(turns.occupancy().waiting, 0);
}

#[test]
fn a_client_that_only_says_there_is_a_next_pass_keeps_no_place() {
    let turns = one_place();
    for _ in 0..200 {
        let mut liar = trainer(&turns);
        let (submission, _) = liar.forward_request(&X, 0);
        liar.lane.publish(&submission).unwrap();
        liar.lane.claim_next(true);
        while liar.lane.poll().unwrap().is_none() {}
        // Where this comes too late the lane has read what is not there, and ends; else it waits for what does not come.
        liar.lane.claim_next(false);
        until(|| turns.occupancy().running == 0);
        liar.joined();
    }
}
