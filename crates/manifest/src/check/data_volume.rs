//! DataVolume and its kin, by the rules and in the words of CDI's webhook.

use super::domain::amount;
use super::{Check, names};
use crate::types::data_volume::{
    ClaimSpec, ContentType, DataImportCron, DataSource, DataVolumeSource, DataVolumeSpec,
    RegistrySource, SourceRef,
};

/// The smallest volume.
const SIZE_MIN: u64 = 1 << 20;
/// Longest name of a cron's DataSource.
const MANAGED_MAX: usize = 63;

/// How much of a claim must be said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Claimed {
    /// Everything.
    InFull,
    /// The storage class says the rest.
    WithDefaults,
    /// The class says the rest, and what fills the volume its size.
    WithSizeOfSource,
}

/// What a volume is filled with, and how it is stored.
pub(super) fn spec(spec: &DataVolumeSpec, path: &str, check: &mut Check<'_>) {
    let is_clone = spec
        .source
        .as_ref()
        .is_some_and(|source| source.pvc.is_some() || source.snapshot.is_some());
    let has_size = is_clone || spec.source_ref.is_some();
    match (&spec.pvc, &spec.storage) {
        (None, None) if check.knows_of(path) => {}
        (None, None) => {
            check
                .error(path, "Missing Data volume PVC")
                .hint("write `storage: {resources: {requests: {storage: 10Gi}}}`");
        }
        (Some(_), Some(_)) => {
            let both = "Duplicate storage definition, both target storage and target pvc defined";
            check.error(&format!("{path}.pvc"), both);
        }
        (Some(wanted), None) => claim(wanted, &format!("{path}.pvc"), Claimed::InFull, check),
        (None, Some(wanted)) => {
            let claimed = if has_size { Claimed::WithSizeOfSource } else { Claimed::WithDefaults };
            claim(wanted, &format!("{path}.storage"), claimed, check);
        }
    }
    let is_filled_by_others = spec
        .storage
        .as_ref()
        .is_some_and(|storage| storage.data_source.is_some() || storage.data_source_ref.is_some());
    let which = "Data volume should have either Source or SourceRef, or be externally populated";
    match (&spec.source, &spec.source_ref) {
        (Some(_), Some(_)) => {
            check.error(&format!("{path}.sourceRef"), which);
        }
        (None, None) if is_filled_by_others || check.knows_of(path) => {}
        (None, None) => {
            check.error(path, which).hint("an empty volume has `source: {blank: {}}`");
        }
        _ => {}
    }
    if let Some(wanted) = &spec.source {
        source(wanted, spec, path, check);
    }
    if let Some(wanted) = &spec.source_ref {
        source_ref(wanted, &format!("{path}.sourceRef"), check);
    }
}

fn source_ref(wanted: &SourceRef, path: &str, check: &mut Check<'_>) {
    if wanted.kind != "DataSource" {
        let message = format!("Invalid sourceRef kind {}", wanted.kind);
        check.error(&format!("{path}.kind"), message).hint("write `kind: DataSource`");
    }
    names::subdomain(&wanted.name, &format!("{path}.name"), check);
}

fn source(source: &DataVolumeSource, spec: &DataVolumeSpec, path: &str, check: &mut Check<'_>) {
    let at = format!("{path}.source");
    let set = [
        ("http", source.http.is_some()),
        ("s3", source.s3.is_some()),
        ("gcs", source.gcs.is_some()),
        ("registry", source.registry.is_some()),
        ("pvc", source.pvc.is_some()),
        ("snapshot", source.snapshot.is_some()),
        ("upload", source.upload.is_some()),
        ("blank", source.blank.is_some()),
        ("imageio", source.imageio.is_some()),
        ("vddk", source.vddk.is_some()),
    ];
    let set: Vec<&str> = set.into_iter().filter(|(_, is)| *is).map(|(name, _)| name).collect();
    match set.as_slice() {
        [_] => {}
        [] if check.knows_of(&at) => {}
        [] => {
            check.error(&at, "Missing Data volume source").hint("for example `blank: {}`");
        }
        [first, second, ..] => {
            check
                .error(&format!("{at}.{second}"), "Multiple Data volume sources")
                .hint(format!("`{first}` is set, too"));
        }
    }
    for name in ["imageio", "vddk"] {
        if set.contains(&name) {
            let message = format!("the source {name} is not among those that this host imports");
            check
                .error(&format!("{at}.{name}"), message)
                .hint("http, s3, gcs, registry, pvc, upload, blank");
        }
    }
    if let Some(http) = &source.http {
        url(&http.url, &["http", "https"], &format!("{at}.http.url"), check);
        if let Some(checksum) = &http.checksum
            && let Err(error) = checksum.parse::<bootyard_spec::Digest>()
        {
            let message = format!("Invalid checksum format: {error}");
            check.error(&format!("{at}.http.checksum"), message);
        }
        for (index, header) in http.extra_headers.iter().enumerate() {
            if !header.contains(':') {
                let field = format!("{at}.http.extraHeaders[{index}]");
                check.error(&field, "expected `Name: value`");
            }
        }
    }
    if let Some(s3) = &source.s3 {
        url(&s3.url, &["s3", "http", "https"], &format!("{at}.s3.url"), check);
    }
    if let Some(gcs) = &source.gcs {
        url(&gcs.url, &["gs", "http", "https"], &format!("{at}.gcs.url"), check);
    }
    if let Some(wanted) = &source.registry {
        registry(wanted, &format!("{at}.registry"), check);
        if spec.content_type == Some(ContentType::Archive) {
            let message = "ContentType must be kubevirt when Source is Registry";
            check.error(&format!("{path}.contentType"), message);
        }
    }
    if source.blank.is_some() && spec.content_type == Some(ContentType::Archive) {
        let message = "SourceType cannot be blank and the contentType be archive";
        check.error(&format!("{path}.contentType"), message);
    }
}

