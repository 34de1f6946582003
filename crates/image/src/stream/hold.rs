//! Bytes that have passed and may be asked for later: zeros as a note, a little in memory, the
//! rest in the spill storage.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::io;

use bytes::Bytes;

use super::Storage;
use crate::{Error, ErrorKind, zero};

/// How much is kept in memory before it is spilled. What converters leave between their data and
/// its tables (the rest of a cluster) is far below that.
pub(super) const MEMORY_MAX: usize = 4 << 20;
/// How many separate runs are kept in mind, about 100 bytes each.
const RUNS_MAX: usize = 1 << 17;

/// Makes the spill storage.
type Make = Box<dyn FnMut() -> io::Result<Box<dyn Storage>> + Send>;

/// What has been set aside, by its offset in the file.
pub(crate) struct Hold {
    runs: BTreeMap<u64, Run>,
    /// Offsets of the runs in memory, oldest first, and how many bytes they have.
    in_memory: VecDeque<u64>,
    memory: usize,
    make: Make,
    spill: Option<Box<dyn Storage>>,
    limit: u64,
    spilled: u64,
    /// All that is kept will be asked for, the zeros too.
    whole: bool,
}

#[derive(Debug)]
enum Run {
    Zero(u64),
    Memory(Bytes),
    Spilled(u64),
}

impl Run {
    const fn len(&self) -> u64 {
        match self {
            Self::Zero(len) | Self::Spilled(len) => *len,
            Self::Memory(bytes) => bytes.len() as u64,
        }
    }
}

impl Hold {
    /// Holds nothing yet; `make` is called when more than memory allows has to be held.
    pub(crate) const fn new(make: Make, limit: u64) -> Self {
        Self {
            runs: BTreeMap::new(),
            in_memory: VecDeque::new(),
            memory: 0,
            make,
            spill: None,
            limit,
            spilled: 0,
            whole: false,
        }
    }

    /// How many bytes have been spilled.
    pub(crate) const fn spilled(&self) -> u64 {
        self.spilled
    }

    /// Forgets everything, and keeps the whole file from now on. What was spilled stays counted.
    pub(crate) fn begin_whole(&mut self) {
        self.whole = true;
        self.runs.clear();
        self.in_memory.clear();
        self.memory = 0;
    }

    /// Sets `bytes` aside, which stand at `at`, behind everything that was set aside before.
    pub(crate) fn keep(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if self.whole && self.runs.len() > RUNS_MAX / 2 {
            // Zeros must not be forgotten; as data they are in one run with what is round them.
            self.keep_data(at, bytes)?;
        } else {
            zero::runs(bytes, at, |run, zero| {
                let begin = at + run.start as u64;
                if zero {
                    self.note(begin, Run::Zero(run.len() as u64));
                    return Ok(());
                }
                self.keep_data(begin, &bytes[run])
            })?;
        }
        self.limit_runs()
    }

    /// Sets `len` zeros aside, as [`Hold::keep`] does.
    pub(crate) fn keep_zeros(&mut self, at: u64, len: u64) {
        self.note(at, Run::Zero(len));
    }

    fn keep_data(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        if bytes.is_empty() {
            return Ok(());
        }
        self.memory += bytes.len();
        self.in_memory.push_back(at);
        // A copy, since a slice would keep the whole chunk that it is of.
        self.note(at, Run::Memory(Bytes::copy_from_slice(bytes)));
        self.make_room()
    }

    /// Sets `bytes` aside if that is cheap: they have been used, but something else may want them.
    pub(crate) fn keep_used(&mut self, at: u64, bytes: &[u8]) -> Result<(), Error> {
        let room = self.limit / 2 > self.spilled + (self.memory + bytes.len()) as u64;
        if room && self.runs.len() < RUNS_MAX / 2 { self.keep(at, bytes) } else { Ok(()) }
    }

    /// Fills `buf` from `at`. False if not all of that is held.
    pub(crate) fn read(&self, mut buf: &mut [u8], mut at: u64) -> Result<bool, Error> {
        while !buf.is_empty() {
            let Some((begin, run)) = self.runs.range(..=at).next_back() else { return Ok(false) };
            let skip = at - begin;
            if skip >= run.len() {
                return Ok(false);
            }
            let len = (run.len() - skip).min(buf.len() as u64) as usize;
            let (part, rest) = buf.split_at_mut(len);
            match run {
                Run::Zero(_) => part.fill(0),
                Run::Memory(bytes) => part.copy_from_slice(&bytes[skip as usize..][..len]),
                Run::Spilled(_) => {
                    let spill = self.spill.as_ref().expect("a spilled run was spilled somewhere");
                    spill.read_exact_at(part, at).map_err(Error::write)?;
                }
            }
            buf = rest;
            at += len as u64;
        }
        Ok(true)
    }

