//! The types a key's value may have: how each is read from TOML or from a variable, and shown again.

use std::{path::PathBuf, time::Duration};

use super::{
    metrics::MetricsAddress,
    raw::RawValue,
    units::{ByteSize, FileMode, UserShare, format_duration, parse_duration},
};
use crate::{id::KernelId, signature::PublicKey};

/// A type that a key can have.
pub(super) trait Setting: Sized {
    /// Reads the value; the error says what to write instead.
    fn read(raw: &RawValue) -> Result<Self, String>;

    /// The value as it stands in a TOML file.
    fn show(&self) -> String;
}

fn expected(what: &str, raw: &RawValue) -> String {
    format!("write {what} instead of {}", raw.kind())
}

/// Types written as a quoted text with a parser of their own.
macro_rules! texts {
    ($($type:ty, $what:literal, $parse:expr, $show:expr;)*) => {$(
        impl Setting for $type {
            fn read(raw: &RawValue) -> Result<Self, String> {
                match raw {
                    RawValue::String(text) | RawValue::Variable(text) => $parse(text),
                    other => Err(expected($what, other)),
                }
            }

            fn show(&self) -> String {
                let show: fn(&$type) -> String = $show;
                quoted(&show(self))
            }
        }
    )*};
}

texts! {
    ByteSize, "a size such as \"256MiB\"", ByteSize::parse, ByteSize::to_string;
    Duration, "a time such as \"60s\"", parse_duration, |time| format_duration(*time);
    FileMode, "a mode such as \"0660\"", FileMode::parse, FileMode::to_string;
    UserShare, "a share such as \"1000:4\"", UserShare::parse, UserShare::to_string;
    MetricsAddress, "an address in quotes", MetricsAddress::parse, MetricsAddress::to_string;
    String, "a text in quotes", |text: &str| Ok(text.to_owned()), String::clone;
    PathBuf, "a path in quotes", |text: &str| Ok(PathBuf::from(text)), |path| path.display().to_string();
    KernelId, "a kernel id in quotes", |text: &str| text.parse().map_err(|e| format!("{e}")), KernelId::to_string;
    PublicKey, "a public key in quotes", |text: &str| text.parse().map_err(|e| format!("{e}")), PublicKey::to_string;
}

/// Types written as one of a few words.
macro_rules! words {
    ($type:ident { $($variant:ident = $word:literal),+ $(,)? }) => {
        impl $crate::config::setting::Setting for $type {
            fn read(raw: &$crate::config::raw::RawValue) -> Result<Self, String> {
                match raw.text() {
                    $(Some($word) => Ok(Self::$variant),)+
                    _ => Err(format!("write one of {} instead of {}", [$($word),+].join(", "), raw.kind())),
                }
            }

            fn show(&self) -> String {
                match self {
                    $(Self::$variant => format!("{:?}", $word),)+
                }
            }
        }
    };
}
pub(super) use words;

/// A TOML basic string: Rust escapes more than TOML knows, but only what no path or word holds.
fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

impl Setting for bool {
    fn read(raw: &RawValue) -> Result<Self, String> {
        match raw {
            RawValue::Boolean(value) => Ok(*value),
            RawValue::Variable(text) if text == "true" => Ok(true),
            RawValue::Variable(text) if text == "false" => Ok(false),
            other => Err(expected("true or false", other)),
        }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

macro_rules! numbers {
    ($($type:ty),*) => {$(
        impl Setting for $type {
            fn read(raw: &RawValue) -> Result<Self, String> {
                let number = match raw {
                    RawValue::Integer(number) => *number,
                    RawValue::Variable(text) => {
                        text.parse().map_err(|_| expected("a whole number", raw))?
                    }
                    other => return Err(expected("a whole number", other)),
                };
                Self::try_from(number)
                    .map_err(|_| format!("{number} is out of range: write 0 to {}", Self::MAX))
            }

            fn show(&self) -> String {
                self.to_string()
            }
        }
    )*};
}

numbers!(u16, u32, u64, usize);

impl<T: Setting> Setting for Vec<T> {
    /// In a variable the items are separated by commas; an empty variable is an empty list.
    fn read(raw: &RawValue) -> Result<Self, String> {
        match raw {
            RawValue::List(items) => items.iter().map(T::read).collect(),
            RawValue::Variable(text) if text.trim().is_empty() => Ok(Vec::new()),
            RawValue::Variable(text) => {
                text.split(',').map(|item| T::read(&RawValue::Variable(item.trim().to_owned()))).collect()
            }
            other => Err(expected("a list in brackets", other)),
        }
    }

    fn show(&self) -> String {
        format!("[{}]", self.iter().map(T::show).collect::<Vec<_>>().join(", "))
    }
}
