//! Digests, and the proof that bytes had one.
//!
//! The data path hashes every byte on its way ([`Verifier::update`]) and decides at the end
//! ([`Verifier::finish`]). Only that decision makes a [`Verified`], and only a `Verified` opens the
//! door of `volume::Staged::publish`: that nothing unverified becomes visible is a type, not a
//! convention.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;
use sha2::digest::common::hazmat::SerializableState;
use sha2::digest::typenum::Unsigned;

/// A digest algorithm that CDI and the published checksum files use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// MD5 (RFC 1321): accepted because images are published with it; no protection against intent.
    Md5,
    /// SHA-1 (FIPS 180-4): likewise.
    Sha1,
    /// SHA-256 (FIPS 180-4), which every report carries.
    Sha256,
    /// SHA-512 (FIPS 180-4).
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 4] = [Self::Md5, Self::Sha1, Self::Sha256, Self::Sha512];

    /// The lower-case name that stands before the colon.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Md5 => "md5",
            Self::Sha1 => "sha1",
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// The digest's length in bytes.
    pub const fn digest_len(self) -> usize {
        match self {
            Self::Md5 => 16,
            Self::Sha1 => 20,
            Self::Sha256 => 32,
            Self::Sha512 => 64,
        }
    }
}

/// A digest with its algorithm, written `sha256:HEX`.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: Vec<u8>,
}

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseDigestError {
    /// There is no colon.
    #[error("expected ALGORITHM:HEX such as `sha256:9f86…`, got `{0}`")]
    NoAlgorithm(String),
    /// The algorithm is unknown.
    #[error("unknown digest algorithm `{0}`; expected md5, sha1, sha256 or sha512")]
    UnknownAlgorithm(String),
    /// The digits do not fit the algorithm.
    #[error("expected {expected} hexadecimal digits for {}, got {got}", algorithm.name())]
    Length {
        /// Which algorithm.
        algorithm: Algorithm,
        /// How many digits it has.
        expected: usize,
        /// How many there are.
        got: usize,
    },
    /// A digit is not hexadecimal.
    #[error("`{0}` is not a hexadecimal number")]
    NotHex(String),
}

impl Digest {
    /// The algorithm.
    pub const fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The digits, in lower case.
    pub fn hex(&self) -> String {
        self.bytes.iter().map(|b| format!("{b:02x}")).collect()
    }
}

impl FromStr for Digest {
    type Err = ParseDigestError;

    fn from_str(text: &str) -> Result<Self, ParseDigestError> {
        let (name, hex) =
            text.split_once(':').ok_or_else(|| ParseDigestError::NoAlgorithm(text.to_owned()))?;
        let algorithm = Algorithm::ALL
            .into_iter()
            .find(|a| a.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| ParseDigestError::UnknownAlgorithm(name.to_owned()))?;
        let hex = hex.trim();
        if hex.chars().count() != algorithm.digest_len() * 2 {
            return Err(ParseDigestError::Length {
                algorithm,
                expected: algorithm.digest_len() * 2,
                got: hex.chars().count(),
            });
        }
        let digits: Option<Vec<u8>> =
            hex.chars().map(|c| c.to_digit(16).map(|d| d as u8)).collect();
        let digits = digits.ok_or_else(|| ParseDigestError::NotHex(hex.to_owned()))?;
        let bytes = digits.chunks_exact(2).map(|pair| pair[0] << 4 | pair[1]).collect();
        Ok(Self { algorithm, bytes })
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Digest({self})")
    }
}

/// Hashes the bytes of a source as they pass, and gives the verdict when the last has passed.
///
/// SHA-256 is always taken, so that every report names what was imported; what is to be compared
/// in other algorithms is taken besides.
#[derive(Clone)]
pub struct Verifier {
    /// SHA-256 first, and each algorithm once.
    hashers: Vec<Hasher>,
    expected: Vec<Digest>,
    len: u64,
}

#[derive(Clone)]
enum Hasher {
    Md5(md5::Md5),
    Sha1(sha1::Sha1),
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

/// The proof that a source's bytes were hashed to the end and agree with what was expected of them.
/// Only [`Verifier::finish`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    sha256: Digest,
    checked: Option<Digest>,
    len: u64,
}

/// The bytes are not the ones that the digest is of.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("checksum mismatch: expected {expected}, got {got}")]
pub struct VerifyError {
    /// The digest that was expected.
    pub expected: Digest,
    /// The digest of the bytes that came.
    pub got: Digest,
}

