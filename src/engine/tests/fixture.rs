//! A layer with an arena, and kernels simple enough to be computed by hand.

use std::sync::Arc;

use crate::{
    backend::{Backend, HostMemory, Memory, cpu::CpuBackend},
    digest::Digest,
    engine::{
        Alpha, BackwardReport, EngineConfig, EngineError, ForwardReport, GradientSynchronizer, Kernel,
        KernelParts, LayerSpec, LiveSeed, PlanKey, Program, Quota, Role, SeedCounters, Weight,
    },
    fault::Fault,
    graph::{Binary, Builder, Graph, GraphError, Limits, Op, Sink, Source, Unary},
    id::{Generation, LayerId, SeedIndex, TicketId},
    tensor::{DType, HostTensor, Shape},
    validation::Metadata,
    wire::{self, Blend, Block, Wants},
};

pub(super) const BATCH: usize = 4;
pub(super) const WIDTH: usize = 6;
pub(super) const ELEMENTS: usize = BATCH * WIDTH;

/// k(x) = tanh(x·w), element by element, w repeated over the batch. In training mode buffer 0 counts passes.
#[derive(Debug)]
struct TanhProgram {
    /// Sizes of the output; another than the input's makes a kernel that does not fit.
    output: Shape,
}

impl TanhProgram {
    fn graph(&self, key: &PlanKey) -> Result<Graph, GraphError> {
        let mut b = Builder::new();
        let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
        let w = b.source(Source::Parameter(0), [WIDTH].into(), DType::F32)?;
        let product = b.apply(Op::Binary(Binary::Mul), &[x, w])?;
        let y = b.apply(Op::Unary(Unary::Tanh), &[product])?;
        let y = b.apply(Op::Reshape(self.output.clone()), &[y])?;
        b.sink(Sink::Output(0), y);
        if key.train {
            let count = b.source(Source::Buffer(0), Shape::scalar(), DType::F32)?;
            let next = b.apply(Op::Unary(Unary::AddScalar { value: 1.0 }), &[count])?;
            b.sink(Sink::BufferUpdate(0), next);
        }
        Ok(b.finish())
    }
}

impl Program for TanhProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        self.graph(key).map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

/// k(x) = x + c.
#[derive(Debug)]
struct ShiftProgram(f32);

impl Program for ShiftProgram {
    fn lower(&self, key: &PlanKey, _limits: &Limits) -> Result<Graph, Box<dyn Fault + Send + Sync>> {
        let graph = || -> Result<Graph, GraphError> {
            let mut b = Builder::new();
            let x = b.source(Source::Input(0), key.input_shape.clone(), key.dtype)?;
            let y = b.apply(Op::Unary(Unary::AddScalar { value: self.0.into() }), &[x])?;
            b.sink(Sink::Output(0), y);
            Ok(b.finish())
        };
        graph().map_err(|error| Box::new(error) as Box<dyn Fault + Send + Sync>)
    }
}

pub(super) fn shift_kernel(by: f32) -> Arc<Kernel> {
    let id: crate::id::KernelId = "shift".parse().unwrap();
    let parts = KernelParts {
        digest: Digest::of(b"shift"),
        metadata: Metadata::bare(id.clone()),
        id,
        verdict: None,
        parameters: Vec::new(),
        buffers: Vec::new(),
        program: Box::new(ShiftProgram(by)),
    };
    Arc::new(Kernel::new(parts).unwrap())
}

pub(super) fn kernel(name: &str, w: &[f32], output: [usize; 2]) -> Arc<Kernel> {
    let id: crate::id::KernelId = name.parse().unwrap();
    let weight = |name: &str, tensor, requires_grad| Weight { name: name.to_owned(), tensor, requires_grad };
    let parts = KernelParts {
        digest: Digest::of(name.as_bytes()),
        metadata: Metadata::bare(id.clone()),
        id,
        verdict: None,
        parameters: vec![weight("w", HostTensor::from_values([WIDTH].into(), w).unwrap(), true)],
        buffers: vec![weight("count", HostTensor::from_values(Shape::scalar(), &[0f32]).unwrap(), false)],
        program: Box::new(TanhProgram { output: output.into() }),
    };
    Arc::new(Kernel::new(parts).unwrap())
}

