//! Opening a GPU: its driver, a compiler that the driver understands, the kernels; and what there is of NVIDIA's
//! libraries.

mod error;
mod opening;
mod survey;

pub use error::{OpenError, Unavailable};
pub use opening::{OpenOptions, Opened, open_device};
pub use survey::{LibraryState, places};
