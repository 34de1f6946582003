//! Archives of GNU tar, hostile ones, and folders of all states; GNU tar is the oracle.
#![expect(clippy::disallowed_methods, reason = "`tar` is the oracle of these tests")]

use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use bootyard_spec::{Class, Explain, Verifier};
use bootyard_testkit::{Expect, hostile_files, pseudo_random, require_tool};
use fs_err as fs;
use tempfile::{TempDir, tempdir};

use super::*;

fn verified() -> Verified {
    Verifier::new(Vec::new()).finish().unwrap()
}

fn unpack(tar: &[u8], path: &Path, options: UnpackOptions) -> Result<Unpacked, Error> {
    let mut unpack = Unpack::claim(path, options)?;
    let unpacked = unpack.unpack(&mut &tar[..])?;
    assert!(unpack.into_existing || !path.exists(), "nothing is visible yet");
    unpack.publish(&verified())?;
    Ok(unpacked)
}

/// Runs a line of shell in `dir`, and gives what it prints.
fn sh(dir: &Path, script: &str) -> Vec<u8> {
    let output = Command::new("sh").args(["-euc", script]).current_dir(dir).output().unwrap();
    assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

/// What there is to be compared, but for the time of the folder itself.
fn listing(dir: &Path) -> String {
    let names = "%y %m %s %n %T@ %p %l\\n";
    let text = sh(dir, &format!("find . -mindepth 1 -printf '{names}' | sort -k6"));
    String::from_utf8(text).unwrap().replace(".0000000000 ", " ")
}

/// A member's header and data, as GNU tar writes them.
fn member(name: &str, kind: tar::EntryType, link: &str, mode: u32, data: &[u8]) -> Vec<u8> {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
    header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(data.len() as u64);
    header.set_mtime(1_700_000_000);
    header.set_cksum();
    let padding = data.len().next_multiple_of(512) - data.len();
    [header.as_bytes(), data, &vec![0; padding]].concat()
}

fn file(name: &str, data: &[u8]) -> Vec<u8> {
    member(name, tar::EntryType::Regular, "", 0o644, data)
}

fn archive(members: &[Vec<u8>]) -> Vec<u8> {
    [members.concat(), vec![0; 1024]].concat()
}

/// A tree with everything in it.
fn tree() -> TempDir {
    let dir = tempdir().unwrap();
    let long = "l".repeat(200);
    let script = format!(
        "mkdir -p a/b empty closed '{long}/{long}' umlaut-ü
         echo one >a/one; echo two >a/b/two; : >a/nothing; chmod 640 a/one; chmod 4755 a/b/two
         ln a/one a/b/same; ln -s one a/link; ln -s a/b to-b; ln -s missing dangling; ln -s b/.. a/up
         echo deep >'{long}/{long}/file'; echo x >'umlaut-ü/a b'; echo c >closed/in; ln -s '{long}' long
         truncate -s 3M sparse; printf data | dd of=sparse bs=1 seek=1000000 conv=notrunc status=none
         printf end | dd of=sparse bs=1 seek=2500000 conv=notrunc status=none
         chmod 500 closed; chmod 1777 empty; touch -d '2001-02-03 04:05:06.789' a/one a/b
         touch -hd '1999-01-01' a/link; touch -d '1969-12-31T23:59:00.25Z' a/nothing"
    );
    sh(dir.path(), &script);
    fs::write(dir.path().join("noise"), pseudo_random(700_000, 1)).unwrap();
    dir
}

#[test]
fn unpacks_what_gnu_tar_does() {
    if !require_tool("tar") {
        return;
    }
    let (from, out) = (tree(), tempdir().unwrap());
    for format in ["gnu", "gnu -S", "oldgnu", "posix", "posix -S"] {
        let tar = sh(from.path(), &format!("tar --format={format} -c ."));
        let theirs = tempdir().unwrap();
        fs::write(out.path().join("tar"), &tar).unwrap();
        let x =
            format!("tar --preserve-permissions --no-same-owner -xf {}/tar", out.path().display());
        sh(theirs.path(), &x);
        let ours = out.path().join("ours");
        let options = UnpackOptions { special_modes: true, ..UnpackOptions::default() };
        unpack(&tar, &ours, options).unwrap();
        let of = |what| fs::metadata(ours.join(what)).unwrap();
        assert_eq!(listing(&ours), listing(theirs.path()), "{format}");
        sh(&ours, &format!("diff -r --no-dereference . {}", theirs.path().display()));
        assert_eq!(fs::metadata(&ours).unwrap().mode(), from.path().metadata().unwrap().mode());
        assert_eq!(of("a/one").ino(), of("a/b/same").ino());
        assert_eq!(of("sparse").blocks() < 200, format.contains("-S"), "{format}");
        fs::remove_dir_all(&ours).unwrap();
    }
}

#[test]
fn a_folder_that_is_there_is_filled_if_it_is_empty() {
    if !require_tool("tar") {
        return;
    }
    let (from, out) = (tree(), tempdir().unwrap());
    let tar = sh(from.path(), "tar -c .");
    let data = out.path().join("data");
    fs::create_dir_all(data.join("lost+found")).unwrap();
    unpack(&tar, &data, UnpackOptions::default()).unwrap();
    fs::remove_dir(data.join("lost+found")).unwrap();
    sh(from.path(), "chmod 755 a/b/two; chmod 777 empty");
    // GNU tar's own format has whole seconds only.
    let seconds = |dir: &Path| {
        listing(dir)
            .lines()
            .map(|line| {
                let mut fields: Vec<_> = line.split(' ').collect();
                fields[4] = fields[4].split('.').next().unwrap();
                fields.join(" ")
            })
            .filter(|line| !line.contains("a/nothing"))
            .collect::<Vec<_>>()
    };
    let (ours, theirs) = (seconds(&data), seconds(from.path()));
    assert_eq!(ours.len(), theirs.len());
    for (ours, theirs) in ours.iter().zip(&theirs) {
        assert_eq!(ours, theirs);
    }
    let error = unpack(&tar, &data, UnpackOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
    assert!(error.to_string().contains("is not empty"), "{error}");
    assert!(!data.join(HIDDEN).exists());
    let error = Unpack::claim(&data.join("noise"), UnpackOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Exists);
}

#[test]
fn modes_of_another_owner_are_kept_on_request_only() {
    let tar = archive(&[
        member("s", tar::EntryType::Regular, "", 0o6755, b"x"),
        member("d", tar::EntryType::Directory, "", 0o2777, b""),
    ]);
    for (special_modes, expected) in [(false, [0o755, 0o777]), (true, [0o6755, 0o2777])] {
        let out = tempdir().unwrap();
        let path = out.path().join("out");
        let options = UnpackOptions { special_modes, ..UnpackOptions::default() };
        assert_eq!(unpack(&tar, &path, options).unwrap().members, 2);
        let modes = ["s", "d"]
            .map(|name| fs::metadata(path.join(name)).unwrap().permissions().mode() & 0o7777);
        assert_eq!(modes, expected);
    }
}

#[test]
fn what_is_not_published_leaves_nothing() {
    let out = tempdir().unwrap();
    let path = out.path().join("out");
    let good = archive(&[file("a/b", b"data")]);
    for tar in [&good[..], &good[..1000], b""] {
        let mut unpack = Unpack::claim(&path, UnpackOptions::default()).unwrap();
        let rival = Unpack::claim(&path, UnpackOptions::default()).unwrap_err();
        assert_eq!(rival.kind(), ErrorKind::InUse);
        drop(unpack.unpack(&mut &tar[..]));
        drop(unpack);
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
    // What a dead process left is taken over.
    fs::create_dir_all(out.path().join(".out.bootyard-unpack/a/b")).unwrap();
    unpack(&good, &path, UnpackOptions::default()).unwrap();
    assert_eq!(fs::read(path.join("a/b")).unwrap(), b"data");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
    fs::remove_dir_all(&path).unwrap();
    symlink(out.path(), out.path().join(".out.bootyard-unpack")).unwrap();
    let error = Unpack::claim(&path, UnpackOptions::default()).unwrap_err();
    assert!(error.to_string().contains("is in the way"), "{error}");
}

#[test]
fn an_archive_is_refused_with_its_cause() {
    use tar::EntryType;
    let link = |name, target| member(name, EntryType::Symlink, target, 0o777, b"");
    let hard = |name, target| member(name, EntryType::Link, target, 0o777, b"");
    let special = |kind| member("s", kind, "", 0o666, b"");
    let options = UnpackOptions { members_max: 3, bytes_max: 1000, special_modes: false };
    for (members, message) in [
        (vec![file("/etc/x", b"")], "the member `/etc/x` has an absolute path"),
        (vec![file("a/../../x", b"")], "the member `a/../../x` leads out of its folder"),
        (
            vec![link("a", "/etc/passwd")],
            "the member `a` is a link out of its folder, to `/etc/passwd`",
        ),
        (
            vec![link("d/a", "../../x")],
            "the member `d/a` is a link out of its folder, to `../../x`",
        ),
        (vec![link("a", "a")], "the link `a` leads out of its folder"),
        (
            vec![file("d/f", b""), link("d/b", "../a/.."), link("a", "d/b")],
            "leads out of its folder",
        ),
        (vec![link("a", "."), file("a/x", b"")], "the member `a/x` has another in its way"),
        (vec![file("a", b""), file("a/x", b"")], "the member `a/x` has another in its way"),
        (vec![file("a/x", b""), file("a", b"")], "the member `a` has another in its way"),
        (
            vec![hard("a", "/etc/passwd")],
            "the member `a` is a link out of its folder, to `/etc/passwd`",
        ),
        (vec![hard("a", "b")], "the member `a` is a link to `b`, no file of the archive"),
        (
            vec![link("l", "f"), hard("a", "l")],
            "the member `a` is a link to `l`, no file of the archive",
        ),
        (vec![special(EntryType::Block)], "the member `s` is a block device"),
        (vec![special(EntryType::Char)], "the member `s` is a character device"),
        (vec![special(EntryType::Fifo)], "the member `s` is a FIFO"),
        (vec![file("\u{1b}[31m", b""); 4], "it has more than 3 members"),
        (vec![file("a", &[1; 600]), file("b", &[1; 600])], "its files have more than 1000 bytes"),
        (vec![file("\u{1b}/../x", b"")], "the member `\\u{1b}/../x` leads out"),
    ] {
        let out = tempdir().unwrap();
        let error = unpack(&archive(&members), &out.path().join("out"), options).unwrap_err();
        assert_eq!((error.kind(), error.class()), (ErrorKind::Archive, Class::Image), "{error}");
        let text = error.to_string();
        assert!(
            text.starts_with("cannot unpack the archive: ") && text.contains(message),
            "{text}"
        );
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 0);
    }
}

#[test]
fn later_members_replace_earlier_ones() {
    let link = member("a", tar::EntryType::Symlink, "b", 0o777, b"");
    let tar = archive(&[file("b", b"old"), link, file("a", b"new"), file("b", b"newer")]);
    let out = tempdir().unwrap();
    let path = out.path().join("out");
    unpack(&tar, &path, UnpackOptions::default()).unwrap();
    assert_eq!(fs::read(path.join("a")).unwrap(), b"new");
    assert_eq!(fs::read(path.join("b")).unwrap(), b"newer");
    // The name of the folder in a folder that is there is not free.
    let data = out.path().join("data");
    fs::create_dir(&data).unwrap();
    let tar = archive(&[file(&format!("{HIDDEN}/x"), b"")]);
    let error = unpack(&tar, &data, UnpackOptions::default()).unwrap_err();
    assert!(error.to_string().contains("has the name of the folder"), "{error}");
}

#[test]
fn damage_is_found() {
    let out = tempdir().unwrap();
    let path = out.path().join("out");
    let tar = archive(&[file("a", &[7; 700]), file("b", b"data")]);
    for cut in (0..tar.len() - 1024).step_by(5) {
        let error = unpack(&tar[..cut], &path, UnpackOptions::default()).unwrap_err();
        assert!(error.to_string().ends_with("it is cut off"), "{error}");
    }
    for at in 0..512 {
        let mut bad = tar.clone();
        bad[at] ^= 2;
        assert_eq!(
            unpack(&bad, &path, UnpackOptions::default()).unwrap_err().kind(),
            ErrorKind::Archive
        );
    }
    struct Broken;
    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("a checksum does not match"))
        }
    }
    let mut unpack = Unpack::claim(&path, UnpackOptions::default()).unwrap();
    let error = unpack.unpack(&mut tar[..tar.len() - 512].chain(Broken)).unwrap_err();
    assert_eq!(error.to_string(), "cannot read the archive");
    assert_eq!(std::error::Error::source(&error).unwrap().to_string(), "a checksum does not match");
}

