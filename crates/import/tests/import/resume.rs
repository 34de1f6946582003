//! Imports that are stopped, and gone on with by a later process that is asked for the same or for
//! something else.

use bootyard_import::{Cancel, Error, Event, Events, Moved, Report};
use bootyard_spec::{ImportRequest, OutputFormat};
use bootyard_testkit::{pseudo_random, qemu_img, require_tool};

use super::Place;

const MIB: usize = 1 << 20;

/// Stops the import when so many bytes have come.
struct StopAt {
    at: u64,
    cancel: Cancel,
}

impl Events for StopAt {
    fn event(&self, event: Event<'_>) {
        if let Event::Moved(Moved { fetched, .. }) = event
            && fetched >= self.at
        {
            self.cancel.cancel();
        }
    }
}

/// Imports until most of the disk has come: more than what waits for digest, decoder and workers.
fn stop(place: &Place, request: &ImportRequest) {
    let cancel = Cancel::new();
    let events = StopAt { at: 26 << 20, cancel: cancel.clone() };
    let error = place.import_with(request, &events, &cancel).unwrap_err();
    assert!(matches!(error, Error::Cancelled { kept: Some(_), .. }), "{error:?}");
    assert!(place.files().contains(&".disk.bootyard-journal".to_owned()));
}

fn disk() -> Vec<u8> {
    let mut disk = pseudo_random(MIB, 7).repeat(32);
    disk[29 * MIB..31 * MIB].fill(0);
    disk
}

#[test]
fn a_resumed_import_tells_of_the_disk_what_a_whole_one_does() {
    let place = Place::new();
    fs_err::write(place.path("source"), disk()).unwrap();
    let request = place.request(place.path("source").to_str().unwrap());
    let whole = place.import(&request).unwrap();
    fs_err::remove_file(&whole.path).unwrap();
    stop(&place, &request);
    let resumed = place.import(&request).unwrap();
    assert!(resumed.resumed_bytes > 0);
    assert!(whole.fingerprint.is_some());
    let facts = |report: &Report| (report.fingerprint, report.sha256.clone());
    assert_eq!(facts(&resumed), facts(&whole));
    assert!(fs_err::read(&resumed.path).unwrap() == disk());
    assert_eq!(place.files(), ["disk", "source"]);
}

#[test]
fn what_is_asked_for_otherwise_starts_over() {
    if !require_tool("qemu-img") {
        return;
    }
    let place = Place::new();
    fs_err::write(place.path("source"), disk()).unwrap();
    let stopped = place.request(place.path("source").to_str().unwrap());
    for other in [
        ImportRequest { output_format: OutputFormat::Qcow2, ..stopped.clone() },
        ImportRequest { preallocation: true, ..stopped.clone() },
        ImportRequest { size: Some("40Mi".parse().unwrap()), ..stopped.clone() },
    ] {
        stop(&place, &stopped);
        let report = place.import(&other).unwrap();
        assert_eq!(report.resumed_bytes, 0, "{other:?}");
        let format = if other.output_format == OutputFormat::Raw { "raw" } else { "qcow2" };
        let [made, source] = [report.path.clone(), place.path("source")];
        qemu_img(["compare", "-f", format, "-F", "raw", path(&made), path(&source)]);
        if other.preallocation {
            assert!(report.allocated_bytes >= Some(report.volume_size), "{report:?}");
        }
        fs_err::remove_file(made).unwrap();
    }
}

#[test]
fn a_preallocated_disk_stays_so_when_it_is_gone_on_with() {
    let place = Place::new();
    fs_err::write(place.path("source"), disk()).unwrap();
    let plain = place.request(place.path("source").to_str().unwrap());
    let request = ImportRequest { preallocation: true, ..plain };
    stop(&place, &request);
    let report = place.import(&request).unwrap();
    assert!(report.resumed_bytes > 0);
    assert!(report.allocated_bytes >= Some(report.volume_size), "{report:?}");
    assert!(fs_err::read(&report.path).unwrap() == disk());
}

fn path(path: &std::path::Path) -> &str {
    path.to_str().unwrap()
}