fn url(text: &str, schemes: &[&str], path: &str, check: &mut Check<'_>) {
    if text.is_empty() {
        check.error(path, "source URL is empty");
        return;
    }
    let scheme = text.split_once("://").map_or("", |(scheme, _)| scheme);
    if !schemes.contains(&scheme.to_ascii_lowercase().as_str()) {
        let known: Vec<String> = schemes.iter().map(|scheme| format!("{scheme}://")).collect();
        let message = format!("Invalid source URL scheme: {scheme}");
        check.error(path, message).hint(format!("expected {}", known.join(" or ")));
    } else if let Err(error) = text.parse::<bootyard_spec::SafeUrl>() {
        check.error(path, format!("Invalid source URL: {error}"));
    }
}

fn registry(wanted: &RegistrySource, path: &str, check: &mut Check<'_>) {
    match (&wanted.url, &wanted.image_stream) {
        (Some(_), Some(_)) | (None, None) if check.knows_of(path) => {}
        (Some(_), Some(_)) | (None, None) => {
            check.error(path, "Source registry should have either URL or ImageStream");
        }
        (None, Some(_)) => {
            let message = "there are no image streams outside of a cluster";
            check.error(&format!("{path}.imageStream"), message).hint("use `url: docker://…`");
        }
        (Some(url), None) => {
            let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
            if !matches!(scheme, "docker" | "oci-archive") {
                let message = format!("Illegal registry source URL scheme {scheme}");
                check
                    .error(&format!("{path}.url"), message)
                    .hint("expected docker:// or oci-archive:");
            }
        }
    }
    if let Some(method) = wanted.pull_method.as_deref().filter(|m| !matches!(*m, "pod" | "node")) {
        let message = format!("PullMethod {method:?} is neither pod nor node");
        check.error(&format!("{path}.pullMethod"), message);
    }
}

/// How a volume is stored.
pub(super) fn claim(wanted: &ClaimSpec, path: &str, claimed: Claimed, check: &mut Check<'_>) {
    if claimed == Claimed::InFull {
        match wanted.access_modes.len() {
            0 if check.knows_of(&format!("{path}.accessModes")) => {}
            0 => {
                let message = "Required value: at least 1 access mode is required";
                check
                    .error(&format!("{path}.accessModes"), message)
                    .hint("write `accessModes: [ReadWriteOnce]`");
            }
            1 => {}
            _ => {
                check.error(&format!("{path}.accessModes"), "PVC multiple accessModes");
            }
        }
    }
    let field = format!("{path}.resources.requests.storage");
    let size = wanted.resources.as_ref().and_then(|resources| resources.requests.get("storage"));
    match size {
        None if claimed == Claimed::WithSizeOfSource => {}
        None if check.knows_of(&format!("{path}.resources")) => {}
        None => {
            check
                .error(&field, "PVC size is missing")
                .hint("write `resources: {requests: {storage: 10Gi}}`");
        }
        Some(size) if size.0.starts_with('-') || size.0.parse() == Ok(0.0) => {
            check.error(&field, "PVC size can't be equal or less than zero");
        }
        Some(size) => {
            if amount(size, &field, check).is_some_and(|size| size.bytes() < SIZE_MIN) {
                check.error(&field, "PVC size should be at least 1MiB");
            }
        }
    }
    if let Some(class) = wanted.storage_class_name.as_deref().filter(|class| !class.is_empty()) {
        names::subdomain(class, &format!("{path}.storageClassName"), check);
    }
}

/// A name for what volumes can be filled with.
pub(super) fn data_source(source: &DataSource, check: &mut Check<'_>) {
    let kinds = &source.spec.source;
    let set = [kinds.pvc.is_some(), kinds.snapshot.is_some(), kinds.data_source.is_some()];
    let path = "spec.source";
    if set.into_iter().filter(|is_set| *is_set).count() != 1 && !check.knows_of(path) {
        check.error(path, "expected exactly one of pvc, snapshot and dataSource");
    }
}

/// An import that is done again.
pub(super) fn cron(cron: &DataImportCron, check: &mut Check<'_>) {
    let template = &cron.spec.template.spec;
    let path = "spec.template.spec";
    let source = template.source.as_ref();
    let can = source.is_some_and(|source| source.registry.is_some() || source.pvc.is_some());
    if !can && !check.knows_of(&format!("{path}.source")) {
        check.error(&format!("{path}.source"), "the source must be registry or pvc");
    }
    spec(template, path, check);
    let managed = &cron.spec.managed_data_source;
    names::subdomain(managed, "spec.managedDataSource", check);
    if managed.len() > MANAGED_MAX {
        let message = format!("must be no more than {MANAGED_MAX} characters");
        check.error("spec.managedDataSource", message);
    }
    if cron.spec.imports_to_keep == Some(0) {
        check.error("spec.importsToKeep", "must be greater than 0");
    }
}
