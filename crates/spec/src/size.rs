//! Sizes in bytes, written as Kubernetes quantities. Not for rates, times or CPU shares.

use std::fmt;
use std::str::FromStr;

use crate::FilesystemOverhead;

/// A number of bytes.
///
/// Parses what Kubernetes accepts as a quantity (`resource.Quantity`): a plain number of bytes, a
/// decimal suffix (`k M G T P E`), a binary suffix (`Ki Mi Gi Ti Pi Ei`) or a decimal exponent
/// (`1e9`). A fraction is allowed where the result is rounded up to whole bytes, as Kubernetes does.
/// Displays with the largest binary suffix that is exact, so that it parses back to the same value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ByteSize(u64);

/// Why a text is not a size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseSizeError {
    /// There is no number at the start.
    #[error("expected a number with an optional suffix such as `10Gi`, got `{0}`")]
    NotANumber(String),
    /// The suffix is not one of Kubernetes'.
    #[error(
        "unknown suffix `{suffix}` in `{text}`; expected one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E"
    )]
    Suffix {
        /// The part behind the number.
        suffix: String,
        /// The whole text.
        text: String,
    },
    /// The value does not fit 63 bits, the largest file size.
    #[error("`{0}` is larger than 2^63 - 1 bytes")]
    TooLarge(String),
    /// Sizes of milli-bytes and the like make no sense.
    #[error("`{0}` is negative")]
    Negative(String),
}

const SUFFIXES: [(&str, u128); 13] = [
    ("", 1),
    ("k", 1000),
    ("M", 1000_u128.pow(2)),
    ("G", 1000_u128.pow(3)),
    ("T", 1000_u128.pow(4)),
    ("P", 1000_u128.pow(5)),
    ("E", 1000_u128.pow(6)),
    ("Ki", 1 << 10),
    ("Mi", 1 << 20),
    ("Gi", 1 << 30),
    ("Ti", 1 << 40),
    ("Pi", 1 << 50),
    ("Ei", 1 << 60),
];

/// Largest number of fraction digits that are looked at; more would overflow the arithmetic.
const FRACTION_DIGITS_MAX: usize = 12;

impl ByteSize {
    /// Wraps a number of bytes.
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// Wraps a number of MiB. Saturates at the largest size.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib.saturating_mul(1 << 20))
    }

    /// The number of bytes.
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

impl ByteSize {
    /// The size of an empty disk that is asked for with this capacity: in whole MiB, as KubeVirt
    /// rounds it; `None` where nothing is left.
    pub fn empty_disk(self) -> Option<Self> {
        Some(Self(self.0 - self.0 % (1 << 20))).filter(|size| size.0 > 0)
    }
}

impl ByteSize {
    /// The size to ask of a storage class for a volume with a file system, so that a disk of this
    /// size fits in: rounded up to a MiB, then enlarged by `overhead`.
    ///
    /// CDI computes this in double precision (`util.CalculateOverheadSpace`), and so does this.
    #[must_use]
    pub fn with_filesystem_overhead(self, overhead: FilesystemOverhead) -> Self {
        let mib = self.0.div_ceil(1 << 20).saturating_mul(1 << 20);
        Self((mib as f64 * (1.0 + overhead.fraction())).ceil() as u64)
    }

    /// The largest disk that surely fits where this much is free in a file system, or was asked of
    /// a storage class: the reverse of [`ByteSize::with_filesystem_overhead`], in whole MiB.
    ///
    /// CDI computes this in double precision (`util.GetUsableSpace`), and so does this.
    #[must_use]
    pub fn without_filesystem_overhead(self, overhead: FilesystemOverhead) -> Self {
        let usable = (self.0 as f64 / (1.0 + overhead.fraction())).ceil() as u64;
        Self(usable - usable % (1 << 20))
    }
}

impl FromStr for ByteSize {
    type Err = ParseSizeError;

    fn from_str(text: &str) -> Result<Self, ParseSizeError> {
        if text.starts_with('-') {
            return Err(ParseSizeError::Negative(text.to_owned()));
        }
        let digits = text.strip_prefix('+').unwrap_or(text);
        let end = digits.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(digits.len());
        let (number, suffix) = digits.split_at(end);
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let not_a_number = || ParseSizeError::NotANumber(text.to_owned());
        let too_large = || ParseSizeError::TooLarge(text.to_owned());
        if (whole.is_empty() && fraction.is_empty())
            || fraction.contains('.')
            || fraction.len() > FRACTION_DIGITS_MAX
        {
            return Err(not_a_number());
        }
        let unit = unit(suffix, text)?;
        let scale = 10_u128.pow(fraction.len() as u32);
        let mantissa: u128 = format!("{whole}{fraction}").parse().map_err(|_| too_large())?;
        let bytes = mantissa.checked_mul(unit).ok_or_else(too_large)?.div_ceil(scale);
        u64::try_from(bytes).ok().filter(|b| *b <= i64::MAX as u64).map(Self).ok_or_else(too_large)
    }
}

