//! Compiled kernels on disk, so that a daemon compiles once for each version of itself and of NVRTC.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::digest::{Digest, Hasher};

/// Bytes of the digest that each file begins with.
const SEAL_BYTES: usize = 32;

/// A folder of images, each named after all that went into it.
#[derive(Clone, Debug)]
pub struct ImageCache {
    folder: PathBuf,
}

impl ImageCache {
    /// A cache in a folder, which is made when something is kept.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }

    /// The image kept under a key, if its bytes are the ones that were written.
    pub(super) fn get(&self, key: Digest) -> Option<Vec<u8>> {
        let mut bytes = fs::read(self.file(key)).ok()?;
        if bytes.len() < SEAL_BYTES {
            return None;
        }
        let image = bytes.split_off(SEAL_BYTES);
        (Digest::of(&image).as_bytes()[..] == bytes[..]).then_some(image)
    }

    /// Keeps an image. Whoever reads meanwhile finds the whole of it or nothing.
    pub(super) fn put(&self, key: Digest, image: &[u8]) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let file = tempfile::NamedTempFile::new_in(&self.folder)?;
        fs::write(file.path(), [&Digest::of(image).as_bytes()[..], image].concat())?;
        file.persist(self.file(key)).map_err(|error| error.error)?;
        Ok(())
    }

    fn file(&self, key: Digest) -> PathBuf {
        Path::new(&self.folder).join(format!("{key}.image"))
    }
}

/// A key of several parts; where one ends and the next begins counts.
pub(super) fn key<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Digest {
    let mut hasher = Hasher::default();
    for part in parts {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_found_under_its_own_key_and_only_while_it_is_whole() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ImageCache::new(folder.path().join("kernels"));
        let (own, other) = (key([&b"ab"[..], b"c"]), key([&b"a"[..], b"bc"]));
        assert_eq!(cache.get(own), None);
        cache.put(own, b"machine code").unwrap();
        cache.put(own, b"machine code").unwrap();
        assert_eq!(cache.get(own).as_deref(), Some(&b"machine code"[..]));
        assert_eq!(cache.get(other), None);
        let file = cache.file(own);
        let mut bytes = fs::read(&file).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(&file, &bytes).unwrap();
        assert_eq!(cache.get(own), None, "a flipped bit");
        fs::write(&file, &bytes[..10]).unwrap();
        assert_eq!(cache.get(own), None, "a torn file");
        assert_eq!(fs::read_dir(folder.path().join("kernels")).unwrap().count(), 1, "nothing is left behind");
    }
}
