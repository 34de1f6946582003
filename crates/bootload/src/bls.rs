//! The Boot Loader Specification: entries of type 1, their order, and the configuration of
//! systemd-boot (<https://uapi-group.org/specifications/specs/boot_loader_specification/>).

use std::cmp::Ordering;
use std::rc::Rc;

use crate::Error;
use crate::grub::eval::{Boot, Load};
use crate::grub::{Line, Place};
use crate::menu::{Choice, Method, Step};
use crate::scan::Volume;

/// Where entries stand: on a partition of their own, and on one that has `/boot` as a folder.
pub(crate) const FOLDERS: [&str; 2] = ["/loader/entries", "/boot/loader/entries"];
/// The end of an entry's file name.
const SUFFIX: &str = ".conf";
/// Bytes of an entry, and of systemd-boot's configuration.
pub(crate) const ENTRY_MAX: u64 = 64 << 10;
/// Entries of one folder.
const ENTRIES_MAX: usize = 512;

/// A value and the line on which it stands.
pub(crate) type Valued = (u32, String);

/// An entry of type 1. What is not here does not concern a machine of this kind.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) order: Order,
    pub(crate) title: Option<String>,
    pub(crate) linux: Option<Valued>,
    pub(crate) initrds: Vec<Valued>,
    pub(crate) options: Vec<Valued>,
    /// The entry starts an EFI program instead of a kernel.
    pub(crate) efi: Option<Valued>,
}

/// What decides where an entry stands in the menu.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Order {
    /// The name of the file, without its counters of tries.
    pub(crate) file: String,
    pub(crate) sort_key: Option<String>,
    pub(crate) machine_id: String,
    pub(crate) version: String,
    /// No try is left.
    pub(crate) is_bad: bool,
}

impl Order {
    /// Of a file called `name`: `fedora+3-1.conf` was tried once and has three tries left.
    pub(crate) fn of(name: &str, suffix: &str) -> Self {
        let stem = name.strip_suffix(suffix).unwrap_or(name);
        let is_count = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        let counted = stem.rsplit_once('+').filter(|(_, tries)| {
            let (left, done) = tries.split_once('-').unwrap_or((tries, "0"));
            is_count(left) && is_count(done)
        });
        let left = counted.map(|(_, tries)| tries.split('-').next().unwrap_or_default());
        Self {
            file: format!("{}{suffix}", counted.map_or(stem, |(stem, _)| stem)),
            is_bad: left.is_some_and(|left| left.bytes().all(|byte| byte == b'0')),
            ..Self::default()
        }
    }

    /// The first one boots: those that may still be tried, then by sort key, machine and version, the
    /// newest first; then the other ones by file name, the newest first.
    pub(crate) fn compare(&self, other: &Self) -> Ordering {
        let keyed = match (&self.sort_key, &other.sort_key) {
            (Some(a), Some(b)) => a
                .cmp(b)
                .then_with(|| self.machine_id.cmp(&other.machine_id))
                .then_with(|| compare_versions(&other.version, &self.version)),
            (a, b) => a.is_none().cmp(&b.is_none()),
        };
        let by_name = || compare_versions(&other.file, &self.file);
        self.is_bad.cmp(&other.is_bad).then(keyed).then_with(by_name)
    }
}

impl Entry {
    /// Reads the entry in the file called `name`. Unknown keys are of later versions.
    pub(crate) fn parse(name: &str, text: &str) -> Self {
        let mut entry = Self { order: Order::of(name, SUFFIX), ..Self::default() };
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            let (key, value) = line.split_once([' ', '\t']).unwrap_or((line, ""));
            let value = value.trim().to_owned();
            match key {
                _ if key.starts_with('#') || value.is_empty() => {}
                "title" => entry.title = Some(value),
                "version" => entry.order.version = value,
                "machine-id" => entry.order.machine_id = value,
                "sort-key" => entry.order.sort_key = Some(value),
                "linux" => entry.linux = Some((number, value)),
                "initrd" => entry.initrds.push((number, value)),
                "options" => entry.options.push((number, value)),
                "efi" | "uki" => entry.efi = Some((number, value)),
                _ => {}
            }
        }
        entry
    }

    /// The name by which it is chosen: its file's, without the end.
    pub(crate) fn id(&self) -> String {
        let file = &self.order.file;
        file.strip_suffix(SUFFIX).unwrap_or(file).to_owned()
    }

    pub(crate) fn title(&self) -> String {
        self.title.clone().unwrap_or_else(|| self.id())
    }

    /// All lines of one key as one text.
    pub(crate) fn joined(values: &[Valued]) -> String {
        let values: Vec<&str> = values.iter().map(|(_, value)| value.as_str()).collect();
        values.join(" ")
    }

    /// What it loads from `device`, its text as it stands.
    fn boot(&self, device: &str, file: &Rc<str>) -> Result<Boot, Error> {
        let at = |number| Line { file: Rc::clone(file), number };
        if let Some((number, program)) = &self.efi {
            let what = format_args!("`{program}` is an EFI program, which only firmware can run");
            return Err(at(*number).error(what));
        }
        let Some((number, kernel)) = &self.linux else {
            return Err(at(1).error("the entry names no kernel"));
        };
        let load = |number: u32, path: &str| {
            let path = format!("/{}", path.trim_start_matches('/'));
            Load::whole(Place { device: device.to_owned(), path }, at(number))
        };
        let words = |(number, paths): &Valued| {
            paths.split_whitespace().map(|path| load(*number, path)).collect::<Vec<_>>()
        };
        Ok(Boot {
            kernel: Some(load(*number, kernel)),
            cmdline: Self::joined(&self.options),
            initrds: self.initrds.iter().flat_map(words).collect(),
        })
    }
}

