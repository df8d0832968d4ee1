//! A record as a safetensors file.
//!
//! Tensors: `artifact` (bytes), `input`, for a backward `grad_output` and `saved` (bytes, as the forward's plan lays
//! them out), `parameter.<name>` and `buffer.<name>`. The header is JSON in the metadata, under `kasmina.record`.

use std::{borrow::Cow, collections::HashMap, path::Path, sync::Arc};

use safetensors::{
    Dtype, SafeTensorError, SafeTensors, View,
    tensor::{TensorView, serialize_to_file},
};

use super::{Direction, Header, RecordError, VERSION};
use crate::{
    digest::Digest,
    tensor::{DType, HostTensor, Shape, from_file_type, to_file_type},
};

/// The most bytes that a record may have. What would have more is not recorded.
pub const MAX_BYTES: u64 = 512 << 20;

/// The most bytes of a file's own header, which is read as a whole before anything can be said of it.
const MAX_HEADER_BYTES: u64 = 16 << 20;

/// The most bytes of a file that is read.
pub const MAX_FILE_BYTES: u64 = MAX_BYTES + MAX_HEADER_BYTES;

/// Under which name the metadata has our header.
const KEY: &str = "kasmina.record";

const ARTIFACT: &str = "artifact";
const INPUT: &str = "input";
const GRAD_OUTPUT: &str = "grad_output";
const SAVED: &str = "saved";
const PARAMETER: &str = "parameter.";
const BUFFER: &str = "buffer.";

/// A failing pass with all that it was given.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// Who failed, in which pass, and how.
    pub header: Header,
    /// The kernel's artifact.
    pub artifact: Arc<[u8]>,
    /// x.
    pub input: HostTensor,
    /// The gradient of the kernel's output; of a backward alone.
    pub grad_output: Option<HostTensor>,
    /// What the forward had left for the backward, as its plan lays it out; empty of a forward.
    pub saved: Arc<[u8]>,
    /// The parameters as the pass found them, by name.
    pub parameters: Vec<(String, HostTensor)>,
    /// The buffers as the pass found them, by name.
    pub buffers: Vec<(String, HostTensor)>,
}

impl Record {
    /// Writes it as a file that its owner alone may read.
    pub(super) fn write(&self, path: &Path) -> Result<(), String> {
        let header = serde_json::to_string(&self.header).map_err(|error| error.to_string())?;
        let metadata = HashMap::from([(KEY.to_owned(), header)]);
        serialize_to_file(self.tensors(), Some(metadata), path).map_err(|error| error.to_string())
    }

    /// The most bytes that the file can have; somewhat more than it has.
    pub(super) fn file_bytes(&self) -> u64 {
        // In the metadata quotes are escaped; of a tensor there are its name, whose characters may be escaped too, its
        // type, sizes and offsets.
        let header = serde_json::to_string(&self.header).map_or(0, |text| 2 * text.len());
        let tensors = self.tensors().into_iter();
        let described = tensors.map(|(name, content)| 6 * name.len() + 256 + content.bytes.len());
        (header + described.sum::<usize>()) as u64
    }

    /// What goes into the file beside the header, by name.
    fn tensors(&self) -> Vec<(String, Content<'_>)> {
        let mut all = vec![
            (ARTIFACT.to_owned(), Content::raw(&self.artifact)),
            (INPUT.to_owned(), Content::of(&self.input)),
        ];
        all.extend(self.grad_output.iter().map(|tensor| (GRAD_OUTPUT.to_owned(), Content::of(tensor))));
        if !self.saved.is_empty() {
            all.push((SAVED.to_owned(), Content::raw(&self.saved)));
        }
        for (prefix, tensors) in [(PARAMETER, &self.parameters), (BUFFER, &self.buffers)] {
            all.extend(tensors.iter().map(|(name, tensor)| (format!("{prefix}{name}"), Content::of(tensor))));
        }
        all
    }

    /// Reads a file's bytes, which may be anything.
    ///
    /// Beside the bytes it takes memory for copies of the artifact and of what a forward has saved, and for the file's
    /// own header, which is parsed twice, one time after the other. Whether the tensors are those of the artifact is
    /// not looked at.
    ///
    /// # Errors
    /// [`RecordError::TooLarge`], [`RecordError::Damaged`], [`RecordError::Version`].
    pub fn read(bytes: &Arc<[u8]>) -> Result<Self, RecordError> {
        let limit = MAX_FILE_BYTES;
        if bytes.len() as u64 > limit {
            return Err(RecordError::TooLarge { limit });
        }
        let header_bytes = bytes.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        if header_bytes > MAX_HEADER_BYTES {
            let most = MAX_HEADER_BYTES;
            let reason = format!("its header would have {header_bytes} bytes, at most {most} are read");
            return Err(RecordError::damaged(reason));
        }
        let none = |error: SafeTensorError| RecordError::damaged(format!("no safetensors file: {error}"));
        let (_, metadata) = SafeTensors::read_metadata(bytes).map_err(none)?;
        let header = header_of(metadata.metadata().as_ref())?;
        let file = SafeTensors::deserialize(bytes).map_err(none)?;
        let mut found = Found::default();
        for (name, view) in file.iter() {
            found.take(name, bytes, &view)?;
        }
        found.record(header)
    }
}

/// A tensor on its way to the file.
struct Content<'a> {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: &'a [u8],
}

