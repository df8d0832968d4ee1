//! Attention as one operation beside attention composed of products and a softmax, on the CPU: queries, keys and values
//! split out of one projection, heads joined again. Prints a table; an argument is the number of threads, all by default.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use kasmina::{
    backend::{Backend, CompileOptions, Executable, PassBlocks, RunContext, cpu::CpuBackend},
    graph::{
        Builder, Compare, Differentiated, Graph, GraphError, Op, Sink, Source, Unary, ValueId, Wants,
        differentiate,
    },
    tensor::{DType, HostTensor, PackedLayout, Shape},
};

/// How long a case is measured in each direction, and the fewest passes.
const SPAN: Duration = Duration::from_millis(700);
const FEWEST: usize = 9;

/// Batch, length, heads, width of a head, and whether causal.
const CASES: &[([usize; 4], bool)] = &[
    ([8, 16, 4, 16], false),
    ([8, 64, 4, 64], false),
    ([8, 128, 4, 64], false),
    ([8, 128, 4, 64], true),
    ([4, 257, 4, 33], false),
    ([4, 1024, 4, 64], false),
    ([4, 1024, 4, 64], true),
    ([1, 2048, 2, 128], false),
];

fn heads(builder: &mut Builder, x: ValueId, [b, l, h, w]: [usize; 4]) -> Result<[ValueId; 3], GraphError> {
    let split = builder.apply(Op::Reshape([b, l, 3, h, w].into()), &[x])?;
    let turned = builder.apply(Op::Permute(vec![2, 0, 3, 1, 4]), &[split])?;
    let mut parts = [turned; 3];
    for (start, part) in parts.iter_mut().enumerate() {
        let one = builder.apply(Op::Slice { dim: 0, start, len: 1, step: 1 }, &[turned])?;
        *part = builder.apply(Op::Reshape([b, h, l, w].into()), &[one])?;
    }
    Ok(parts)
}

fn composed(
    builder: &mut Builder,
    [q, k, v]: [ValueId; 3],
    length: usize,
    is_causal: bool,
    scale: f64,
) -> Result<ValueId, GraphError> {
    let product = Op::MatMul { transpose_a: false, transpose_b: false };
    let k = builder.apply(Op::Permute(vec![0, 1, 3, 2]), &[k])?;
    let q = builder.apply(Op::Unary(Unary::MulScalar { value: scale }), &[q])?;
    let mut scores = builder.apply(product.clone(), &[q, k])?;
    if is_causal {
        let places = Op::Arange { start: 0.0, step: 1.0, len: length, dtype: DType::I64 };
        let keys = builder.apply(places.clone(), &[])?;
        let queries = builder.apply(places, &[])?;
        let queries = builder.apply(Op::Reshape([length, 1].into()), &[queries])?;
        let mask = builder.apply(Op::Compare(Compare::Le), &[keys, queries])?;
        let nothing = Op::Full { shape: Shape::scalar(), dtype: DType::F32, value: f64::NEG_INFINITY };
        let nothing = builder.apply(nothing, &[])?;
        scores = builder.apply(Op::Where, &[mask, scores, nothing])?;
    }
    let weights = builder.apply(Op::Softmax { dim: 3 }, &[scores])?;
    builder.apply(product, &[weights, v])
}

fn graph(sizes: [usize; 4], is_causal: bool, is_one: bool) -> Result<Graph, GraphError> {
    let [b, l, h, w] = sizes;
    let scale = 1.0 / (w as f64).sqrt();
    let mut builder = Builder::new();
    let x = builder.source(Source::Input(0), [b, l, 3 * h * w].into(), DType::F32)?;
    let parts = heads(&mut builder, x, sizes)?;
    let y = if is_one {
        builder.apply(Op::Attention { causal: is_causal, scale }, &parts)?
    } else {
        composed(&mut builder, parts, l, is_causal, scale)?
    };
    let y = builder.apply(Op::Permute(vec![0, 2, 1, 3]), &[y])?;
    let y = builder.apply(Op::Reshape([b, l, h * w].into()), &[y])?;
    builder.sink(Sink::Output(0), y);
    Ok(builder.finish())
}

/// One form of attention, ready to run.
struct Subject<'a> {
    both: Differentiated,
    executables: [Arc<dyn Executable>; 2],
    blocks: PassBlocks<'a>,
    workspace_bytes: usize,
    saved_bytes: usize,
    context: RunContext,
}

