//! A layer of the engine as a session's lane has it.

use std::{sync::Arc, time::Duration};

use kasmina::{
    backend::{Backend as _, HostMemory, Memory as _, Shared, cpu::CpuBackend},
    engine::{Alpha, EngineConfig, GradientSynchronizer, LayerSpec, LiveSeed, Quota, Role},
    id::{Generation, LayerId, SeedIndex, TicketId},
    tensor::{ALIGNMENT_BYTES, DType},
    wire::{self, Blend, Block, Wants},
};

use crate::{
    numbers,
    subject::Subject,
    watched::{Traffic, Watched},
};

/// Where things lie in its arena, each in as many bytes as the input takes; the parameters' gradients, of any size, last.
#[derive(Clone, Copy)]
enum Room {
    Input,
    Output,
    GradOutput,
    GradInput,
    GradParameters,
}

/// A layer with seeds of one kernel, on one thread.
pub(crate) struct Layer {
    synchronizer: GradientSynchronizer,
    arena: Arc<Shared>,
    quota: Quota,
    forward: wire::Forward,
    backward: wire::Backward,
    traffic: Arc<Traffic>,
}

impl Layer {
    /// A seed for each blend factor; passes in training mode where they have a backward, `both`.
    pub(crate) fn new(subject: Subject, alphas: &[f32], both: bool) -> Self {
        let traffic = Arc::<Traffic>::default();
        let backend = Arc::new(Watched { cpu: CpuBackend::new(1), traffic: traffic.clone() });
        let spec = LayerSpec {
            id: LayerId(1),
            blend: Blend::Convex,
            counters: alphas.iter().map(|_| Arc::default()).collect(),
            host: false,
            recompute: false,
        };
        // valgrind takes its time.
        let config =
            EngineConfig { threads: 1, time_limit: Duration::from_secs(600), ..EngineConfig::default() };
        let mut synchronizer = GradientSynchronizer::new(spec, backend.clone(), Arc::new(config));
        let kernel = subject.kernel();
        for (nth, &alpha) in (0..).zip(alphas) {
            let memory = Arc::new(HostMemory::new(kernel.memory_bytes()));
            assert!(kernel.initialise(memory.region()));
            let live = LiveSeed::new(kernel.clone(), backend.share(memory).unwrap(), Generation(1)).unwrap();
            let alpha = Alpha::new(alpha).unwrap();
            synchronizer.attach(SeedIndex(nth), Arc::new(live), alpha, Role::Blended).unwrap();
        }
        let (shape, dtype) = (subject.shape(), DType::F32);
        let bytes = shape.elements() * dtype.size_bytes();
        assert!(bytes.is_multiple_of(ALIGNMENT_BYTES));
        let gradient_bytes = alphas.len() * kernel.parameter_layout().total_bytes();
        let arena = HostMemory::new(Room::GradParameters as usize * bytes + gradient_bytes);
        let block =
            |room: Room, len: usize| Block { offset: (room as usize * bytes) as u64, bytes: len as u64 };
        for room in [Room::Input, Room::GradOutput] {
            let values: Vec<u8> = numbers(shape.elements()).iter().flat_map(|n| n.to_le_bytes()).collect();
            assert!(arena.region().part(room as usize * bytes, bytes).unwrap().write(&values));
        }
        Self {
            synchronizer,
            arena: Arc::new(backend.share(Arc::new(arena)).unwrap()),
            quota: Quota::new(0, 0),
            forward: wire::Forward {
                sequence: 0,
                layer: LayerId(1),
                train: both,
                take_ticket: both,
                wants: Wants { input: both, parameters: both, alphas: false },
                rng_seed: 7,
                dtype,
                input: block(Room::Input, bytes),
                input_shape: shape.clone(),
                output: block(Room::Output, bytes),
                output_shape: shape,
                alphas: None,
            },
            backward: wire::Backward {
                sequence: 0,
                layer: LayerId(1),
                ticket: TicketId(0),
                grad_output: block(Room::GradOutput, bytes),
                grad_input: Some(block(Room::GradInput, bytes)),
                grad_parameters: Some(block(Room::GradParameters, gradient_bytes)),
                places: None,
                grad_alphas: None,
                straight: None,
            },
            traffic,
        }
    }

    /// A forward pass, and the backward of its ticket where it has taken one.
    pub(crate) fn pass(&mut self) {
        let there = self.synchronizer.forward(&self.forward, &self.arena, &mut self.quota).unwrap();
        assert!(there.failures.is_empty(), "{:?}", there.failures);
        if self.forward.take_ticket {
            self.backward.ticket = there.ticket;
            let back = self.synchronizer.backward(&self.backward, &self.arena, &mut self.quota).unwrap();
            assert!(back.failures.is_empty(), "{:?}", back.failures);
        }
    }

    /// Bytes that its device has copied, zeroed and exchanged so far.
    pub(crate) fn traffic(&self) -> [usize; 3] {
        self.traffic.bytes()
    }
}
