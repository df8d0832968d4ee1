//! Files in memory.

use std::{
    fs::File,
    io::{self, ErrorKind, Read as _},
    sync::Arc,
};

/// A file's bytes, and at most one more than `limit_bytes` of them: enough to tell that it is too large.
///
/// Takes the file's size in memory once. A file that grows or shrinks meanwhile gives what was there when it was
/// read, at the price of a copy.
///
/// # Errors
/// What the system says.
pub fn read_file(mut file: File, limit_bytes: u64) -> io::Result<Arc<[u8]>> {
    let most = limit_bytes.saturating_add(1);
    let known = file.metadata()?.len().min(most);
    let size = usize::try_from(known).map_err(|_| io::Error::from(ErrorKind::FileTooLarge))?;
    let mut bytes: Arc<[u8]> = std::iter::repeat_n(0, size).collect();
    let block = Arc::get_mut(&mut bytes).expect("nobody else has been given it");
    let mut filled = 0;
    while filled < size {
        match file.read(&mut block[filled..]) {
            Ok(0) => return Ok(bytes[..filled].into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    let mut rest = Vec::new();
    file.take(most - known).read_to_end(&mut rest)?;
    if rest.is_empty() {
        return Ok(bytes);
    }
    Ok([&bytes, &rest[..]].concat().into())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_file_is_read_up_to_one_byte_past_the_limit() {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&[7; 100]).unwrap();
        let read = |limit_bytes| read_file(file.reopen().unwrap(), limit_bytes).unwrap().len();
        assert_eq!([read(0), read(98), read(99), read(100), read(u64::MAX)], [1, 99, 100, 100, 100]);
        // The kernel gives such files a size of 0.
        let about = read_file(File::open("/proc/self/status").unwrap(), 1 << 20).unwrap();
        assert!(about.starts_with(b"Name:"));
    }
}
