//! `kasmina inspect`: an artifact as a person wants to read it.

use std::{
    collections::{BTreeMap, HashMap},
    time::Instant,
};

use super::{
    CliError, Exit,
    subject::{Subject, SubjectOptions},
    table,
    validate::{exit, report},
};
use crate::{
    artifact::{self, Mode, Module, ModuleType},
    graph::{Graph, Limits, Sink, Source, ValueId, Wants, cost, differentiate_within, node_cost, simplify},
    tensor::{DType, HostTensor, Shape},
    validation::Policy,
};

/// What to show of what.
#[derive(Debug)]
pub struct InspectOptions {
    /// The artifact and what is said of it.
    pub subject: SubjectOptions,
    /// Training or eval mode.
    pub mode: Mode,
    /// The batch the program is lowered for, where it was not exported for another.
    pub batch: usize,
    /// Whether to show the backward graph too.
    pub backward: bool,
}

/// Prints the verdict, the module tree with parameters and shapes, the program in SSA form with what each
/// operation costs, and the operations in sum. Exits as `validate` does.
///
/// # Errors
/// [`CliError`] when the file cannot be opened.
pub fn inspect(options: &InspectOptions) -> Result<Exit, CliError> {
    let subject = Subject::open(&options.subject)?;
    let policy = Policy::from(&options.subject.config.validator);
    let verdict = subject.judge(&policy);
    let mut text = report(&options.subject.file.display().to_string(), &verdict);
    // What nobody trusted vouches for, or what is too large, is not read.
    let read = subject.bytes.filter(|_| verdict.format.is_some());
    if let Some(Ok(module)) = read.map(|bytes| artifact::read(bytes, &policy.read)) {
        text.push_str("\nmodules\n");
        text.push_str(&modules(&module));
        match input(options, &module, subject.metadata.input_shape.as_ref()) {
            Err(reason) => text.push_str(&format!("\nprogram\n  not lowered: {reason}\n")),
            Ok((shape, dtype)) => text.push_str(&program(options, &module, shape, dtype)),
        }
    }
    table::say(&text);
    Ok(exit(&verdict))
}

/// The modules of the tree, without nodes that are from none.
fn named(module: &Module) -> impl Iterator<Item = &ModuleType> {
    let types = module.types().iter();
    types.filter(|known| !known.class.is_empty() && known.class != artifact::EXPORTERS_FRAME)
}

/// The module tree, each module with the tensors of its own.
fn modules(module: &Module) -> String {
    let mut own: BTreeMap<&str, Vec<(&str, &HostTensor, &str)>> = BTreeMap::new();
    let parameters = module.parameters().iter().map(|p| {
        (p.name.as_str(), &p.tensor, if p.requires_grad { "parameter" } else { "frozen parameter" })
    });
    let buffers = module.buffers().iter().map(|b| (b.name.as_str(), &b.tensor, "buffer"));
    for (name, tensor, kind) in parameters.chain(buffers) {
        let (owner, leaf) = name.rsplit_once('.').unwrap_or(("", name));
        own.entry(owner).or_default().push((leaf, tensor, kind));
    }
    let mut tree: BTreeMap<&str, &str> =
        named(module).map(|known| (known.path.as_str(), known.class.as_str())).collect();
    // A tensor's module is shown even where the archive does not say what it is.
    for owner in own.keys() {
        tree.entry(owner).or_insert("?");
    }
    let mut rows = Vec::new();
    for (path, class) in tree {
        let depth = if path.is_empty() { 0 } else { path.split('.').count() };
        let name = if path.is_empty() { "(root)" } else { path.rsplit('.').next().unwrap_or(path) };
        rows.push(vec![format!("{}{name}", "  ".repeat(depth)), class.to_owned(), String::new()]);
        for (leaf, tensor, kind) in own.get(path).into_iter().flatten() {
            let what = format!("{kind} {}{}", tensor.dtype(), tensor.shape());
            let count = tensor.shape().elements().to_string();
            rows.push(vec![format!("{}{leaf}", "  ".repeat(depth + 1)), what, count]);
        }
    }
    indented(&table::render(&["module", "class or tensor", " numbers"], &rows))
}

