//! One file per command: turns parsed arguments into requests, calls a library, shows the result.

pub(crate) mod boot_entries;
pub(crate) mod clone;
pub(crate) mod config_disk;
pub(crate) mod console;
pub(crate) mod control;
pub(crate) mod create;
pub(crate) mod doctor;
pub(crate) mod export;
pub(crate) mod import;
pub(crate) mod importer;
pub(crate) mod inspect;
pub(crate) mod machine;
pub(crate) mod push;
pub(crate) mod run;
pub(crate) mod seed;
pub(crate) mod seed_diff;
pub(crate) mod seed_lint;
pub(crate) mod seed_show;
pub(crate) mod storage_class;
pub(crate) mod upload;
pub(crate) mod upload_server;
pub(crate) mod validate;
pub(crate) mod volume;
