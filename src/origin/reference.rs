//! Where a blob is, and whether the configuration lets it be there.

use std::path::{Path, PathBuf};

use reqwest::Url;

use super::address::Addresses;

/// A place that bytes may come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum BlobPlace {
    /// `s3://bucket/key`.
    S3 {
        /// The bucket.
        bucket: String,
        /// The key within it.
        key: String,
    },
    /// `http://` or `https://`.
    Http(Url),
    /// `file://`.
    File(PathBuf),
}

/// What references may lead to; everything else is refused.
#[derive(Clone, Debug, Default)]
pub(super) struct Allow {
    /// `host` for a scheme's own port, `host:port`, or `*.domain`.
    pub(super) hosts: Vec<String>,
    /// `bucket`, or `bucket/prefix`.
    pub(super) buckets: Vec<String>,
    /// Folders, and what is below them.
    pub(super) folders: Vec<PathBuf>,
    /// `host:port` of the catalogue's endpoints.
    pub(super) endpoints: Vec<String>,
    /// Where connections may go.
    pub(super) addresses: Addresses,
}

impl Allow {
    /// Reads a reference and holds it to the lists; the error says what to set.
    pub(super) fn place(&self, reference: &str) -> Result<BlobPlace, String> {
        if reference.bytes().any(|byte| byte.is_ascii_control()) {
            return Err("it holds a control character".to_owned());
        }
        if let Some(rest) = reference.strip_prefix("s3://") {
            return self.s3(rest);
        }
        if let Some(rest) = reference.strip_prefix("file://") {
            let path = Path::new(rest);
            if !path.is_absolute() {
                return Err("write file:/// and a path from the root".to_owned());
            }
            if self.folders.is_empty() {
                return Err("no folder is allowed: list it in origin.blob.allowed_folders".to_owned());
            }
            return Ok(BlobPlace::File(path.to_owned()));
        }
        let url = Url::parse(reference).map_err(|error| format!("it is no reference ({error})"))?;
        self.url(&url)?;
        Ok(BlobPlace::Http(url))
    }

    fn s3(&self, rest: &str) -> Result<BlobPlace, String> {
        let (bucket, key) = rest.split_once('/').unwrap_or((rest, ""));
        let letters = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        if !(1..=255).contains(&bucket.len()) || !bucket.bytes().all(letters) {
            return Err("write s3://bucket/key".to_owned());
        }
        // A server or proxy that tidies paths up would take such a key to another bucket.
        if key.is_empty() || key.len() > 1024 || key.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err("its key is empty, too long, or has empty parts or dots for parts".to_owned());
        }
        let listed = |entry: &String| match entry.split_once('/') {
            None => entry == bucket,
            Some((name, prefix)) => {
                let below = key.strip_prefix(prefix.trim_end_matches('/'));
                name == bucket && below.is_some_and(|below| below.starts_with('/'))
            }
        };
        if !self.buckets.iter().any(listed) {
            return Err(format!("bucket {bucket} is not allowed: list it in origin.blob.allowed_buckets"));
        }
        Ok(BlobPlace::S3 { bucket: bucket.to_owned(), key: key.to_owned() })
    }

    /// Whether a request to `url` may be made; asked again at each redirect.
    pub(super) fn url(&self, url: &Url) -> Result<(), String> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("scheme {} is none of s3, https, http and file", url.scheme()));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err("it holds a user name or a password".to_owned());
        }
        let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default()) else {
            return Err("it names no host".to_owned());
        };
        let place = format!("{host}:{port}");
        let own_port = url.port().is_none();
        let listed = |entry: &String| {
            let (name, ported) = match entry.rsplit_once(':') {
                // The last colon of an IPv6 address in brackets stands within them.
                Some((name, digits)) if !digits.ends_with(']') => (name, digits.parse() == Ok(port)),
                _ => (entry.as_str(), own_port),
            };
            ported && (name == host || name.strip_prefix('*').is_some_and(|tail| below(host, tail)))
        };
        if !self.endpoints.contains(&place) && !self.hosts.iter().any(listed) {
            let entry = if own_port { host.to_owned() } else { place };
            return Err(format!("host {entry} is not allowed: list it in origin.blob.allowed_hosts"));
        }
        // A resolver is not asked about addresses, so they are looked at here.
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        match bare.parse() {
            Ok(address) => self.addresses.check(host, address),
            Err(_) => Ok(()),
        }
    }
}

/// Whether `host` ends in `tail`, which begins with a dot, and has more before it.
fn below(host: &str, tail: &str) -> bool {
    tail.starts_with('.') && host.len() > tail.len() && host.ends_with(tail)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allow() -> Allow {
        Allow {
            hosts: ["blobs.example", "other.example:8443", "*.cdn.example", "169.254.169.254", "10.0.0.1"]
                .map(String::from)
                .into(),
            buckets: ["kernels", "shared/team/"].map(String::from).into(),
            folders: vec!["/srv/kernels".into()],
            endpoints: vec!["127.0.0.1:8000".into()],
            addresses: Addresses {
                allow_private: false,
                endpoints: std::sync::Arc::new(["127.0.0.1".to_owned()].into()),
            },
        }
    }

    #[test]
    fn what_is_listed_passes() {
        for reference in [
            "s3://kernels/a/compiled.pt",
            "s3://shared/team/a.pt",
            "https://blobs.example/a.pt",
            "http://blobs.example:80/a",
            "https://other.example:8443/a",
            "https://eu.cdn.example/a",
            "http://127.0.0.1:8000/blobs/a",
            "file:///srv/kernels/a.pt",
        ] {
            assert!(allow().place(reference).is_ok(), "{reference}: {:?}", allow().place(reference));
        }
    }

    #[test]
    fn what_is_not_listed_is_refused_with_the_key_to_set() {
        for (reference, says) in [
            ("s3://others/a", "origin.blob.allowed_buckets"),
            ("s3://shared/teams/a", "origin.blob.allowed_buckets"),
            ("s3://kernels/../others/a", "dots"),
            ("s3://kernels/", "key is empty"),
            ("s3:///a", "s3://bucket/key"),
            ("https://evil.example/a", "origin.blob.allowed_hosts"),
            ("https://blobs.example:22/a", "origin.blob.allowed_hosts"),
            ("https://other.example/a", "origin.blob.allowed_hosts"),
            ("https://cdn.example/a", "origin.blob.allowed_hosts"),
            ("https://evilcdn.example/a", "origin.blob.allowed_hosts"),
            ("http://127.0.0.1:22/a", "origin.blob.allowed_hosts"),
            ("http://2130706433:22/", "origin.blob.allowed_hosts"),
            ("http://169.254.169.254/latest", "metadata"),
            ("http://0xa9fea9fe/latest", "metadata"),
            ("http://10.0.0.1/a", "allow_private_addresses"),
            ("https://user:word@blobs.example/a", "password"),
            ("ftp://blobs.example/a", "scheme ftp"),
            ("gopher://blobs.example/a", "scheme gopher"),
            ("file://host/srv/kernels/a", "file:///"),
            ("kernels/a.pt", "no reference"),
            ("https://blobs.example/a\r\nHost: evil", "control"),
        ] {
            let refused = allow().place(reference).unwrap_err();
            assert!(refused.contains(says), "{reference}: {refused}");
        }
        assert!(Allow::default().place("file:///etc/passwd").unwrap_err().contains("allowed_folders"));
    }
}
