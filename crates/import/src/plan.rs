//! What an import will do, decided before it does it: a pure function of what is asked and of what
//! the source's head says.

use std::fmt;

use bootyard_image::raw::SECTOR;
use bootyard_image::stream::KEPT_MAX;
use bootyard_image::{Format, chain_name};
use bootyard_spec::{ByteSize, ImportRequest, OutputFormat, Source, Target};

use crate::Error;

/// The largest disk that a qcow2 file holds which every QEMU opens: an L1 table of 32 MiB, whose
/// entries of 8 bytes stand for 512 MiB each with clusters of 64 KiB.
const QCOW2_SIZE_MAX: u64 = (32 << 20) / 8 * (512 << 20);
/// The largest disk that any system addresses: offsets are signed.
pub(crate) const SIZE_MAX: ByteSize = ByteSize::from_bytes(i64::MAX as u64);

/// What was found out before the transfer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// The containers round the image from the outermost on, then its own format.
    pub chain: Vec<Format>,
    /// The image's format, the last of the chain.
    pub format: Format,
    /// The size of the guest's disk in bytes; `None` for a raw disk of unknown length.
    pub virtual_size: Option<u64>,
    /// The length of the source in bytes, if it tells.
    pub source_len: Option<u64>,
    /// The size of the target in bytes, if it is a block device.
    pub capacity: Option<u64>,
    /// Whether the source tells its versions apart.
    pub versioned: bool,
    /// Whether the source can be read from any offset on.
    pub ranges: bool,
    /// How many connections it is read over at once.
    pub connections: usize,
    /// Whether the image's tables come after its data.
    pub late_tables: bool,
    /// Whether the image's blocks may be compressed.
    pub packed: bool,
    /// Whether the image can be decoded on from its midst.
    pub settles: bool,
}

impl Probe {
    /// Of a source that has no bytes.
    pub(crate) fn blank() -> Self {
        Self {
            chain: vec![Format::Raw],
            format: Format::Raw,
            virtual_size: None,
            source_len: Some(0),
            capacity: None,
            versioned: false,
            ranges: false,
            connections: 1,
            late_tables: false,
            packed: false,
            settles: false,
        }
    }
}

/// What an import will do. `Display` shows it to the user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Where the bytes come from.
    pub source: Source,
    /// Where the disk goes.
    pub target: Target,
    /// The containers round the image from the outermost on, then its own format.
    pub chain: Vec<Format>,
    /// The image's format, the last of the chain.
    pub format: Format,
    /// How the disk is stored.
    pub output_format: OutputFormat,
    /// How the bytes are fetched.
    pub strategy: Strategy,
    /// Bytes that will be fetched, if the source tells its length.
    pub fetch_bytes: Option<u64>,
    /// The size of the image's disk in bytes, if it is known before the end.
    pub virtual_size: Option<u64>,
    /// The size of the volume in bytes, if it is known before the end.
    pub volume_size: Option<u64>,
    /// The most bytes that the image's disk may turn out to have, where its size is not known.
    pub limit: u64,
    /// Whether a digest was given to compare with.
    pub checked: bool,
    /// Whether a later process can go on where this one is stopped.
    pub resume: Resume,
    /// The most bytes that are written to the target, if that is known before the end.
    pub write_bytes: Option<u64>,
    /// The most bytes of the target's file system that are taken, the spill included.
    pub space: Option<u64>,
}

/// Whether an import that was stopped, by whatever, can be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Resume {
    /// From where it stopped.
    Anywhere,
    /// The same, as long as what waits for the image's late tables is not too much to be kept
    /// ([`KEPT_MAX`]); stopped after that, it goes on from there.
    LateTables,
    /// Only from the source's first byte: it is packed, and what its middle means only its beginning
    /// tells.
    Packed,
    /// Only so: the source can only be read from its first byte, or does not tell its length.
    Forward,
    /// Only so: the source does not tell its versions apart, and there is no digest that would.
    Unversioned,
    /// Only so: a volume of this format is not complete before its end.
    Output,
    /// Only so: the image is read with other files, or in an earlier state, and in any order.
    Joined,
    /// Only so: a block device has no room for the journal.
    Device,
}