impl Hasher {
    fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Md5 => Self::Md5(md5::Md5::default()),
            Algorithm::Sha1 => Self::Sha1(sha1::Sha1::default()),
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::default()),
            Algorithm::Sha512 => Self::Sha512(sha2::Sha512::default()),
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Md5(hasher) => hasher.update(bytes),
            Self::Sha1(hasher) => hasher.update(bytes),
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    fn finish(self) -> Digest {
        let (algorithm, bytes) = match self {
            Self::Md5(hasher) => (Algorithm::Md5, hasher.finalize().to_vec()),
            Self::Sha1(hasher) => (Algorithm::Sha1, hasher.finalize().to_vec()),
            Self::Sha256(hasher) => (Algorithm::Sha256, hasher.finalize().to_vec()),
            Self::Sha512(hasher) => (Algorithm::Sha512, hasher.finalize().to_vec()),
        };
        Digest { algorithm, bytes }
    }

    fn save(&self, state: &mut Vec<u8>) {
        match self {
            Self::Md5(hasher) => state.extend_from_slice(&hasher.serialize()),
            Self::Sha1(hasher) => state.extend_from_slice(&hasher.serialize()),
            Self::Sha256(hasher) => state.extend_from_slice(&hasher.serialize()),
            Self::Sha512(hasher) => state.extend_from_slice(&hasher.serialize()),
        }
    }

    /// Takes its state from the front of `state`.
    fn restore(&mut self, state: &mut &[u8]) -> Option<()> {
        match self {
            Self::Md5(hasher) => restore(hasher, state),
            Self::Sha1(hasher) => restore(hasher, state),
            Self::Sha256(hasher) => restore(hasher, state),
            Self::Sha512(hasher) => restore(hasher, state),
        }
    }
}

fn restore<T: SerializableState>(hasher: &mut T, state: &mut &[u8]) -> Option<()> {
    let (own, rest) = state.split_at_checked(T::SerializedStateSize::USIZE)?;
    *hasher = T::deserialize(own.try_into().ok()?).ok()?;
    *state = rest;
    Some(())
}

impl Verifier {
    /// Starts with no bytes seen. With nothing expected the verdict is always good, and
    /// [`Verified::checked`] says that nothing was compared.
    pub fn new(expected: Vec<Digest>) -> Self {
        let mut algorithms = vec![Algorithm::Sha256];
        for digest in &expected {
            if !algorithms.contains(&digest.algorithm) {
                algorithms.push(digest.algorithm);
            }
        }
        let hashers = algorithms.into_iter().map(Hasher::new).collect();
        Self { hashers, expected, len: 0 }
    }

    /// Takes the next bytes, in the order in which the source gives them.
    pub fn update(&mut self, bytes: &[u8]) {
        self.hashers.iter_mut().for_each(|hasher| hasher.update(bytes));
        self.len += bytes.len() as u64;
    }

    /// Expects one more digest, which became known after the first bytes. Only of SHA-256 is it sure
    /// that it was taken all along; another that was not makes the verdict a bad one.
    pub fn expect(&mut self, digest: Digest) {
        self.expected.push(digest);
    }

    /// How many bytes it has seen.
    pub const fn seen(&self) -> u64 {
        self.len
    }

    /// What [`Verifier::restore`] goes on from, in a process to come. Some hundred bytes.
    pub fn save(&self) -> Vec<u8> {
        let mut state = self.len.to_le_bytes().to_vec();
        self.hashers.iter().for_each(|hasher| hasher.save(&mut state));
        state
    }

    /// The verifier whose state was saved; `None` if it was one for other algorithms, or the state
    /// is no such state.
    pub fn restore(expected: Vec<Digest>, state: &[u8]) -> Option<Self> {
        let (len, mut state) = state.split_first_chunk()?;
        let mut verifier = Self::new(expected);
        verifier.len = u64::from_le_bytes(*len);
        verifier.hashers.iter_mut().try_for_each(|hasher| hasher.restore(&mut state))?;
        state.is_empty().then_some(verifier)
    }

