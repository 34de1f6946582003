//! A new object, sent in parts: nobody sees any of it before the last one is there.
//!
//! The SDK begins and ends the upload, through our client; the parts go by presigned URL, each with its
//! MD5, which the server compares, and again where a request fails.

use std::time::Duration;

use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::error::{DisplayErrorContext, SdkError};
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use aws_sdk_s3::{Client as S3Client, error::ProvideErrorMetadata};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bootyard_spec::ObjectName;
use bytes::Bytes;
use md5::{Digest as _, Md5};
use reqwest::header::{ETAG, HeaderMap};
use reqwest::{Client, Response};
use tokio::time::{sleep, timeout};

use super::sign::{S3, unsigned, validity};
use crate::error::ErrorKind;
use crate::origin::{Origin, Refusal};
use crate::retry::{Failure, Stage, decide};
use crate::server::{dice, retry_after, text};
use crate::store::{inexpressible, is_expressible};
use crate::{Error, Options, client};

/// What to do for those who may not write.
const WRITE: &str = "give credentials that may write there (`s3:PutObject`, and \
                     `s3:AbortMultipartUpload` for what fails), and no `--s3-anonymous`";
/// How much of a refusal is read.
const REFUSAL_MAX: usize = 4 << 10;
/// How long the server may take to put the parts together (Amazon S3, "CompleteMultipartUpload":
/// several minutes).
const CONTROL_LIMIT: Duration = Duration::from_secs(900);
/// A part has at least so many bytes (Amazon S3, "Multipart upload limits": 5 MiB), the last aside.
const PART_MIN: u64 = 16 << 20;
/// An object has at most 10000 parts (the same); some are left for what packing adds.
const PARTS_MAX: u64 = 9000;

/// An object that is being sent. Dropped without [`NewObject::finish`] or [`NewObject::abort`], its
/// parts stay with the server, invisible, until its own rules remove them.
#[derive(Debug)]
pub struct NewObject {
    s3: S3,
    upload: String,
    client: Client,
    options: Options,
    parts: Vec<CompletedPart>,
}

impl NewObject {
    /// How long the parts of an object of about `len` bytes are, in bytes.
    pub fn part_len(len: u64) -> usize {
        PART_MIN.max(len.div_ceil(PARTS_MAX)).next_multiple_of(1 << 20) as usize
    }

    /// Begins an object, in place of one that may be there.
    ///
    /// # Errors
    ///
    /// If nobody knows who we are, the server is not reached, or we may not write there.
    pub async fn begin(object: &ObjectName, options: &Options) -> Result<Self, Error> {
        let s3 = S3::new(object.clone(), options).await?;
        if !is_expressible(&object.key) {
            return Err(inexpressible(&s3.name()));
        }
        let request = control(&s3).await?.create_multipart_upload();
        let begun = request.bucket(&object.bucket).key(&object.key).send().await;
        let begun = begun.map_err(|error| refused(&s3, &error))?;
        let upload = begun.upload_id().unwrap_or_default().to_owned();
        let (client, options) = (client::new(options)?, options.clone());
        Ok(Self { s3, upload, client, options, parts: Vec::new() })
    }

    /// Sends the next part, again where that fails.
    ///
    /// # Errors
    ///
    /// If the server refuses it, or fails too often.
    pub async fn part(&mut self, bytes: Bytes) -> Result<(), Error> {
        let number = self.parts.len() as i32 + 1;
        let md5 = STANDARD.encode(Md5::digest(&bytes));
        let mut failed = 0;
        let tag = loop {
            let error = match self.send(number, bytes.clone(), &md5).await {
                Ok(tag) => break tag,
                Err(error) => error,
            };
            failed += 1;
            let failure = Failure {
                kind: error.kind(),
                status: error.http_status(),
                retry_after: error.retry_after(),
                attempts: failed,
                // A part is sent whole: whatever came of the one before does not count.
                stage: Stage::Midway { resumable: true },
            };
            match decide(failure, &self.options, dice()) {
                Some(pause) => sleep(pause).await,
                None => return Err(error.after(failed)),
            }
        };
        self.parts.push(CompletedPart::builder().part_number(number).e_tag(tag).build());
        Ok(())
    }

