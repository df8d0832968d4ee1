//! Passwords and tokens: each in a file of its own, read when a connection is opened, so that a new one is taken up.

use std::path::Path;

/// The most bytes a password file may have.
const MAX_BYTES: usize = 4096;

/// What the file holds, without blanks around it; nothing where no file is named.
pub(crate) async fn read_secret(path: &Path) -> Result<Option<String>, String> {
    if path.as_os_str().is_empty() {
        return Ok(None);
    }
    let text = tokio::fs::read_to_string(path)
        .await
        .map_err(|error| format!("secret file {} cannot be read: {error}", path.display()))?;
    let secret = text.trim();
    if secret.is_empty() || secret.len() > MAX_BYTES {
        return Err(format!("secret file {} must hold 1 to {MAX_BYTES} bytes", path.display()));
    }
    Ok(Some(secret.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_secret_is_trimmed_and_a_missing_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        std::fs::write(&path, " hush \n").unwrap();
        assert_eq!(read_secret(&path).await, Ok(Some("hush".to_owned())));
        assert_eq!(read_secret(Path::new("")).await, Ok(None));
        std::fs::write(&path, "\n").unwrap();
        assert!(read_secret(&path).await.unwrap_err().contains("must hold"));
        let absent = folder.path().join("absent");
        assert!(read_secret(&absent).await.unwrap_err().contains("absent"));
    }
}
