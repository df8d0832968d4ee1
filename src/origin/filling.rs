//! A blob on its way in: one buffer, filled in order, hashed as it fills, never past the limit.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::Blob;
use crate::digest::Hasher;

/// What does not fit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Overflow;

/// The bytes so far.
#[derive(Debug)]
pub(super) struct Filling {
    buffer: Buffer,
    filled: usize,
    limit: usize,
    hasher: Hasher,
    hashing: Duration,
}

#[derive(Debug)]
enum Buffer {
    /// As large as it will be, made once.
    Known(Arc<[u8]>),
    /// Of a size that the server did not give; copied once at the end.
    Growing(Vec<u8>),
}

impl Filling {
    /// A buffer for `total` bytes, where they are known.
    pub(super) fn new(total: Option<u64>, limit_bytes: u64) -> Result<Self, Overflow> {
        if total.is_some_and(|total| total > limit_bytes) {
            return Err(Overflow);
        }
        let size = |bytes: u64| usize::try_from(bytes).map_err(|_| Overflow);
        let buffer = match total {
            Some(total) => Buffer::Known(std::iter::repeat_n(0, size(total)?).collect()),
            None => Buffer::Growing(Vec::new()),
        };
        let (hasher, hashing) = (Hasher::default(), Duration::ZERO);
        let limit = usize::try_from(limit_bytes).unwrap_or(usize::MAX);
        Ok(Self { buffer, filled: 0, limit, hasher, hashing })
    }

    /// How many bytes are there.
    pub(super) fn filled(&self) -> usize {
        self.filled
    }

    /// Takes the next bytes.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Overflow> {
        let end = self.filled.checked_add(piece.len()).ok_or(Overflow)?;
        match &mut self.buffer {
            Buffer::Known(bytes) => {
                let block = Arc::get_mut(bytes).expect("nobody else has been given it");
                block.get_mut(self.filled..end).ok_or(Overflow)?.copy_from_slice(piece);
            }
            Buffer::Growing(_) if end > self.limit => return Err(Overflow),
            Buffer::Growing(bytes) => bytes.extend_from_slice(piece),
        }
        self.filled = end;
        let start = Instant::now();
        self.hasher.update(piece);
        self.hashing += start.elapsed();
        Ok(())
    }

    /// The blob; nothing while bytes of a known total are missing.
    pub(super) fn finish(self) -> Option<Blob> {
        let bytes = match self.buffer {
            Buffer::Known(bytes) if bytes.len() == self.filled => bytes,
            Buffer::Known(_) => return None,
            Buffer::Growing(bytes) => bytes.into(),
        };
        Some(Blob { bytes, digest: self.hasher.finish(), hashing: self.hashing, hold: None })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;

    #[test]
    fn a_known_total_is_neither_missed_nor_passed() {
        assert_eq!(Filling::new(Some(11), 10).err(), Some(Overflow));
        let mut filling = Filling::new(Some(4), 10).unwrap();
        filling.push(b"ab").unwrap();
        assert_eq!(filling.push(b"cde"), Err(Overflow));
        assert!(Filling::new(Some(4), 10).unwrap().finish().is_none());
        filling.push(b"cd").unwrap();
        let blob = filling.finish().unwrap();
        assert_eq!((&blob.bytes[..], blob.digest), (&b"abcd"[..], Digest::of(b"abcd")));
    }

    #[test]
    fn an_unknown_total_ends_at_the_limit() {
        let mut filling = Filling::new(None, 4).unwrap();
        filling.push(b"abcd").unwrap();
        assert_eq!((filling.push(b"e"), filling.filled()), (Err(Overflow), 4));
        assert_eq!(filling.finish().unwrap().digest, Digest::of(b"abcd"));
    }
}
