//! Disks that are laid out as distributions lay out theirs: from each, its kernel and initial RAM disk
//! are taken byte by byte.
#![expect(clippy::disallowed_methods, reason = "the disks are made by another program")]

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use bootyard_bootload::{Options, find};
use bootyard_image::Disk;
use bootyard_image::raw::{FileAt, RawDisk};
use bootyard_testkit::{run, skip};

#[test]
fn every_layout_gives_its_kernel_and_initial_ram_disk() {
    let Some(xtask) = std::env::var_os("BOOTYARD_XTASK") else {
        skip!("no xtask: run `cargo xtask test`")
    };
    let folder = PathBuf::from(run(Command::new(xtask).arg("fixtures")).trim());
    let [kernel, initrd] =
        ["kernel", "initrd"].map(|name| fs_err::read(folder.join(name)).unwrap());
    let mut seen = 0;
    for entry in fs_err::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let Some("raw") = path.extension().and_then(|end| end.to_str()) else { continue };
        let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let file = FileAt::new(fs_err::File::open(&path).unwrap().into()).unwrap();
        let disk: Arc<dyn Disk> = Arc::new(RawDisk::read_only(file));
        let plan = find(&disk, &Options::default()).unwrap();
        assert!(plan.kernel == kernel && plan.initrd == initrd, "{name}: {plan:?}");
        let words: Vec<&str> = plan.cmdline.split(' ').collect();
        assert!(words.contains(&format!("fixture={name}").as_str()), "{name}: {plan:?}");
        assert!(plan.console_on_serial, "{name}: {plan:?}");
        seen += 1;
    }
    assert_eq!(seen, 10);
}
