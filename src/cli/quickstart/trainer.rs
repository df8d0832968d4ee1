//! The trainer: a small convolutional host that learns to read digits, and two kernels grafted into it.

use std::{path::PathBuf, sync::Arc, time::Instant};

use super::{
    super::{
        CliError, Exit,
        table::{self, micros},
    },
    adam::Adam,
    digits::{PIXELS, Samples, Shuffle, load},
    loss::{correct, cross_entropy},
    network::Part,
};
use crate::{
    client::{Client, ConnectOptions, Grafted, Layer, Operator, Pass, PassRequest},
    id::{KernelId, SeedIndex},
    telemetry::Histogram,
    tensor::{HostTensor, Shape},
    wire::{Blend, Wants},
};

/// The kernels that are grafted: one PT2 archive and one TorchScript archive.
const KERNELS: [&str; 2] = ["conv3x3-bn-relu", "residual-double-conv-ts"];
const BATCH: usize = 64;
const CLASSES: usize = 10;
/// Channels and size of the maps that the seeded layer works on.
const MAPS: [usize; 3] = [16, 8, 8];
const LEARNING_RATE: f32 = 1e-2;

/// What the trainer is told by the quickstart.
#[derive(Clone, Debug)]
pub struct TrainerOptions {
    /// The daemon's socket.
    pub socket: PathBuf,
    /// The daemon's control socket, for the table at the end.
    pub control_socket: PathBuf,
    /// The folder with `digits` and `data`.
    pub examples: PathBuf,
    /// Passes over the training set; kernels are grafted half-way.
    pub epochs: u32,
    /// Decides the order of the samples.
    pub seed: u64,
}

/// Trains and prints the table: 0 if grafting raised the accuracy, 1 if not.
///
/// # Errors
/// [`CliError`] when a file cannot be used or the daemon fails.
pub fn train(options: &TrainerOptions) -> Result<Exit, CliError> {
    let started = Instant::now();
    let (training, test) = load(&options.examples.join("data/digits.csv.gz"))?;
    let mut trainer = Trainer::new(options)?;
    println!("{} digits to learn from, {} to test with; the host alone first", training.len(), test.len());
    let (graft_after, slow_from) = (options.epochs / 2, options.epochs - options.epochs / 5);
    let steps_an_epoch = training.len().div_ceil(BATCH);
    // Alpha reaches 1 half-way through the epochs that follow the graft.
    let ramp_steps = (steps_an_epoch * ((options.epochs - graft_after) as usize).div_ceil(2)).max(1);
    let mut order: Vec<usize> = (0..training.len()).collect();
    let mut shuffle = Shuffle(options.seed);
    let mut before = 0.0;
    for epoch in 0..options.epochs {
        if epoch == graft_after {
            trainer.graft()?;
            println!(
                "grafted {} and {}: alpha goes from 0 to 1 in {ramp_steps} steps",
                KERNELS[0], KERNELS[1]
            );
        }
        let learning_rate = if epoch >= slow_from { LEARNING_RATE / 10.0 } else { LEARNING_RATE };
        shuffle.apply(&mut order);
        let mut loss = 0.0;
        for numbers in order.chunks(BATCH) {
            if epoch >= graft_after {
                trainer.ramp(ramp_steps)?;
            }
            loss += trainer.step(&training.batch(numbers), learning_rate)? / steps_an_epoch as f32;
        }
        let accuracy = trainer.accuracy(&test)?;
        let alpha = trainer.alpha;
        println!(
            "epoch {:2}/{}  loss {loss:.4}  test accuracy {accuracy:5.1} %  alpha {alpha:.2}",
            epoch + 1,
            options.epochs
        );
        if epoch < graft_after {
            before = accuracy;
        }
        trainer.after = accuracy;
    }
    trainer.report(before, started, options)
}

