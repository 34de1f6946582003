//! The boot loader: whole disks, and the scripts and entries of a menu.

use std::sync::{Arc, OnceLock};

use bootyard_bootload::{Options, find, list};
use bootyard_cloudinit::{Image, ImageFormat, Tree};
use bootyard_image::Disk;
use bootyard_image::raw::RawDisk;

use crate::sparse;

/// Where the pieces of a menu stand.
const PLACES: [&str; 6] = [
    "grub/grub.cfg",
    "grub/grubenv",
    "loader/entries/a-1.2+3-1.conf",
    "loader/loader.conf",
    "extlinux.conf",
    "EFI/fedora/grub.cfg",
];
/// Bytes of a piece; the rest of its file is empty lines.
const PIECE_MAX: usize = 2048;
/// More than kernel and initial RAM disk may take.
const MEMORY: u64 = 64 << 20;

/// Looks for what boots on the disk that `input` stands for.
pub fn boot_disk(input: &[u8]) {
    boot(sparse::decode(input));
}

/// Makes a disk of which the pieces of `input`, that stand between bytes 0xff, are the menu, and looks
/// for what boots on it.
pub fn boot_menu(input: &[u8]) {
    static TEMPLATE: OnceLock<(Vec<u8>, Vec<usize>)> = OnceLock::new();
    let (template, places) = TEMPLATE.get_or_init(template);
    let mut bytes = template.clone();
    let pieces = input.split(|byte| *byte == 0xff).chain(std::iter::repeat(&[][..]));
    for (at, piece) in places.iter().zip(pieces) {
        let place = &mut bytes[*at..at + PIECE_MAX];
        let len = piece.len().min(PIECE_MAX);
        place.fill(b'\n');
        place[..len].copy_from_slice(&piece[..len]);
    }
    boot(bytes);
}

/// A disk on which every piece has the most bytes, and where each of them is.
fn template() -> (Vec<u8>, Vec<usize>) {
    let mut tree = Tree::new();
    let mark = |number: usize| vec![0x80 + number as u8; PIECE_MAX];
    for (number, place) in PLACES.iter().enumerate() {
        tree.insert(place, mark(number)).expect("a good path");
    }
    tree.insert("k", &b"kernel"[..]).expect("a good path");
    let image = Image { format: ImageFormat::Fat, label: "ESP", timestamp: 0 };
    let bytes = image.build(&tree).expect("a small image").into_bytes();
    let find = |number| bytes.windows(PIECE_MAX).position(|window| window == mark(number));
    let places = (0..PLACES.len()).map(|number| find(number).expect("the piece is there"));
    let places = places.collect();
    (bytes, places)
}

fn boot(bytes: Vec<u8>) {
    let disk: Arc<dyn Disk> = Arc::new(RawDisk::read_only(bytes));
    let options = Options { memory: Some(MEMORY), ..Options::default() };
    let found = find(&disk, &options);
    let Ok(listing) = list(&disk) else { return };
    let default = listing.entries.iter().find(|entry| entry.default);
    if let Ok(plan) = found {
        assert!((plan.kernel.len() + plan.initrd.len()) as u64 <= MEMORY);
        let default = default.expect("what boots is listed as what boots");
        assert_eq!((&default.title, &default.config), (&plan.entry, &plan.config));
        let entry = Some(plan.entry.clone());
        find(&disk, &Options { entry, ..options }).expect("what boots is found by its title");
    }
}
