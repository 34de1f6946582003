//! Images that other programs made, and ours, read back; and images with any byte wrong.
#![expect(
    clippy::disallowed_methods,
    clippy::unwrap_used,
    reason = "images are made by other programs, and helpers of tests fail them"
)]

use std::collections::BTreeMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use bootyard_cloudinit::{
    Datasource, Error, FileSystem, Format, FoundData, FoundImage, FoundSeed, Image, ImageFormat,
    Seed, SshPublicKey, Tree, UserData,
};
use bootyard_testkit::{require_tool, run};
use expect_test::expect;

type Files = BTreeMap<String, Vec<u8>>;

/// What a seed of NoCloud has, and what strains names.
const NAMES: [&str; 8] = [
    "meta-data",
    "user-data",
    "network-config",
    "openstack/latest/meta_data.json",
    "openstack/content/0000",
    "Grüße und Küsse.txt",
    "d/e/f/g",
    "a name that is much longer than eight and three characters.txt",
];

fn sample() -> Files {
    let content = |n: usize| vec![n as u8 + b'a'; n * 700];
    NAMES.iter().enumerate().map(|(n, name)| ((*name).to_owned(), content(n))).collect()
}

fn tool(name: &str) -> Command {
    let mut command = Command::new(name);
    command.env("LC_ALL", "C.UTF-8").env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// The files in a folder of their own, beside which there is room for an image.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(files: &Files) -> Self {
        let place = Self { dir: tempfile::tempdir().unwrap() };
        for (path, content) in files {
            let path = place.files().join(path);
            fs_err::create_dir_all(path.parent().unwrap()).unwrap();
            fs_err::write(path, content).unwrap();
        }
        place
    }

    fn files(&self) -> PathBuf {
        self.dir.path().join("files")
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    /// What `command` makes of the files, as it is read.
    fn iso(&self, command: &str, options: &[&str]) -> FoundImage {
        run(tool(command).args(options).arg("-o").arg(self.image()).arg(self.files()));
        found(&self.image())
    }

    /// A new FAT volume with the files on it.
    fn fat(&self, kib: u64, options: &[&str]) {
        fs_err::File::create(self.image()).unwrap().set_len(kib << 10).unwrap();
        run(tool("mkfs.vfat").args(options).arg(self.image()));
        for entry in fs_err::read_dir(self.files()).unwrap() {
            let path = entry.unwrap().path();
            run(tool("mcopy").args(["-s", "-Q", "-i"]).arg(self.image()).arg(path).arg("::/"));
        }
    }
}

fn read(image: &[u8]) -> Result<FoundImage, Error> {
    FoundImage::read(&mut Cursor::new(image))
}

fn found(path: &Path) -> FoundImage {
    FoundImage::read(&mut fs_err::File::open(path).unwrap()).unwrap()
}

fn files(found: &FoundImage) -> Files {
    found.files.files().map(|(path, content)| (path, content.to_vec())).collect()
}

#[test]
fn isos_of_others_have_the_names_that_linux_would_show() {
    if !require_tool("genisoimage") || !require_tool("xorrisofs") {
        return;
    }
    let sample = sample();
    let place = Place::new(&sample);
    for (command, options, file_system) in [
        (
            "genisoimage",
            &["-quiet", "-V", "cidata", "-joliet", "-rock"][..],
            FileSystem::IsoRockRidge,
        ),
        ("genisoimage", &["-quiet", "-V", "cidata", "-rock"], FileSystem::IsoRockRidge),
        ("genisoimage", &["-quiet", "-V", "cidata", "-J", "-joliet-long"], FileSystem::IsoJoliet),
        ("xorrisofs", &["-quiet", "-V", "cidata", "-joliet", "-rock"], FileSystem::IsoRockRidge),
        ("xorrisofs", &["-quiet", "-V", "cidata", "-joliet", "--norock"], FileSystem::IsoJoliet),
        // As KubeVirt calls it.
        (
            "xorrisofs",
            &["-quiet", "-volid", "cidata", "-joliet", "-rock", "-partition_cyl_align", "on"],
            FileSystem::IsoRockRidge,
        ),
    ] {
        let found = place.iso(command, options);
        assert_eq!(found.file_system, file_system, "{command} {options:?}");
        assert_eq!(found.label.as_deref(), Some("cidata"), "{command} {options:?}");
        let names = |files: &Files| files.keys().cloned().collect::<Vec<_>>();
        assert_eq!(names(&files(&found)), names(&sample), "{command} {options:?}");
        assert!(files(&found) == sample, "{command} {options:?}");
    }
}

