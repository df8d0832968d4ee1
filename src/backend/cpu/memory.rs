//! The memory of one run: bindings checked once, places turned into slices.

use crate::{
    backend::{
        Bindings, Region,
        plan::{Home, Place, Scratch, block},
    },
    tensor::{DType, Layout},
};

/// A Rust type whose every bit pattern is a value, as raw memory is read.
///
/// # Safety
/// Every bit pattern of the type's size must be valid.
pub(super) unsafe trait Plain: Copy + Default + Send + Sync + 'static {
    const DTYPES: &'static [DType];
}

// SAFETY: every bit pattern of these types is valid. `bool` tensors are read as bytes.
unsafe impl Plain for f32 {
    const DTYPES: &'static [DType] = &[DType::F32];
}
// SAFETY: as above.
unsafe impl Plain for f64 {
    const DTYPES: &'static [DType] = &[DType::F64];
}
// SAFETY: as above.
unsafe impl Plain for i64 {
    const DTYPES: &'static [DType] = &[DType::I64];
}
// SAFETY: as above.
unsafe impl Plain for i32 {
    const DTYPES: &'static [DType] = &[DType::I32];
}
// SAFETY: as above.
unsafe impl Plain for u16 {
    const DTYPES: &'static [DType] = &[DType::BF16, DType::F16];
}
// SAFETY: as above.
unsafe impl Plain for u8 {
    const DTYPES: &'static [DType] = &[DType::U8, DType::Bool];
}

/// A strided operand: the elements from its first to its last, and how to walk them.
#[derive(Clone, Copy)]
pub(super) struct Strided<'a, T> {
    pub(super) data: &'a [T],
    pub(super) layout: &'a Layout,
}

/// The blocks of one run. Only for bindings that [`Bounds::check`](crate::backend::plan::Bounds::check) has accepted.
#[derive(Clone, Copy)]
pub(super) struct Memory<'a> {
    pub(super) bindings: &'a Bindings<'a>,
    pub(super) constants: Region<'a>,
}

impl<'a> Memory<'a> {
    pub(super) fn block(&self, home: Home) -> Region<'a> {
        if home == Home::Constants { self.constants } else { block(self.bindings, home) }
    }

    /// A contiguous operand.
    pub(super) fn read<T: Plain>(&self, place: &Place) -> &'a [T] {
        debug_assert!(place.layout.is_contiguous());
        let start = self.pointer::<T>(place, place.layout.offset());
        // SAFETY: `Bounds::check` has held the block against this place's end and alignment; every bit
        // pattern is a `T`; the plan lets no step write what it reads, and callers of `run` promise that
        // no other run writes to these regions meanwhile. A trainer that scribbles on its own arena during
        // a pass changes numbers only: no index or length is ever taken from memory it can write to
        // without a check.
        unsafe { std::slice::from_raw_parts(start, place.layout.shape().elements()) }
    }

    /// A strided operand.
    pub(super) fn read_strided<T: Plain>(&self, place: &'a Place) -> Strided<'a, T> {
        let first = place.layout.offset();
        let len = place.layout.end().map_or(0, |end| end - first);
        let start = self.pointer::<T>(place, first);
        // SAFETY: as in `read`; the layout's end is within the block.
        Strided { data: unsafe { std::slice::from_raw_parts(start, len) }, layout: &place.layout }
    }

    /// A result. One step asks for each of its results once, and results are contiguous.
    pub(super) fn write<T: Plain>(&self, place: &Place) -> &'a mut [T] {
        debug_assert!(place.layout.is_contiguous() && place.layout.offset() == 0);
        let start = self.pointer::<T>(place, 0);
        // SAFETY: as in `read`; the plan gives a result memory that no operand and no other result of the
        // same step lies in.
        unsafe { std::slice::from_raw_parts_mut(start, place.layout.shape().elements()) }
    }

    /// A step's scratch memory as elements of one type.
    pub(super) fn scratch<T: Plain>(&self, scratch: Scratch) -> &'a mut [T] {
        let part = self
            .bindings
            .workspace
            .part(scratch.offset_bytes, scratch.len_bytes)
            .expect("the workspace has been held against the plan's needs");
        // SAFETY: the workspace is aligned to 64 bytes and so is the offset; every bit pattern is a `T`;
        // the plan gives these bytes to this step alone.
        unsafe { std::slice::from_raw_parts_mut(part.start().cast(), scratch.len_bytes / size_of::<T>()) }
    }

    fn pointer<T: Plain>(&self, place: &Place, element: usize) -> *mut T {
        assert!(
            T::DTYPES.contains(&place.dtype),
            "{} is not read as {}",
            place.dtype,
            std::any::type_name::<T>()
        );
        let block = self.block(place.home);
        if place.layout.shape().contains(&0) {
            return std::ptr::dangling_mut();
        }
        // SAFETY: `Bounds::check` has held the block against this place's end, which lies behind it.
        unsafe { block.start().add(place.offset_bytes + element * size_of::<T>()).cast() }
    }
}

/// A slice that several tasks write to, each its own part.
#[derive(Clone, Copy)]
pub(super) struct Shared<T> {
    start: *mut T,
    len: usize,
}

// SAFETY: parts are handed out by `part`, whose callers promise to keep them apart.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    pub(super) fn new(slice: &mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len() }
    }

    /// One task's part.
    ///
    /// # Safety
    /// No other task may ask for a part that overlaps, and the slice this was made of must still be
    /// borrowed.
    ///
    /// # Panics
    /// When the part does not lie within.
    #[expect(clippy::mut_from_ref, reason = "callers keep parts apart, as the safety section asks")]
    pub(super) unsafe fn part(&self, start: usize, len: usize) -> &mut [T] {
        // SAFETY: within the slice, and not overlapping by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.of_part(start, len), len) }
    }

    /// A part that is read.
    ///
    /// # Safety
    /// As of [`part`](Self::part), and nobody must write to it meanwhile.
    ///
    /// # Panics
    /// As there.
    pub(super) unsafe fn seen(&self, start: usize, len: usize) -> &[T] {
        // SAFETY: within the slice, and not written to by the caller's promise.
        unsafe { std::slice::from_raw_parts(self.of_part(start, len), len) }
    }

    fn of_part(&self, start: usize, len: usize) -> *mut T {
        assert!(start <= self.len && len <= self.len - start, "a part lies within its slice");
        // SAFETY: within the slice, or at its end.
        unsafe { self.start.add(start) }
    }

    /// The address of one element, for tasks whose parts interleave.
    ///
    /// # Panics
    /// When the element does not lie within.
    pub(super) fn pointer(&self, element: usize) -> *mut T {
        assert!(element < self.len, "an element lies within its slice");
        // SAFETY: within the slice.
        unsafe { self.start.add(element) }
    }
}