impl<'a> Subject<'a> {
    fn new(
        backend: &'a CpuBackend,
        both: Differentiated,
        executables: [Arc<dyn Executable>; 2],
        saved: &'a PackedLayout,
        none: &'a PackedLayout,
    ) -> Self {
        let mut blocks = PassBlocks::new(backend, [none, none], saved);
        for graph in [&both.forward, &both.backward] {
            for &(source, value) in &graph.sources {
                if matches!(source, Source::Input(_) | Source::GradOutput(_)) {
                    let shape = &graph.info(value).shape;
                    let number = |n: usize| (n.wrapping_mul(2_654_435_761) % 997) as f32 / 500.0 - 1.0;
                    let values: Vec<f32> = (0..shape.elements()).map(number).collect();
                    let tensor = HostTensor::from_values(shape.clone(), &values);
                    blocks.feed(source, tensor.expect("as many as the shape has").bytes()).expect("it fits");
                }
            }
        }
        let needs = executables.each_ref().map(|executable| executable.needs().workspace_bytes);
        let context = RunContext { seed: 1, deadline: None, threads: backend.threads() };
        let (workspace_bytes, saved_bytes) = (needs[0].max(needs[1]), saved.total_bytes());
        Self { both, executables, blocks, workspace_bytes, saved_bytes, context }
    }

    /// Milliseconds of a pass in one direction.
    fn time(&mut self, direction: usize) -> f64 {
        let graph = [&self.both.forward, &self.both.backward][direction];
        let start = Instant::now();
        self.blocks.run(&*self.executables[direction], graph, &self.context).expect("it runs");
        start.elapsed().as_secs_f64() * 1e3
    }
}

fn compiled(backend: &CpuBackend, both: &Differentiated) -> [Arc<dyn Executable>; 2] {
    let none = PackedLayout::default();
    let options =
        CompileOptions { parameters: &none, buffers: &none, limit_bytes: usize::MAX, deadline: None };
    [&both.forward, &both.backward].map(|graph| backend.compile(graph, &options).expect("it is planned"))
}

/// Medians in milliseconds, by direction and form; both forms take turns.
fn medians(subjects: &mut [Subject<'_>; 2]) -> [[f64; 2]; 2] {
    [0, 1].map(|direction| {
        let (mut times, start) = ([Vec::new(), Vec::new()], Instant::now());
        while start.elapsed() < SPAN || times[0].len() < FEWEST {
            for (subject, times) in subjects.iter_mut().zip(&mut times) {
                times.push(subject.time(direction));
            }
        }
        times.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times[times.len() / 2]
        })
    })
}

fn main() {
    // cargo adds `--bench`.
    let threads = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(0);
    let backend = CpuBackend::new(threads);
    println!("{} threads, float32; composed → one operation\n", backend.threads());
    println!("| batch × length × heads × width | forward ms | backward ms | workspace MiB | saved MiB |");
    println!("| --- | ---: | ---: | ---: | ---: |");
    let none = PackedLayout::default();
    for &(sizes, is_causal) in CASES {
        let graphs = [false, true].map(|is_one| graph(sizes, is_causal, is_one).expect("the shapes fit"));
        let wants = Wants { inputs: &[true], parameters: &[] };
        let both = graphs.map(|graph| differentiate(&graph, &wants).expect("it has a gradient"));
        let executables = both.each_ref().map(|both| compiled(&backend, both));
        let saved = executables.each_ref().map(|[forward, _]| forward.needs().saved.clone());
        let mut forms = both
            .into_iter()
            .zip(executables)
            .zip(&saved)
            .map(|((both, executables), saved)| Subject::new(&backend, both, executables, saved, &none));
        let mut subjects: [Subject<'_>; 2] = std::array::from_fn(|_| forms.next().expect("there are two"));
        let [forward, backward] = medians(&mut subjects);
        let [b, l, h, w] = sizes;
        let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
        let [composed, one] = &subjects;
        println!(
            "| {b}×{l}×{h}×{w}{} | {:.3} → {:.3} | {:.3} → {:.3} | {:.2} → {:.2} | {:.2} → {:.2} |",
            if is_causal { " causal" } else { "" },
            forward[0],
            forward[1],
            backward[0],
            backward[1],
            mib(composed.workspace_bytes),
            mib(one.workspace_bytes),
            mib(composed.saved_bytes),
            mib(one.saved_bytes),
        );
    }
}