#[test]
fn an_iso_without_long_names_shows_the_short_ones() {
    if !require_tool("genisoimage") {
        return;
    }
    let place = Place::new(&sample());
    let found = place.iso("genisoimage", &["-quiet", "-V", "CIDATA"]);
    assert_eq!(found.file_system, FileSystem::Iso);
    assert!(found.file("user-data").is_none());
    assert_eq!(found.file("user_dat").unwrap().len(), 700);
    assert_eq!(found.file("openstac/latest/meta_dat.jso").unwrap().len(), 3 * 700);
}

#[test]
fn rock_ridge_gives_links_long_names_and_moved_directories_back() {
    if !require_tool("genisoimage") {
        return;
    }
    let long = "n".repeat(250);
    let deep = "1/2/3/4/5/6/7/8/9/10/file";
    let mut sample = Files::new();
    sample.insert(long, b"long".to_vec());
    sample.insert(deep.to_owned(), b"deep".to_vec());
    sample.insert("..2026/user-data".to_owned(), b"#cloud-config\n".to_vec());
    let place = Place::new(&sample);
    let link = |target: &str, name: &str| {
        fs_err::os::unix::fs::symlink(target, place.files().join(name)).unwrap();
    };
    // What Kubernetes mounts a ConfigMap as.
    link("..2026", "..data");
    link("..data/user-data", "user-data");
    link("/nowhere/at/all", "1/loose");
    link("../../outside", "1/out");
    let found = place.iso("genisoimage", &["-quiet", "-V", "cidata", "-rock"]);
    sample.insert("..data/user-data".to_owned(), b"#cloud-config\n".to_vec());
    sample.insert("user-data".to_owned(), b"#cloud-config\n".to_vec());
    let mut files = files(&found);
    files.retain(|path, _| !path.starts_with("rr_moved/"));
    assert_eq!(files, sample);
    let loose = [("1/loose", "/nowhere/at/all"), ("1/out", "../../outside")];
    let mut links = found.loose_links.clone();
    links.sort();
    assert_eq!(links, loose.map(|(path, target)| (path.to_owned(), target.to_owned())));
}

#[test]
fn links_that_multiply_everything_come_to_an_end() {
    if !require_tool("genisoimage") {
        return;
    }
    let place = Place::new(&[("a".to_owned(), b"x".to_vec())].into());
    for number in 0..40 {
        let link = place.files().join(format!("link-{number}"));
        fs_err::os::unix::fs::symlink(".", link).unwrap();
    }
    let mut make = tool("genisoimage");
    run(make.args(["-quiet", "-rock", "-o"]).arg(place.image()).arg(place.files()));
    let mut image = fs_err::File::open(place.image()).unwrap();
    let error = FoundImage::read(&mut image).unwrap_err().to_string();
    assert!(error.ends_with("more than 65536 files and directories"), "{error}");
}

#[test]
fn fat_volumes_of_others_are_read_in_every_width_and_sector_size() {
    if !require_tool("mkfs.vfat") || !require_tool("mcopy") {
        return;
    }
    let sample = sample();
    let place = Place::new(&sample);
    for (kib, options, file_system) in [
        (1024, &["-n", "CIDATA"][..], FileSystem::Fat12),
        (1024, &["-n", "CIDATA", "-S", "4096"], FileSystem::Fat12),
        // As OpenStack Nova makes a config drive.
        (64 << 10, &["-n", "CIDATA"], FileSystem::Fat16),
        (40 << 10, &["-n", "CIDATA", "-F", "32"], FileSystem::Fat32),
        (300 << 10, &["-n", "CIDATA", "-F", "32", "-s", "1"], FileSystem::Fat32),
    ] {
        place.fat(kib, options);
        let found = found(&place.image());
        assert_eq!((found.file_system, found.label.as_deref()), (file_system, Some("CIDATA")));
        assert!(files(&found) == sample, "{options:?}");
        assert_eq!(found.file("USER-DATA"), sample.get("user-data").map(Vec::as_slice));
        assert!(found.partition.is_none() && found.loose_links.is_empty());
    }
}