/// The entries of type 1 of a file system, each with what decides its place.
pub(crate) fn entries(volume: &Volume) -> Result<Vec<(Order, Choice)>, Error> {
    let mut found = Vec::new();
    for folder in FOLDERS {
        for (file, entry) in
            read(|path| volume.fs.names(path), |path| volume.fs.read(path, ENTRY_MAX), folder)?
        {
            let step = Step { index: 0, title: entry.title(), id: Some(entry.id()) };
            let choice = Choice {
                method: Method::Bls,
                partition: volume.partition.number,
                config: file.to_string(),
                steps: vec![step],
                boot: entry.boot(&volume.partition.device(), &file),
            };
            found.push((entry.order, choice));
        }
    }
    Ok(found)
}

/// The entries of a folder, in no order that counts, each with its path.
pub(crate) fn read(
    names: impl Fn(&str) -> Result<Option<Vec<String>>, Error>,
    read: impl Fn(&str) -> Result<Option<Vec<u8>>, Error>,
    folder: &str,
) -> Result<Vec<(Rc<str>, Entry)>, Error> {
    let names = names(folder)?.unwrap_or_default();
    let mut found = Vec::new();
    for name in names.iter().filter(|name| name.ends_with(SUFFIX)).take(ENTRIES_MAX) {
        let path = format!("{folder}/{name}");
        if let Some(text) = read(&path)? {
            found.push((path.into(), Entry::parse(name, &String::from_utf8_lossy(&text))));
        }
    }
    Ok(found)
}

/// The pattern of the entry that `loader.conf` makes the default.
pub(crate) fn default_pattern(volume: &Volume) -> Result<Option<String>, Error> {
    let text = volume.fs.read("/loader/loader.conf", ENTRY_MAX)?.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let mut lines = text.lines().filter_map(|line| line.trim().split_once([' ', '\t']));
    let pattern = lines.find(|(key, _)| *key == "default").map(|(_, value)| value.trim());
    Ok(pattern.filter(|pattern| !pattern.starts_with('@')).map(str::to_owned))
}