pub(super) fn live(kernel: Arc<Kernel>, generation: u64) -> Arc<LiveSeed> {
    let memory = HostMemory::new(kernel.memory_bytes());
    assert!(kernel.initialise(memory.region()));
    Arc::new(LiveSeed::new(kernel, Arc::new(memory), Generation(generation)).unwrap())
}

/// Weights of the n-th kernel.
pub(super) fn weights_of(n: usize) -> Vec<f32> {
    (0..WIDTH).map(|i| ((n * 5 + i) as f32 * 0.83).sin()).collect()
}

pub(super) fn seed(n: usize) -> Arc<LiveSeed> {
    live(kernel(&format!("tanh-{n}"), &weights_of(n), [BATCH, WIDTH]), n as u64)
}

pub(super) fn alpha(value: f32) -> Alpha {
    Alpha::new(value).unwrap()
}

pub(super) fn passes_counted(live: &LiveSeed) -> f32 {
    let mut bytes = [0; 4];
    assert!(live.buffers().read(&mut bytes));
    f32::from_le_bytes(bytes)
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
}

const ROOM_BYTES: usize = 4096;

pub(super) fn block(room: Room, bytes: usize) -> Block {
    Block { offset: (room as usize * ROOM_BYTES) as u64, bytes: bytes as u64 }
}

pub(super) struct Layer {
    pub(super) sync: GradientSynchronizer,
    pub(super) quota: Quota,
    pub(super) arena: Arc<dyn Memory>,
    pub(super) counters: Vec<Arc<SeedCounters>>,
}

impl Layer {
    pub(super) fn new(blend: Blend, seeds: usize, config: EngineConfig) -> Self {
        Self::on(Arc::new(CpuBackend::new(config.threads)), blend, seeds, config)
    }

    pub(super) fn on(backend: Arc<dyn Backend>, blend: Blend, seeds: usize, config: EngineConfig) -> Self {
        let counters: Vec<Arc<SeedCounters>> = (0..seeds).map(|_| Arc::default()).collect();
        let (counters_too, host, recompute) = (counters.clone(), false, false);
        let spec = LayerSpec { id: LayerId(1), blend, counters: counters_too, host, recompute };
        Self {
            sync: GradientSynchronizer::new(spec, backend, Arc::new(config)),
            quota: Quota::new(100, 1 << 20),
            arena: Arc::new(HostMemory::new(8 * ROOM_BYTES)),
            counters,
        }
    }

    pub(super) fn attach(&mut self, index: usize, live: &Arc<LiveSeed>, value: f32) {
        self.sync.attach(SeedIndex(index as u16), live.clone(), alpha(value), Role::Blended).unwrap();
    }

    pub(super) fn write(&self, room: Room, values: &[f32]) {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        assert!(self.arena.region().part(room as usize * ROOM_BYTES, bytes.len()).unwrap().write(&bytes));
    }

    pub(super) fn read(&self, room: Room, count: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * count];
        assert!(self.arena.region().part(room as usize * ROOM_BYTES, 4 * count).unwrap().read(&mut bytes));
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
        let seeds = self.counters.len();
        self.write(Room::GradOutput, g);
        for (room, count) in
            [(Room::GradInput, ELEMENTS), (Room::GradParameters, 16 * ran), (Room::GradAlphas, seeds)]
        {
            self.write(room, &vec![f32::NAN; count]);
        }
        let request = wire::Backward {
            sequence: 0,
            layer: LayerId(1),
            ticket,
            grad_output: block(Room::GradOutput, 4 * ELEMENTS),
            grad_input: Some(block(Room::GradInput, 4 * ELEMENTS)),
            grad_parameters: Some(block(Room::GradParameters, 64 * ran)),
            grad_alphas: Some(block(Room::GradAlphas, 4 * seeds)),
            straight: None,
        };
        self.sync.backward(&request, &self.arena, &mut self.quota)
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