/// The input to lower the program for.
fn input(
    options: &InspectOptions,
    module: &Module,
    declared: Option<&Shape>,
) -> Result<(Shape, DType), String> {
    let exported = module.declared_inputs().and_then(<[_]>::first);
    let batch = exported.and_then(|input| input.sizes.first().copied().flatten()).unwrap_or(options.batch);
    let exported_sample = exported
        .and_then(|input| input.sizes.get(1..))
        .and_then(|sizes| sizes.iter().copied().collect::<Option<Shape>>());
    let sample = declared.cloned().or(exported_sample);
    let sample = sample.ok_or("the archive does not say its input's shape: give --input-shape")?;
    let shape = std::iter::once(batch).chain(sample.iter().copied()).collect();
    Ok((shape, exported.map_or(DType::F32, |input| input.dtype)))
}

fn program(options: &InspectOptions, module: &Module, shape: Shape, dtype: DType) -> String {
    let mode = if options.mode == Mode::Train { "training" } else { "eval" };
    let title = format!("in {mode} mode, input {dtype}{shape}");
    let limits = Limits::default().until(Instant::now() + options.subject.config.validator.time_limit);
    let lowered = module.lower(&[(shape, dtype)], options.mode, &limits);
    let mut graph = match lowered {
        Ok(graph) => graph,
        Err(error) => return format!("\nprogram {title}\n  not lowered: {error}\n"),
    };
    simplify(&mut graph);
    let mut text = format!("\nprogram {title}\n{}", listing(&graph, module));
    if options.backward {
        let graded: Vec<bool> = module.parameters().iter().map(|p| p.requires_grad).collect();
        let wants = Wants { inputs: &[dtype.is_floating_point()], parameters: &graded };
        match differentiate_within(&graph, &wants, &limits) {
            Err(error) => text.push_str(&format!("\nbackward\n  there is none: {error}\n")),
            Ok(mut both) => {
                simplify(&mut both.backward);
                text.push_str("\nbackward\n");
                text.push_str(&listing(&both.backward, module));
            }
        }
    }
    text
}

/// A line for each operation with what it costs, then the operations in sum.
fn listing(graph: &Graph, module: &Module) -> String {
    let sources: HashMap<ValueId, Source> = graph.sources.iter().map(|&(source, v)| (v, source)).collect();
    let operand = |value: ValueId| match sources.get(&value) {
        None => value.to_string(),
        Some(&source) => {
            let name = match source {
                Source::Parameter(n) => module.parameters().get(n as usize).map(|p| p.name.clone()),
                Source::Buffer(n) => module.buffers().get(n as usize).map(|b| b.name.clone()),
                _ => None,
            };
            name.unwrap_or_else(|| source.to_string().replace(' ', "_"))
        }
    };
    let mut rows = Vec::new();
    let mut sums: BTreeMap<&str, (u64, u64, u64)> = BTreeMap::new();
    for node in &graph.nodes {
        let cost = node_cost(graph, node);
        let (count, flops, moved) = sums.entry(node.op.name()).or_default();
        *count += 1;
        *flops = flops.saturating_add(cost.flops);
        *moved = moved.saturating_add(cost.moved_bytes);
        let line = graph.line(node, &operand).to_string();
        rows.push(vec![table::count(cost.flops, "FLOP"), table::bytes(cost.moved_bytes), line]);
    }
    for &(sink, value) in &graph.sinks {
        let name = match sink {
            Sink::BufferUpdate(n) => module.buffers().get(n as usize).map(|b| b.name.clone()),
            Sink::GradParameter(n) => module.parameters().get(n as usize).map(|p| format!("grad {}", p.name)),
            _ => None,
        };
        let name = name.unwrap_or_else(|| sink.to_string());
        rows.push(vec![String::new(), String::new(), format!("{name} = {}", operand(value))]);
    }
    let mut text = indented(&table::render(&[" computes", " moves", "operation"], &rows));
    let all = cost(graph);
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|(_, (_, flops, moved))| std::cmp::Reverse((*flops, *moved)));
    let rows: Vec<Vec<String>> = rows
        .into_iter()
        .map(|(name, (count, flops, moved))| {
            let share = if all.flops == 0 { 0.0 } else { 100.0 * flops as f64 / all.flops as f64 };
            let flops = table::count(flops, "FLOP");
            vec![name.to_owned(), count.to_string(), flops, format!("{share:.0} %"), table::bytes(moved)]
        })
        .chain([vec![
            "all".to_owned(),
            graph.nodes.len().to_string(),
            table::count(all.flops, "FLOP"),
            String::new(),
            table::bytes(all.moved_bytes),
        ]])
        .collect();
    text.push('\n');
    text.push_str(&indented(&table::render(&["in sum", " times", " computes", " share", " moves"], &rows)));
    text
}

fn indented(table: &str) -> String {
    table.lines().map(|line| format!("  {line}\n")).collect()
}