#[test]
fn hostile_archives_meet_what_is_expected() {
    /// Wrong as disks, and good as archives.
    const GOOD: [&str; 4] =
        ["two-disks", "ova-href-traversal", "ova-href-url", "ova-manifest-mismatch"];
    let Some(made) = hostile_files("tar/*") else { return };
    let mut faults = Vec::new();
    for hostile in &made.files {
        let out = tempdir().unwrap();
        let path = out.path().join("in/out");
        fs::create_dir(out.path().join("in")).unwrap();
        let good = GOOD.iter().any(|name| hostile.name.contains(name));
        let expect = if good { Expect::Accept } else { hostile.expect };
        let tar = fs::read(&hostile.path).unwrap();
        match (expect, unpack(&tar, &path, UnpackOptions::default())) {
            (Expect::Reject, Ok(_)) => faults.push(format!("{} was unpacked", hostile.name)),
            (Expect::Accept, Err(error)) => faults.push(format!("{}: {error}", hostile.name)),
            (_, Err(error)) if !matches!(error.kind(), ErrorKind::Archive | ErrorKind::Io) => {
                faults.push(format!("{}: {error:?}", hostile.name));
            }
            _ => {}
        }
        assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1, "{}", hostile.name);
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

#[test]
fn a_link_that_is_put_in_the_way_meanwhile_is_not_followed() {
    let (out, outside) = (tempdir().unwrap(), tempdir().unwrap());
    let members: Vec<_> = (0..200)
        .flat_map(|index| [file(&format!("a/b/{index}"), b"x"), file(&format!("c/{index}"), b"y")])
        .collect();
    let tar = archive(&members);
    let staging = out.path().join(".out.bootyard-unpack");
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (folder, aside) = (staging.join("a"), out.path().join("aside"));
            while !done.load(Ordering::Relaxed) {
                let _ = fs::rename(&folder, &aside);
                let _ = symlink(outside.path(), &folder);
                let _ = fs::remove_file(&folder);
                let _ = fs::remove_dir_all(&aside);
            }
        });
        for _ in 0..30 {
            let _ = unpack(&tar, &out.path().join("out"), UnpackOptions::default());
            let _ = fs::remove_dir_all(out.path().join("out"));
        }
        done.store(true, Ordering::Relaxed);
    });
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
}
