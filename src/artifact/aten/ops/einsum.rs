//! Einstein's sums: each operand in turn by one batched matrix product.

use super::{Call, Entry, entry};
use crate::{
    artifact::Problem,
    graph::{Op, Reduction, ValueId},
    tensor::Shape,
};

pub(super) const ENTRIES: &[Entry] = &[entry("einsum(equation, tensors, *, path=None)", |call| {
    let (equation, tensors) = (call.text("equation")?, call.tensors("tensors")?);
    let ranks_of: Vec<usize> = tensors.iter().map(|&x| call.shape(x).rank()).collect();
    let (operands, result) = parse(&equation, &ranks_of)?;
    if operands.len() != tensors.len() {
        return Err(Problem::argument(format!("{equation:?} is for {} operands", operands.len())));
    }
    let mut rest = operands.iter().zip(tensors);
    let Some((labels, value)) = rest.next() else { return Err(Problem::argument("it takes a tensor")) };
    let mut so_far = Labelled { labels: labels.clone(), value };
    ranks(call, &so_far)?;
    for (n, (labels, value)) in rest.enumerate() {
        let next = Labelled { labels: labels.clone(), value };
        ranks(call, &next)?;
        let later: Vec<char> = operands[n + 2..].iter().flatten().chain(&result).copied().collect();
        so_far = product(call, so_far, next, &later)?;
    }
    let before = call.shape(so_far.value).elements();
    let summed = keep(call, so_far, &result)?;
    let y = arrange(call, &summed, &result)?;
    // One operand that is only turned is a view.
    if operands.len() == 1 && call.shape(y).elements() == before {
        return Ok(call.maybe_view_of_item("tensors", 0, y));
    }
    call.fresh(y)
})];

/// A tensor with a letter for each dimension.
struct Labelled {
    labels: Vec<char>,
    value: ValueId,
}

/// What stands for a dimension of "...", counted from the last: no letter that an equation may hold.
fn unnamed(from_last: usize) -> char {
    char::from_u32(0xE000 + from_last as u32).unwrap_or(char::REPLACEMENT_CHARACTER)
}

/// The letters of one operand of this rank; "..." stands for as many dimensions as are left.
fn letters(part: &str, rank: usize) -> Vec<char> {
    let Some((before, after)) = part.split_once("...") else { return part.chars().collect() };
    let named = before.chars().count() + after.chars().count();
    let between = (0..rank.saturating_sub(named)).rev().map(unnamed);
    before.chars().chain(between).chain(after.chars()).collect()
}

/// The letters of each operand and of the result.
fn parse(equation: &str, ranks: &[usize]) -> Result<(Vec<Vec<char>>, Vec<char>), Problem> {
    let plain: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match plain.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (plain.as_str(), None),
    };
    if plain.replace("->", "").replace("...", "").chars().any(|c| c != ',' && !c.is_ascii_alphabetic()) {
        return Err(Problem::unsupported(format!("the equation {equation:?}: it takes letters and \"...\"")));
    }
    let parts = left.split(',').zip(ranks.iter().copied().chain(std::iter::repeat(0)));
    let operands: Vec<Vec<char>> = parts.map(|(part, rank)| letters(part, rank)).collect();
    let all: Vec<char> = operands.iter().flatten().copied().collect();
    let mut unnamed: Vec<char> = all.iter().copied().filter(|c| !c.is_ascii()).collect();
    unnamed.sort_unstable_by(|a, b| b.cmp(a));
    unnamed.dedup();
    let twice = |labels: &[char]| (1..labels.len()).any(|i| labels[..i].contains(&labels[i]));
    if operands.iter().any(|labels| twice(labels)) {
        return Err(Problem::unsupported(format!("a diagonal in {equation:?}")));
    }
    let result: Vec<char> = match right {
        Some(right) => {
            letters(right, unnamed.len() + right.chars().filter(char::is_ascii_alphabetic).count())
        }
        None => {
            let mut once: Vec<char> = all.iter().copied().filter(char::is_ascii).collect();
            once.retain(|c| all.iter().filter(|d| *d == c).count() == 1);
            once.sort_unstable();
            unnamed.into_iter().chain(once).collect()
        }
    };
    if twice(&result) || result.iter().any(|c| !all.contains(c)) {
        return Err(Problem::argument(format!(
            "the result of {equation:?} does not follow from its operands"
        )));
    }
    Ok((operands, result))
}

