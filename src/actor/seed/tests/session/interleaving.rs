//! Random orders.

use std::time::Duration;

use proptest::prelude::*;

use super::{
    field::{Kind, SEEDS},
    kernels::{NAMES, ROOT},
    model::Graft,
    run::{Asked, Checked, Run},
};
use crate::{
    actor::BlendSeed,
    wire::{Blend, ScheduleKind, ScheduleSpec},
};

#[derive(Clone, Debug)]
enum Step {
    Graft { seed: usize, graft: Graft, waits: bool },
    Finish { seed: usize },
    GraftHost { kernel: usize },
    SetAlpha { seed: usize, alpha: f32 },
    Blend { seed: usize, schedule: ScheduleSpec, alpha: Option<f32> },
    Hold { seed: usize },
    Fossilize { seed: usize, freeze: bool },
    Prune { seed: usize, embargo: Duration },
    Rest,
    Forward(Asked),
    Backward { which: usize },
    Again { which: usize },
    Release { which: usize },
    Reconnect,
}

fn factor() -> impl Strategy<Value = f32> {
    prop_oneof![4 => Just(0.0f32), 4 => Just(0.25), 4 => Just(0.5), 4 => Just(1.0), 1 => Just(1.5)]
}

fn schedule() -> impl Strategy<Value = ScheduleSpec> {
    let kind = prop_oneof![
        Just(ScheduleKind::Constant),
        Just(ScheduleKind::Linear),
        Just(ScheduleKind::Cosine),
        Just(ScheduleKind::Sigmoid),
    ];
    let steps = prop_oneof![1 => Just(0u32), 8 => 1..4u32];
    (kind, steps, factor()).prop_map(|(kind, steps, target)| ScheduleSpec {
        kind,
        steps,
        target,
        steepness: None,
        done: 0,
    })
}

fn graft() -> impl Strategy<Value = Graft> {
    // One that now and then fails is what most can go wrong with.
    let kernel = prop_oneof![3 => 0..ROOT, 4 => Just(ROOT), 1 => 0..NAMES.len()];
    let behind = prop::bool::weighted(0.3);
    (kernel, factor(), behind, prop::option::weighted(0.3, schedule()))
        .prop_map(|(kernel, alpha, behind, schedule)| Graft { kernel, alpha, behind, schedule })
}

fn pass() -> impl Strategy<Value = Asked> {
    let given = || prop_oneof![3 => Just(f32::NAN), 4 => factor()];
    let given = prop::option::weighted(0.25, [given(), given()]);
    (prop::bool::weighted(0.8), prop::bool::weighted(0.6), prop::bool::weighted(0.45), given)
        .prop_map(|(train, ticket, negative, given)| Asked { train, ticket, negative, given })
}

fn step() -> impl Strategy<Value = Step> {
    let seed = || 0..SEEDS;
    let embargo = prop_oneof![Just(Duration::ZERO), Just(Duration::from_secs(6000))];
    prop_oneof![
        6 => (seed(), graft(), prop::bool::weighted(0.7))
            .prop_map(|(seed, graft, waits)| Step::Graft { seed, graft, waits }),
        3 => seed().prop_map(|seed| Step::Finish { seed }),
        1 => (0..=ROOT).prop_map(|kernel| Step::GraftHost { kernel }),
        2 => (seed(), factor()).prop_map(|(seed, alpha)| Step::SetAlpha { seed, alpha }),
        4 => (seed(), schedule(), prop::option::weighted(0.3, factor()))
            .prop_map(|(seed, schedule, alpha)| Step::Blend { seed, schedule, alpha }),
        1 => seed().prop_map(|seed| Step::Hold { seed }),
        2 => (seed(), any::<bool>()).prop_map(|(seed, freeze)| Step::Fossilize { seed, freeze }),
        1 => (seed(), embargo).prop_map(|(seed, embargo)| Step::Prune { seed, embargo }),
        2 => Just(Step::Rest),
        14 => pass().prop_map(Step::Forward),
        8 => any::<usize>().prop_map(|which| Step::Backward { which }),
        1 => any::<usize>().prop_map(|which| Step::Again { which }),
        1 => any::<usize>().prop_map(|which| Step::Release { which }),
        1 => Just(Step::Reconnect),
    ]
}

fn kind() -> impl Strategy<Value = Kind> {
    let blend = prop_oneof![Just(Blend::Convex), Just(Blend::Residual), Just(Blend::Multiply)];
    (blend, any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(blend, host, recompute, spread)| Kind {
        blend,
        host,
        recompute,
        spread,
    })
}

async fn run(kind: Kind, steps: Vec<Step>) -> Checked {
    let mut run = Run::new(kind).await;
    for step in steps {
        match step {
            Step::Graft { seed, graft, waits } => run.graft(seed, graft, waits).await?,
            Step::Finish { seed } => run.finish(seed).await?,
            Step::GraftHost { kernel } => run.graft_host(kernel).await?,
            Step::SetAlpha { seed, alpha } => run.set_alpha(seed, alpha).await?,
            Step::Blend { seed, schedule, alpha } => run.blend(seed, BlendSeed { schedule, alpha }).await?,
            Step::Hold { seed } => run.hold(seed).await?,
            Step::Fossilize { seed, freeze } => run.fossilize(seed, freeze).await?,
            Step::Prune { seed, embargo } => run.prune(seed, embargo).await?,
            Step::Rest => run.rest().await,
            Step::Forward(asked) => run.forward(asked)?,
            Step::Backward { which } => run.backward(which)?,
            Step::Again { which } => run.again(which)?,
            Step::Release { which } => run.release(which)?,
            Step::Reconnect => run = run.reconnect().await,
        }
        run.check().await?;
    }
    run.end().await
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 300,
        max_shrink_time: 60_000,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_session_is_as_the_model_has_it(kind in kind(), steps in prop::collection::vec(step(), 1..110)) {
        actix::System::new().block_on(run(kind, steps))?;
    }
}
