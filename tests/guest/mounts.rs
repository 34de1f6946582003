//! The Linux kernel mounts our images, from disks of both sector sizes, and finds every file under its
//! name. What ISO 9660's plainer trees cannot spell is found under the name that they have for it.

use bootyard_cloudinit::{Image, ImageFormat, Tree};
use bootyard_testkit::{pseudo_random, skip};
use expect_test::expect;
use sha2::{Digest as _, Sha256};

use crate::{need, xtask};

/// A path, the path in the Joliet tree, and the one in the primary tree as Linux shows it.
const FILES: [[&str; 3]; 9] = [
    ["user-data", "user-data", "user_data"],
    ["ReadMe.TXT", "ReadMe.TXT", "readme.txt"],
    [
        "openstack/latest/meta_data.json",
        "openstack/latest/meta_data.json",
        "openstack/latest/meta_data.jso",
    ],
    ["1/2/3/4/5/6/7/8", "1/2/3/4/5/6/7/8", "1/2/3/4/5/6/7/8"],
    ["Grüße/日本語 ñ.txt", "Grüße/日本語 ñ.txt", "gr__e/_____.txt"],
    ["🦀.md", "_.md", "_.md"],
    [
        "a-name-of-eighty-characters-that-is-longer-than-joliet-has-room-for-in-all-first",
        "a-name-of-eighty-characters-that-is-longer-than-joliet-has-room-",
        "a_name_of_eighty_character",
    ],
    [
        "a-name-of-eighty-characters-that-is-longer-than-joliet-has-room-for-in-all-second",
        "a-name-of-eighty-characters-that-is-longer-than-joliet-has-roo_1",
        "a_name_of_eighty_charact_1",
    ],
    ["empty", "empty", "empty"],
];

/// Mounts each disk in each way and shows what differs from the list of what was written.
const SCRIPT: &str = r#"
mkdir /mnt
look() {
    disk=$1 type=$2 options=$3 list=$4
    echo "$list: $type from sectors of $(cat "/sys/block/$disk/queue/logical_block_size"), $options"
    if mount -t "$type" -o "ro,$options" "/dev/$disk" /mnt 2>/tmp/why; then
        (cd /mnt && find . -type f -exec sha256sum {} + | sort) >/tmp/found
        umount /mnt
        diff "/$list" /tmp/found | head -n 20
        echo "    $(wc -l </tmp/found) files"
    else
        sed 's/^/    /' /tmp/why
        dmesg | tail -n 1 | sed 's/^\[[^]]*\]/   /'
    fi
}
export LC_ALL=C
look vda iso9660 nosuid real
look vda iso9660 norock joliet
look vda iso9660 norock,nojoliet plain
look vdb vfat utf8 real
look vdc vfat utf8 large
look vdd iso9660 nosuid real
look vde vfat utf8 real
look vdf vfat utf8 large
"#;

/// The files in each of their spellings: all of [`FILES`], a large one, and a folder of many.
fn files() -> Vec<([String; 3], Vec<u8>)> {
    let owned = |paths: [&str; 3]| paths.map(str::to_owned);
    let content = |path: &str| match path {
        "empty" => Vec::new(),
        _ => format!("content of {path}\n").into_bytes(),
    };
    let mut files: Vec<_> =
        FILES.into_iter().map(|paths| (owned(paths), content(paths[0]))).collect();
    files.push((owned(["large.bin"; 3]), pseudo_random(5 << 20, 1)));
    for number in 0..1000 {
        let real = format!("many/file number {number:03} of a thousand.txt");
        let plain = format!("many/file_number_{number:03}_of_a_thous.txt");
        let bytes = content(&real);
        files.push(([real.clone(), real, plain], bytes));
    }
    files
}

fn image(format: ImageFormat, files: &[([String; 3], Vec<u8>)]) -> Vec<u8> {
    let mut tree = Tree::new();
    for (paths, content) in files {
        tree.insert(&paths[0], content.as_slice()).expect("a good path");
    }
    Image { format, label: "TEST", timestamp: 1_767_323_046 }
        .build(&tree)
        .expect("an image")
        .into_bytes()
}

/// What `sha256sum` says of the files in one of their spellings, sorted.
fn list(files: &[([String; 3], Vec<u8>)], spelling: usize) -> String {
    let line = |(paths, content): &([String; 3], Vec<u8>)| {
        let digest: String =
            Sha256::digest(content).iter().map(|byte| format!("{byte:02x}")).collect();
        format!("{digest}  ./{}\n", paths[spelling])
    };
    let mut lines: Vec<String> = files.iter().map(line).collect();
    lines.sort();
    lines.concat()
}

#[test]
fn linux_finds_every_file_on_every_disk_that_it_can_mount() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = |name: &str| folder.path().join(name).display().to_string();
    let write = |name: &str, bytes: &[u8]| fs_err::write(path(name), bytes).expect("a file");
    let mut all = files();
    for (name, spelling) in [("real", 0), ("joliet", 1), ("plain", 2)] {
        write(name, list(&all, spelling).as_bytes());
    }
    write("iso", &image(ImageFormat::Iso, &all));
    write("fat12", &image(ImageFormat::Fat, &all));
    // With as much as that it is FAT16.
    all.push((["larger.bin"; 3].map(str::to_owned), pseudo_random(16 << 20, 2)));
    write("large", list(&all, 0).as_bytes());
    write("fat16", &image(ImageFormat::Fat, &all));
    write("mounts.sh", SCRIPT.as_bytes());
    let mut words: Vec<String> = ["lab", "--bare", "--memory", "512"].map(str::to_owned).to_vec();
    for sectors in ["", ",4k"] {
        let disks = ["iso", "fat12", "fat16"].map(|name| format!("{},ro{sectors}", path(name)));
        words.extend(disks.into_iter().flat_map(|disk| ["--disk".to_owned(), disk]));
    }
    for name in ["real", "joliet", "plain", "large", "mounts.sh"] {
        words.extend(["--file".to_owned(), path(name)]);
    }
    words.extend(["--", "sh", "/mounts.sh"].map(str::to_owned));
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let printed = need!(xtask(&words));
    expect![[r#"
        real: iso9660 from sectors of 512, nosuid
            1010 files
        joliet: iso9660 from sectors of 512, norock
            1010 files
        plain: iso9660 from sectors of 512, norock,nojoliet
            1010 files
        real: vfat from sectors of 512, utf8
            1010 files
        large: vfat from sectors of 512, utf8
            1011 files
        real: iso9660 from sectors of 4096, nosuid
            mount: mounting /dev/vdd on /mnt failed: Invalid argument
            ISOFS: unsupported/invalid hardware sector size 4096
        real: vfat from sectors of 4096, utf8
            1010 files
        large: vfat from sectors of 4096, utf8
            1011 files
    "#]]
    .assert_eq(&printed.replace('\r', ""));
}
