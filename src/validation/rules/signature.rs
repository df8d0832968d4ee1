//! `signature.trusted`: a listed key vouches for the artifact's bytes.

use crate::{
    digest::Digest,
    signature::{PublicKey, Signature},
};

/// Holds an artifact to its signature; `None` where nobody asks for one and none is there.
///
/// A signature that is there must hold even where none is required: one that does not is a sign of tampering.
pub(in crate::validation) fn signature_trusted(
    digest: &Digest,
    signature: Option<&str>,
    trusted: &[PublicKey],
    required: bool,
) -> Option<Result<String, String>> {
    let Some(text) = signature else {
        let missing = || Err("it is not signed: sign it with kasmina sign".to_owned());
        return required.then(missing);
    };
    if trusted.is_empty() && !required {
        return Some(Ok("it is signed; not checked, as validator.trusted_keys lists no key".to_owned()));
    }
    let judged = text.parse::<Signature>().map_err(|error| error.to_string()).and_then(|signature| {
        let key = trusted.iter().find(|key| key.verifies(digest, &signature));
        key.map(|key| format!("signed by {key}")).ok_or_else(|| {
            "its signature is by none of validator.trusted_keys over this artifact: either the bytes were \
             changed after they were signed or the signer's key is not listed"
                .to_owned()
        })
    });
    Some(judged)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::signature::SecretKey;

    #[test]
    fn a_signature_must_be_right_where_it_is_there_and_there_where_it_is_required() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let digest = Digest::of(b"bytes");
        let good = key.sign(&digest).to_string();
        let trusted = [other.public(), key.public()];
        let judge = |signature: Option<&str>, keys: &[PublicKey], required| {
            signature_trusted(&digest, signature, keys, required)
        };
        assert_eq!(judge(None, &trusted, false), None);
        assert!(judge(None, &trusted, true).unwrap().unwrap_err().contains("not signed"));
        assert_eq!(judge(Some(&good), &trusted, true), Some(Ok(format!("signed by {}", key.public()))));
        assert!(judge(Some(&good), &[], false).unwrap().unwrap().contains("not checked"));
        assert!(judge(Some(&good), &trusted[..1], false).unwrap().is_err(), "the signer is not listed");
        assert!(judge(Some("00"), &trusted, false).unwrap().unwrap_err().contains("128"));
        let elsewhere = key.sign(&Digest::of(b"others")).to_string();
        assert!(judge(Some(&elsewhere), &trusted, false).unwrap().is_err());
    }
}
