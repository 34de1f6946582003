//! The corpus of real and broken images that stands beside the repository, where there is one.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// One row of the corpus' `MANIFEST.tsv`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CorpusEntry {
    /// The file.
    pub path: PathBuf,
    /// The format as the manifest names it: `qcow2`, `vmdk`, `tar`.
    pub format: String,
    /// The SHA-256 of the image within, where the file is a compressed one.
    pub sha256_inner: Option<String>,
    /// The SHA-256 of the disk's content as `qemu-img` reads it; `None` where it refuses the file.
    pub sha256_raw: Option<String>,
    /// What is special about the file.
    pub note: Option<String>,
}

/// The root of the repository.
///
/// # Panics
///
/// If the sources were moved after the build.
pub fn workspace_root() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    root.canonicalize().expect("the repository that this was built from")
}

/// The folder of the corpus, `shared/corpus` beside the repository; `None` where it is not there.
pub fn corpus() -> Option<PathBuf> {
    let root = workspace_root();
    let path = root.parent()?.join("shared/corpus");
    path.join("MANIFEST.tsv").is_file().then_some(path)
}

/// Every file of the corpus, in the manifest's order; empty without a corpus.
///
/// # Panics
///
/// If the manifest is not a table with the columns that [`CorpusEntry`] has.
pub fn corpus_entries() -> Vec<CorpusEntry> {
    let Some(folder) = corpus() else { return Vec::new() };
    let text = fs_err::read_to_string(folder.join("MANIFEST.tsv")).expect("a readable manifest");
    parse(&folder, &text)
}

fn parse(folder: &Path, text: &str) -> Vec<CorpusEntry> {
    let mut lines = text.lines().filter(|line| !line.starts_with('#'));
    let header: Vec<&str> = lines.next().expect("a header line").split('\t').collect();
    let entry = |line: &str| {
        let row: HashMap<&str, &str> = header.iter().copied().zip(line.split('\t')).collect();
        let field = |name: &str| row.get(name).copied().filter(|value| !matches!(*value, "-" | ""));
        CorpusEntry {
            path: folder.join(field("path").expect("a path in each row")),
            format: field("format").expect("a format in each row").to_owned(),
            sha256_inner: field("sha256_inner").map(str::to_owned),
            sha256_raw: field("sha256_raw").map(str::to_owned),
            note: field("note").map(str::to_owned),
        }
    };
    lines.map(entry).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_the_manifests_table() {
        let text =
            "# remark\npath\tformat\tsha256_raw\tnote\na/b.qcow2\tqcow2\tabc\t-\nc\ttar\t-\tx\n";
        let entries = parse(Path::new("/c"), text);
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[0].path, Path::new("/c/a/b.qcow2"));
        assert_eq!(entries[0].sha256_raw.as_deref(), Some("abc"));
        assert_eq!(entries[0].note, None);
        assert_eq!(entries[1].note.as_deref(), Some("x"));
    }

    #[test]
    fn every_file_of_the_manifest_is_there() {
        if corpus().is_none() {
            crate::skip!("no corpus beside the repository");
        }
        let entries = corpus_entries();
        assert!(entries.iter().any(|entry| entry.format == "qcow2" && entry.sha256_raw.is_some()));
        for entry in entries {
            assert!(entry.path.is_file(), "{}", entry.path.display());
        }
    }
}
