//! Decoding from a stream: the first megabyte's tables, the metadata, the block allocation table.

use std::fmt;
use std::io;

use super::header::Header;
use super::metadata::Metadata;
use super::region::{Regions, TABLES_END};
use super::{geometry, open};
use crate::blockmap::BlockMap;
use crate::stream::{Held, Layout, Place, Wants};
use crate::{Disk, Error, ReadAt};

/// Of the metadata region, as much is looked at as every writer makes it long.
const METADATA_MAX: u64 = 1 << 20;

/// The tables of one image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Table {
    Head,
    Metadata,
    Blocks,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Head => "header section",
            Self::Metadata => "metadata region",
            Self::Blocks => "block allocation table",
        })
    }
}

/// The way from an image's headers to its blocks.
#[derive(Debug, Default)]
pub(crate) struct Map {
    /// The part of the file that is being collected.
    part: Part,
    header: Option<(Header, Regions)>,
    blocks: Option<BlockMap>,
}

/// A part of a file.
#[derive(Debug, Default)]
struct Part {
    at: u64,
    bytes: Vec<u8>,
}

impl ReadAt for Part {
    fn len(&self) -> u64 {
        self.at + self.bytes.len() as u64
    }

    fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let offset = offset.checked_sub(self.at).ok_or(io::ErrorKind::UnexpectedEof)?;
        self.bytes.read_exact_at(buf, offset)
    }
}

impl Map {
    fn take_head(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        let header = Header::read(&self.part)?;
        if header.has_log() {
            wants.hold_all();
            return Ok(());
        }
        let regions = Regions::read(&self.part, &header)?;
        let (from, to) = regions.metadata;
        wants.table(Table::Metadata, from, (to - from).min(METADATA_MAX), (0, 0));
        wants.skip(header.log.0, header.log.1 - header.log.0);
        self.header = Some((header, regions));
        Ok(())
    }

    fn take_metadata(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        let Some((header, regions)) = &self.header else { return Ok(()) };
        let metadata = Metadata::read(&self.part, regions.metadata)?;
        if let Some(refusal) = metadata.refusal() {
            return Err(refusal);
        }
        let blocks = BlockMap::new(geometry(header, regions, &metadata)?)?;
        blocks.want_table(Table::Blocks, wants);
        self.blocks = Some(blocks);
        Ok(())
    }
}

impl Layout for Map {
    type Table = Table;

    fn virtual_size(&self) -> u64 {
        self.blocks.as_ref().map_or(0, Layout::virtual_size)
    }

    fn start(&mut self, wants: &mut Wants<Table>) -> Result<(), Error> {
        wants.table(Table::Head, 0, TABLES_END, (0, 0));
        Ok(())
    }

    fn table(
        &mut self,
        table: Table,
        place: Place,
        bytes: &[u8],
        wants: &mut Wants<Table>,
    ) -> Result<(), Error> {
        if let (Table::Blocks, Some(blocks)) = (table, &mut self.blocks) {
            return blocks.take_piece(place, bytes, wants);
        }
        if self.part.len() != place.at {
            self.part = Part { at: place.at, bytes: Vec::new() };
        }
        self.part.bytes.extend_from_slice(bytes);
        let end = self.part.len();
        match (table, &self.header) {
            (Table::Head, _) if end == TABLES_END => self.take_head(wants),
            (Table::Metadata, Some((_, Regions { metadata: (from, to), .. })))
                if end == (*to).min(from + METADATA_MAX) =>
            {
                self.take_metadata(wants)
            }
            _ => Ok(()),
        }
    }

    fn most_wants(&self, table: Table, len: usize) -> usize {
        match (table, &self.blocks) {
            (Table::Blocks, Some(blocks)) => blocks.most_wants(len),
            // The pieces of the next table.
            _ => 1 << 10,
        }
    }

    fn end(&mut self, file_len: u64) -> Result<(), Error> {
        match (&self.header, &mut self.blocks) {
            (Some((_, regions)), None) => regions.check_inside(file_len),
            (_, Some(blocks)) => Layout::end(blocks, file_len),
            (None, None) => Ok(()),
        }
    }

    fn open_held(&mut self, held: Held) -> Result<Box<dyn Disk>, Error> {
        Ok(Box::new(open(held)?))
    }
}
