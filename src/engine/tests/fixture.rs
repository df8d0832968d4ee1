//! A layer with an arena, and what it computes by the formulas.

use std::sync::Arc;

pub(super) use super::kernels::{
    kernel, live, moody, passes_counted, seed, seed_on, set_weights, shift_kernel, weights_of,
};
use crate::{
    backend::{Backend, HostMemory, Shared, test_device::device},
    engine::{
        Alpha, BackwardReport, EngineConfig, EngineError, ForwardReport, GradientSynchronizer, LayerSpec,
        LiveSeed, Quota, Role, SeedCounters,
    },
    id::{LayerId, SeedIndex, TicketId},
    tensor::DType,
    wire::{self, Blend, Block, Wants},
};

pub(super) const BATCH: usize = 4;
pub(super) const WIDTH: usize = 6;
pub(super) const ELEMENTS: usize = BATCH * WIDTH;

pub(super) fn alpha(value: f32) -> Alpha {
    Alpha::new(value).unwrap()
}

pub(super) fn config() -> EngineConfig {
    EngineConfig { threads: 1, ..EngineConfig::default() }
}

/// Where things lie in the arena.
#[derive(Clone, Copy)]
pub(super) enum Room {
    Input = 0,
    Output = 1,
    GradOutput = 2,
    GradInput = 3,
    GradParameters = 4,
    GradAlphas = 5,
    Alphas = 6,
    Straight = 7,
}

const ROOM_BYTES: usize = 4096;

pub(super) fn block(room: Room, bytes: usize) -> Block {
    Block { offset: (room as usize * ROOM_BYTES) as u64, bytes: bytes as u64 }
}

/// What a layer is opened with beside its blend and its seeds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Kind {
    pub(super) host: bool,
    pub(super) recompute: bool,
}

pub(super) struct Layer {
    pub(super) seeds: usize,
    pub(super) sync: GradientSynchronizer,
    pub(super) quota: Quota,
    pub(super) arena: Arc<Shared>,
    pub(super) counters: Vec<Arc<SeedCounters>>,
}

impl Layer {
    pub(super) fn new(blend: Blend, seeds: usize, config: EngineConfig) -> Self {
        Self::on(device(config.threads), blend, seeds, config)
    }

    pub(super) fn on(backend: Arc<dyn Backend>, blend: Blend, seeds: usize, config: EngineConfig) -> Self {
        Self::of(Kind::default(), backend, blend, seeds, config)
    }

    pub(super) fn of(
        Kind { host, recompute }: Kind,
        backend: Arc<dyn Backend>,
        blend: Blend,
        seeds: usize,
        config: EngineConfig,
    ) -> Self {
        let slots = seeds + usize::from(host);
        let counters: Vec<Arc<SeedCounters>> = (0..slots).map(|_| Arc::default()).collect();
        let spec = LayerSpec { id: LayerId(1), blend, counters: counters.clone(), host, recompute };
        Self {
            seeds,
            arena: Arc::new(backend.share(Arc::new(HostMemory::new(8 * ROOM_BYTES))).unwrap()),
            sync: GradientSynchronizer::new(spec, backend, Arc::new(config)),
            quota: Quota::new(100, 1 << 20),
            counters,
        }
    }

    /// A layer of a kind, on the CPU; `n` for the host's kernel.
    pub(super) fn with_host(kind: Kind, blend: Blend, seeds: usize, n: usize, config: EngineConfig) -> Self {
        let backend = device(config.threads);
        let mut layer = Self::of(kind, backend, blend, seeds, config);
        if kind.host {
            layer.attach(seeds, &seed(n), 0.0);
        }
        layer
    }

    pub(super) fn attach_as(&mut self, role: Role, index: usize, live: &Arc<LiveSeed>, value: f32) {
        self.sync.attach(SeedIndex(index as u16), live.clone(), alpha(value), role).unwrap();
    }

    pub(super) fn attach(&mut self, index: usize, live: &Arc<LiveSeed>, value: f32) {
        self.sync.attach(SeedIndex(index as u16), live.clone(), alpha(value), Role::Blended).unwrap();
    }

    pub(super) fn write(&self, room: Room, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(self.arena.words().part(room as usize * ROOM_BYTES, bytes.len()).unwrap().write(&bytes));
    }

    pub(super) fn read(&self, room: Room, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        assert!(self.arena.words().part(room as usize * ROOM_BYTES, 4 * count).unwrap().read(&mut bytes));
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    }

    pub(super) fn forward_request(&self, x: &[f32], take_ticket: bool) -> wire::Forward {
        self.write(Room::Input, x);
        self.write(Room::Output, &[f32::NAN; ELEMENTS]);
        wire::Forward {
            sequence: 0,
            layer: LayerId(1),
            train: true,
            take_ticket,
            wants: Wants { input: true, parameters: true, alphas: true },
            rng_seed: 7,
            dtype: DType::F32,
            input: block(Room::Input, 4 * ELEMENTS),
            input_shape: [BATCH, WIDTH].into(),
            output: block(Room::Output, 4 * ELEMENTS),
            output_shape: [BATCH, WIDTH].into(),
            alphas: None,
        }
    }

    pub(super) fn forward(&mut self, x: &[f32], take_ticket: bool) -> Result<ForwardReport, EngineError> {
        let request = self.forward_request(x, take_ticket);
        self.sync.forward(&request, &self.arena, &mut self.quota)
    }

    /// A backward of everything; x must lie in the arena still.
    pub(super) fn backward(
        &mut self,
        ticket: TicketId,
        ran: usize,
        g: &[f32],
    ) -> Result<BackwardReport, EngineError> {
        self.backward_with(ticket, ran, g, None)
    }

