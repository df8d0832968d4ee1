//! Softmax cross entropy, and accuracy.

/// The mean cross entropy of rows of logits, and its gradient.
///
/// Source: `torch.nn.functional.cross_entropy` with its default reduction.
pub(super) fn cross_entropy(logits: &[f32], classes: usize, targets: &[usize]) -> (f32, Vec<f32>) {
    let (mut loss, mut gradient) = (0.0, Vec::with_capacity(logits.len()));
    let share = 1.0 / targets.len().max(1) as f32;
    for (row, &target) in logits.chunks_exact(classes).zip(targets) {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|v| (v - largest).exp()).sum();
        loss += (total.ln() + largest - row[target]) * share;
        let one = |n| if n == target { 1.0 } else { 0.0 };
        gradient.extend(row.iter().enumerate().map(|(n, v)| ((v - largest).exp() / total - one(n)) * share));
    }
    (loss, gradient)
}

/// How many rows are largest where they should be.
pub(super) fn correct(logits: &[f32], classes: usize, targets: &[usize]) -> usize {
    let rows = logits.chunks_exact(classes).zip(targets);
    rows.filter(|(row, target)| row.iter().all(|&v| v <= row[**target])).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_gradient_are_the_known_ones() {
        // By hand: softmax of (0, ln 3) is (1/4, 3/4).
        let logits = [0.0, 3f32.ln(), 0.0, 0.0];
        let (loss, gradient) = cross_entropy(&logits, 2, &[1, 0]);
        let truth = ((4.0f32 / 3.0).ln() + 2f32.ln()) / 2.0;
        assert!((loss - truth).abs() < 1e-6, "{loss}");
        let expected = [0.125, -0.125, -0.25, 0.25];
        assert!(gradient.iter().zip(expected).all(|(a, b)| (a - b).abs() < 1e-6), "{gradient:?}");
        assert_eq!(correct(&logits, 2, &[1, 0]), 2);
        assert_eq!(correct(&logits, 2, &[0, 0]), 1);
    }
}
