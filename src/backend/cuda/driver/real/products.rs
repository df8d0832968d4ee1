//! Products by cuBLASLt, if it was found.

use std::path::Path;

use super::{
    super::{DriverError, PlannedProduct, Product, ProductSpec, Products, Stream},
    CublasLt, RealDriver,
};

impl RealDriver {
    /// Has the cuBLASLt at a path compute products from now on, and gives its version. Blocking: reads a large file.
    ///
    /// # Errors
    /// [`DriverError::Failed`] when it is no cuBLASLt, too old, or one that does not work with this driver.
    pub fn use_products(&mut self, path: &Path) -> Result<String, DriverError> {
        self.bind()?;
        let library = CublasLt::load(path)?;
        let version = library.version();
        self.products = Some(library);
        Ok(version)
    }

    /// Hands a product over.
    ///
    /// # Safety
    /// As for [`Driver::launch`](super::Driver::launch).
    pub(super) unsafe fn multiply(
        &self,
        product: Product,
        arguments: &[u8],
        stream: Stream,
    ) -> Result<(), DriverError> {
        let Some(library) = &self.products else {
            let reason = "there is no cuBLASLt".into();
            return Err(DriverError::Failed { call: "cublasLtMatmul", reason });
        };
        // SAFETY: as the caller promises.
        unsafe { library.multiply(product, arguments, stream) }
    }

    /// Lets the library go, while its context is there, which it looks for on this thread.
    pub(super) fn close_products(&mut self) {
        let Some(library) = self.products.take() else { return };
        match self.bind() {
            Ok(()) => drop(library),
            Err(error) => {
                tracing::debug!(%error, "the device's context is gone, and with it what cuBLASLt had there");
                std::mem::forget(library);
            }
        }
    }
}

impl Products for RealDriver {
    fn plan_product(&self, spec: &ProductSpec) -> Option<PlannedProduct> {
        let library = self.products.as_ref()?;
        match self.bind().and_then(|()| library.plan(spec)) {
            Ok(Some(planned)) => return Some(planned),
            Ok(None) => tracing::debug!(?spec, "cuBLASLt has no algorithm: a kernel of our own computes it"),
            Err(error) => {
                tracing::debug!(%error, ?spec, "cuBLASLt cannot plan: a kernel of our own computes it");
            }
        }
        None
    }

    fn close_product(&self, product: Product) {
        if let Some(library) = &self.products {
            library.close(product);
        }
    }
}
