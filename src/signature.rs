//! Ed25519 signatures of artifacts: who vouches for a kernel's bytes.
//!
//! What is signed is the artifact's SHA-256 as its 32 raw bytes, so that a catalogue can hand the signature on
//! without the artifact. Keys are PEM files as `openssl genpkey -algorithm ed25519` writes them; in the
//! configuration a public key is one line.

use std::{fmt, str::FromStr};

use ed25519_dalek::{
    Signer as _, SigningKey, VerifyingKey,
    pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, EncodePublicKey as _, spki::der::pem::LineEnding},
};

use crate::digest::Digest;

const PREFIX: &str = "ed25519:";

/// The public half of a signing key, printed as `ed25519:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey(VerifyingKey);

/// A signature, printed as 128 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Signature(ed25519_dalek::Signature);

/// A signing key. It is never printed, and wiped when dropped.
pub struct SecretKey(SigningKey);

/// Why a text is no key or no signature.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignatureError {
    /// Not in the form that public keys have.
    #[error(
        "a public key is \"ed25519:\" and 64 hexadecimal digits, as kasmina keygen --show FILE prints it"
    )]
    PublicKey,
    /// In that form, but no key under which a signature would mean anything.
    #[error("these 64 digits are no Ed25519 public key: print the right one with kasmina keygen --show FILE")]
    WeakKey,
    /// No private key in PEM.
    #[error("it is no Ed25519 private key in PEM: make one with kasmina keygen ({reason})")]
    SecretKey {
        /// What the reader found.
        reason: String,
    },
    /// Not in the form that signatures have.
    #[error("a signature is 128 hexadecimal digits, as kasmina sign writes it")]
    Signature,
    /// The system gives no random bytes for a new key.
    #[error("the system gives no random bytes: {reason}")]
    Random {
        /// What the system says.
        reason: String,
    },
}

impl PublicKey {
    /// Whether `signature` is this key's over `digest`. Signatures that are not unique are refused.
    pub fn verifies(&self, digest: &Digest, signature: &Signature) -> bool {
        self.0.verify_strict(digest.as_bytes(), &signature.0).is_ok()
    }

    /// The key in PEM, as `openssl pkey -pubin` reads it.
    pub fn to_pem(&self) -> String {
        self.0.to_public_key_pem(LineEnding::LF).expect("a key of fixed size can always be written")
    }
}

impl SecretKey {
    /// A new key.
    ///
    /// # Errors
    /// [`SignatureError::Random`] when the system gives no random bytes.
    pub fn generate() -> Result<Self, SignatureError> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(|error| SignatureError::Random { reason: error.to_string() })?;
        Ok(Self(SigningKey::from_bytes(&seed)))
    }

    /// A key from PEM (PKCS #8).
    ///
    /// # Errors
    /// [`SignatureError::SecretKey`] when the text holds no such key.
    pub fn from_pem(text: &str) -> Result<Self, SignatureError> {
        let key = SigningKey::from_pkcs8_pem(text);
        key.map(Self).map_err(|error| SignatureError::SecretKey { reason: error.to_string() })
    }

    /// The key in PEM (PKCS #8). The caller answers for where it goes.
    pub fn to_pem(&self) -> String {
        let pem = self.0.to_pkcs8_pem(LineEnding::LF);
        pem.expect("a key of fixed size can always be written").as_str().to_owned()
    }

    /// The half that may be known.
    pub fn public(&self) -> PublicKey {
        PublicKey(self.0.verifying_key())
    }

    /// The signature over an artifact's digest.
    pub fn sign(&self, digest: &Digest) -> Signature {
        Signature(self.0.sign(digest.as_bytes()))
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(PREFIX)?;
        self.0.as_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl FromStr for PublicKey {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let digits = text.trim().strip_prefix(PREFIX).ok_or(SignatureError::PublicKey)?;
        let key = VerifyingKey::from_bytes(&from_hex(digits).ok_or(SignatureError::PublicKey)?);
        // Under a key of small order a signature exists that fits every message.
        key.ok().filter(|key| !key.is_weak()).map(Self).ok_or(SignatureError::WeakKey)
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.to_bytes().iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signature({self})")
    }
}

impl FromStr for Signature {
    type Err = SignatureError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bytes = from_hex(text.trim()).ok_or(SignatureError::Signature)?;
        Ok(Self(ed25519_dalek::Signature::from_bytes(&bytes)))
    }
}

impl serde::Serialize for Signature {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretKey(of {})", self.public())
    }
}

fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let digit = |byte: u8| char::from(byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Written by `openssl genpkey -algorithm ed25519`; the signature is `openssl pkeyutl -sign -rawin` over the
    /// 32 bytes of SHA-256("kasmina").
    const PEM: &str = "-----BEGIN PRIVATE KEY-----\nMC4CAQAwBQYDK2VwBCIEIA3ik2Mc0myGSFsnvDFyAdlHegVHy6hgIQ6JVlM2dqxT\n-----END PRIVATE KEY-----\n";
    const PUBLIC: &str = "ed25519:9902907d6214d6564b110e9a79474c4cf328db75bcde36a0728cb2a168ea088b";
    const SIGNED: &str = "7940e85b4144b9702bf48b83cb00bd128a7ab7cee7c23a55398cfc23a84b9251c080c36925e0eca027a8348cd887b7520881db60a400683d529f394fa5345b0d";

    #[test]
    fn keys_and_signatures_are_those_of_openssl() {
        let key = SecretKey::from_pem(PEM).unwrap();
        assert_eq!(key.public().to_string(), PUBLIC);
        assert_eq!(key.sign(&Digest::of(b"kasmina")).to_string(), SIGNED);
        assert_eq!(SecretKey::from_pem(&key.to_pem()).unwrap().public(), key.public());
        assert!(key.public().to_pem().starts_with("-----BEGIN PUBLIC KEY-----\n"));
        assert!(!format!("{key:?}").contains(&PEM[40..60]));
    }

    #[test]
    fn a_signature_holds_for_its_key_and_its_digest_alone() {
        let (key, other) = (SecretKey::generate().unwrap(), SecretKey::generate().unwrap());
        let digest = Digest::of(b"an artifact");
        let signature: Signature = format!(" {}\n", key.sign(&digest)).parse().unwrap();
        assert!(key.public().verifies(&digest, &signature));
        assert!(!key.public().verifies(&Digest::of(b"another"), &signature));
        assert!(!other.public().verifies(&digest, &signature));
    }

    #[test]
    fn a_text_that_is_no_key_is_refused() {
        let zeros = format!("ed25519:{}", "0".repeat(64));
        let identity = format!("ed25519:01{}", "0".repeat(62));
        for text in ["", "ed25519:", &PUBLIC[8..], &zeros, &identity, &PUBLIC[..70], "ed25519:é"] {
            assert!(text.parse::<PublicKey>().is_err(), "{text}");
        }
        for text in ["", "ab", &SIGNED[1..], &"g".repeat(128)] {
            assert_eq!(text.parse::<Signature>(), Err(SignatureError::Signature));
        }
        assert!(
            SecretKey::from_pem("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n").is_err()
        );
    }
}