/// A shell's pattern of `*`, `?` and other characters, with or without the file's end.
pub(crate) fn matches(pattern: &str, file: &str) -> bool {
    let stem = file.rsplit_once('.').map_or(file, |(stem, _)| stem);
    glob(pattern.as_bytes(), file.as_bytes()) || glob(pattern.as_bytes(), stem.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    // Where the last star was, and how much of the text it has taken.
    let (mut at, mut pos, mut star) = (0, 0, None);
    while pos < text.len() {
        match pattern.get(at) {
            Some(b'*') => {
                star = Some((at, pos));
                at += 1;
            }
            Some(b'?') => (at, pos) = (at + 1, pos + 1),
            Some(byte) if byte.eq_ignore_ascii_case(&text[pos]) => (at, pos) = (at + 1, pos + 1),
            _ => {
                let Some((star_at, taken)) = star else { return false };
                star = Some((star_at, taken + 1));
                (at, pos) = (star_at + 1, taken + 1);
            }
        }
    }
    pattern[at..].iter().all(|byte| *byte == b'*')
}

/// Compares versions (<https://uapi-group.org/specifications/specs/version_format_specification/>).
pub(crate) fn compare_versions(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    let is_part = |byte: &u8| byte.is_ascii_alphanumeric() || b"~-^.".contains(byte);
    loop {
        for text in [&mut a, &mut b] {
            let skip = text.iter().position(is_part).unwrap_or(text.len());
            *text = &text[skip..];
        }
        // Before everything, even the end; the others come behind the end, in this order.
        for sign in *b"~\0-^." {
            if sign == 0 {
                if a.is_empty() || b.is_empty() {
                    return b.is_empty().cmp(&a.is_empty());
                }
                continue;
            }
            match (a.first() == Some(&sign), b.first() == Some(&sign)) {
                (true, true) => (a, b) = (&a[1..], &b[1..]),
                (false, false) => {}
                (is_a, is_b) => return is_b.cmp(&is_a),
            }
        }
        let is_number = [a, b].iter().any(|text| text.first().is_some_and(u8::is_ascii_digit));
        let belongs = if is_number { u8::is_ascii_digit } else { u8::is_ascii_alphabetic };
        let split =
            |text: &'_ [u8]| text.iter().position(|byte| !belongs(byte)).unwrap_or(text.len());
        let ((part_a, rest_a), (part_b, rest_b)) = (a.split_at(split(a)), b.split_at(split(b)));
        let order = match is_number {
            true => compare_numbers(part_a, part_b),
            false => part_a.cmp(part_b),
        };
        if order.is_ne() {
            return order;
        }
        (a, b) = (rest_a, rest_b);
    }
}

/// Compares digits as numbers of any length; no digits come first.
fn compare_numbers(a: &[u8], b: &[u8]) -> Ordering {
    let digits = |text: &'_ [u8]| text.iter().position(|byte| *byte != b'0').unwrap_or(text.len());
    let (short_a, short_b) = (&a[digits(a)..], &b[digits(b)..]);
    let by_value = short_a.len().cmp(&short_b.len()).then_with(|| short_a.cmp(short_b));
    b.is_empty().cmp(&a.is_empty()).then(by_value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_the_specification_says() {
        // Each is less than the one after it; the first list is the specification's own.
        let lists = [
            "122.1 123~rc1-1 123 123-a 123-a.1 123-1 123-1.1 123^post1 123.a-1 123.1-1 123a-1 124-1",
            "5.14.0-9.el9 5.14.0-427.el9 5.14.0-427.13.1.el9_4 6.1.0-1",
        ];
        for list in lists {
            let list: Vec<&str> = list.split(' ').collect();
            for pair in list.windows(2) {
                let [a, b] = [pair[0], pair[1]];
                assert_eq!(compare_versions(a, b), Ordering::Less, "{a} {b}");
                assert_eq!(compare_versions(b, a), Ordering::Greater, "{b} {a}");
            }
        }
        assert_eq!(compare_versions("~1", ""), Ordering::Less);
        assert_eq!(compare_versions("", "1"), Ordering::Less);
        assert_eq!(compare_versions("007", "7"), Ordering::Equal);
        assert_eq!(compare_versions("12_3", "12 3"), Ordering::Equal);
    }

    #[test]
    fn entries_boot_in_the_order_of_the_specification() {
        let order = |name: &str, text: &str| Entry::parse(name, text).order;
        let mut orders = [
            order("b-old.conf", "version 5.1\n"),
            order("key-2.conf", "sort-key fedora\nversion 6.2\nmachine-id a\n"),
            order("key-bad+0-3.conf", "sort-key fedora\nversion 9\nmachine-id a\n"),
            order("key-10.conf", "sort-key fedora\nversion 6.10\nmachine-id a\n"),
            order("arch+2.conf", "sort-key arch\nversion 1\n"),
            order("b-new-2.conf", "version 1\n"),
            order("b-new-10.conf", "version 1\n"),
        ];
        orders.sort_by(Order::compare);
        let files: Vec<&str> = orders.iter().map(|order| order.file.as_str()).collect();
        assert_eq!(
            files,
            [
                "arch.conf",
                "key-10.conf",
                "key-2.conf",
                "b-old.conf",
                "b-new-10.conf",
                "b-new-2.conf",
                "key-bad.conf",
            ]
        );
    }

    #[test]
    fn patterns_match_as_a_shells() {
        for (pattern, file, expected) in [
            ("arch*", "arch-6.1.conf", true),
            ("*", "x.conf", true),
            ("arch-?.?.conf", "arch-6.1.conf", true),
            ("arch-6.1", "arch-6.1.conf", true),
            ("a*1*f", "arch-6.1.conf", true),
            ("arch", "arch-6.1.conf", false),
            ("*a*a*a*a*a*b", "aaaaaaaaaaaaaaaaaaaaaaaaaaa.conf", false),
        ] {
            assert_eq!(matches(pattern, file), expected, "{pattern} {file}");
        }
    }
}