impl Resume {
    /// The name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Anywhere => "anywhere",
            Self::LateTables => "late_tables",
            Self::Packed => "packed",
            Self::Forward => "forward",
            Self::Unversioned => "unversioned",
            Self::Output => "output",
            Self::Device => "device",
            Self::Joined => "joined",
        }
    }

    /// What that means to the user.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Anywhere => "goes on where it was stopped",
            Self::LateTables => {
                "goes on where it was stopped, but not after 24Mi: the image's tables come after its \
                 data"
            }
            Self::Packed => "starts over when it was stopped: the image is packed as a whole",
            Self::Forward => "starts over when it was stopped: the source serves no ranges",
            Self::Unversioned => {
                "starts over when it was stopped: the source tells no version, and there is no \
                 checksum"
            }
            Self::Output => {
                "starts over when it was stopped: only a raw volume can be gone on with"
            }
            Self::Device => "starts over when it was stopped: the target is a block device",
            Self::Joined => {
                "starts over when it was stopped: the image is not read from its start to its end"
            }
        }
    }
}

/// How the bytes are fetched.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Strategy {
    /// The whole source once, from its first byte to its last, over one connection.
    Stream,
    /// The same in segments over several connections at once.
    Ranged,
    /// As a stream, but its tables come late: data that comes before them is set aside.
    Spill,
}

impl Strategy {
    /// The name in events.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::Ranged => "ranged",
            Self::Spill => "spill",
        }
    }

    /// Why this strategy was chosen.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::Stream => "every byte is fetched once and hashed on its way",
            Self::Ranged => {
                "every byte is fetched once, in segments over several connections, and hashed in order"
            }
            Self::Spill => {
                "every byte is fetched once; the image's tables come after its data, which waits for \
                 them next to the target"
            }
        }
    }
}

/// Decides what an import does. Fails where the asked sizes and the image contradict each other.
pub fn plan(request: &ImportRequest, probe: &Probe) -> Result<Plan, Error> {
    let size = request.size.map(ByteSize::bytes);
    let max_size = request.max_size.map(ByteSize::bytes);
    // A qcow2 file on a device may be of a larger disk than the device.
    let capacity = probe.capacity.filter(|_| request.output_format == OutputFormat::Raw);
    let limit = [size, max_size, capacity].into_iter().flatten().min();
    let virtual_size = probe.virtual_size.map(round_up).transpose()?;
    if let Some(virtual_size) = virtual_size {
        // The last sector of what seems to be raw may be the footer of a fixed VHD.
        let footer = if probe.chain == [Format::Raw] { SECTOR } else { 0 };
        if fits(request, virtual_size.saturating_sub(footer)).is_err() {
            fits(request, virtual_size)?;
        }
    }
    let known = size.or(virtual_size);
    let volume_size = match (known, capacity) {
        // A device's size is not ours to choose: the volume is all of it. One that is too small is
        // refused where it is reserved.
        (known, Some(capacity)) => Some(capacity.max(known.unwrap_or(0))),
        (known, None) => known.map(round_up).transpose()?,
    };
    if request.source == Source::Blank && volume_size.unwrap_or(0) == 0 {
        return Err(Error::BlankSize);
    }
    if request.output_format != OutputFormat::Raw {
        if request.relocate_gpt {
            return Err(Error::GptInQcow2);
        }
        let unknown = || Error::UnknownSize { source_name: request.source.to_string() };
        let size = volume_size.ok_or_else(unknown)?;
        if size > QCOW2_SIZE_MAX {
            let [size, limit] = [size, QCOW2_SIZE_MAX].map(ByteSize::from_bytes);
            return Err(Error::TooLargeForQcow2 { size, limit });
        }
    }
    let write_bytes = write_bytes(request, probe, volume_size);
    let spill = if probe.late_tables { probe.source_len.unwrap_or(0) } else { 0 };
    Ok(Plan {
        source: request.source.clone(),
        target: request.target.clone(),
        chain: probe.chain.clone(),
        format: probe.format,
        output_format: request.output_format,
        strategy: strategy(probe),
        fetch_bytes: probe.source_len,
        virtual_size,
        volume_size,
        limit: limit.unwrap_or(u64::MAX),
        checked: request.checksum.is_some(),
        resume: resume(request, probe, volume_size),
        write_bytes,
        space: write_bytes.map(|bytes| bytes.saturating_add(spill)),
    })
}

