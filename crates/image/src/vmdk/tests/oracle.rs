//! `qemu-img` makes disks of each kind and says what is in them.

use std::path::{Path, PathBuf};

use bootyard_testkit::{corpus_entries, qemu_img, require_tool, sha256_file, sparse_image};
use fs_err::File;

use super::with_folder;
use crate::raw::FileAt;
use crate::support::{SIZE_MAX, decode};
use crate::{Disk, Error, ErrorKind, conformance, inspect, open, open_with};

fn file(path: &Path) -> FileAt {
    FileAt::new(File::open(path).unwrap().into()).unwrap()
}

fn open_disk(path: &Path) -> Result<Box<dyn Disk>, Error> {
    open_with(file(path), with_folder(path.parent().unwrap()))
}

/// Reads the disk at `path` both ways, if it is in one file, and compares it with `raw`.
fn check(path: &Path, raw: &Path, lens: &[usize]) {
    let name = path.display();
    let expected = fs_err::read(raw).unwrap();
    let disk = open_disk(path).unwrap();
    conformance::check(&*disk, expected.len() as u64);
    assert!(conformance::read_all(&*disk) == expected, "{name} by random access");
    let info = inspect(&file(path)).unwrap();
    assert_eq!(info.virtual_size, Some(expected.len() as u64), "{name}");
    let streamed = decode(&fs_err::read(path).unwrap(), lens);
    if info.extents.is_empty() {
        let (streamed, summary) = streamed.unwrap();
        assert!(streamed == expected, "{name} as a stream");
        assert_eq!(summary.spilled_bytes, 0, "{name}");
        assert_eq!(info.refused, None, "{name}");
    } else {
        assert_eq!(streamed.unwrap_err().kind(), ErrorKind::NeedsOtherFile, "{name}");
        assert_eq!(open(file(path)).map(drop).unwrap_err().kind(), ErrorKind::NeedsOtherFile);
        assert!(info.refused.unwrap().contains(&format!("`{}`", info.extents[0])), "{name}");
    }
}

fn convert(dir: &Path, raw: &Path, options: &str) -> PathBuf {
    let path = dir.join(format!("{}.vmdk", options.replace([' ', '=', ','], "_")));
    let mut arguments = vec!["convert", "-f", "raw", "-O", "vmdk"];
    arguments.extend(options.split_whitespace());
    arguments.extend([raw.to_str().unwrap(), path.to_str().unwrap()]);
    qemu_img(arguments);
    path
}

#[test]
fn reads_what_qemu_img_converts() {
    if !require_tool("qemu-img") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let lens: [&[usize]; 4] = [&[1 << 20], &[65_536], &[1, 4095, 100_000], &[16 << 10]];
    let sizes = [(12 << 20) + 512 * 77, 40 << 20, 512];
    let raws = sizes.map(|size| {
        let raw = dir.path().join(format!("{size}.raw"));
        sparse_image(&raw, size, size);
        raw
    });
    for (index, (size, options)) in [
        (0, "-o subformat=monolithicSparse"),
        (1, "-o subformat=monolithicSparse"),
        (2, "-o subformat=monolithicSparse"),
        (0, "-o subformat=monolithicSparse,zeroed_grain=on"),
        (0, "-o subformat=monolithicSparse,adapter_type=lsilogic,hwversion=6"),
        (0, "-S 0 -o subformat=monolithicSparse"),
        (0, "-W -o subformat=monolithicSparse"),
        (0, "-o subformat=streamOptimized"),
        (1, "-W -o subformat=streamOptimized"),
        (2, "-o subformat=streamOptimized"),
        (0, "-S 0 -o subformat=streamOptimized"),
        (0, "-W -m 16 -o subformat=streamOptimized,adapter_type=buslogic"),
        (0, "-o subformat=monolithicFlat"),
        (0, "-o subformat=twoGbMaxExtentFlat"),
        (0, "-o subformat=twoGbMaxExtentSparse"),
        (1, "-o subformat=twoGbMaxExtentSparse,compat6=on"),
    ]
    .into_iter()
    .enumerate()
    {
        let path = convert(dir.path(), &raws[size], options);
        check(&path, &raws[size], lens[index % lens.len()]);
    }
}

#[test]
fn reads_the_corpus() {
    for entry in corpus_entries().iter().filter(|entry| entry.format == "vmdk") {
        let name = entry.path.display();
        let raw = tempfile::NamedTempFile::new().unwrap();
        let digest = entry.sha256_raw.as_ref().filter(|digest| digest.len() == 64);
        let disk = match (open_disk(&entry.path), digest) {
            (Ok(disk), Some(_)) => disk,
            (Err(_), None) => continue,
            (disk, digest) => panic!("{name}: {digest:?}, {:?}", disk.map(drop)),
        };
        assert!(disk.virtual_size() <= SIZE_MAX);
        fs_err::write(raw.path(), conformance::read_all(&*disk)).unwrap();
        assert_eq!(Some(&sha256_file(raw.path())), digest, "{name}");
        check(&entry.path, raw.path(), &[8192]);
    }
}
