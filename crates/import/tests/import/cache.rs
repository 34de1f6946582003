//! The cache: what is in it is believed no more than what comes from a server.

use std::path::PathBuf;

use bootyard_import::Error;
use bootyard_spec::{ByteSize, CacheSpec, ImportRequest};
use bootyard_testkit::{FaultServer, Reply, pseudo_random};

use super::Place;

fn cached(place: &Place, server: &FaultServer, limit: u64) -> ImportRequest {
    let limit = ByteSize::from_bytes(limit);
    let cache = Some(CacheSpec { path: place.path("cache"), limit });
    ImportRequest { cache, ..place.request(&server.url("disk")) }
}

fn blobs(place: &Place) -> Vec<PathBuf> {
    let entries = fs_err::read_dir(place.path("cache/blobs")).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_damaged_copy_is_found_and_removed_with_and_without_a_checksum() {
    let disk = pseudo_random(1 << 20, 1);
    let server = FaultServer::serve(disk.clone(), [Reply::honest().etag(Some("\"v\""))]);
    let place = Place::new();
    let plain = cached(&place, &server, 1 << 30);
    let report = place.import(&plain).unwrap();
    let checked = ImportRequest { checksum: Some(report.sha256), ..plain.clone() };
    for request in [plain, checked] {
        fs_err::remove_file(place.path("disk")).unwrap();
        let blob = blobs(&place).pop().unwrap();
        let mut bytes = fs_err::read(&blob).unwrap();
        bytes[700_000] ^= 1;
        fs_err::write(&blob, bytes).unwrap();
        let error = place.import(&request).unwrap_err();
        assert!(matches!(error, Error::CacheDamaged { .. }), "{error:?}");
        assert!(!place.path("disk").exists());
        let report = place.import(&request).unwrap();
        assert!(!report.cached);
        assert!(fs_err::read(report.path).unwrap() == disk);
        assert!(fs_err::read(blob).unwrap() == disk);
    }
}

#[test]
fn what_a_dead_process_was_writing_is_removed_and_what_a_living_one_is_stays() {
    let server = FaultServer::serve(pseudo_random(1 << 16, 1), [Reply::honest()]);
    let place = Place::new();
    let folder = place.path("cache/blobs");
    fs_err::create_dir_all(&folder).unwrap();
    let [dead, living] = [".part-dead", ".part-living"].map(|name| folder.join(name));
    fs_err::write(&dead, b"half").unwrap();
    let living_file = fs_err::File::create(&living).unwrap();
    living_file.file().try_lock().unwrap();
    place.import(&cached(&place, &server, 1 << 30)).unwrap();
    assert!(!dead.exists());
    assert!(living.exists());
    drop(living_file);
}

#[test]
fn a_source_of_unknown_length_is_not_kept_beyond_the_limit() {
    let server =
        FaultServer::serve(pseudo_random(1 << 20, 1), [Reply::honest().chunked().no_ranges()]);
    let place = Place::new();
    place.import(&cached(&place, &server, 1 << 19)).unwrap();
    assert_eq!(blobs(&place), Vec::<PathBuf>::new());
}

#[test]
fn a_copy_that_is_no_image_any_more_is_fetched_again() {
    let mut image = b"QFI\xfb\0\0\0\x02".to_vec();
    image.resize(3 << 16, 0);
    let mut put = |at: usize, bytes: &[u8]| image[at..at + bytes.len()].copy_from_slice(bytes);
    put(20, &16_u32.to_be_bytes());
    put(24, &(1_u64 << 20).to_be_bytes());
    put(36, &1_u32.to_be_bytes());
    put(40, &(1_u64 << 16).to_be_bytes());
    put(48, &(2_u64 << 16).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    let server = FaultServer::serve(image, [Reply::honest().etag(Some("\"v\""))]);
    let place = Place::new();
    let request = cached(&place, &server, 1 << 30);
    place.import(&request).unwrap();
    // The version of the format, and the reference to a table, at no cluster.
    for at in [7, (1 << 16) + 7] {
        fs_err::remove_file(place.path("disk")).unwrap();
        let blob = blobs(&place).pop().unwrap();
        let mut bytes = fs_err::read(&blob).unwrap();
        bytes[at] = 9;
        fs_err::write(&blob, bytes).unwrap();
        let error = place.import(&request).unwrap_err();
        assert!(matches!(error, Error::Image(_)), "{error:?}");
        assert!(!place.import(&request).unwrap().cached);
    }
}
