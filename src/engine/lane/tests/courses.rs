//! Blend factors on their way: which pass runs with which, and when the control plane hears of it.

use super::{
    kernels::{FEATURES, kernel, live},
    trainer::{ALL, LAYER, Trainer, status},
};
use crate::{
    engine::{Alpha, Course, EngineConfig, EngineError, LaneCommand, LaneEvent, Role, Schedule},
    id::{Generation, SeedIndex},
    wire::{Blend, ScheduleKind, ScheduleSpec, Status, Submission},
};

const X: [f32; FEATURES] = [1.0, 2.0, 3.0];

fn linear(steps: u32, target: f32) -> ScheduleSpec {
    ScheduleSpec { kind: ScheduleKind::Linear, steps, target, steepness: None, done: 0 }
}

fn trainer(seeds: usize) -> Trainer {
    let trainer = Trainer::with_layer(Blend::Residual, seeds, EngineConfig::default());
    for seed in 0..seeds as u16 {
        trainer.attach(seed, live(&kernel("k", [1.0; 3], [0.0; 3]), 1).0, 0.0).unwrap();
    }
    trainer
}

fn blend(trainer: &Trainer, seed: u16, spec: ScheduleSpec, number: u64) -> Result<Alpha, EngineError> {
    let seed = SeedIndex(seed);
    trainer.ask(|answer| LaneCommand::Blend { layer: LAYER, seed, spec, number, from: None, answer })
}

fn hold(trainer: &Trainer, seed: u16) -> Result<Alpha, EngineError> {
    trainer.ask(|answer| LaneCommand::Hold { layer: LAYER, seed: SeedIndex(seed), answer })
}

/// The sum of the blend factors that a pass ran with.
fn total(trainer: &mut Trainer, train: bool) -> f32 {
    let pass = trainer.forward(&X, train, None);
    assert_eq!(status(&pass.completion), Status::Ok);
    pass.completion.alpha_total
}

#[test]
fn the_first_pass_runs_with_the_start_and_the_one_after_n_with_the_target() {
    let mut trainer = trainer(1);
    assert_eq!(blend(&trainer, 0, linear(4, 1.0), 7).unwrap().get(), 0.0);
    assert_eq!(trainer.counters[0].alpha(), (0.0, 4));
    let ran: Vec<f32> = (0..6).map(|_| total(&mut trainer, true)).collect();
    assert_eq!(ran, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0]);
    assert_eq!(trainer.counters[0].alpha(), (1.0, 0));
    let LaneEvent::AlphaReached { layer, seed, generation, number, alpha } = trainer.event() else {
        panic!("an end is told");
    };
    assert_eq!((layer, seed, generation, number), (LAYER, SeedIndex(0), Generation(1), 7));
    assert_eq!(alpha.get(), 1.0);
    assert!(trainer.events.try_iter().all(|event| matches!(event, LaneEvent::Planned { .. })), "once");
}

#[test]
fn only_training_forwards_that_go_well_are_steps() {
    let mut trainer = trainer(1);
    blend(&trainer, 0, linear(4, 1.0), 1).unwrap();
    assert_eq!(total(&mut trainer, false), 0.0);
    assert_eq!(trainer.counters[0].alpha(), (0.0, 4), "a pass in eval is none");
    let pass = trainer.forward(&X, true, Some(ALL));
    trainer.backward(&pass, &X, ALL);
    assert_eq!(trainer.counters[0].alpha(), (0.25, 3), "a forward is one, its backward is none");
    let (refused, _) = trainer.forward_request(&X, crate::wire::FLAG_TRAIN);
    let refused = trainer.submit(Submission { layer: LAYER.0 + 1, ..refused });
    assert_eq!(status(&refused), Status::LayerUnknown);
    assert_eq!(trainer.counters[0].alpha(), (0.25, 3), "one that is refused is none");
}