impl<'a> Content<'a> {
    fn raw(bytes: &'a [u8]) -> Self {
        Self { dtype: Dtype::U8, shape: vec![bytes.len()], bytes }
    }

    fn of(tensor: &'a HostTensor) -> Self {
        let (dtype, shape) = (to_file_type(tensor.dtype()), tensor.shape().to_vec());
        Self { dtype, shape, bytes: tensor.bytes() }
    }
}

impl View for Content<'_> {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}

/// Our own header out of a file's metadata.
fn header_of(metadata: Option<&HashMap<String, String>>) -> Result<Header, RecordError> {
    let text = metadata.and_then(|metadata| metadata.get(KEY));
    let text = text.ok_or_else(|| RecordError::damaged(format!("its metadata has no {KEY}")))?;
    let wrong = |error: serde_json::Error| RecordError::damaged(format!("its metadata's {KEY}: {error}"));
    // The version first: what else another one has is not known.
    #[derive(serde::Deserialize)]
    struct Version {
        format: u64,
    }
    let Version { format } = serde_json::from_str(text).map_err(wrong)?;
    if format != u64::from(VERSION) {
        return Err(RecordError::Version { found: format });
    }
    serde_json::from_str(text).map_err(wrong)
}

/// What was found in a file so far.
#[derive(Default)]
struct Found {
    artifact: Option<Arc<[u8]>>,
    input: Option<HostTensor>,
    grad_output: Option<HostTensor>,
    saved: Arc<[u8]>,
    parameters: Vec<(String, HostTensor)>,
    buffers: Vec<(String, HostTensor)>,
}

impl Found {
    fn take(&mut self, name: &str, file: &Arc<[u8]>, view: &TensorView<'_>) -> Result<(), RecordError> {
        let raw = || match (view.dtype(), view.shape()) {
            (Dtype::U8, [_]) => Ok(view.data().into()),
            _ => Err(RecordError::damaged(format!("its tensor {name:?} is no list of bytes"))),
        };
        match name {
            ARTIFACT => self.artifact = Some(raw()?),
            SAVED => self.saved = raw()?,
            INPUT => self.input = Some(tensor(name, file, view)?),
            GRAD_OUTPUT => self.grad_output = Some(tensor(name, file, view)?),
            _ => {
                let (list, own) = if let Some(own) = name.strip_prefix(PARAMETER) {
                    (&mut self.parameters, own)
                } else if let Some(own) = name.strip_prefix(BUFFER) {
                    (&mut self.buffers, own)
                } else {
                    let reason = format!("it has a tensor {name:?}, which no record has");
                    return Err(RecordError::damaged(reason));
                };
                list.push((own.to_owned(), tensor(name, file, view)?));
            }
        }
        Ok(())
    }

    /// The record, if all is there and fits the header.
    fn record(mut self, header: Header) -> Result<Record, RecordError> {
        let missing = |name: &str| RecordError::damaged(format!("it has no tensor {name:?}"));
        let artifact = self.artifact.ok_or_else(|| missing(ARTIFACT))?;
        let digest = Digest::of(&artifact);
        if digest != header.digest {
            let reason = format!("its artifact's SHA-256 is {digest}, it says {}", header.digest);
            return Err(RecordError::damaged(reason));
        }
        let input = self.input.ok_or_else(|| missing(INPUT))?;
        fits(INPUT, &input, header.dtype, &header.input_shape)?;
        match (header.direction, &self.grad_output) {
            (Direction::Backward, None) => return Err(missing(GRAD_OUTPUT)),
            (Direction::Backward, Some(gradient)) => {
                fits(GRAD_OUTPUT, gradient, header.dtype, &header.output_shape)?;
            }
            (Direction::Forward, _) => {}
        }
        // In an order that does not change from one reading to the next.
        for list in [&mut self.parameters, &mut self.buffers] {
            list.sort_by(|(one, _), (other, _)| one.cmp(other));
        }
        let Self { grad_output, saved, parameters, buffers, .. } = self;
        Ok(Record { header, artifact, input, grad_output, saved, parameters, buffers })
    }
}

/// A tensor as a part of the file's own bytes.
fn tensor(name: &str, file: &Arc<[u8]>, view: &TensorView<'_>) -> Result<HostTensor, RecordError> {
    let dtype = from_file_type(view.dtype()).ok_or_else(|| {
        RecordError::damaged(format!(
            "its tensor {name:?} is of type {:?}, which no kernel has",
            view.dtype()
        ))
    })?;
    // The view lies in the file, or there is nothing in it.
    let start = view.data().as_ptr().addr().saturating_sub(file.as_ptr().addr());
    let range = if view.data().is_empty() { 0..0 } else { start..start + view.data().len() };
    HostTensor::within(Shape::from(view.shape()), dtype, file.clone(), range)
        .map_err(|error| RecordError::damaged(format!("its tensor {name:?}: {error}")))
}

fn fits(name: &str, tensor: &HostTensor, dtype: DType, shape: &Shape) -> Result<(), RecordError> {
    if tensor.dtype() == dtype && tensor.shape() == shape {
        return Ok(());
    }
    let reason =
        format!("its tensor {name:?} is {} {}, it says {dtype} {shape}", tensor.dtype(), tensor.shape());
    Err(RecordError::damaged(reason))
}
