//! The main job, start to end: import over HTTP, seed, boot to cloud-init done, power-off.

use bootyard_testkit::{Cli, Nginx, qemu_img, sha256_file, skip};

use crate::{guest, need, xtask};

#[test]
fn debian_takes_its_seed_on_the_kvm_engine() {
    need!(xtask(&["boot", "--engine", "kvm"]));
}

#[test]
fn debian_takes_its_seed_on_the_qemu_engine() {
    need!(xtask(&["boot", "--engine", "qemu"]));
}

#[test]
fn the_guest_lands_as_qemu_img_has_it() {
    let image = need!(guest());
    let nginx = Nginx::serve(image.parent().expect("a folder"));
    let name = image.file_name().and_then(|name| name.to_str()).expect("a name");
    let cli = Cli::from_env();
    let checksum = format!("sha256:{}", sha256_file(&image));
    let output = cli.run(["import", &nginx.url(name), "--name", "debian", "--checksum", &checksum]);
    assert_eq!(output.code, Some(0), "{output}");
    let converted = cli.root().join("converted.raw");
    let paths = [&image, &converted].map(|path| path.display().to_string());
    qemu_img(["convert", "-O", "raw", &paths[0], &paths[1]]);
    let volume = cli.store().join("volumes/debian/disk.raw");
    assert_eq!(sha256_file(volume), sha256_file(converted));
}
