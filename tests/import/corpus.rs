//! Images that nobody here made.

use bootyard_testkit::{Cli, Nginx, corpus, corpus_entries, require_tool, sha256_file};

#[test]
fn every_qcow2_of_the_corpus_lands_as_listed_or_is_refused() {
    // The corpus stands beside the repository on some machines only; it is not a tool to install.
    let Some(folder) = corpus() else { return };
    if !require_tool("nginx") {
        return;
    }
    let nginx = Nginx::serve(&folder);
    let entries: Vec<_> =
        corpus_entries().into_iter().filter(|entry| entry.format == "qcow2").collect();
    assert!(entries.len() >= 5, "{entries:?}");
    for entry in entries {
        let cli = Cli::from_env();
        let path = entry.path.strip_prefix(&folder).expect("a file of the corpus");
        let url = nginx.url(&path.display().to_string());
        let output = cli.run(["import", &url, "--name", "disk"]);
        if entry.note.is_some_and(|note| note.contains("must be refused")) {
            assert_eq!(output.code, Some(4), "{url}: {output}");
            crate::assert_nothing_left(&cli);
            continue;
        }
        assert_eq!(output.code, Some(0), "{url}: {output}");
        let volume = cli.store().join("volumes/disk/disk.raw");
        assert_eq!(Some(sha256_file(volume)), entry.sha256_raw, "{url}");
    }
}