    /// Notes a run, as part of its neighbour where they are alike.
    fn note(&mut self, at: u64, run: Run) {
        if let Some((begin, last)) = self.runs.range_mut(..at).next_back()
            && begin + last.len() == at
        {
            match (last, &run) {
                (Run::Zero(len), Run::Zero(more)) | (Run::Spilled(len), Run::Spilled(more)) => {
                    *len += more;
                    self.runs.remove(&at);
                    return;
                }
                _ => {}
            }
        }
        self.runs.insert(at, run);
    }

    /// Spills the oldest runs until the others fit into memory.
    fn make_room(&mut self) -> Result<(), Error> {
        while self.memory > MEMORY_MAX {
            let Some(at) = self.in_memory.pop_front() else { break };
            let Some(Run::Memory(bytes)) = self.runs.remove(&at) else { continue };
            self.memory -= bytes.len();
            self.spilled += bytes.len() as u64;
            if self.spilled > self.limit {
                let limit = self.limit;
                let what = format!(
                    "the tables come so late that more than {limit} bytes would have to be kept"
                );
                return Err(Error::new(ErrorKind::TooLarge, what).at(at));
            }
            if self.spill.is_none() {
                self.spill = Some((self.make)().map_err(Error::write)?);
            }
            if let Some(spill) = &self.spill {
                spill.write_all_at(&bytes, at).map_err(Error::write)?;
            }
            self.note(at, Run::Spilled(bytes.len() as u64));
        }
        Ok(())
    }

    /// Forgets zeros where there are too many runs: gaps that nothing will ask for.
    fn limit_runs(&mut self) -> Result<(), Error> {
        if self.runs.len() <= RUNS_MAX {
            return Ok(());
        }
        self.runs.retain(|_, run| !matches!(run, Run::Zero(_)));
        if self.runs.len() > RUNS_MAX / 2 {
            let what = "the file has too many parts whose tables come late";
            return Err(Error::new(ErrorKind::TooLarge, what));
        }
        Ok(())
    }
}

impl fmt::Debug for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hold")
            .field("runs", &self.runs.len())
            .field("memory", &self.memory)
            .field("spilled", &self.spilled)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::FileAt;

    fn hold(limit: u64) -> Hold {
        let make = || Ok(Box::new(FileAt::new(tempfile::tempfile()?)?) as Box<dyn Storage>);
        Hold::new(Box::new(make), limit)
    }

    #[test]
    fn what_was_kept_is_read_back_from_wherever_it_is() {
        let mut hold = hold(64 << 20);
        let data: Vec<u8> =
            (0..10 << 20).map(|i| if i >> 16 & 3 == 0 { 0 } else { (i >> 9) as u8 | 1 }).collect();
        for (index, part) in data.chunks(100_000).enumerate() {
            hold.keep(5000 + index as u64 * 100_000, part).unwrap();
        }
        assert!(hold.spilled() > 1 << 20 && hold.memory <= MEMORY_MAX);
        let mut back = vec![1; data.len()];
        assert!(hold.read(&mut back, 5000).unwrap());
        assert!(back == data);
        for (len, at) in [(1, 4999), (2, 5000 + data.len() as u64 - 1), (1, 1 << 40)] {
            assert!(!hold.read(&mut vec![0; len], at).unwrap(), "{len} at {at}");
        }
    }

    #[test]
    fn the_limit_ends_it_with_a_message() {
        let mut hold = hold(1 << 20);
        let mut keep = |at| hold.keep(at, &[1; 1 << 20]);
        let error = (0..16).find_map(|i| keep(i << 20).err()).unwrap();
        assert_eq!(error.kind(), ErrorKind::TooLarge);
    }

    #[test]
    fn a_whole_file_may_have_any_number_of_holes() {
        let mut hold = hold(1 << 30);
        hold.begin_whole();
        let part: Vec<u8> = (0..256 << 10).map(|i| u8::from(i % 8192 == 0)).collect();
        let count = 2 * RUNS_MAX as u64 * 4096 / part.len() as u64;
        for index in 0..count {
            hold.keep(index * part.len() as u64, &part).unwrap();
        }
        let mut back = vec![1; part.len()];
        for index in 0..count {
            assert!(hold.read(&mut back, index * part.len() as u64).unwrap(), "part {index}");
            assert!(back == part);
        }
    }

    #[test]
    fn gaps_of_zeros_cost_nothing_in_the_end() {
        let mut hold = hold(0);
        for index in 0..2 * RUNS_MAX as u64 {
            hold.keep(index * 1024, &[0; 512]).unwrap();
        }
        assert_eq!(hold.spilled(), 0);
        assert!(hold.runs.len() <= RUNS_MAX);
    }
}
