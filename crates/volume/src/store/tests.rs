//! The store: what is true of a volume after whatever happened, and what its classes give.
#![expect(clippy::disallowed_methods, reason = "losetup is a program")]

use std::io;

use bootyard_image::{Body, Piece, Sink};
use bootyard_spec::{AccessMode, Explain, StorageDriver, Verified, Verifier};
use bootyard_testkit::{Mount, run};
use tempfile::TempDir;

use super::*;
use crate::{AttachedDisk, fsops};

const MIB: u64 = 1 << 20;

fn verified() -> Verified {
    Verifier::new(Vec::new()).finish().unwrap()
}

fn store() -> (TempDir, Store) {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(&folder.path().join("home"));
    (folder, store)
}

fn name(name: &str) -> VolumeName {
    name.parse().unwrap()
}

/// Makes a raw volume of 4 MiB.
fn make(store: &Store, volume: &str, options: &StageOptions) {
    let staged = store.stage_as(&name(volume), OutputFormat::Raw, options).unwrap();
    staged.reserve(4 * MIB).unwrap();
    staged.put(Piece { offset: MIB, body: Body::Data(&[7; 4096]) }).unwrap();
    let facts = Facts {
        source: Some("blank".to_owned()),
        size: Some(4 * MIB),
        labels: [("os".to_owned(), "linux".to_owned())].into(),
        ..Facts::default()
    };
    staged.describe(&facts).unwrap();
    staged.publish(&verified()).unwrap();
}

#[track_caller]
fn refused<T: std::fmt::Debug>(result: Result<T, Error>, kind: ErrorKind, message: &str) {
    let error = result.unwrap_err();
    assert_eq!((error.kind(), error.to_string()), (kind, message.to_owned()));
    assert!(error.hint().is_some(), "{error} has no hint");
}

fn findings(store: &Store, options: VerifyOptions) -> Vec<String> {
    let found = store.verify(&[], options, &|_| {}).unwrap().into_iter();
    found.map(|Finding { name, what, kind }| format!("{name} {what}: {}", kind.name())).collect()
}

const REPAIR: VerifyOptions = VerifyOptions { repair: true, deep: false, drop_unfinished: false };

#[test]
fn a_volume_keeps_what_is_known_of_it() {
    let (_folder, store) = store();
    make(&store, "v", &StageOptions::default());
    let volume = store.get(&name("v")).unwrap();
    assert_eq!(
        (volume.size, volume.class.as_str(), volume.state),
        (4 * MIB, "local", State::Ready)
    );
    assert_eq!(volume.facts.source.as_deref(), Some("blank"));
    assert_eq!(volume.facts.labels["os"], "linux");
    assert!(volume.created.is_some_and(|created| created > 1_700_000_000), "{volume:?}");
    assert_eq!(store.list().unwrap(), [volume]);
    store.remove(&name("v")).unwrap();
    assert_eq!(store.list_all().unwrap(), []);
    refused(store.remove(&name("v")), ErrorKind::NotFound, "there is no volume `v`");
}

#[test]
fn a_volume_that_was_removed_and_made_again_is_another_one() {
    let (_folder, store) = store();
    make(&store, "v", &StageOptions::default());
    let db = Db::write(&store.home).unwrap();
    db.set_state(db.volume(&name("v")).unwrap().unwrap().id, State::Removing);
    let removing = db.volume(&name("v")).unwrap().unwrap();
    store.remove(&name("v")).unwrap();
    make(&store, "v", &StageOptions::default());
    store.remove_row(&db, &removing).unwrap();
    assert!(store.get(&name("v")).unwrap().path.is_file());
    // Nor does who found it being made take it when it is ready.
    let begun = Row { state: State::Preparing, ..db.volume(&name("v")).unwrap().unwrap() };
    store.remove_row(&db, &begun).unwrap();
    assert_eq!(findings(&store, REPAIR), [""; 0]);
    let place = begun.place.clone();
    let mut db = Db::write(&store.home).unwrap();
    let claimed = db.claim(&name("v"), &place, Some(begun.id), 1).unwrap();
    assert!(matches!(claimed, Claimed::Taken), "{claimed:?}");
}