    async fn send(&self, number: i32, bytes: Bytes, md5: &str) -> Result<String, Error> {
        let (object, name) = (self.s3.object(), self.s3.name());
        let (signer, _) = self.s3.client().await?;
        let request = signer.upload_part().bucket(&object.bucket).key(&object.key);
        let request = request.upload_id(&self.upload).part_number(number);
        let presigned = request.presigned(validity(&name)?).await;
        let presigned = presigned.map_err(|error| unsigned(&name, error))?;
        let location = self.s3.location(&presigned)?;
        let url = location.url.expose();
        let put = self.client.put(url.clone()).headers(location.headers);
        let put = put.header("content-md5", md5).body(bytes).send();
        let limit = self.options.connect_timeout + 4 * self.options.stall_timeout;
        let answer = timeout(limit, put).await.map_err(|_| Error::no_answer(&name, limit))?;
        let answer = answer.map_err(|error| {
            let proxy = self.options.proxy.of(url);
            Error::request(&location.url, url, &error).through(proxy)
        })?;
        if !answer.status().is_success() {
            return Err(self.explained(answer).await);
        }
        let tag = text(answer.headers(), ETAG).map(str::to_owned);
        tag.ok_or_else(|| Error::bad_answer(&name, "an ETag for the part", "none"))
    }

    async fn explained(&self, mut answer: Response) -> Error {
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        let mut body = Vec::new();
        while body.len() < REFUSAL_MAX
            && let Ok(Ok(Some(chunk))) = timeout(self.options.stall_timeout, answer.chunk()).await
        {
            body.extend_from_slice(&chunk);
        }
        let error = Error::put(&self.s3.name(), status, retry_after(&headers));
        told(&self.s3, error, &Refusal { headers: &headers, body: &body })
    }

    /// Makes the object visible, with all parts in their order.
    ///
    /// # Errors
    ///
    /// If the server cannot; then nothing is visible.
    pub async fn finish(&self) -> Result<(), Error> {
        let object = self.s3.object();
        let parts = CompletedMultipartUpload::builder().set_parts(Some(self.parts.clone())).build();
        let request = control(&self.s3).await?.complete_multipart_upload();
        let request = request.bucket(&object.bucket).key(&object.key).upload_id(&self.upload);
        let done = request.multipart_upload(parts).send().await;
        done.map(drop).map_err(|error| refused(&self.s3, &error))
    }

    /// Takes the parts back. What cannot be removed stays invisible.
    pub async fn abort(&self) {
        let object = self.s3.object();
        if let Ok(client) = control(&self.s3).await {
            let request = client.abort_multipart_upload().bucket(&object.bucket).key(&object.key);
            let _ = request.upload_id(&self.upload).send().await;
        }
    }
}

/// A client for requests that carry no data.
async fn control(s3: &S3) -> Result<S3Client, Error> {
    let (client, _) = s3.client().await?;
    let config = client.config().to_builder();
    // The parts have their MD5: a checksum that is announced at the start would be wanted of each.
    let config = config.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    let patience = TimeoutConfig::builder().read_timeout(CONTROL_LIMIT).build();
    let config = config.timeout_config(patience).retry_config(RetryConfig::standard());
    Ok(S3Client::from_conf(config.build()))
}

fn refused<E>(s3: &S3, error: &SdkError<E>) -> Error
where
    E: std::error::Error + ProvideErrorMetadata + Send + Sync + 'static,
{
    let name = s3.name();
    let Some(answer) = error.raw_response() else {
        let what = format!("cannot reach the server of `{name}`");
        let cause = DisplayErrorContext(error).to_string();
        return Error::new(ErrorKind::Connect, what).because(cause);
    };
    let status = answer.status().as_u16();
    let body = answer.body().bytes().unwrap_or_default();
    let refusal = Refusal { headers: &HeaderMap::new(), body };
    told(s3, Error::put(&name, status, None), &refusal)
}

/// The error with what the server says, and what helps those who write.
fn told(s3: &S3, error: Error, refusal: &Refusal<'_>) -> Error {
    let Some(told) = s3.explain(refusal) else { return error };
    let error = error.told(&s3.name(), &told);
    match told.code.as_str() {
        "AccessDenied" => error.with_hint(WRITE.to_owned()),
        _ => error,
    }
}