fn strategy(probe: &Probe) -> Strategy {
    match probe {
        Probe { late_tables: true, .. } => Strategy::Spill,
        Probe { connections: 2.., .. } => Strategy::Ranged,
        _ => Strategy::Stream,
    }
}

fn resume(request: &ImportRequest, probe: &Probe, volume_size: Option<u64>) -> Resume {
    let sized = probe.source_len.is_some() && volume_size.is_some();
    if !probe.settles {
        Resume::Packed
    } else if !probe.ranges || !sized {
        Resume::Forward
    } else if !probe.versioned && request.checksum.is_none() {
        Resume::Unversioned
    } else if request.output_format != OutputFormat::Raw {
        Resume::Output
    } else if probe.capacity.is_some() {
        Resume::Device
    } else if probe.late_tables && probe.source_len > Some(KEPT_MAX) {
        Resume::LateTables
    } else {
        Resume::Anywhere
    }
}

/// The most bytes that are written: what is stored as it is cannot be more than the source has.
fn write_bytes(request: &ImportRequest, probe: &Probe, volume_size: Option<u64>) -> Option<u64> {
    let packed = probe.chain.len() > 1 || probe.packed;
    let stored = match (probe.source_len, volume_size) {
        (Some(source), Some(volume)) if !packed => Some(source.min(volume)),
        (_, volume) => volume,
    };
    if request.preallocation { volume_size } else { stored }
}

/// Whether a disk of `virtual_size` bytes agrees with the sizes that were asked for.
pub(crate) fn fits(request: &ImportRequest, virtual_size: u64) -> Result<(), Error> {
    let virtual_size = ByteSize::from_bytes(virtual_size);
    if let Some(max_size) = request.max_size.filter(|max_size| virtual_size > *max_size) {
        return Err(Error::TooLarge { virtual_size, max_size });
    }
    if let Some(size) = request.size.filter(|size| virtual_size > *size) {
        return Err(Error::SizeTooSmall { virtual_size, size });
    }
    Ok(())
}

/// `len` in whole sectors: what a guest can address, and to which `qemu-img` rounds up too.
pub(crate) fn round_up(len: u64) -> Result<u64, Error> {
    let rounded = len.checked_next_multiple_of(SECTOR).filter(|len| i64::try_from(*len).is_ok());
    rounded.ok_or(Error::TooLarge { virtual_size: ByteSize::from_bytes(len), max_size: SIZE_MAX })
}

