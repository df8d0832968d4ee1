//! Tensors cut out of the raw storages in an archive.

use std::{borrow::Cow, collections::HashMap};

use super::{ArtifactError, ReadLimits, zip::Archive};
use crate::{
    graph::MAX_RANK,
    tensor::{DType, HostTensor, Layout, Shape},
};

/// How a tensor lies in its storage, in elements.
#[derive(Clone, Debug)]
pub(super) struct View {
    pub(super) dtype: DType,
    pub(super) sizes: Vec<usize>,
    pub(super) strides: Vec<usize>,
    pub(super) offset: usize,
}

/// Where a tensor's elements lie.
#[derive(Clone, Debug)]
pub(super) struct Place {
    /// The file that is an archive itself and has the storage in it, where there is one.
    pub(super) within: Option<String>,
    /// The storage's file.
    pub(super) file: String,
    /// How the tensor lies there.
    pub(super) view: View,
}

/// Where an artifact's parameters and buffers lie, in their order.
#[derive(Debug, Default)]
pub(super) struct Places {
    pub(super) parameters: Vec<Place>,
    pub(super) buffers: Vec<Place>,
}

/// Reads tensors, within a budget of bytes for all of them: many could share one storage.
pub(super) struct Storages<'a, 'b> {
    archive: &'b Archive<'a>,
    files: HashMap<String, Cow<'a, [u8]>>,
    budget: usize,
    limits: ReadLimits,
}

impl<'a, 'b> Storages<'a, 'b> {
    pub(super) fn new(archive: &'b Archive<'a>, limits: &ReadLimits) -> Self {
        Self { archive, files: HashMap::new(), budget: limits.archive_bytes, limits: *limits }
    }

    /// Refuses to go on after the deadline of reading.
    pub(super) fn check_time(&self, place: &str) -> Result<(), ArtifactError> {
        self.limits.check_time(place)
    }

    fn spend(&mut self, file: &str, bytes: usize) -> Result<(), ArtifactError> {
        let left = self.budget.checked_sub(bytes);
        let limit = self.limits.archive_bytes;
        self.budget = left.ok_or_else(|| ArtifactError::limit(file, "bytes in all tensors", limit))?;
        Ok(())
    }

    /// A contiguous tensor: a part of the archive where it lies there as it is, else a copy.
    ///
    /// # Errors
    /// [`ArtifactError`] when the file is missing or the tensor does not lie within it.
    pub(super) fn tensor(&mut self, file: &str, view: &View) -> Result<HostTensor, ArtifactError> {
        if view.sizes.len() > MAX_RANK || view.strides.len() != view.sizes.len() {
            let reason = format!("a tensor has more than {MAX_RANK} dimensions, or not as many strides");
            return Err(ArtifactError::malformed(file, reason));
        }
        self.check_time(file)?;
        let malformed = |reason: &str| ArtifactError::malformed(file, reason);
        let shape = Shape::from(&view.sizes[..]);
        let elements = shape.checked_elements().map_err(|error| malformed(&error.to_string()))?;
        let size = view.dtype.size_bytes();
        let bytes = elements * size;
        self.spend(file, bytes)?;
        let layout = Layout::strided(shape.clone(), &view.strides, view.offset)
            .ok_or_else(|| malformed("sizes and strides differ in number"))?;
        if !self.files.contains_key(file) {
            // What is stored as it is lies in the archive; what has to be unpacked is memory of ours: the tensor
            // itself where it is the whole file, which is then counted once, or else more than that.
            if layout.is_contiguous()
                && view.offset == 0
                && view.dtype != DType::Bool
                && let Some(unpacked) = self.archive.unpacked(file, bytes)?
            {
                let tensor = HostTensor::new(shape, view.dtype, unpacked);
                return tensor.map_err(|error| malformed(&error.to_string()));
            }
            let content = self.archive.file(file)?;
            if let Cow::Owned(unpacked) = &content {
                self.spend(file, unpacked.len())?;
            }
            self.files.insert(file.to_owned(), content);
        }
        let storage = &self.files[file][..];
        let end = layout.end().and_then(|end| end.checked_mul(size));
        if end.is_none_or(|end| end > storage.len()) {
            return Err(malformed("a tensor reaches past the end of its storage"));
        }
        if bytes == 0 {
            let empty = HostTensor::new(shape, view.dtype, Vec::new());
            return empty.map_err(|error| malformed(&error.to_string()));
        }
        let start = view.offset * size;
        if layout.is_contiguous()
            && view.dtype != DType::Bool
            && let Some(data) = self.archive.stored_at(file)
        {
            let range = data + start..data + start + bytes;
            let tensor = HostTensor::within(shape, view.dtype, self.archive.bytes().clone(), range);
            return tensor.map_err(|error| malformed(&error.to_string()));
        }
        let mut content = if layout.is_contiguous() {
            storage.get(start..start + bytes).unwrap_or(&[]).to_vec()
        } else {
            gather(storage, &layout, size, bytes)
        };
        if view.dtype == DType::Bool {
            content.iter_mut().for_each(|byte| *byte = u8::from(*byte != 0));
        }
        HostTensor::new(shape, view.dtype, content).map_err(|error| malformed(&error.to_string()))
    }
}