#[test]
fn a_partition_is_found_by_the_label_of_a_seed() {
    if !require_tool("mkfs.vfat") || !require_tool("mcopy") || !require_tool("sfdisk") {
        return;
    }
    let sample = sample();
    let place = Place::new(&sample);
    place.fat(4096, &["-n", "CIDATA"]);
    let (seed, disk) = (fs_err::read(place.image()).unwrap(), place.dir.path().join("disk"));
    for label in ["dos", "gpt"] {
        let mut image = vec![0; 16 << 20];
        image[5 << 20..][..seed.len()].copy_from_slice(&seed);
        fs_err::write(&disk, &image).unwrap();
        let script = format!("label: {label}\nstart=2048, size=8192\nstart=10240, size=8192\n");
        let input = place.dir.path().join("script");
        fs_err::write(&input, script).unwrap();
        let stdin = fs_err::File::open(&input).unwrap().into_parts().0;
        run(tool("sfdisk").arg("-q").arg(&disk).stdin(stdin));
        let found = found(&disk);
        assert_eq!((found.partition, found.label.as_deref()), (Some(2), Some("CIDATA")), "{label}");
        assert!(files(&found) == sample, "{label}");
    }
}

#[test]
fn what_we_write_is_what_we_read() {
    let long = format!("{}x", "long-name.".repeat(20));
    let many = (0..600).map(|n| (format!("d{}/file-{n}", n % 7), vec![n as u8; n * 5])).collect();
    let odd = [("Grüße.txt", "1"), (long.as_str(), "2"), ("日本/ファイル", ""), ("a b", "3")];
    let odd = odd.map(|(name, text)| (name.to_owned(), text.as_bytes().to_vec())).into();
    let large = [("large".to_owned(), vec![7; 17 << 20])].into();
    for expected in [Files::new(), sample(), many, odd, large] {
        let mut tree = Tree::new();
        expected.iter().for_each(|(path, bytes)| tree.insert(path, bytes.as_slice()).unwrap());
        for format in [ImageFormat::Iso, ImageFormat::Fat] {
            let image = Image { format, label: "any label", timestamp: 0 }
                .build(&tree)
                .unwrap()
                .into_bytes();
            let found = read(&image).unwrap();
            assert_eq!(found.label.as_deref(), Some("any label"));
            assert_eq!(found.files, tree);
        }
    }
}

#[test]
fn what_is_no_small_disk_is_named() {
    let mut ext = vec![0; 4096];
    ext[1080..1082].copy_from_slice(&[0x53, 0xEF]);
    let mut udf = vec![0; 40 << 10];
    udf[32769..32774].copy_from_slice(b"BEA01");
    for (image, message) in [
        (Vec::new(), "the image is empty"),
        (vec![0; 1 << 20], "expected ISO 9660 or FAT, got nothing but zeros"),
        (ext, "expected ISO 9660 or FAT, got an ext file system"),
        (udf, "expected ISO 9660 or FAT, got UDF, which cloud-init does not look at"),
        (b"QFI\xFB".to_vec(), "expected ISO 9660 or FAT, got a qcow2 image"),
        (
            vec![1; 1 << 20],
            "expected ISO 9660 or FAT: there is neither a volume descriptor at offset 32768 nor a \
             boot sector at 0",
        ),
    ] {
        assert_eq!(read(&image).unwrap_err().to_string(), message);
    }
}

/// An image of ours, and where something of it stands.
fn built(format: ImageFormat, files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tree = Tree::new();
    files.iter().for_each(|(path, bytes)| tree.insert(path, *bytes).unwrap());
    Image { format, label: "CIDATA", timestamp: 0 }.build(&tree).unwrap().into_bytes()
}

fn position(image: &[u8], text: &[u8]) -> usize {
    image.windows(text.len()).position(|window| window == text).unwrap()
}

