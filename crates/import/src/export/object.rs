//! An export to S3: parts that are sent one after the other while the next one is packed.

use bootyard_source::{self as source, NewObject};
use bootyard_spec::{ObjectName, Verified};
use bytes::{Bytes, BytesMut};
use tokio::runtime::Runtime;

use super::{Job, Receiver, each_zeros};
use crate::transfer::unless;
use crate::{Cancel, Error};

/// Sends all of the disk. What fails before the end leaves nothing that anybody sees.
pub(super) fn send(
    job: &Job<'_>,
    name: &ObjectName,
    options: &source::Options,
) -> Result<Verified, Error> {
    let runtime = crate::run::runtime()?;
    let part_len = NewObject::part_len(job.disk.virtual_size());
    let begun = runtime.block_on(unless(job.cancel, NewObject::begin(name, options)))??;
    let mut parts = Parts {
        object: begun,
        runtime: &runtime,
        cancel: job.cancel,
        filling: BytesMut::new(),
        part_len,
    };
    let sent = job.pass(&mut parts).and_then(|verified| {
        parts.finish()?;
        Ok(verified)
    });
    if sent.is_err() {
        runtime.block_on(parts.object.abort());
    }
    sent
}

/// What is gathered until it is a part.
struct Parts<'a> {
    object: NewObject,
    runtime: &'a Runtime,
    cancel: &'a Cancel,
    filling: BytesMut,
    part_len: usize,
}

impl Parts<'_> {
    fn send(&mut self, part: Bytes) -> Result<(), Error> {
        Ok(self.runtime.block_on(unless(self.cancel, self.object.part(part)))??)
    }

    /// Sends what is left, and makes the object visible.
    fn finish(&mut self) -> Result<(), Error> {
        let rest = self.filling.split().freeze();
        if !rest.is_empty() {
            self.send(rest)?;
        }
        Ok(self.runtime.block_on(unless(self.cancel, self.object.finish()))??)
    }
}

impl Receiver for Parts<'_> {
    fn data(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(self.part_len - self.filling.len()));
            self.filling.extend_from_slice(now);
            bytes = later;
            if self.filling.len() == self.part_len {
                let part = self.filling.split().freeze();
                self.send(part)?;
            }
        }
        Ok(())
    }

    fn zeros(&mut self, len: u64) -> Result<(), Error> {
        each_zeros(len, |zeros| self.data(zeros))
    }
}
