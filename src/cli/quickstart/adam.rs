//! The Adam optimizer.

/// Adam's moments for one tensor.
///
/// Source: Kingma and Ba, 2015, as `torch.optim.Adam` with betas 0.9 and 0.999, eps 1e-8 and no decay.
#[derive(Clone, Debug, Default)]
pub(super) struct Adam {
    first: Vec<f32>,
    second: Vec<f32>,
    step: i32,
}

const BETA1: f32 = 0.9;
const BETA2: f32 = 0.999;
const EPS: f32 = 1e-8;

impl Adam {
    /// What to add to each element, given its gradient.
    pub(super) fn deltas(&mut self, gradient: &[f32], learning_rate: f32) -> Vec<f32> {
        self.first.resize(gradient.len(), 0.0);
        self.second.resize(gradient.len(), 0.0);
        self.step += 1;
        let (c1, c2) = (1.0 - BETA1.powi(self.step), 1.0 - BETA2.powi(self.step));
        let moments = self.first.iter_mut().zip(&mut self.second);
        moments
            .zip(gradient)
            .map(|((m, v), &g)| {
                *m = BETA1 * *m + (1.0 - BETA1) * g;
                *v = BETA2 * *v + (1.0 - BETA2) * g * g;
                -learning_rate * (*m / c1) / ((*v / c2).sqrt() + EPS)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_are_those_of_the_paper() {
        // The first step has the size of the learning rate whatever the gradient's; the second, by hand for
        // gradients 1 and 2: m̂ = 0.29/0.19, v̂ = 0.004999/0.001999.
        let mut adam = Adam::default();
        assert!((adam.deltas(&[1.0], 0.1)[0] + 0.1).abs() < 1e-6);
        let second = adam.deltas(&[2.0], 0.1)[0];
        let truth = -0.1 * (0.29 / 0.19) / (0.004_999f32 / 0.001_999).sqrt();
        assert!((second - truth).abs() < 1e-4, "{second} {truth}");
    }
}