#[test]
fn a_volume_is_removed_from_a_full_file_system() {
    let Some(mount) = Mount::new("ext4", 16) else { return };
    let store = Store::open(&mount.path().join("home"));
    make(&store, "v", &StageOptions::default());
    let mut file = fs_err::File::create(mount.path().join("rest")).unwrap();
    while io::Write::write_all(&mut file, &[1; 4096]).is_ok() {}
    assert_eq!(fsops::free_bytes(file.file()).unwrap(), 0);
    store.remove(&name("v")).unwrap();
    assert_eq!(store.list_all().unwrap(), []);
}

#[test]
fn a_pipe_in_a_disks_place_keeps_nobody_waiting() {
    let (folder, store) = store();
    make(&store, "v", &StageOptions::default());
    let disk = store.get(&name("v")).unwrap().path;
    fs_err::remove_file(&disk).unwrap();
    run(std::process::Command::new("mkfifo").arg(&disk));
    assert_eq!(findings(&store, REPAIR).len(), 1);
    drop(folder);
}

#[test]
fn disks_without_a_row_are_volumes() {
    let (_folder, store) = store();
    let disk = store.home.join("volumes/old/disk.raw");
    fs_err::create_dir_all(disk.parent().unwrap()).unwrap();
    fs_err::write(&disk, [1; 512]).unwrap();
    // First without a database, then with one that does not know it.
    for _ in 0..2 {
        let volume = store.get(&name("old")).unwrap();
        assert_eq!((&volume.path, volume.size), (&disk, 512));
        assert_eq!(store.list().unwrap().len(), 1);
        refused(
            store.stage(&name("old"), OutputFormat::Qcow2),
            ErrorKind::Exists,
            "volume `old` exists",
        );
    }
    store.remove(&name("old")).unwrap();
    assert!(!disk.parent().unwrap().exists());
}

#[test]
fn what_was_begun_is_told_finished_or_removed() {
    let (_folder, store) = store();
    let stage = |volume: &str| store.stage(&name(volume), OutputFormat::Raw).unwrap();
    let living = stage("living");
    assert_eq!(store.list().unwrap(), []);
    assert_eq!(store.list_all().unwrap()[0].state, State::Preparing);
    // What a process that was killed leaves: a row and a part file, a journal perhaps, and the lock is
    // free.
    let killed = stage("killed");
    std::mem::forget(killed.journal(&[]).unwrap());
    killed.leave();
    let resumable = stage("resumable");
    resumable.journal(&[]).unwrap().unwrap().append(1, b"note").unwrap();
    resumable.leave();
    // Complete, but nobody has said so.
    let db = Db::write(&store.home).unwrap();
    make(&store, "complete", &StageOptions::default());
    let id = db.volume(&name("complete")).unwrap().unwrap().id;
    db.set_state(id, State::Preparing);
    fs_err::create_dir(store.home.join("volumes/empty")).unwrap();
    make(&store, "removed", &StageOptions::default());
    db.removing(db.volume(&name("removed")).unwrap().unwrap().id).unwrap();
    let me = std::process::id();
    let expected = |kind: &str| {
        [
            format!("complete is complete, but said to be preparing: {kind}"),
            format!("killed was begun and not finished: {kind}"),
            format!("living is being made by process {me}: note"),
            format!("removed was half removed: {kind}"),
            "resumable was begun and not finished; the same command goes on with it, \
             `--drop-unfinished` removes it: note"
                .to_owned(),
            format!("empty was begun and not finished: {kind}"),
        ]
    };
    assert_eq!(findings(&store, VerifyOptions::default()), expected("repairable"));
    assert_eq!(findings(&store, REPAIR), expected("repaired"));
    drop(living);
    assert_eq!(findings(&store, VerifyOptions { drop_unfinished: true, ..REPAIR }).len(), 1);
    assert_eq!(findings(&store, VerifyOptions { deep: true, ..REPAIR }).len(), 1);
    let left = fs_err::read_dir(store.home.join("volumes")).unwrap();
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["complete"]);
    assert_eq!(store.get(&name("complete")).unwrap().facts.source.as_deref(), Some("blank"));
}