#[test]
fn a_new_target_begins_at_the_present_value_and_only_its_own_end_is_told() {
    let mut trainer = trainer(2);
    blend(&trainer, 0, linear(4, 1.0), 1).unwrap();
    blend(&trainer, 1, linear(2, 0.25), 2).unwrap();
    let ran: Vec<f32> = (0..2).map(|_| total(&mut trainer, true)).collect();
    assert_eq!(ran, [0.0, 0.25 + 0.125]);
    assert_eq!(blend(&trainer, 0, linear(2, 0.0), 3).unwrap().get(), 0.5);
    let ran: Vec<f32> = (0..3).map(|_| total(&mut trainer, true)).collect();
    assert_eq!(ran, [0.75, 0.5, 0.25]);
    let numbers: Vec<u64> = (0..2)
        .map(|_| match trainer.event() {
            LaneEvent::AlphaReached { number, .. } => number,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(numbers, [2, 3]);
}

#[test]
fn what_is_set_or_held_stays() {
    let mut trainer = trainer(2);
    for seed in [0, 1] {
        blend(&trainer, seed, linear(4, 1.0), 1).unwrap();
    }
    total(&mut trainer, true);
    trainer.set_alpha(0, 0.75);
    assert_eq!(hold(&trainer, 1).unwrap().get(), 0.25);
    assert_eq!([total(&mut trainer, true), total(&mut trainer, true)], [1.0, 1.0]);
    assert_eq!([trainer.counters[0].alpha(), trainer.counters[1].alpha()], [(0.75, 0), (0.25, 0)]);
    trainer.detach(0).unwrap();
    assert_eq!(trainer.counters[0].alpha(), (0.0, 0));
}

#[test]
fn a_kernel_comes_with_its_course_wherever_that_stands() {
    let mut trainer = trainer(1);
    let mut schedule = Schedule::new(&linear(4, 1.0), Alpha::ZERO).unwrap();
    schedule.advance();
    let (seed, (live, _)) = (SeedIndex(0), live(&kernel("next", [1.0; 3], [0.0; 3]), 2));
    let (alpha, role, course) = (Alpha::ZERO, Role::Blended, Some(Course { schedule, number: 5 }));
    trainer
        .ask(|answer| LaneCommand::Attach { layer: LAYER, seed, live, alpha, role, course, answer })
        .unwrap();
    assert_eq!(trainer.counters[0].alpha(), (0.25, 3));
    assert_eq!([total(&mut trainer, true), total(&mut trainer, true)], [0.25, 0.5]);
}

#[test]
fn an_unloading_tells_where_the_blend_factor_was_and_how_it_went_on() {
    let config = EngineConfig { error_threshold: 1, ..EngineConfig::default() };
    let mut trainer = Trainer::with_layer(Blend::Residual, 1, config);
    let (live, memory) = live(&kernel("k", [1.0; 3], [0.0; 3]), 1);
    trainer.attach(0, live, 0.5).unwrap();
    blend(&trainer, 0, linear(4, 1.0), 9).unwrap();
    total(&mut trainer, true);
    memory.floats(0, 1).unwrap().copy_from(&[f32::NAN]);
    assert_eq!(trainer.forward(&X, true, None).completion.failed_mask, 1);
    let LaneEvent::SeedUnloaded { alpha, course: Some(course), .. } = trainer.event() else {
        panic!("an unloading is told");
    };
    assert_eq!((alpha.get(), course.number, course.schedule.steps_left()), (0.625, 9, 3));
    assert!(matches!(blend(&trainer, 0, linear(4, 1.0), 10), Err(EngineError::Vacant { .. })));
    assert!(matches!(hold(&trainer, 0), Err(EngineError::Vacant { .. })));
    assert!(matches!(hold(&trainer, 3), Err(EngineError::SeedUnknown { .. })));
}

#[test]
fn a_series_has_the_blend_factor_of_each_training_pass_that_the_seed_ran_in() {
    let mut trainer = trainer(1);
    assert!(trainer.counters[0].series(0).step.is_empty());
    trainer.counters[0].keep_series(8);
    blend(&trainer, 0, linear(2, 1.0), 1).unwrap();
    for train in [true, true, false, true] {
        total(&mut trainer, train);
    }
    let series = trainer.counters[0].series(0);
    // With a factor of 0 it did not run; a pass in eval is no step.
    assert_eq!((series.step, series.alpha), (vec![2, 3], vec![0.5, 1.0]));
    assert!(series.latency_us.iter().all(|us| *us > 0.0));
    assert!(series.output_norm.iter().all(|norm| norm.is_some_and(|norm| norm > 0.0)));
    assert_eq!(series.gradient_norm, [None, None], "no backward has run");
    assert_eq!(trainer.counters[0].series(2).step, [3]);
}

#[test]
fn a_schedule_that_makes_no_sense_changes_nothing() {
    let mut trainer = trainer(1);
    blend(&trainer, 0, linear(4, 1.0), 1).unwrap();
    assert!(matches!(blend(&trainer, 0, linear(0, 1.0), 2), Err(EngineError::Schedule { .. })));
    assert_eq!([total(&mut trainer, true), total(&mut trainer, true)], [0.0, 0.25]);
}