#[test]
fn damaged_isos_are_refused_with_the_place() {
    let files: [(&str, &[u8]); 2] = [("d/e", b"x"), (&"n".repeat(250), b"user")];
    let image = built(ImageFormat::Iso, &files);
    let root = 2048 * u32::from_le_bytes(image[32768 + 158..][..4].try_into().unwrap()) as usize;
    let file = position(&image, b"NNNNNNNNNNNNNNNNNNNNNNNNNN") - 33;
    let directory = root + position(&image[root..], b"\x01D") - 32;
    let pointer = position(&image, b"CE\x1c\x01");
    let continuation = 2048 * usize::from(image[pointer + 4]) + usize::from(image[pointer + 12]);
    let root_block = u8::try_from(root / 2048).unwrap();
    for (what, edits, message) in [
        ("a block of 3 bytes", vec![(32768 + 128, 3)], "a logical block of"),
        (
            "roots beyond the end",
            vec![(32768 + 161, 1), (32768 + 2048 + 161, 1)],
            "the directory `/` has",
        ),
        (
            "a root that is no directory",
            vec![(32768 + 181, 0)],
            "expected the record of a directory",
        ),
        ("a record that is too long", vec![(file, 255), (root + 2, 255)], ""),
        ("a record that is too short", vec![(file, 20)], "that is too short"),
        ("a name longer than its record", vec![(file + 32, 250)], "whose name is longer"),
        ("a name of no length", vec![(file + 32, 0)], "whose name is longer"),
        ("an interleaved file", vec![(file + 26, 1)], "an interleaved file"),
        ("a file beyond the end", vec![(file + 5, 1)], "the file `nnn"),
        ("a huge file", vec![(file + 13, 255)], "expected at most 64 MiB"),
        ("a directory in itself", vec![(directory + 2, root_block)], "is inside itself"),
        ("a huge directory", vec![(directory + 13, 9)], "the directory `/d` has"),
        ("a continuation that is itself", cycle(continuation, pointer, &image), "without end"),
        (
            "a continuation beyond a block",
            vec![(pointer + 13, 255)],
            "a Rock Ridge continuation of",
        ),
        (
            "a continuation beyond the end",
            vec![(pointer + 6, 255)],
            "a Rock Ridge continuation has",
        ),
        ("an entry that is cut off", vec![(continuation + 2, 255)], ""),
        ("a name that leads up", vec![(directory + 32, 2)], ""),
    ] {
        let mut image = image.clone();
        edits.into_iter().for_each(|(at, byte)| image[at] = byte);
        let result = read(&image);
        if !message.is_empty() {
            let error = result.map(|found| self::files(&found)).expect_err(what).to_string();
            assert!(error.contains(message), "{what}: {error}");
            assert!(error.contains("offset") || error.contains("64 MiB"), "{what}: {error}");
        }
    }
}

/// The edits after which the continuation has nothing but a pointer to itself.
fn cycle(continuation: usize, pointer: usize, image: &[u8]) -> Vec<(usize, u8)> {
    const LEN: usize = 28;
    let copy = (continuation..).zip(image[pointer..][..LEN].iter().copied());
    let len = [pointer, continuation].map(|at| (at + 20, LEN as u8));
    copy.chain(len).collect()
}

#[test]
fn damaged_fat_volumes_are_refused_with_the_place() {
    let files: [(&str, &[u8]); 3] = [("d/e", b"x"), ("user-data", &[b'u'; 9000]), ("z/zz/a", b"")];
    let image = built(ImageFormat::Fat, &files);
    // The boot sector, two tables of a sector each, and the root.
    let (table, root) = (4096, 3 * 4096);
    let entry = |name: &[u8]| root + position(&image[root..], name);
    let (file, directory) = (entry(b"USER-D~2"), entry(b"D~1     "));
    let first = usize::from(image[file + 26]);
    // What follows in the table is by this: the folders have clusters 2 to 4, the file 5 to 7.
    assert_eq!(first, 5);
    let inner = position(&image, b"ZZ~1       ");
    for (what, edits, message) in [
        ("no tables' sectors", vec![(22, 0)], "whose files begin at"),
        ("no clusters", vec![(19, 3), (20, 0)], "whose files begin at"),
        (
            "a chain that is too short",
            vec![(table + 7, 0xFF), (table + 8, 0xFF)],
            "of its 9000 bytes",
        ),
        ("a file of no cluster", vec![(file + 26, 0)], "goes on in cluster 0"),
        ("a file beyond the end", vec![(file + 27, 9)], "which there is not"),
        ("a huge file", vec![(file + 31, 255)], "expected at most 64 MiB"),
        ("a file longer than its chain", vec![(file + 29, 255)], "bytes"),
        ("a directory that is its own child", vec![(directory + 26, 0)], "goes on in cluster 0"),
        ("a directory that holds its parent", vec![(inner + 26, 3)], "is inside itself"),
        ("a directory without end", vec![(table + 3, 2), (table + 4, 0xF0)], "has no end"),
    ] {
        let mut image = image.clone();
        edits.into_iter().for_each(|(at, byte)| image[at] = byte);
        let error = read(&image).map(|found| self::files(&found)).expect_err(what).to_string();
        assert!(error.contains(message), "{what}: {error}");
        assert!(error.contains("offset") || error.contains("64 MiB"), "{what}: {error}");
    }
}

