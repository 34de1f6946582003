//! Random damage: nothing panics, nothing runs away, and both ways of reading agree.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::built::{Built, DATA, FRONT, SECTOR, Tables, disk};
use crate::ErrorKind;
use crate::support::{decode, read};

const ORDER: [usize; 4] = [3, 0, 20, 1];

static FILES: LazyLock<[Vec<u8>; 3]> = LazyLock::new(|| {
    let disk = disk(20 * 128 + 77, &ORDER);
    [
        Built::sparse(&disk, &ORDER).file,
        Built::stream(&disk, &ORDER, Tables::Front).file,
        Built::stream(&disk, &ORDER, Tables::End).file,
    ]
});

/// A stream is judged by more than what random access sees of it.
fn check(file: &[u8], lens: &[usize]) {
    match (decode(file, lens), read(file)) {
        (Ok((streamed, _)), Ok(opened)) => assert!(streamed == opened),
        (Err(error), Ok(_)) => assert!(error.kind() != ErrorKind::OutOfRange, "{error}"),
        (Ok(_), Err(error)) => panic!("streamed, but {error}"),
        (Err(_), Err(_)) => {}
    }
}

/// Where damage does something: header, descriptor, tables, markers and what is behind the grains.
fn place(len: usize) -> impl Strategy<Value = usize> {
    prop_oneof![
        3 => 0..80_usize,
        1 => SECTOR..SECTOR + 150,
        4 => FRONT..FRONT + 32,
        4 => FRONT + SECTOR..FRONT + SECTOR + 32,
        2 => FRONT + SECTOR + 76..FRONT + SECTOR + 84,
        4 => DATA..(DATA + 6 * SECTOR).min(len),
        4 => len.saturating_sub(14 * SECTOR)..len,
    ]
}

/// Values that are likelier than random ones to pass the checks.
fn value() -> impl Strategy<Value = u32> {
    prop_oneof![0..200_u32, (0..22_u32).prop_map(|grain| grain * 128), any::<u32>()]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..Default::default() })]

    #[test]
    fn damaged_files(
        (index, damage) in (0..3_usize).prop_flat_map(|index| {
            let place = place(FILES[index].len());
            (Just(index), prop::collection::vec((place, value(), any::<bool>()), 1..5))
        }),
        lens in prop::collection::vec(1..300_000_usize, 1..4),
        cut in prop::option::weighted(0.2, 0..200_000_usize),
    ) {
        let mut file = FILES[index].clone();
        for (at, value, byte) in damage {
            match (byte, file.get_mut(at / 4 * 4..at / 4 * 4 + 4)) {
                (false, Some(word)) => word.copy_from_slice(&value.to_le_bytes()),
                _ => file[at] = value as u8,
            }
        }
        file.truncate(cut.unwrap_or(usize::MAX));
        check(&file, &lens);
    }
}
