//! `memory.limit` and `flops.limit`: what one pass needs, known before it runs.

use super::{FLOPS_LIMIT, MEMORY_LIMIT, Report};
use crate::{
    graph::{Graph, Source, ValueId, cost},
    validation::{PassCost, Policy},
};

/// What a graph needs each time it runs.
pub(in crate::validation) fn pass_cost(graph: &Graph) -> PassCost {
    PassCost { flops: cost(graph).flops, peak_bytes: peak_bytes(graph) }
}

/// Holds what one sample needs to the limits.
pub(in crate::validation) fn within_limits(
    report: &mut Report,
    forward: PassCost,
    backward: PassCost,
    policy: &Policy,
) {
    let judge = |has: u64, limit: u64, unit: &str, setting: &str| {
        if has > limit {
            return Err(format!(
                "one sample needs {has} {unit}, {limit} are allowed: use a smaller kernel or raise {setting}"
            ));
        }
        Ok(format!("one sample needs {has} of at most {limit} {unit}"))
    };
    let (peak_bytes, flops) =
        (forward.peak_bytes.max(backward.peak_bytes), forward.flops.saturating_add(backward.flops));
    report.note(
        MEMORY_LIMIT,
        judge(peak_bytes, policy.max_peak_bytes, "bytes of values", "validator.max_plan_bytes"),
    );
    report.note(
        FLOPS_LIMIT,
        judge(flops, policy.max_flops, "floating-point operations", "validator.max_flops"),
    );
}

/// Bytes of the values alive at once when nodes run in order and each value has memory of its own until its
/// last reader is done; parameters and buffers are not counted. Saturates.
fn peak_bytes(graph: &Graph) -> u64 {
    let bytes = |value: ValueId| {
        let info = graph.info(value);
        (info.shape.elements() as u64).saturating_mul(info.dtype.size_bytes() as u64)
    };
    let end = graph.nodes.len();
    // After which node a value is not needed any more; what leaves the graph stays.
    let mut last_use = vec![0; graph.values.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        node.inputs.iter().chain(&node.outputs).for_each(|value| last_use[value.0 as usize] = at);
    }
    graph.sinks.iter().for_each(|(_, value)| last_use[value.0 as usize] = end);
    let mut ends = vec![0u64; end + 1];
    let mut live = 0u64;
    for &(source, value) in &graph.sources {
        if !matches!(source, Source::Parameter(_) | Source::Buffer(_)) {
            live = live.saturating_add(bytes(value));
            let ends = &mut ends[last_use[value.0 as usize]];
            *ends = ends.saturating_add(bytes(value));
        }
    }
    let mut peak = live;
    for (at, node) in graph.nodes.iter().enumerate() {
        for &value in &node.outputs {
            live = live.saturating_add(bytes(value));
            let ends = &mut ends[last_use[value.0 as usize]];
            *ends = ends.saturating_add(bytes(value));
        }
        peak = peak.max(live);
        live = live.saturating_sub(ends[at]);
    }
    peak
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        graph::{Binary, Builder, Op, Sink, Unary},
        tensor::DType,
    };

    #[test]
    fn values_take_memory_until_their_last_reader() {
        let mut builder = Builder::new();
        let x = builder.source(Source::Input(0), [25].into(), DType::F32).unwrap();
        let weight = builder.source(Source::Parameter(0), [1000].into(), DType::F32).unwrap();
        let a = builder.apply(Op::Unary(Unary::Relu), &[x]).unwrap();
        let b = builder.apply(Op::Unary(Unary::Exp), &[a]).unwrap();
        let c = builder.apply(Op::Binary(Binary::Add), &[x, b]).unwrap();
        let d = builder.apply(Op::Unary(Unary::Exp), &[c]).unwrap();
        builder.sink(Sink::Output(0), d);
        builder.sink(Sink::BufferUpdate(0), weight);
        // x, a, b; then x, b, c.
        assert_eq!(peak_bytes(&builder.finish()), 300);
    }

    #[test]
    fn limits_are_inclusive() {
        let policy = Policy { max_peak_bytes: 10, max_flops: 5, ..Policy::default() };
        let failures = |flops: u64, peak_bytes| {
            let mut report = Report::default();
            let (forward, backward) =
                (PassCost { flops: 3, peak_bytes: 1 }, PassCost { flops: flops - 3, peak_bytes });
            within_limits(&mut report, forward, backward, &policy);
            let failed = report.finish().into_iter().filter(|rule| !rule.passed);
            failed.map(|rule| rule.name).collect::<Vec<_>>()
        };
        assert!(failures(5, 10).is_empty());
        assert_eq!(failures(6, 11), [MEMORY_LIMIT, FLOPS_LIMIT]);
    }
}