fn ranks(call: &Call<'_, '_>, operand: &Labelled) -> Result<(), Problem> {
    let shape = call.shape(operand.value);
    if shape.rank() == operand.labels.len() {
        return Ok(());
    }
    Err(Problem::argument(format!("{} letters do not fit shape {shape}", operand.labels.len())))
}

/// The tensor without the dimensions that nothing needs any more.
fn keep(call: &mut Call<'_, '_>, operand: Labelled, needed: &[char]) -> Result<Labelled, Problem> {
    let dims: Vec<usize> =
        (0..operand.labels.len()).filter(|&i| !needed.contains(&operand.labels[i])).collect();
    if dims.is_empty() {
        return Ok(operand);
    }
    let sum = call.apply(Op::Reduce { reduction: Reduction::Sum, dims }, &[operand.value])?;
    let labels: Vec<char> = operand.labels.iter().filter(|c| needed.contains(c)).copied().collect();
    let old = call.shape(sum);
    let shape = operand.labels.iter().zip(old.iter()).filter(|(c, _)| needed.contains(c)).map(|(_, &n)| n);
    let value = call.reshape(sum, shape.collect())?;
    Ok(Labelled { labels, value })
}

/// The dimensions in the order of `labels`.
fn arrange(call: &mut Call<'_, '_>, operand: &Labelled, labels: &[char]) -> Result<ValueId, Problem> {
    let order = labels.iter().filter_map(|c| operand.labels.iter().position(|own| own == c)).collect();
    call.permute(operand.value, order)
}

fn product(call: &mut Call<'_, '_>, a: Labelled, b: Labelled, later: &[char]) -> Result<Labelled, Problem> {
    let needed = |other: &Labelled| -> Vec<char> { other.labels.iter().chain(later).copied().collect() };
    let (of_a, of_b) = (needed(&b), needed(&a));
    let (a, b) = (keep(call, a, &of_a)?, keep(call, b, &of_b)?);
    let both = |c: &&char| a.labels.contains(c) && b.labels.contains(c);
    let batch: Vec<char> = a.labels.iter().filter(both).filter(|c| later.contains(c)).copied().collect();
    let inner: Vec<char> = a.labels.iter().filter(both).filter(|c| !later.contains(c)).copied().collect();
    let rows: Vec<char> = a.labels.iter().filter(|c| !b.labels.contains(c)).copied().collect();
    let columns: Vec<char> = b.labels.iter().filter(|c| !a.labels.contains(c)).copied().collect();
    let (shape_a, shape_b) = (call.shape(a.value), call.shape(b.value));
    let size = |c: char| -> usize {
        let in_a = a.labels.iter().position(|own| *own == c).map(|i| shape_a[i]);
        in_a.or_else(|| b.labels.iter().position(|own| *own == c).map(|i| shape_b[i])).unwrap_or(1)
    };
    for (i, c) in b.labels.iter().enumerate() {
        let known = size(*c);
        if shape_b[i] != known {
            let c = if c.is_ascii() { c.to_string() } else { "a dimension of \"...\"".into() };
            return Err(Problem::argument(format!("{c} is {known} and {}", shape_b[i])));
        }
    }
    let sizes = |labels: &[char]| -> Vec<usize> { labels.iter().map(|&c| size(c)).collect() };
    let volume = |labels: &[char]| super::view::volume(&sizes(labels));
    let [n, k, m, p] = [volume(&batch)?, volume(&inner)?, volume(&rows)?, volume(&columns)?];
    let left = arrange(call, &a, &[batch.as_slice(), &rows, &inner].concat())?;
    let left = call.reshape(left, [n, m, k].into())?;
    let right = arrange(call, &b, &[batch.as_slice(), &inner, &columns].concat())?;
    let right = call.reshape(right, [n, k, p].into())?;
    let y = call.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[left, right])?;
    let labels = [batch, rows, columns].concat();
    let shape: Shape = sizes(&labels).into();
    let value = call.reshape(y, shape)?;
    Ok(Labelled { labels, value })
}