#[test]
fn access_modes_are_kept() {
    let (_folder, store) = store();
    let modes = [
        ("rwo", vec![AccessMode::ReadWriteOnce]),
        ("rwx", vec![AccessMode::ReadWriteMany]),
        ("rox", vec![AccessMode::ReadOnlyMany]),
    ];
    for (volume, modes) in modes {
        let access_modes = modes.into_iter().collect();
        let claim = Claim { access_modes, ..Claim::default() };
        make(&store, volume, &StageOptions { claim, size: None });
    }
    let open = |volume: &str, read_only| {
        let (path, access) = store.attach(&name(volume), read_only)?;
        AttachedDisk::open_for(&path, access)
    };
    for volume in ["rwo", "rwx", "rox"] {
        let _readers = [(); 2].map(|()| open(volume, true).unwrap());
    }
    let _one = open("rwo", false).unwrap();
    assert_eq!(open("rwo", false).unwrap_err().kind(), ErrorKind::InUse);
    assert_eq!(open("rwo", true).unwrap_err().kind(), ErrorKind::InUse);
    let _many = [(); 2].map(|()| open("rwx", false).unwrap());
    refused(
        open("rox", false),
        ErrorKind::AccessMode,
        "volume `rox` is for readers only: its access mode is ROX",
    );
    for volume in ["rwo", "rwx"] {
        let what = format!("volume `{volume}` is in use");
        refused(store.remove(&name(volume)), ErrorKind::InUse, &what);
        refused(store.resize(&name(volume), ByteSize::from_mib(8)), ErrorKind::InUse, &what);
        assert!(store.get(&name(volume)).unwrap().is_written);
    }
    refused(
        store.resize(&name("rox"), ByteSize::from_mib(8)),
        ErrorKind::AccessMode,
        "volume `rox` is for readers only: its access mode is ROX",
    );
    assert!(!store.get(&name("rox")).unwrap().is_written);
}

#[test]
fn a_volume_grows_and_never_shrinks() {
    let (_folder, store) = store();
    make(&store, "v", &StageOptions::default());
    assert_eq!(store.resize(&name("v"), ByteSize::from_mib(9)).unwrap(), (4 * MIB, 9 * MIB));
    let volume = store.get(&name("v")).unwrap();
    let stored = fs_err::read(&volume.path).unwrap();
    assert_eq!((stored.len() as u64, volume.size), (9 * MIB, 9 * MIB));
    assert!(stored[MIB as usize..].starts_with(&[7; 4096]));
    refused(
        store.resize(&name("v"), ByteSize::from_mib(8)),
        ErrorKind::TooSmall,
        "volume `v` has 9Mi, and does not shrink to 8Mi",
    );
    let staged = store.stage(&name("q"), OutputFormat::Qcow2).unwrap();
    staged.publish_empty(MIB).unwrap();
    assert_eq!(store.get(&name("q")).unwrap().size, MIB);
    store.resize(&name("q"), "10Ti".parse().unwrap()).unwrap();
    let volume = store.get(&name("q")).unwrap();
    assert_eq!((measure(&volume.path, volume.format), volume.size), (10 << 40, 10 << 40));
    assert_eq!(findings(&store, VerifyOptions::default()), [""; 0]);
}

