//! A source that has been opened far enough to know what it holds.

use bootyard_image::stream::{Head, Kept, KeptBytes};
use bootyard_image::{Format, sniff};
use bootyard_source::{self as source, Object, Start};
use bootyard_spec::{Digest, Source};
use bytes::Bytes;

use crate::cache::Cache;
use crate::error::Share;
use crate::log::Left;
use crate::{Error, ImageReport, Probe, layers};

/// A source at its beginning, or where another process stopped.
pub(crate) struct Opened {
    pub(crate) object: Object,
    pub(crate) begin: Begin,
    pub(crate) probe: Probe,
    /// The container image, if the source is one.
    pub(crate) image: Option<ImageReport>,
    /// The bytes come from the cache.
    pub(crate) cached: bool,
}

/// What may be there already.
#[derive(Debug, Default)]
pub(crate) struct Lookup<'a> {
    pub(crate) cache: Option<&'a Cache>,
    /// The digest that the source must have.
    pub(crate) checksum: Option<&'a Digest>,
}

impl Lookup<'_> {
    /// The object with this digest, if it is in the cache.
    pub(crate) async fn blob(
        &self,
        digest: Option<&Digest>,
        options: &source::Options,
    ) -> Result<Option<Object>, Error> {
        let found = self.cache.zip(digest).and_then(|(cache, digest)| cache.blob(digest));
        match found {
            Some(path) => Ok(Some(source::open(&Source::File(path), options).await?)),
            None => Ok(None),
        }
    }

    /// A blob that cannot be read as a disk may be damaged: the next import fetches it again.
    pub(crate) fn doubt(&self, digest: Option<&Digest>) {
        if let Some((cache, digest)) = self.cache.zip(digest) {
            cache.forget(digest);
        }
    }
}

/// Where the transfer begins.
pub(crate) enum Begin {
    /// At the first byte.
    Head {
        head: Head,
        /// The chunks that the head is made of.
        seen: Vec<Bytes>,
    },
    /// Where another process stopped.
    Left(Left),
}

impl Begin {
    /// How much of the source another process is done with.
    pub(crate) fn share(&self) -> Option<Share> {
        match self {
            Self::Head { .. } => None,
            Self::Left(left) => Some(left.share()),
        }
    }

    /// How many bytes of the source have been fetched, by whomever.
    pub(crate) fn fetched(&self) -> u64 {
        match self {
            Self::Head { seen, .. } => seen.iter().map(|chunk| chunk.len() as u64).sum(),
            Self::Left(left) => left.at,
        }
    }
}

impl Opened {
    /// Opens `source` and reads what tells its format, unless it is known to be raw.
    pub(crate) async fn open(
        source: &Source,
        options: &source::Options,
        is_raw: bool,
        lookup: &Lookup<'_>,
    ) -> Result<Self, Error> {
        if layers::is_image(source) {
            return layers::open(source, options, lookup).await;
        }
        let head = if is_raw { Head::raw() } else { Head::new() };
        if let Some(object) = lookup.blob(lookup.checksum, options).await? {
            let object = object.with_digest(lookup.checksum.cloned());
            return Self::of_cached(object, source, head, lookup).await;
        }
        let object = source::open(source, options).await?;
        match lookup.cache.and_then(|cache| cache.version(&object)) {
            Some((path, digest)) => {
                let object = source::open(&Source::File(path), options).await?;
                Self::of_cached(object.with_digest(Some(digest)), source, head, lookup).await
            }
            None => Self::of(object, source, head).await,
        }
    }

    /// The same, of a copy in the cache.
    async fn of_cached(
        object: Object,
        source: &Source,
        head: Head,
        lookup: &Lookup<'_>,
    ) -> Result<Self, Error> {
        let digest = object.digest().cloned();
        match Self::of(object, source, head).await {
            Ok(opened) => Ok(Self { cached: true, ..opened }),
            Err(error) => {
                lookup.doubt(digest.as_ref());
                Err(error)
            }
        }
    }

    /// Reads what tells the format of what `source` has led to.
    pub(crate) async fn of(
        mut object: Object,
        source: &Source,
        mut head: Head,
    ) -> Result<Self, Error> {
        let mut seen: Vec<Bytes> = Vec::new();
        let found = loop {
            let found = match object.next().await? {
                Some(chunk) => {
                    seen.push(chunk.clone());
                    head.push(chunk)
                }
                None => head.end().map(Some),
            };
            let looks_like = || (!seen.is_empty()).then(|| sniff(&seen.concat()));
            let found = found.map_err(|error| Error::image(error, source, looks_like()))?;
            if let Some(found) = found {
                break found;
            }
        };
        Ok(Self::begin(object, head, seen, found))
    }

    /// An object at its beginning: `seen` has been read of it and given to `head`.
    pub(crate) fn begin(
        object: Object,
        head: Head,
        seen: Vec<Bytes>,
        found: bootyard_image::stream::Probe,
    ) -> Self {
        let probe = Probe::new(found, &object);
        Self { object, begin: Begin::Head { head, seen }, probe, image: None, cached: false }
    }

    /// The same, of a part of a container image: that is not found again from a journal.
    pub(crate) fn with_image(mut self, image: ImageReport) -> Self {
        self.probe.settles = false;
        Self { image: Some(image), ..self }
    }

    /// Opens `source` where another process stopped, if it is still the same version. The failure
    /// to do so is the inner result.
    pub(crate) async fn go_on(
        source: &Source,
        options: &source::Options,
        left: Left,
        is_raw: bool,
    ) -> Result<Result<Self, String>, Error> {
        let start = Start { at: left.at, validator: left.identity.validator.clone() };
        let object = match source::open_at(source, options, &start).await {
            Ok(object) => object,
            Err(error) => {
                return match error.kind() {
                    source::ErrorKind::Changed | source::ErrorKind::NoRanges => {
                        Ok(Err(error.to_string()))
                    }
                    _ => Err(error.into()),
                };
            }
        };
        if object.len() != Some(left.identity.len) {
            return Ok(Err(format!("`{source}` has another length than before")));
        }
        let Some(probe) = head(&left.kept, is_raw).map(|found| Probe::new(found, &object)) else {
            return Ok(Err("the journal does not hold the image's head".to_owned()));
        };
        Ok(Ok(Self { object, begin: Begin::Left(left), probe, image: None, cached: false }))
    }
}

/// What the head of the image tells, which is the first thing that was kept.
fn head(kept: &[Kept], is_raw: bool) -> Option<bootyard_image::stream::Probe> {
    let first = kept.first().filter(|kept| kept.at == 0)?;
    let KeptBytes::Data(bytes) = &first.bytes else { return None };
    let mut head = if is_raw { Head::raw() } else { Head::new() };
    head.push(bytes.clone()).ok()?;
    head.end().ok()
}

impl Probe {
    fn new(found: bootyard_image::stream::Probe, object: &Object) -> Self {
        let source_len = object.len();
        let virtual_size =
            if found.chain == [Format::Raw] { source_len } else { found.virtual_size };
        Self {
            chain: found.chain,
            format: found.format,
            virtual_size,
            source_len,
            capacity: None,
            versioned: object.validator().is_some(),
            ranges: object.reopens(),
            connections: object.connections(),
            late_tables: found.late_tables,
            packed: found.packed,
            settles: found.settles,
        }
    }
}