    /// Gives the verdict over everything seen.
    pub fn finish(self) -> Result<Verified, VerifyError> {
        let got: Vec<Digest> = self.hashers.into_iter().map(Hasher::finish).collect();
        for expected in &self.expected {
            let own = got.iter().find(|digest| digest.algorithm == expected.algorithm);
            if let Some(got) = own.or(got.first()).filter(|got| *got != expected) {
                return Err(VerifyError { expected: expected.clone(), got: got.clone() });
            }
        }
        let checked = self.expected.into_iter().next();
        let sha256 = got.into_iter().next().expect("SHA-256 is always taken");
        Ok(Verified { sha256, checked, len: self.len })
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Verifier")
            .field("expected", &self.expected)
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

impl Verified {
    /// The SHA-256 of the source's bytes as they were sent.
    pub const fn sha256(&self) -> &Digest {
        &self.sha256
    }

    /// The first digest that was expected, and agreed; `None` where there was none.
    pub const fn checked(&self) -> Option<&Digest> {
        self.checked.as_ref()
    }

    /// How many bytes the source had.
    pub const fn source_len(&self) -> u64 {
        self.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    // NIST's and RFC 1321's vectors of the message "abc".
    const ABC: [&str; 4] = [
        "md5:900150983cd24fb0d6963f7d28e17f72",
        "sha1:a9993e364706816aba3e25717850c26c9cd0d89d",
        "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
        "sha512:ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
         2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f",
    ];

    fn verify(expected: Option<&str>, parts: &[&str]) -> Result<Verified, VerifyError> {
        let mut verifier = Verifier::new(expected.iter().map(|d| d.parse().unwrap()).collect());
        parts.iter().for_each(|part| verifier.update(part.as_bytes()));
        verifier.finish()
    }

    #[test]
    fn every_algorithm_agrees_with_its_published_vector() {
        for digest in ABC {
            let verified = verify(Some(digest), &["a", "", "bc"]).unwrap();
            assert_eq!(verified.checked().unwrap().to_string(), digest);
            assert_eq!(verified.sha256().to_string(), ABC[2]);
            assert_eq!(verified.source_len(), 3);
        }
    }

    #[test]
    fn every_algorithm_refuses_other_bytes() {
        for digest in ABC {
            let error = verify(Some(digest), &["abd"]).unwrap_err();
            assert_eq!(error.expected.to_string(), digest);
        }
    }

    #[test]
    fn of_several_expected_digests_all_must_agree() {
        let expected = |digests: &[&str]| digests.iter().map(|d| d.parse().unwrap()).collect();
        let mut verifier = Verifier::new(expected(&ABC));
        verifier.update(b"abc");
        assert_eq!(verifier.finish().unwrap().checked().unwrap().to_string(), ABC[0]);
        let wrong = ABC[1].replace("a9993e", "a9993f");
        let mut verifier = Verifier::new(expected(&[ABC[2], &wrong]));
        verifier.update(b"abc");
        assert_eq!(verifier.finish().unwrap_err().got.to_string(), ABC[1]);
    }

    #[test]
    fn a_saved_state_goes_on_as_if_nothing_had_happened() {
        let expected: Vec<Digest> = ABC.iter().map(|d| d.parse().unwrap()).collect();
        for cut in 0..=3 {
            let mut verifier = Verifier::new(expected.clone());
            verifier.update(&b"abc"[..cut]);
            let state = verifier.save();
            let mut restored = Verifier::restore(expected.clone(), &state).unwrap();
            assert_eq!(restored.seen(), cut as u64);
            restored.update(&b"abc"[cut..]);
            assert!(restored.finish().is_ok());
            assert!(Verifier::restore(expected.clone(), &state[1..]).is_none());
            assert!(Verifier::restore(Vec::new(), &state).is_none());
        }
    }

    #[test]
    fn without_expectation_the_verdict_says_so() {
        let verified = verify(None, &["abc"]).unwrap();
        assert_eq!(verified.checked(), None);
        assert_eq!(verified.sha256().to_string(), ABC[2]);
    }

    #[test]
    fn refuses_malformed_digests() {
        for (text, message) in [
            ("9f86", "expected ALGORITHM:HEX such as `sha256:9f86…`, got `9f86`"),
            ("crc32:00", "unknown digest algorithm `crc32`; expected md5, sha1, sha256 or sha512"),
            ("md5:00", "expected 32 hexadecimal digits for md5, got 2"),
            (
                "md5:0000000000000000000000000000000g",
                "`0000000000000000000000000000000g` is not a hexadecimal number",
            ),
            (
                "md5:+000000000000000000000000000000f",
                "`+000000000000000000000000000000f` is not a hexadecimal number",
            ),
        ] {
            assert_eq!(text.parse::<Digest>().map_err(|e| e.to_string()), Err(message.to_owned()));
        }
        let upper = "MD5:900150983CD24FB0D6963F7D28E17F72".parse::<Digest>().unwrap();
        assert_eq!(upper.to_string(), ABC[0]);
    }
}
