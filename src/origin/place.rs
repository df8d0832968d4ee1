//! Where something was looked for, fit to be said aloud.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use reqwest::Url;

use crate::fault::shortened;

/// An address, a path or a catalogue's reference as errors, logs and reports show it.
///
/// A reference is a catalogue's word and as long as it likes, and what stands behind an address' `?` or before its
/// `@` is often a secret: signed addresses are made that way. Neither comes further than here.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Place(String);

impl Place {
    fn of(text: &str) -> Self {
        let Some((scheme, rest)) = text.split_once("://") else { return Self(shortened(text)) };
        // Elsewhere they are characters of a name, as in a bucket's keys.
        let has_query = scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https");
        let end = if has_query { rest.find(['?', '#']) } else { None };
        let seen = end.map_or(rest, |end| &rest[..end]);
        let (host, path) = seen.split_at(seen.find('/').unwrap_or(seen.len()));
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        Self(shortened(&format!("{scheme}://{host}{path}")))
    }
}

impl From<&str> for Place {
    fn from(text: &str) -> Self {
        Self::of(text)
    }
}

impl From<String> for Place {
    fn from(text: String) -> Self {
        Self::of(&text)
    }
}

impl From<&Url> for Place {
    fn from(url: &Url) -> Self {
        Self::of(url.as_str())
    }
}

impl From<&Path> for Place {
    fn from(path: &Path) -> Self {
        Self(shortened(&path.display().to_string()))
    }
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self::from(path.as_path())
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_of_an_address_are_not_shown() {
        for (given, shown) in [
            ("https://h/b/k.pt?X-Amz-Signature=secret", "https://h/b/k.pt"),
            ("https://user:secret@h:9/k.pt#secret", "https://h:9/k.pt"),
            ("HTTP://user:secret@h", "HTTP://h"),
            ("s3://bucket/a?b", "s3://bucket/a?b"),
            ("file:///a#b", "file:///a#b"),
            ("a@b", "a@b"),
        ] {
            assert_eq!(Place::from(given).to_string(), shown);
        }
    }

    #[test]
    fn a_reference_of_a_megabyte_is_cut() {
        let shown = Place::from(format!("https://h/{}", "ä".repeat(1 << 20))).to_string();
        assert!(shown.len() < 500, "{}", shown.len());
        assert!(shown.starts_with("https://h/ää"));
    }
}
