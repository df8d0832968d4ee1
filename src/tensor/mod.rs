//! Data types, shapes, layouts and tensors in host memory. Knows no device, no operation and no file.

mod dtype;
mod file_type;
mod host;
mod layout;
mod packed;
mod shape;

pub use dtype::DType;
pub use file_type::{from_file_type, to_file_type};
pub use host::{Element, HostTensor, TensorError};
pub use layout::Layout;
pub use packed::{ALIGNMENT_BYTES, PackedLayout, Slot};
pub use shape::{Shape, ShapeError};