/// Images in which every byte that is not content is wrong in turn, in a way that is always the same.
#[test]
fn no_wrong_byte_makes_the_reader_panic_or_hang() {
    let mut state = 0x9E37_79B9_u32;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state
    };
    let long = "n".repeat(250);
    let files: [(&str, &[u8]); 4] =
        [("d/e/f", b"x"), (&long, b"long"), ("user-data", &[0; 9000]), ("meta-data", b"{}")];
    let begin = Instant::now();
    let (mut refused, mut reads) = (0, 0);
    for format in [ImageFormat::Iso, ImageFormat::Fat] {
        let image = built(format, &files);
        let places: Vec<usize> = (0..image.len()).filter(|at| image[*at] != 0).collect();
        for _ in 0..1500 {
            let mut image = image.clone();
            for _ in 0..=random() % 16 {
                let at = places[random() as usize % places.len()] + random() as usize % 3;
                image[at] = random() as u8;
            }
            image.truncate(image.len() - random() as usize % 3 * 400_000);
            let result = read(&image);
            reads += 1;
            refused += usize::from(result.is_err());
        }
    }
    assert!(refused > reads / 20 && refused < reads, "{refused} of {reads} were refused");
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

/// What is found, a line each.
fn facts(seed: &FoundSeed) -> String {
    let data = |data: &Option<FoundData>| {
        let formats = |data: &FoundData| -> Vec<_> {
            data.parts.parts.iter().map(|part| (part.format, part.content.len())).collect()
        };
        data.as_ref().map(formats)
    };
    let keys: Vec<String> = seed.ssh_keys.iter().map(|key| key.comment().to_owned()).collect();
    format!(
        "{:?} {:?} {:?} {keys:?}\nuser {:?}\nvendor {:?}\nnetwork {:?}\n{}",
        seed.datasource,
        seed.instance_id,
        seed.hostname,
        data(&seed.user_data),
        data(&seed.vendor_data),
        seed.network_config.as_ref().map(|network| network.form),
        seed.problems.iter().map(|problem| format!("{problem}\n")).collect::<String>(),
    )
}

fn seed_of(label: &str, files: &[(&str, &str)]) -> Option<FoundSeed> {
    let mut tree = Tree::new();
    files.iter().for_each(|(path, text)| tree.insert(path, *text).unwrap());
    let image =
        Image { format: ImageFormat::Iso, label, timestamp: 0 }.build(&tree).unwrap().into_bytes();
    FoundSeed::of(&read(&image).unwrap())
}

const KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIGyQ7aKqmHWdN8i4cRkXzdn3SuNOqmJLlyXhHKzsqzZg a@b";