impl Plan {
    /// The length that the target has before anything is stored. A qcow2 file grows.
    pub(crate) fn file_len(&self) -> u64 {
        match self.output_format {
            OutputFormat::Raw => self.volume_size.unwrap_or(0),
            OutputFormat::Qcow2 | OutputFormat::Qcow2Zstd => 0,
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let size = |bytes: Option<u64>| {
            bytes.map_or("unknown".to_owned(), |bytes| ByteSize::from_bytes(bytes).to_string())
        };
        writeln!(f, "source    {}", self.source)?;
        writeln!(f, "format    {}", chain_name(&self.chain))?;
        writeln!(f, "strategy  {}: {}", self.strategy.name(), self.strategy.reason())?;
        writeln!(f, "fetch     {}", size(self.fetch_bytes))?;
        writeln!(f, "write     at most {}", size(self.write_bytes))?;
        writeln!(f, "space     at most {}", size(self.space))?;
        writeln!(f, "resume    {}", self.resume.reason())?;
        writeln!(f, "checksum  {}", if self.checked { "compared" } else { "none given" })?;
        writeln!(f, "disk      {}", size(self.virtual_size))?;
        match &self.target {
            Target::Volume(name) => write!(f, "volume    {name}"),
            Target::Path(path) => write!(f, "target    {}", path.display()),
        }?;
        write!(f, ", {}, {}", self.output_format.name(), size(self.volume_size))
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use bootyard_image::{ReadAt, WriteAt, qcow2};
    use bootyard_spec::Explain;

    use super::*;

    const GIB: u64 = 1 << 30;

    fn request(flags: &[(&str, &str)]) -> ImportRequest {
        let flag = |name| flags.iter().find(|(flag, _)| *flag == name).map(|(_, value)| *value);
        ImportRequest {
            source: "http://u:secret@h/debian.qcow2".parse().unwrap(),
            target: Target::Volume("debian".parse().unwrap()),
            claim: bootyard_spec::Claim::default(),
            size: flag("size").map(|size| size.parse().unwrap()),
            max_size: flag("max-size").map(|size| size.parse().unwrap()),
            checksum: None,
            preallocation: false,
            relocate_gpt: false,
            cache: None,
            output_format: flag("output").map_or(OutputFormat::Raw, |f| f.parse().unwrap()),
        }
    }

    fn qcow2() -> Probe {
        Probe {
            chain: vec![Format::Qcow2],
            format: Format::Qcow2,
            virtual_size: Some(2 * GIB),
            source_len: Some(300 << 20),
            capacity: None,
            versioned: true,
            ranges: true,
            connections: 4,
            late_tables: false,
            packed: true,
            settles: true,
        }
    }

    fn raw(len: Option<u64>) -> Probe {
        let (chain, format) = (vec![Format::Raw], Format::Raw);
        let connections = 1;
        let (virtual_size, source_len) = (len, len);
        Probe { chain, format, virtual_size, source_len, connections, packed: false, ..qcow2() }
    }

    fn on_device(capacity: u64) -> Probe {
        Probe { capacity: Some(capacity), ..qcow2() }
    }

    #[test]
    fn the_volume_has_the_size_that_was_asked_for_and_fits_the_disk() {
        for (flags, probe, volume_size, limit) in [
            (&[][..], qcow2(), Some(2 * GIB), u64::MAX),
            (&[("size", "10Gi")], qcow2(), Some(10 * GIB), 10 * GIB),
            (&[("size", "2Gi"), ("max-size", "2Gi")], qcow2(), Some(2 * GIB), 2 * GIB),
            (&[], raw(Some(1000)), Some(1024), u64::MAX),
            (&[("size", "1500")], raw(Some(1000)), Some(1536), 1500),
            (&[], raw(None), None, u64::MAX),
            (&[("size", "1Gi"), ("max-size", "1Mi")], raw(None), Some(GIB), 1 << 20),
            (&[("size", "1Gi"), ("output", "qcow2")], raw(None), Some(GIB), GIB),
            (&[], on_device(3 * GIB), Some(3 * GIB), 3 * GIB),
            // Too small: asked for whole, so that reserving it names the device.
            (&[], on_device(GIB), Some(2 * GIB), GIB),
        ] {
            let plan = plan(&request(flags), &probe).unwrap();
            assert_eq!((plan.volume_size, plan.limit), (volume_size, limit), "{flags:?} {probe:?}");
        }
    }

    #[test]
    fn sizes_that_contradict_the_image_are_refused() {
        let huge = raw(Some(i64::MAX as u64));
        for (flags, probe, message) in [
            (
                &[("size", "1Gi")][..],
                qcow2(),
                "the asked size 1Gi is too small: the image holds a disk of 2Gi",
            ),
            (
                &[("size", "10Gi"), ("max-size", "1536Mi")],
                qcow2(),
                "the image holds a disk of 2Gi; expected at most 1536Mi",
            ),
            (
                &[("max-size", "512")],
                raw(Some(2000)),
                "the image holds a disk of 2Ki; expected at most 512",
            ),
            (
                &[("output", "qcow2")],
                raw(None),
                "`http://u:****@h/debian.qcow2` does not tell its length, which a qcow2 volume needs",
            ),
            (
                &[("size", "4Pi"), ("output", "qcow2")],
                qcow2(),
                "a qcow2 volume cannot have 4Pi: expected at most 2Pi",
            ),
            (
                &[],
                huge,
                "the image holds a disk of 9223372036854775807; \
                 expected at most 9223372036854775807",
            ),
        ] {
            let error = plan(&request(flags), &probe).unwrap_err();
            assert_eq!(error.to_string(), message);
        }
    }

    #[test]
    fn no_size_is_proposed_that_cannot_be_asked_for() {
        let hint = |flags, virtual_size| {
            let probe = Probe { virtual_size: Some(virtual_size), ..qcow2() };
            plan(&request(flags), &probe).unwrap_err().hint()
        };
        assert!(hint(&[("max-size", "1Gi")], 2 * GIB).unwrap().contains("`--max-size 2Gi`"));
        assert_eq!(hint(&[], i64::MAX as u64), None);
        assert_eq!(hint(&[("max-size", "1Gi")], u64::MAX - 511), None);
    }

    /// Takes everything and stores nothing.
    struct Nowhere;

    impl ReadAt for Nowhere {
        fn len(&self) -> u64 {
            0
        }

        fn read_exact_at(&self, _: &mut [u8], _: u64) -> io::Result<()> {
            Err(io::ErrorKind::UnexpectedEof.into())
        }
    }

    impl WriteAt for Nowhere {
        fn write_all_at(&self, _: &[u8], _: u64) -> io::Result<()> {
            Ok(())
        }

        fn zero_at(&self, _: u64, _: u64) -> io::Result<()> {
            Ok(())
        }

        fn sync(&self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_largest_qcow2_volume_is_the_largest_that_is_written() {
        assert!(qcow2::Writer::new(Nowhere, QCOW2_SIZE_MAX).is_ok());
        assert!(qcow2::Writer::new(Nowhere, QCOW2_SIZE_MAX + SECTOR).is_err());
    }

    #[test]
    fn late_tables_limit_how_far_an_import_goes_on() {
        let resume = |probe| plan(&request(&[]), &probe).unwrap().resume;
        assert_eq!(resume(Probe { late_tables: true, ..qcow2() }), Resume::LateTables);
        let small = Probe { late_tables: true, source_len: Some(KEPT_MAX), ..qcow2() };
        assert_eq!((resume(small), resume(qcow2())), (Resume::Anywhere, Resume::Anywhere));
        let limit = format!(" after {}: ", ByteSize::from_bytes(KEPT_MAX));
        assert!(Resume::LateTables.reason().contains(&limit), "{limit}");
    }

    #[test]
    fn a_blank_volume_has_a_size() {
        let blank = |flags| {
            let request = ImportRequest { source: Source::Blank, ..request(flags) };
            plan(&request, &Probe::blank())
        };
        for flags in [&[][..], &[("size", "0")], &[("output", "qcow2")]] {
            assert!(matches!(blank(flags), Err(Error::BlankSize)), "{flags:?}");
        }
        assert_eq!(blank(&[("size", "1Gi")]).unwrap().volume_size, Some(GIB));
    }

    #[test]
    fn a_plan_reads_well_and_shows_no_secret() {
        let plan = plan(&request(&[("size", "10Gi")]), &qcow2()).unwrap();
        assert_eq!(
            plan.to_string(),
            "source    http://u:****@h/debian.qcow2\n\
             format    qcow2\n\
             strategy  ranged: every byte is fetched once, in segments over several connections, \
             and hashed in order\n\
             fetch     300Mi\n\
             write     at most 10Gi\n\
             space     at most 10Gi\n\
             resume    goes on where it was stopped\n\
             checksum  none given\n\
             disk      2Gi\n\
             volume    debian, raw, 10Gi"
        );
    }
}