/// The factor that a suffix stands for: one of [`SUFFIXES`], or `e` with a decimal exponent.
fn unit(suffix: &str, text: &str) -> Result<u128, ParseSizeError> {
    if let Some((_, factor)) = SUFFIXES.iter().find(|(name, _)| *name == suffix) {
        return Ok(*factor);
    }
    let exponent = suffix.strip_prefix(['e', 'E']).map(str::parse::<u32>);
    match exponent {
        Some(Ok(exponent)) => {
            10_u128.checked_pow(exponent).ok_or_else(|| ParseSizeError::TooLarge(text.to_owned()))
        }
        _ => Err(ParseSizeError::Suffix { suffix: suffix.to_owned(), text: text.to_owned() }),
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = SUFFIXES[7..]
            .iter()
            .rev()
            .find(|(_, factor)| u128::from(self.0) >= *factor && u128::from(self.0) % factor == 0);
        match exact {
            Some((suffix, factor)) => write!(f, "{}{suffix}", u128::from(self.0) / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_kubernetes_reads() {
        for (text, bytes) in [
            ("0", 0),
            ("1024", 1024),
            ("10Gi", 10 << 30),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("1k", 1000),
            ("1e3", 1000),
            ("1E", 1_000_000_000_000_000_000),
            ("+2Mi", 2 << 20),
            ("0.1Ki", 103),
            ("9223372036854775807", i64::MAX as u64),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn refuses_what_is_not_a_size() {
        for (text, message) in [
            ("", "expected a number with an optional suffix such as `10Gi`, got ``"),
            ("Gi", "expected a number with an optional suffix such as `10Gi`, got `Gi`"),
            ("1.2.3", "expected a number with an optional suffix such as `10Gi`, got `1.2.3`"),
            ("-1Gi", "`-1Gi` is negative"),
            ("8Ei", "`8Ei` is larger than 2^63 - 1 bytes"),
            ("1e99", "`1e99` is larger than 2^63 - 1 bytes"),
        ] {
            assert_eq!(text.parse::<ByteSize>().map_err(|e| e.to_string()), Err(message.into()));
        }
        assert!(matches!("10GB".parse::<ByteSize>(), Err(ParseSizeError::Suffix { .. })));
    }

    #[test]
    fn empty_disks_have_whole_mebibytes() {
        for (asked, size) in [
            ("0", None),
            ("1048575", None),
            ("1Mi", Some(1)),
            ("2M", Some(1)),
            ("10Gi", Some(10240)),
        ] {
            let asked: ByteSize = asked.parse().unwrap();
            assert_eq!(asked.empty_disk(), size.map(ByteSize::from_mib), "{asked}");
        }
    }

    #[test]
    fn display_parses_back() {
        for bytes in [0, 1, 1023, 1024, 1025, 3 << 29, 2 << 30, i64::MAX as u64] {
            assert_eq!(ByteSize(bytes).to_string().parse(), Ok(ByteSize(bytes)));
        }
        assert_eq!(ByteSize(2 << 30).to_string(), "2Gi");
    }

    #[test]
    fn volumes_are_asked_for_as_cdi_does() {
        for (disk, volume) in [
            (1, 1_111_491),
            (46_137_344, 48_905_585),
            (858_993_664, 911_422_260),
            (2_361_393_152, 2_503_076_742),
            (1 << 30, 1_138_166_334),
            (30 << 30, 34_144_990_004),
        ] {
            let asked =
                ByteSize::from_bytes(disk).with_filesystem_overhead(FilesystemOverhead::DEFAULT);
            assert_eq!(asked.bytes(), volume, "{disk}");
        }
    }

    #[test]
    fn a_disk_leaves_room_for_the_file_system_as_cdi_has_it() {
        const MIB: u64 = 1 << 20;
        for (available, usable) in
            [(0, 0), (512 * MIB, 506_462_208), (1 << 30, 1_012_924_416), (30 << 30, 30_388_781_056)]
        {
            let fits = ByteSize::from_bytes(available)
                .without_filesystem_overhead(FilesystemOverhead::DEFAULT);
            assert_eq!(fits.bytes(), usable, "{available}");
        }
        for disk in [1, 46_137_344, 858_993_664, 2_361_393_152, 1 << 30, 30 << 30] {
            let asked =
                ByteSize::from_bytes(disk).with_filesystem_overhead(FilesystemOverhead::DEFAULT);
            let usable = asked.without_filesystem_overhead(FilesystemOverhead::DEFAULT);
            assert_eq!(usable.bytes(), disk.next_multiple_of(MIB), "{disk}");
        }
    }
}