impl View {
    /// Writes a tensor's bytes to where it lies in its storage; `false`, and nothing is written, where it does not.
    pub(super) fn scatter(&self, storage: &mut [u8], content: &[u8]) -> bool {
        let Some((layout, size)) = self.within(storage.len(), content.len()) else { return false };
        if layout.is_contiguous() {
            let start = layout.offset() * size;
            storage[start..start + content.len()].copy_from_slice(content);
            return true;
        }
        let mut elements = content.chunks_exact(size);
        each_element(&layout, |at| {
            if let Some(element) = elements.next() {
                storage[at * size..(at + 1) * size].copy_from_slice(element);
            }
        });
        true
    }

    /// The bytes of the tensor that lies so in a storage, where they are `bytes`.
    pub(super) fn gather(&self, storage: &[u8], bytes: usize) -> Option<Vec<u8>> {
        let (layout, size) = self.within(storage.len(), bytes)?;
        if layout.is_contiguous() {
            let start = layout.offset() * size;
            return storage.get(start..start + bytes).map(<[u8]>::to_vec);
        }
        Some(gather(storage, &layout, size, bytes))
    }

    /// The layout and an element's size, where a tensor of `bytes` lies in a storage of `storage_bytes`.
    fn within(&self, storage_bytes: usize, bytes: usize) -> Option<(Layout, usize)> {
        let shape = Shape::from(&self.sizes[..]);
        let size = self.dtype.size_bytes();
        if shape.checked_elements().ok()?.checked_mul(size)? != bytes {
            return None;
        }
        let layout = Layout::strided(shape, &self.strides, self.offset)?;
        // One without elements lies nowhere, wherever it is said to begin.
        let layout = if bytes == 0 { Layout::strided([0].into(), &[1], 0)? } else { layout };
        (layout.end()?.checked_mul(size)? <= storage_bytes).then_some((layout, size))
    }
}

/// Copies elements in the order of their indices; the layout was checked against the storage.
fn gather(storage: &[u8], layout: &Layout, size: usize, bytes: usize) -> Vec<u8> {
    let mut content = Vec::with_capacity(bytes);
    each_element(layout, |at| content.extend_from_slice(&storage[at * size..(at + 1) * size]));
    content
}

/// Goes through the places of elements, in the order of their indices.
fn each_element(layout: &Layout, mut element: impl FnMut(usize)) {
    let (sizes, strides) = (layout.shape().dims(), layout.strides());
    let mut index = vec![0usize; sizes.len()];
    let mut at = layout.offset();
    let count = sizes.iter().product();
    for _ in 0..count {
        element(at);
        for dim in (0..sizes.len()).rev() {
            index[dim] += 1;
            at += strides[dim];
            if index[dim] < sizes[dim] {
                break;
            }
            at -= strides[dim] * sizes[dim];
            index[dim] = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::artifact::zip::writer::{Entry, write};

    fn read(views: &[(usize, usize)], limits: ReadLimits) -> Result<Vec<HostTensor>, ArtifactError> {
        let limits = ReadLimits { inflate_ratio: 100_000, ..limits };
        let bytes: Arc<[u8]> = write(&[Entry::deflated("k/data/0", vec![7; 4000])]).into();
        let archive = Archive::open(&bytes, &limits)?;
        let mut storages = Storages::new(&archive, &limits);
        let views = views.iter().map(|&(offset, elements)| View {
            dtype: DType::U8,
            sizes: vec![elements],
            strides: vec![1],
            offset,
        });
        views.map(|view| storages.tensor("data/0", &view)).collect()
    }

    #[test]
    fn a_packed_file_that_is_one_tensor_is_counted_once() {
        let limits = ReadLimits { archive_bytes: 7000, ..ReadLimits::default() };
        assert_eq!(read(&[(0, 4000)], limits).unwrap()[0].bytes(), vec![7; 4000]);
        assert_eq!(read(&[(1000, 3000)], limits).unwrap()[0].bytes(), vec![7; 3000]);
        for views in [&[(0, 4000), (0, 4000)][..], &[(0, 3001)], &[(0, 3000), (0, 1)]] {
            let error = read(views, limits).unwrap_err();
            assert!(matches!(error, ArtifactError::Limit { what: "bytes in all tensors", .. }), "{error}");
        }
    }

    #[test]
    fn the_deadline_ends_it() {
        let limits = ReadLimits::default().until(std::time::Instant::now());
        let error = read(&[(0, 1)], limits).unwrap_err();
        assert!(matches!(error, ArtifactError::Limit { what: "milliseconds of reading", .. }), "{error}");
    }
}
