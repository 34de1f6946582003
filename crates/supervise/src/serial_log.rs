//! The log of a serial port: a file that is renamed when it is full, as `logrotate` does.

use std::fmt;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use fs_err::File;
use fs_err::os::unix::fs::OpenOptionsExt;

/// What a log may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogLimits {
    /// Bytes of one file.
    pub size: u64,
    /// Older files that are kept, as `FILE.1` (the latest) and so on.
    pub older: u32,
}

/// Takes a line for people.
type Warn = Box<dyn Fn(&str) + Send>;

/// The log of a serial port. What is written stands in the file when the call returns, as far as other
/// processes can see.
pub struct SerialLog {
    path: PathBuf,
    limits: LogLimits,
    file: File,
    len: u64,
    /// Bytes that could not be written since the last that could.
    lost: u64,
    warned: bool,
    warn: Warn,
}

impl SerialLog {
    /// Opens the log, behind what is there already. `warn` is told once when it cannot be written.
    pub fn open(path: &Path, limits: LogLimits, warn: Warn) -> io::Result<Self> {
        let file = open(path)?;
        let len = file.metadata()?.len();
        let path = path.to_owned();
        Ok(Self { path, limits, file, len, lost: 0, warned: false, warn })
    }

    /// Appends to the log. If that fails, the guest and everybody else goes on, and the log tells how much
    /// is missing as soon as it can be written again.
    pub fn write(&mut self, bytes: &[u8]) {
        if let Err(error) = self.try_write(bytes) {
            self.lost += bytes.len() as u64;
            if !std::mem::replace(&mut self.warned, true) {
                (self.warn)(&format!("cannot write the log of the serial port: {error}"));
            }
        }
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.len > 0 && self.len + bytes.len() as u64 > self.limits.size {
            self.rotate()?;
        }
        if self.lost > 0 {
            let note = format!("\n[bootyard: {} bytes are missing here]\n", self.lost);
            self.append(note.as_bytes())?;
            self.lost = 0;
        }
        self.append(bytes)
    }

    /// All of it or nothing: half a chunk, followed by a note, would count bytes wrongly.
    fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes).inspect_err(|_| {
            let _ = self.file.set_len(self.len);
        })?;
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn rotate(&mut self) -> io::Result<()> {
        if self.limits.older == 0 {
            self.file.set_len(0)?;
        } else {
            // Without it somebody took it away, or the one that follows could not be opened last time.
            if fs_err::symlink_metadata(&self.path).is_ok() {
                for number in (1..self.limits.older).rev() {
                    renamed(&self.older(number), &self.older(number + 1))?;
                }
                renamed(&self.path, &self.older(1))?;
            }
            self.file = open(&self.path)?;
        }
        self.len = 0;
        Ok(())
    }

    fn older(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".{number}"));
        name.into()
    }
}

/// Renames a file that may not be there.
fn renamed(from: &Path, to: &Path) -> io::Result<()> {
    match fs_err::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// For this user alone: what a guest says on its console may be secret.
fn open(path: &Path) -> io::Result<File> {
    File::options().create(true).append(true).mode(0o600).open(path)
}

impl fmt::Debug for SerialLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SerialLog").field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    fn log(path: &Path, size: u64, older: u32) -> (SerialLog, Receiver<String>) {
        let (warned, warnings) = channel();
        let warn = Box::new(move |line: &str| warned.send(line.to_owned()).unwrap());
        (SerialLog::open(path, LogLimits { size, older }, warn).unwrap(), warnings)
    }

    #[test]
    fn full_files_move_on_and_the_oldest_goes() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        fs_err::write(&path, "from before ").unwrap();
        let (mut log, _warnings) = log(&path, 20, 2);
        for number in 0..10 {
            log.write(format!("line {number}.").as_bytes());
        }
        let read = |end: &str| {
            fs_err::read_to_string(folder.path().join(format!("serial.log{end}"))).unwrap()
        };
        assert_eq!(read(""), "line 9.");
        assert_eq!(read(".1"), "line 7.line 8.");
        assert_eq!(read(".2"), "line 5.line 6.");
        assert_eq!(fs_err::read_dir(folder.path()).unwrap().count(), 3);
    }

    #[test]
    fn without_older_files_the_log_begins_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let (mut log, _warnings) = log(&path, 10, 0);
        ["one", "two", "three", "four"].iter().for_each(|word| log.write(word.as_bytes()));
        assert_eq!(fs_err::read_to_string(&path).unwrap(), "threefour".get(0..9).unwrap());
        // One chunk may be larger than a file.
        log.write(&[b'x'; 100]);
        assert_eq!(fs_err::metadata(&path).unwrap().len(), 100);
    }

    #[test]
    fn a_log_that_somebody_took_away_begins_anew_and_the_older_ones_stay() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let (mut log, warnings) = log(&path, 10, 2);
        ["first", "second", "third"].iter().for_each(|word| log.write(word.as_bytes()));
        fs_err::remove_file(&path).unwrap();
        ["gone", "fourth", "fifth"].iter().for_each(|word| log.write(word.as_bytes()));
        let read = |end: &str| {
            fs_err::read_to_string(folder.path().join(format!("serial.log{end}"))).unwrap()
        };
        assert_eq!(["", ".1", ".2"].map(read), ["fifth", "fourth", "second"]);
        assert_eq!(warnings.try_iter().count(), 0);
    }

    #[test]
    fn a_full_disk_is_told_once_and_the_log_says_what_is_missing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("serial.log");
        let (mut log, warnings) = log(&path, 1 << 20, 1);
        log.write(b"before");
        let good = std::mem::replace(
            &mut log.file,
            File::options().write(true).open("/dev/full").unwrap(),
        );
        log.write(b"lost");
        log.write(b"lost too");
        log.file = good;
        log.write(b"after");
        let text = fs_err::read_to_string(&path).unwrap();
        assert_eq!(text, "before\n[bootyard: 12 bytes are missing here]\nafter");
        let warnings: Vec<String> = warnings.try_iter().collect();
        assert_eq!(warnings.len(), 1);
        assert!(warnings[0].contains("No space left on device"), "{}", warnings[0]);
    }
}
