//! One part of the host network, run in the trainer's own process and trained by Adam.

use std::path::Path;

use super::{super::CliError, adam::Adam};
use crate::{
    artifact::Mode,
    cli::offline::{Offline, Ran},
    tensor::HostTensor,
};

/// A part of the host: an artifact with its optimizer.
#[derive(Debug)]
pub(super) struct Part {
    offline: Offline,
    moments: Vec<Adam>,
}

impl Part {
    pub(super) fn open(path: &Path) -> Result<Self, CliError> {
        let offline = Offline::open(path, 1)?;
        let moments = vec![Adam::default(); offline.parameters.len()];
        Ok(Self { offline, moments })
    }

    pub(super) fn forward(&mut self, input: HostTensor, train: bool) -> Result<Ran, CliError> {
        self.offline.forward(input, if train { Mode::Train } else { Mode::Eval }, 0)
    }

    /// Runs backward, lets the optimizer take its step, and gives the gradient of the input.
    pub(super) fn learn(
        &mut self,
        ran: &Ran,
        grad_output: &HostTensor,
        learning_rate: f32,
    ) -> Result<Vec<f32>, CliError> {
        let gradients = self.offline.backward(ran, grad_output)?;
        for (n, gradient) in gradients.parameters {
            let deltas = self.moments[n].deltas(&gradient.to_values::<f32>()?, learning_rate);
            let parameter = &mut self.offline.parameters[n];
            let values = parameter.to_values::<f32>()?;
            let moved: Vec<f32> = values.iter().zip(deltas).map(|(value, delta)| value + delta).collect();
            *parameter = HostTensor::from_values(parameter.shape().clone(), &moved)?;
        }
        Ok(gradients.input.map_or_else(|| Ok(Vec::new()), |input| input.to_values::<f32>())?)
    }
}
