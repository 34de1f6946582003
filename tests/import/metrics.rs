//! Metrics in a file, as node_exporter's textfile collector reads them.

use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::Duration;

use bootyard_testkit::{Cli, FaultServer, Reply, pseudo_random, run};

/// The value in a file of metrics, all of which is checked.
#[track_caller]
fn value(text: &str, owner: &str) -> f64 {
    let described = "# HELP kubevirt_cdi_import_progress_total The import progress in percentage.\n\
                     # TYPE kubevirt_cdi_import_progress_total counter\n";
    let name = format!("kubevirt_cdi_import_progress_total{{ownerUID=\"{owner}\"}} ");
    let sample = text.strip_prefix(described).and_then(|text| text.strip_prefix(&name));
    let sample = sample.and_then(|sample| sample.strip_suffix('\n'));
    sample.and_then(|sample| sample.parse().ok()).unwrap_or_else(|| panic!("{text:?}"))
}

#[test]
fn a_file_shows_whole_metrics_from_the_start_to_the_end() {
    let slow = Reply::honest().drip(64 << 10, Duration::from_millis(40));
    let server = FaultServer::serve(pseudo_random(4 << 20, 3), [slow]);
    let cli = Cli::from_env();
    let (url, file) = (server.url("disk.raw"), cli.work().join("bootyard.prom"));
    let arguments = ["import", &url, "--name", "v", "--metrics-file", "bootyard.prom"];
    let mut command = cli.command([&arguments[..], &["--connections", "1"]].concat());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("an import");
    let mut seen = Vec::new();
    while child.try_wait().expect("its state").is_none() {
        if let Ok(text) = fs_err::read_to_string(&file) {
            seen.push(value(&text, "v"));
        }
        sleep(Duration::from_millis(5));
    }
    assert!(child.wait().expect("its end").success());
    assert_eq!(value(&fs_err::read_to_string(&file).expect("the file"), "v"), 100.0);
    assert!(seen.is_sorted(), "{seen:?}");
    assert!(seen.first() == Some(&0.0) && seen.iter().any(|v| *v > 0.0 && *v < 99.0), "{seen:?}");
    let hidden = fs_err::read_dir(cli.work()).expect("the folder").count();
    assert_eq!(hidden, 1, "something is left beside the file");
}

#[test]
fn a_failed_import_is_never_at_a_hundred() {
    let server = FaultServer::serve("", [Reply::status(404)]);
    let cli = Cli::from_env();
    let url = server.url("disk.raw");
    let output = cli.run(["import", &url, "--to", "d.raw", "--metrics-file", "b.prom"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert_eq!(value(&fs_err::read_to_string(cli.work().join("b.prom")).unwrap(), "d.raw"), 0.0);
}

#[test]
fn a_file_that_cannot_be_written_is_refused_before_the_import() {
    let server = FaultServer::serve("", []);
    let cli = Cli::from_env();
    let url = server.url("disk.raw");
    for (file, why) in
        [("none/b.prom", "No such file"), (".", "is a folder"), ("none/..", "no name")]
    {
        let output = cli.run(["import", &url, "--name", "v", "--metrics-file", file]);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains(why), "{output}");
    }
    let output = cli.run(["import", &url, "--name", "v", "--metrics-file", "b", "--dry-run"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(server.requests().is_empty());
}

#[test]
fn what_is_no_metrics_is_not_replaced() {
    let cli = Cli::from_env();
    let path = |name: &str| cli.work().join(name);
    for (name, data) in
        [("disk.raw", &pseudo_random(1 << 20, 5)[..]), ("notes", b"text"), ("list", b"")]
    {
        fs_err::write(path(name), data).expect("a file");
    }
    fs_err::write(path("old.prom"), "# HELP a b.\n").expect("a file");
    std::os::unix::fs::symlink("old.prom", path("link")).expect("a link");
    run(Command::new("mkfifo").arg(path("pipe")));
    // A pipe that stands where the new text is written first does not hold the import up either.
    run(Command::new("mkfifo").arg(path(".old.prom.bootyard-part")));
    for (file, why) in [
        ("disk.raw", "itself reads or writes"),
        ("./new.raw", "itself reads or writes"),
        ("list", "itself reads or writes"),
        ("notes", "something else is there"),
        ("link", "something else is there"),
        ("pipe", "something else is there"),
    ] {
        let arguments = ["import", "disk.raw", "--to", "new.raw", "--data-file", "list"];
        let output = cli.run([&arguments[..], &["--metrics-file", file]].concat());
        assert_eq!(output.code, Some(2), "{output}");
        assert!(output.stderr.contains(why), "{output}");
    }
    assert_eq!(fs_err::read(path("notes")).expect("it"), b"text");
    assert!(fs_err::symlink_metadata(path("link")).expect("it").is_symlink());
    assert!(!path("new.raw").exists());
    let arguments = ["import", "disk.raw", "--to", "new.raw", "--metrics-file", "old.prom"];
    assert_eq!(cli.run(arguments).code, Some(0));
    assert_eq!(value(&fs_err::read_to_string(path("old.prom")).expect("it"), "new.raw"), 100.0);
}
