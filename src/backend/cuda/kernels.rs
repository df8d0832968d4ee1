//! The loaded kernels of one device.

use std::sync::Arc;

use super::{
    driver::{Driver, DriverError, Function, Module},
    source::Source,
};
use crate::backend::BuildError;

/// A module for each source, loaded as long as this lives.
#[derive(Debug)]
pub(super) struct Kernels {
    driver: Arc<dyn Driver>,
    modules: Vec<Module>,
}

impl Kernels {
    /// Loads images, one for each of [`Source::ALL`] in its order.
    ///
    /// # Errors
    /// [`DriverError`] when an image is missing or the driver refuses one.
    pub(super) fn load(driver: Arc<dyn Driver>, images: &[Vec<u8>]) -> Result<Self, DriverError> {
        let mut kernels = Self { driver, modules: Vec::with_capacity(Source::ALL.len()) };
        for (n, source) in Source::ALL.into_iter().enumerate() {
            let Some(image) = images.get(n) else {
                let reason = format!("{} was not compiled", source.name());
                return Err(DriverError::Failed { call: "load", reason });
            };
            let module = kernels.driver.load(image)?;
            kernels.modules.push(module);
        }
        Ok(kernels)
    }

    /// The device's name.
    pub(super) fn device(&self) -> &str {
        &self.driver.properties().name
    }

    /// The driver they are loaded by.
    pub(super) fn driver(&self) -> &Arc<dyn Driver> {
        &self.driver
    }

    /// A kernel by name.
    ///
    /// # Errors
    /// [`BuildError::Device`] when the source has none of that name.
    pub(super) fn function(&self, source: Source, name: &str) -> Result<Function, BuildError> {
        self.driver.function(self.modules[source as usize], name).map_err(|error| BuildError::Device {
            device: self.device().to_owned(),
            reason: format!("kernel {name} of {}: {error}", source.name()),
        })
    }
}

impl Drop for Kernels {
    fn drop(&mut self) {
        for &module in &self.modules {
            if let Err(error) = self.driver.unload(module) {
                tracing::debug!(%error, "kernels could not be unloaded");
            }
        }
    }
}