#[test]
fn a_seed_is_what_cloud_init_takes_from_it() {
    let nocloud = format!(
        "# made by hand\ninstance-id: 7\nlocal-hostname: web-1\npublic-keys:\n  - {KEY}\n  - {KEY}\n"
    );
    let text = format!("instance-id: a\ninstance-id: b\npublic-keys: |\n  {KEY}\n\n  {KEY}\n");
    let numbered = format!("instance-id: a\npublic-keys:\n  0: {KEY}\n  1: [{KEY}]\n");
    let latest = "{\"uuid\": \"latest\"}";
    let newton = format!(
        "{{\"uuid\": \"newton\", \"hostname\": \"h\", \"public_keys\": {{\"k\": \"{KEY}\"}}, \
         \"network_config\": {{\"content_path\": \"/content/0000\"}}}}"
    );
    for (label, files, expected) in [
        (
            "cidata",
            vec![
                ("meta-data", nocloud.as_str()),
                ("user-data", "#cloud-config\n"),
                ("vendor-data", "#!/bin/sh\n"),
                ("network-config", "network:\n  version: 2\n"),
            ],
            expect![[r#"
                NoCloud Some("7") Some("web-1") ["a@b", "a@b"]
                user Some([(Some(CloudConfig), 14)])
                vendor Some([(Some(Script), 10)])
                network Some(Version2)
            "#]],
        ),
        (
            "CIDATA",
            vec![
                ("meta-data", text.as_str()),
                ("user-data", ""),
                ("network-config", "version: 1\n"),
            ],
            expect![[r#"
                NoCloud Some("b") None ["a@b", "a@b"]
                user None
                vendor None
                network Some(Version1)
            "#]],
        ),
        (
            "mine",
            vec![("meta-data", numbered.as_str()), ("user-data", "runcmd: [true]\n")],
            expect![[r#"
                NoCloud Some("a") None ["a@b", "a@b"]
                user Some([(None, 15)])
                vendor None
                network None
                no guest looks at it: expected the label `CIDATA`, got `mine`
                user-data: it has no header that cloud-init knows, and is ignored
            "#]],
        ),
        (
            "cidata",
            vec![("meta-data", "a: [1\n"), ("network-config", "- 1\n")],
            expect![[r#"
                NoCloud None None []
                user None
                vendor None
                network Some(Unknown)
                no guest takes it for a seed: `user-data` is missing
                meta-data: it is not YAML: line 1 column 4: unclosed bracket '['
                meta-data: there is no `instance-id`; every such guest is the instance `nocloud`
                network-config: expected a mapping, got something else
            "#]],
        ),
        (
            "config-2",
            vec![
                ("openstack/latest/meta_data.json", latest),
                ("openstack/2016-10-06/meta_data.json", newton.as_str()),
                ("openstack/2016-10-06/user_data", "#!/bin/sh\n"),
                ("openstack/2016-10-06/vendor_data.json", "{\"cloud-init\": \"#cloud-config\\n\"}"),
                ("openstack/content/0000", "auto lo\n"),
                ("ec2/latest/meta-data.json", "{}"),
            ],
            expect![[r#"
                ConfigDrive Some("newton") Some("h") ["a@b"]
                user Some([(Some(Script), 10)])
                vendor Some([(Some(CloudConfig), 14)])
                network Some(Interfaces)
            "#]],
        ),
        (
            "CONFIG-2",
            vec![
                ("openstack/latest/meta_data.json", "{}"),
                ("openstack/latest/network_data.json", "version: 2\n"),
            ],
            expect![[r#"
                ConfigDrive None None []
                user None
                vendor None
                network Some(Unknown)
                no guest takes it for a seed: `uuid` is missing in `openstack/latest/meta_data.json`
                network_data.json: expected OpenStack's JSON, got something else
            "#]],
        ),
        (
            "config-2",
            vec![("openstack/content/0000", "x")],
            expect![[r#"
                ConfigDrive None None []
                user None
                vendor None
                network None
                no guest takes it for a seed: there is no `openstack/latest`
            "#]],
        ),
    ] {
        expected.assert_eq(&facts(&seed_of(label, &files).unwrap()));
    }
    assert!(seed_of("cfgdata", &[("key", "value")]).is_none());
}

#[test]
fn our_seeds_are_found_whole() {
    let mut seed = Seed::new("web-1".parse().unwrap());
    seed.ssh_keys = SshPublicKey::parse_all("k", KEY.as_bytes()).unwrap();
    seed.user_data =
        ["#!/bin/sh\n", "#cloud-config\n"].map(|text| UserData::parse("u", text).unwrap()).into();
    for datasource in [Datasource::NoCloud, Datasource::ConfigDrive] {
        for format in [ImageFormat::Iso, ImageFormat::Fat] {
            let image = seed.build(datasource, format, 0).unwrap().into_bytes();
            let found = FoundSeed::of(&read(&image).unwrap()).unwrap();
            assert_eq!(found.datasource, datasource);
            assert_eq!(found.hostname.as_deref(), Some("web-1"));
            assert_eq!(found.ssh_keys, seed.ssh_keys);
            let contents = found.user_data.unwrap().parts.parts;
            let contents: Vec<_> = contents.into_iter().map(|part| part.content).collect();
            assert_eq!(contents, [b"#!/bin/sh\n".to_vec(), b"#cloud-config\n".to_vec()]);
            assert_eq!(found.problems, Vec::<String>::new());
        }
    }
}

#[test]
fn a_seed_of_cloud_localds_is_found() {
    if !require_tool("cloud-localds") {
        return;
    }
    let place = Place::new(&sample());
    fs_err::write(place.files().join("user-data"), "#cloud-config\n").unwrap();
    let files = place.files();
    for filesystem in ["iso", "vfat"] {
        run(tool("cloud-localds").args(["-H", "web-1", "-f", filesystem, "-N"]).args([
            &files.join("network-config"),
            &place.image(),
            &files.join("user-data"),
        ]));
        let found = FoundSeed::of(&found(&place.image())).unwrap();
        assert_eq!(
            (found.datasource, found.hostname.as_deref()),
            (Datasource::NoCloud, Some("web-1"))
        );
        let user_data = found.user_data.unwrap();
        assert_eq!(user_data.content, b"#cloud-config\n");
        assert_eq!(user_data.parts.parts[0].format, Some(Format::CloudConfig));
        assert!(found.network_config.is_some() && found.instance_id.is_some());
    }
}
