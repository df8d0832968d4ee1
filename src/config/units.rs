//! The words a person writes for a size, a time, a file mode and a user's share.

use std::{fmt, time::Duration};

/// A number of bytes, written with a binary unit: `512B`, `64KiB`, `256MiB`, `1GiB`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(pub u64);

const SIZES: [(&str, u64); 5] =
    [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)];

impl ByteSize {
    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// `n` gibibytes.
    pub const fn gib(n: u64) -> Self {
        Self(n << 30)
    }

    /// The bytes as a length in memory; more than the address space holds is all of it.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads a whole number and its unit; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        scaled(text, &SIZES)
            .map(Self)
            .ok_or_else(|| format!("{text:?} is no size: write a whole number and B, KiB, MiB, GiB or TiB"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_scaled(f, self.0, &SIZES)
    }
}

const TIMES: [(&str, u64); 6] = [
    ("h", 3_600_000_000_000),
    ("min", 60_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1000),
    ("ns", 1),
];

/// Reads a whole number and its unit, `5ms` or `60s`; the error says what to write instead.
pub(super) fn parse_duration(text: &str) -> Result<Duration, String> {
    scaled(text, &TIMES)
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("{text:?} is no time: write a whole number and ns, us, ms, s, min or h"))
}

/// The shortest text that [`parse_duration`] reads as `time`, with seconds as the largest unit.
pub(super) fn format_duration(time: Duration) -> String {
    if time.is_zero() {
        return "0s".to_owned();
    }
    struct Shown(u64);
    impl fmt::Display for Shown {
        fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write_scaled(f, self.0, &TIMES[2..])
        }
    }
    Shown(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)).to_string()
}

/// Permission bits of a socket file, written in octal: `0660`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FileMode(pub u32);

impl FileMode {
    /// Reads up to four octal digits; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let digits = (3..=4).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        match u32::from_str_radix(text, 8) {
            Ok(mode) if digits && mode <= 0o777 => Ok(Self(mode)),
            _ => Err(format!("{text:?} is no file mode: write octal digits up to 0777, such as \"0660\"")),
        }
    }
}

impl fmt::Display for FileMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04o}", self.0)
    }
}

/// How much time a user gets beside others, written `1000:4`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct UserShare {
    /// The user's id.
    pub uid: u32,
    /// How many times as much as one who is not listed, 1 to 1000.
    pub weight: u32,
}

impl UserShare {
    /// Reads a user id and a weight; the error says what to write instead.
    pub fn parse(text: &str) -> Result<Self, String> {
        let share = text.split_once(':').and_then(|(uid, weight)| {
            Some(Self { uid: uid.trim().parse().ok()?, weight: weight.trim().parse().ok()? })
        });
        share.filter(|share| (1..=1000).contains(&share.weight)).ok_or_else(|| {
            format!(
                "{text:?} is no share: write a user id, a colon and a weight of 1 to 1000, such as \"1000:4\""
            )
        })
    }
}

impl fmt::Display for UserShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.uid, self.weight)
    }
}

fn scaled(text: &str, units: &[(&str, u64)]) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let (_, scale) = units.iter().find(|(name, _)| *name == unit.trim_start())?;
    number.parse::<u64>().ok()?.checked_mul(*scale)
}

fn write_scaled(f: &mut fmt::Formatter<'_>, number: u64, units: &[(&str, u64)]) -> fmt::Result {
    let whole = |(_, scale): &&(&str, u64)| number >= *scale && number.is_multiple_of(*scale);
    let (unit, scale) = units.iter().find(whole).unwrap_or(&units[units.len() - 1]);
    write!(f, "{}{unit}", number / scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_back_as_they_are_shown() {
        for (text, bytes) in [("0B", 0), ("1B", 1), ("1536B", 1536), ("64KiB", 65_536), ("1GiB", 1 << 30)] {
            assert_eq!(ByteSize::parse(text), Ok(ByteSize(bytes)));
            assert_eq!(ByteSize(bytes).to_string(), text);
        }
        assert_eq!(ByteSize::parse("2 MiB"), Ok(ByteSize::mib(2)));
        for bad in ["", "1", "MiB", "1MB", "-1B", "1.5GiB", "99999999999TiB", "1 GiB "] {
            assert!(ByteSize::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn times_read_back_as_they_are_shown() {
        for text in ["0s", "60s", "5ms", "1500us", "7ns", "3600s"] {
            assert_eq!(format_duration(parse_duration(text).unwrap()), text);
        }
        assert_eq!(parse_duration("2min").unwrap(), Duration::from_secs(120));
        for bad in ["", "5", "5 m", "s", "-1s", "99999999999h"] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn shares_read_back_as_they_are_shown() {
        let share = UserShare { uid: 1000, weight: 4 };
        assert_eq!((UserShare::parse("1000:4"), share.to_string()), (Ok(share), "1000:4".to_owned()));
        for bad in ["", "1000", "1000:", "1000:0", "1000:1001", ":1", "-1:1", "root:1", "1:1.5"] {
            assert!(UserShare::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn modes_are_octal() {
        assert_eq!(FileMode::parse("0660"), Ok(FileMode(0o660)));
        assert_eq!(FileMode(0o600).to_string(), "0600");
        for bad in ["", "8", "0668", "1777", "rw", "+660"] {
            assert!(FileMode::parse(bad).is_err(), "{bad}");
        }
    }
}