struct Trainer {
    stem: Part,
    host: Part,
    head: Part,
    layer: Layer,
    grafted: Vec<Arc<Grafted>>,
    moments: Vec<Vec<Adam>>,
    alpha: f32,
    ramped: usize,
    after: f64,
    forward: Histogram,
    backward: Histogram,
    // Held so that the session lives as long as its layer.
    _client: Client,
}

impl Trainer {
    fn new(options: &TrainerOptions) -> Result<Self, CliError> {
        let part = |name: &str| Part::open(&options.examples.join("digits").join(name));
        let client = Client::connect(&options.socket, &ConnectOptions::default())?;
        let layer =
            client.open_layer("digits.host", KERNELS.len() as u16, Blend::Convex, Some(MAPS.into()))?;
        Ok(Self {
            stem: part("stem.pt2")?,
            host: part("host.pt2")?,
            head: part("head.pt2")?,
            layer,
            grafted: Vec::new(),
            moments: Vec::new(),
            alpha: 0.0,
            ramped: 0,
            after: 0.0,
            forward: Histogram::default(),
            backward: Histogram::default(),
            _client: client,
        })
    }

    fn graft(&mut self) -> Result<(), CliError> {
        for (n, kernel) in KERNELS.iter().enumerate() {
            let kernel: KernelId = kernel.parse().map_err(|error| CliError::usage(format!("{error}")))?;
            let grafted = self.layer.graft(SeedIndex(n as u16), &kernel, 0.0, &MAPS.into())?;
            self.moments.push(vec![Adam::default(); grafted.parameters().len()]);
            self.grafted.push(grafted);
        }
        Ok(())
    }

    /// Takes alpha one step further.
    fn ramp(&mut self, steps: usize) -> Result<(), CliError> {
        if self.ramped == steps {
            return Ok(());
        }
        self.ramped += 1;
        self.alpha = self.ramped as f32 / steps as f32;
        for seed in 0..self.grafted.len() {
            self.layer.set_alpha(SeedIndex(seed as u16), self.alpha)?;
        }
        Ok(())
    }

    /// What the seeds give for the maps, and how much of the output they take.
    fn seeds(&self, maps: &HostTensor, train: bool) -> Result<Option<Pass>, CliError> {
        if self.alpha == 0.0 {
            return Ok(None);
        }
        let (values, start) = (maps.to_values::<f32>()?, Instant::now());
        let gradients = train.then(|| Wants { input: true, parameters: true, ..Wants::default() });
        let pass = self.layer.forward(&PassRequest {
            input: &values,
            input_shape: maps.shape(),
            output_shape: maps.shape(),
            train,
            gradients,
            rng_seed: 0,
            alphas: None,
        })?;
        if train {
            self.forward.record_duration(start.elapsed());
        }
        Ok(Some(pass))
    }

    fn images(images: &[f32]) -> Result<HostTensor, CliError> {
        let shape = Shape::from([images.len() / PIXELS, 1, 8, 8]);
        Ok(HostTensor::from_values(shape, images)?)
    }

    /// One step of training: gives the loss.
    fn step(
        &mut self,
        (images, digits): &(Vec<f32>, Vec<usize>),
        learning_rate: f32,
    ) -> Result<f32, CliError> {
        let stem = self.stem.forward(Self::images(images)?, true)?;
        let host = self.host.forward(stem.output.clone(), true)?;
        let pass = self.seeds(&stem.output, true)?;
        let (mixed, kept) = blend(&host.output, pass.as_ref())?;
        let head = self.head.forward(mixed, true)?;
        let (loss, gradient) = cross_entropy(&head.output.to_values::<f32>()?, CLASSES, digits);
        let gradient = HostTensor::from_values(head.output.shape().clone(), &gradient)?;

        let of_mixed = self.head.learn(&head, &gradient, learning_rate)?;
        let of_host: Vec<f32> = of_mixed.iter().map(|g| g * kept).collect();
        let of_host = HostTensor::from_values(host.output.shape().clone(), &of_host)?;
        let mut of_maps = self.host.learn(&host, &of_host, learning_rate)?;
        if let Some(pass) = pass {
            let start = Instant::now();
            let gradients = pass.backward(&of_mixed)?;
            self.backward.record_duration(start.elapsed());
            for (n, grafted) in self.grafted.iter().enumerate() {
                for (entry, moments) in grafted.parameters().iter().zip(&mut self.moments[n]) {
                    let gradient = gradients.parameter(SeedIndex(n as u16), entry);
                    if let Some(gradient) = gradient.filter(|_| entry.requires_grad) {
                        let deltas = moments.deltas(gradient, learning_rate);
                        grafted.floats(entry)?.update(|i, value| value + deltas[i]);
                    }
                }
            }
            let of_seeds = gradients.input.unwrap_or_default();
            of_maps.iter_mut().zip(of_seeds).for_each(|(sum, g)| *sum += g);
        }
        let of_maps = HostTensor::from_values(stem.output.shape().clone(), &of_maps)?;
        self.stem.learn(&stem, &of_maps, learning_rate)?;
        Ok(loss)
    }