#[test]
fn classes_have_their_own_folders_and_a_default() {
    let (folder, store) = store();
    assert_eq!(store.classes().unwrap(), [classes::built_in()]);
    let driver = StorageDriver::Directory(folder.path().join("fast"));
    let fast = StorageClass {
        is_default: true,
        preallocation: true,
        minimum_size: Some(ByteSize::from_mib(8)),
        ..StorageClass::new("fast".parse().unwrap(), driver)
    };
    store.add_class(&fast).unwrap();
    refused(store.add_class(&fast), ErrorKind::Exists, "storage class `fast` exists");
    let what = format!("`{}` is of storage class `fast`", folder.path().join("fast").display());
    for within in ["fast", "fast/inner", "fast/../fast"] {
        let driver = StorageDriver::Directory(folder.path().join(within));
        let other = StorageClass::new("other".parse().unwrap(), driver);
        fs_err::create_dir_all(folder.path().join(within)).unwrap();
        refused(store.add_class(&other), ErrorKind::InUse, &what);
    }
    fs_err::remove_dir(folder.path().join("fast/inner")).unwrap();
    assert_eq!(store.class(None).unwrap(), fast);
    assert!(store.class(Some(&"local".parse().unwrap())).is_ok_and(|class| !class.is_default));
    make(&store, "v", &StageOptions::default());
    let volume = store.get(&name("v")).unwrap();
    assert_eq!(volume.path, folder.path().join("fast/v/disk.raw"));
    let fast = &fast.name;
    let what = "storage class `fast` has 1 volumes";
    refused(store.remove_class(fast), ErrorKind::InUse, what);
    store.remove(&name("v")).unwrap();
    store.remove_class(fast).unwrap();
    assert_eq!(store.classes().unwrap(), [classes::built_in()]);
    let claim = Claim { class: Some(fast.clone()), ..Claim::default() };
    refused(
        store.stage_as(&name("v"), OutputFormat::Raw, &StageOptions { claim, size: None }),
        ErrorKind::Unsupported,
        "there is no storage class `fast`",
    );
}

#[test]
fn a_clone_has_what_its_class_asks_for() {
    use std::os::unix::fs::MetadataExt as _;

    let (folder, store) = store();
    make(&store, "golden", &StageOptions::default());
    let driver = StorageDriver::Directory(folder.path().join("full"));
    let full = StorageClass {
        preallocation: true,
        minimum_size: Some(ByteSize::from_mib(8)),
        ..StorageClass::new("full".parse().unwrap(), driver)
    };
    store.add_class(&full).unwrap();
    let claim = Claim { class: Some(full.name), ..Claim::default() };
    let (_, original) = store.original(&name("golden")).unwrap();
    for (volume, size, expected) in [("a", None, 8), ("b", Some(5), 8), ("c", Some(9), 9)] {
        let size = size.map(ByteSize::from_mib);
        let options = StageOptions { claim: claim.clone(), size };
        let staged = store.stage_as(&name(volume), OutputFormat::Raw, &options).unwrap();
        let options = crate::CloneOptions {
            source: "golden",
            parent: None,
            known: None,
            size: size.map(ByteSize::bytes),
            is_raw: true,
            preallocation: false,
            verify: false,
            workers: std::num::NonZeroUsize::MIN,
            progress: &|_, _| {},
            stopped: &|| false,
        };
        let cloned = staged.publish_clone(&original, &options).unwrap();
        assert_eq!(cloned.size, expected * MIB);
        let found = store.get(&name(volume)).unwrap();
        assert_eq!(found.size, expected * MIB);
        assert!(fs_err::metadata(&found.path).unwrap().blocks() * 512 >= expected * MIB);
    }
}

#[test]
fn a_database_of_later_days_is_refused() {
    let (_folder, store) = store();
    make(&store, "v", &StageOptions::default());
    Db::write(&store.home).unwrap().set_version(7);
    let what = "the store is of version 7; expected at most 1";
    refused(store.get(&name("v")), ErrorKind::Database, what);
    refused(store.stage(&name("w"), OutputFormat::Raw), ErrorKind::Database, what);
    fs_err::write(store.home.join("bootyard.db"), [3; 8192]).unwrap();
    let path = store.home.join("bootyard.db");
    let what = format!("cannot use the store's database `{}`", path.display());
    refused(store.get(&name("v")), ErrorKind::Database, &what);
    fs_err::remove_file(path).unwrap();
    assert_eq!(store.get(&name("v")).unwrap().size, 4 * MIB);
}