    /// A forward with alphas of its own; NaN for those of the seeds.
    pub(super) fn forward_given(
        &mut self,
        x: &[f32],
        take_ticket: bool,
        given: Option<&[f32]>,
    ) -> Result<ForwardReport, EngineError> {
        let mut request = self.forward_request(x, take_ticket);
        request.alphas = given.map(|alphas| {
            self.write(Room::Alphas, alphas);
            block(Room::Alphas, 4 * alphas.len())
        });
        self.sync.forward(&request, &self.arena, &mut self.quota)
    }

    pub(super) fn backward_with(
        &mut self,
        ticket: TicketId,
        ran: usize,
        g: &[f32],
        straight: Option<&[f32]>,
    ) -> Result<BackwardReport, EngineError> {
        let request = self.backward_request(ticket, ran, g, straight);
        self.sync.backward(&request, &self.arena, &mut self.quota)
    }

    pub(super) fn backward_request(
        &self,
        ticket: TicketId,
        ran: usize,
        g: &[f32],
        straight: Option<&[f32]>,
    ) -> wire::Backward {
        let seeds = self.seeds;
        self.write(Room::GradOutput, g);
        let straight = straight.map(|g| {
            self.write(Room::Straight, g);
            block(Room::Straight, 4 * ELEMENTS)
        });
        for (room, count) in
            [(Room::GradInput, ELEMENTS), (Room::GradParameters, 16 * ran), (Room::GradAlphas, seeds)]
        {
            self.write(room, &vec![f32::NAN; count]);
        }
        wire::Backward {
            places: None,
            sequence: 0,
            layer: LayerId(1),
            ticket,
            grad_output: block(Room::GradOutput, 4 * ELEMENTS),
            grad_input: Some(block(Room::GradInput, 4 * ELEMENTS)),
            grad_parameters: Some(block(Room::GradParameters, 64 * ran)),
            grad_alphas: Some(block(Room::GradAlphas, 4 * seeds)),
            straight,
        }
    }

    /// The n-th seed's gradient of w in the last backward.
    pub(super) fn grad_w(&self, place: usize) -> Vec<f32> {
        self.read(Room::GradParameters, 16 * (place + 1))[16 * place..][..WIDTH].to_vec()
    }
}

pub(super) fn noise(salt: usize) -> Vec<f32> {
    (0..ELEMENTS).map(|i| ((salt * 31 + i * 7) as f32 * 0.37).sin() * 1.5).collect()
}

/// What a layer computes, by the formulas in `f64`.
pub(super) struct Expected {
    pub(super) output: Vec<f64>,
    pub(super) grad_input: Vec<f64>,
    pub(super) grad_w: Vec<Vec<f64>>,
    pub(super) grad_alphas: Vec<f64>,
}

/// By (weights, α) of the seeds that ran, in order.
#[expect(clippy::needless_range_loop, reason = "several lists go by the same index")]
pub(super) fn expected(blend: Blend, seeds: &[(Vec<f32>, f32)], x: &[f32], g: &[f32]) -> Expected {
    let total: f64 = seeds.iter().map(|(_, a)| f64::from(*a)).sum();
    let scale = if blend == Blend::Convex && total > 1.0 { 1.0 / total } else { 1.0 };
    let count = seeds.len();
    let neutral = if blend == Blend::Multiply { 1.0 } else { 0.0 };
    let mut all = Expected {
        output: vec![neutral; ELEMENTS],
        grad_input: vec![0.0; ELEMENTS],
        grad_w: vec![vec![0.0; WIDTH]; count],
        grad_alphas: vec![0.0; count],
    };
    let mut of_factors = vec![0.0; count];
    for i in 0..ELEMENTS {
        let (x, g, column) = (f64::from(x[i]), f64::from(g[i]), i % WIDTH);
        let w: Vec<f64> = seeds.iter().map(|(w, _)| f64::from(w[column])).collect();
        let a: Vec<f64> = seeds.iter().map(|(_, a)| f64::from(*a)).collect();
        let k: Vec<f64> = w.iter().map(|w| (x * w).tanh()).collect();
        for s in 0..count {
            // ∂y/∂k_s, ∂y/∂factor_s and the blend's own ∂y/∂x.
            let (of_k, of_factor, of_x) = if blend == Blend::Multiply {
                let others: f64 =
                    (0..count).filter(|&o| o != s).map(|o| 1.0 + a[o] * (k[o] - x).tanh()).product();
                let t = (k[s] - x).tanh();
                (others * a[s] * (1.0 - t * t), others * t, -others * a[s] * (1.0 - t * t))
            } else {
                (a[s] * scale, k[s], 0.0)
            };
            let slope = 1.0 - k[s] * k[s];
            all.grad_input[i] += g * (of_k * slope * w[s] + of_x);
            all.grad_w[s][column] += g * of_k * slope * x;
            of_factors[s] += g * of_factor;
            match blend {
                Blend::Multiply => all.output[i] *= 1.0 + a[s] * (k[s] - x).tanh(),
                _ => all.output[i] += a[s] * scale * k[s],
            }
        }
    }
    let mean: f64 = seeds.iter().zip(&of_factors).map(|((_, a), d)| f64::from(*a) * scale * d).sum();
    for s in 0..count {
        let shared = blend == Blend::Convex && total > 1.0;
        all.grad_alphas[s] = if shared { (of_factors[s] - mean) / total } else { of_factors[s] };
    }
    all
}

#[track_caller]
pub(super) fn close(actual: &[f32], expected: &[f64]) {
    assert_eq!(actual.len(), expected.len());
    for (i, (a, e)) in actual.iter().zip(expected).enumerate() {
        assert!((f64::from(*a) - e).abs() < 2e-5 * (1.0 + e.abs()), "element {i}: {a}, expected {e}");
    }
}
