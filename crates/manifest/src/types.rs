//! The objects, field by field, as `kubevirt.io/v1`, `cdi.kubevirt.io/v1beta1` and
//! `instancetype.kubevirt.io/v1beta1` define them.

pub mod data_volume;
pub mod devices;
pub mod domain;
pub mod instancetype;
pub mod meta;
pub mod network;
pub mod storage;
pub mod vm;
pub mod volume;
