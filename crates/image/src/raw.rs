//! Raw disks.