    /// Per cent of samples that are read rightly, in eval mode.
    fn accuracy(&mut self, samples: &Samples) -> Result<f64, CliError> {
        let numbers: Vec<usize> = (0..samples.len()).collect();
        let (images, digits) = samples.batch(&numbers);
        let stem = self.stem.forward(Self::images(&images)?, false)?;
        let host = self.host.forward(stem.output.clone(), false)?;
        let (mixed, _) = blend(&host.output, self.seeds(&stem.output, false)?.as_ref())?;
        let head = self.head.forward(mixed, false)?;
        let right = correct(&head.output.to_values::<f32>()?, CLASSES, &digits);
        Ok(100.0 * right as f64 / digits.len().max(1) as f64)
    }

    fn report(&self, before: f64, started: Instant, options: &TrainerOptions) -> Result<Exit, CliError> {
        println!();
        println!("test accuracy   {before:.1} % before grafting, {:.1} % after", self.after);
        println!("took            {:.1} s", started.elapsed().as_secs_f64());
        for (name, times) in [("forward", &self.forward), ("backward", &self.backward)] {
            let summary = times.summary();
            let us = |ns: u64| micros(ns as f64 / 1e3);
            println!(
                "round trip      {name}: p50 {}, p99 {} over {} passes of both seeds",
                us(summary.p50_ns),
                us(summary.p99_ns),
                summary.count
            );
        }
        println!();
        let mut rows = Vec::new();
        for (n, kernel) in KERNELS.iter().enumerate() {
            let stats = self.layer.stats(SeedIndex(n as u16))?;
            rows.push(vec![
                n.to_string(),
                (*kernel).to_owned(),
                stats.executions.to_string(),
                stats.failures.total().to_string(),
                micros(stats.p50_us),
                micros(stats.p99_us),
            ]);
        }
        table::print(&[" SEED", "KERNEL", " PASSES", " ERRORS", " MEDIAN", " P99"], &rows);
        println!();
        let cache = Operator::connect(&options.control_socket)?.cache()?;
        let rows: Vec<_> = cache
            .tiers
            .iter()
            .map(|t| vec![t.name.clone(), t.hits.to_string(), t.misses.to_string()])
            .collect();
        table::print(&["TIER", " HITS", " MISSES"], &rows);
        println!();
        Ok(if self.after > before { Exit::Ok } else { Exit::No })
    }
}

/// (1 − A)·h + S, and 1 − A.
fn blend(host: &HostTensor, pass: Option<&Pass>) -> Result<(HostTensor, f32), CliError> {
    let Some(pass) = pass else { return Ok((host.clone(), 1.0)) };
    let kept = 1.0 - pass.blend_weight();
    let (own, seeds) = (host.to_values::<f32>()?, pass.output()?);
    let mixed: Vec<f32> = own.iter().zip(seeds).map(|(h, s)| kept * h + s).collect();
    Ok((HostTensor::from_values(host.shape().clone(), &mixed)?, kept))
}