/// A loop device over a file, until it is dropped.
struct Device(String);

impl Device {
    fn new(folder: &Path, mib: u64) -> Self {
        let file = folder.join(format!("{mib}.img"));
        // What was on it before.
        fs_err::write(&file, vec![0xaa; (mib * MIB) as usize]).unwrap();
        let mut command = std::process::Command::new("losetup");
        Self(run(command.args(["--find", "--show"]).arg(file)).trim().to_owned())
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        run(std::process::Command::new("losetup").args(["--detach", &self.0]));
    }
}

#[test]
fn each_volume_has_the_smallest_device_that_fits() {
    if !bootyard_testkit::require_tool("losetup") {
        return;
    }
    let (folder, store) = store();
    let devices = [8, 16].map(|mib| Device::new(folder.path(), mib));
    let paths = devices.iter().map(|device| PathBuf::from(&device.0)).collect();
    let disks = StorageClass::new("disks".parse().unwrap(), StorageDriver::Devices(paths));
    let disks = StorageClass { preallocation: true, ..disks };
    store.add_class(&disks).unwrap();
    let claim = Claim { class: Some(disks.name), ..Claim::default() };
    let options = |mib| StageOptions { claim: claim.clone(), size: Some(ByteSize::from_mib(mib)) };
    make(&store, "a", &options(4));
    make(&store, "b", &options(4));
    let path = |volume: &str| store.get(&name(volume)).unwrap().path;
    assert_eq!([path("a"), path("b")], [&devices[0].0, &devices[1].0].map(PathBuf::from));
    refused(
        store.stage_as(&name("c"), OutputFormat::Raw, &options(4)),
        ErrorKind::NoSpace,
        "class `disks` has no free device of at least 4Mi",
    );
    assert_eq!(store.resize(&name("a"), ByteSize::from_mib(8)).unwrap(), (4 * MIB, 8 * MIB));
    let grown = fs_err::read(&devices[0].0).unwrap();
    assert!(grown[MIB as usize..].starts_with(&[7; 4096]), "what was in it stays");
    assert!(grown[4 * MIB as usize..].iter().all(|byte| *byte == 0), "what was on it does not");
    // A machine sees all of the device.
    fs_err::OpenOptions::new()
        .write(true)
        .open(&devices[1].0)
        .and_then(|mut device| {
            io::Seek::seek(&mut device, io::SeekFrom::Start(5 * MIB))?;
            io::Write::write_all(&mut device, &[9; 512])
        })
        .unwrap();
    store.attach(&name("b"), false).unwrap();
    assert_eq!(store.resize(&name("b"), ByteSize::from_mib(6)).unwrap(), (4 * MIB, 6 * MIB));
    let grown = fs_err::read(&devices[1].0).unwrap();
    assert!(grown[5 * MIB as usize..].starts_with(&[9; 512]), "what a machine wrote stays");
    let too_large = store.resize(&name("a"), ByteSize::from_mib(9)).unwrap_err();
    assert_eq!(too_large.kind(), ErrorKind::TooSmall, "{too_large}");
    store.remove(&name("a")).unwrap();
    assert_eq!(fs_err::read(&devices[0].0).unwrap()[..MIB as usize], [0; MIB as usize]);
    // A row without a process is all that a killed one leaves of a volume on a device.
    let staged = store.stage_as(&name("c"), OutputFormat::Raw, &options(4)).unwrap();
    let living = findings(&store, REPAIR);
    assert_eq!(living, [format!("c is being made by process {}: note", std::process::id())]);
    drop(staged);
    assert_eq!(findings(&store, VerifyOptions { deep: true, ..REPAIR }).len(), 1);
    assert_eq!(store.list_all().unwrap().len(), 1);
}
