//! What CDI's controller reads when the pod has ended: an exit code and a termination message.

use std::collections::BTreeMap;
use std::io;
use std::process::ExitCode;

use bootyard_import::{Error, Report};
use bootyard_spec::ByteSize;
use serde::Serialize;

use super::chain;
use super::environment::Paths;

/// Where a pod leaves its last words, unless its specification names another file.
const TERMINATION_LOG: &str = "/dev/termination-log";

/// The most that kubelet keeps of them.
const MESSAGE_MAX: usize = 4096;

/// The end of an import.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// The disk is there.
    Complete(Termination),
    /// It never will be: the controller must not try again.
    Fatal(Termination),
    /// It may be next time: kubelet starts the container again.
    Failed(String),
}

/// CDI's `TerminationMessage`; of its fields those that can occur here.
#[derive(Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Termination {
    #[serde(skip_serializing_if = "Option::is_none")]
    scratch_space_required: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    preallocation_applied: Option<bool>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
    message: String,
}

impl Answer {
    /// The disk is there. The labels are those that a container image has for its volume.
    pub(super) fn complete(preallocated: bool, report: Option<&Report>) -> Self {
        let image = report.and_then(|report| report.image.as_ref());
        Self::Complete(Termination {
            labels: image.map(|image| image.labels.clone()).unwrap_or_default(),
            scratch_space_required: Some(false),
            preallocation_applied: Some(preallocated),
            message: "Import Complete".to_owned(),
        })
    }

    /// The disk could not be made.
    pub(super) fn unable(why: &str) -> Self {
        Self::Failed(format!("Unable to process data: {why}"))
    }

    /// The sentence for the log.
    pub(super) fn message(&self) -> &str {
        match self {
            Self::Complete(termination) | Self::Fatal(termination) => &termination.message,
            Self::Failed(text) => text,
        }
    }

    /// What the controller wants: 0 also where another attempt would end the same way.
    pub(super) fn exit_code(&self) -> ExitCode {
        match self {
            Self::Complete(_) | Self::Fatal(_) => ExitCode::SUCCESS,
            Self::Failed(_) => ExitCode::FAILURE,
        }
    }

    /// Leaves the message where kubelet looks for it.
    pub(super) fn write(&self, paths: &Paths) -> io::Result<()> {
        fs_err::write(paths.at(TERMINATION_LOG), self.text())
    }

    fn text(&self) -> String {
        match self {
            Self::Complete(termination) | Self::Fatal(termination) => termination.text(),
            Self::Failed(text) => cut(text, MESSAGE_MAX).to_owned(),
        }
    }
}

impl Termination {
    /// JSON, with as many labels and as much of the message as there is room for.
    fn text(&self) -> String {
        let mut own = Self { labels: self.labels.clone(), message: self.message.clone(), ..*self };
        loop {
            let text = serde_json::to_string(&own).unwrap_or_default();
            if text.len() <= MESSAGE_MAX {
                return text;
            }
            if own.labels.pop_last().is_none() {
                let keep = own.message.len().saturating_sub(text.len() - MESSAGE_MAX);
                own.message = cut(&own.message, keep).to_owned();
            }
        }
    }
}

/// The longest start of a text that has `len` bytes at most.
fn cut(text: &str, len: usize) -> &str {
    let mut end = text.len().min(len);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

/// The answer to an import that failed, in CDI's words where its controller or its users look for
/// them. `limit` is the largest disk that fits.
pub(super) fn of_error(error: &Error, limit: Option<ByteSize>) -> Answer {
    let too_large = |virtual_size: String, limit: ByteSize| {
        Answer::unable(&format!(
            "virtual image size {virtual_size} is larger than the reported available storage {}. \
             A larger PVC is required",
            limit.bytes()
        ))
    };
    match error {
        Error::Checksum { .. } => Answer::Fatal(Termination {
            // The controller looks for these two words.
            message: format!("Unable to process data: checksum mismatch: {}", chain(error)),
            ..Termination::default()
        }),
        Error::TooLarge { virtual_size, max_size } => {
            too_large(virtual_size.bytes().to_string(), limit.unwrap_or(*max_size))
        }
        Error::BeyondLimit { limit: own, .. } => {
            let limit = limit.unwrap_or(*own);
            too_large(format!("of more than {}", limit.bytes()), limit)
        }
        error => Answer::unable(&chain(error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_success_is_told_as_cdi_tells_it() {
        let answer = Answer::complete(true, None);
        assert_eq!(
            answer.text(),
            r#"{"scratchSpaceRequired":false,"preallocationApplied":true,"message":"Import Complete"}"#
        );
    }

    #[test]
    fn what_kubelet_would_cut_is_shortened_before() {
        let labels = (0..200).map(|n| (format!("label-{n:03}"), "x".repeat(40))).collect();
        let answer = Answer::Complete(Termination {
            labels,
            message: "Import Complete".to_owned(),
            ..Termination::default()
        });
        let text = answer.text();
        assert!(text.len() <= MESSAGE_MAX && text.len() > MESSAGE_MAX - 100, "{}", text.len());
        let value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["message"], "Import Complete");
        let message = "\"ä".repeat(4096);
        let fatal = Answer::Fatal(Termination { message, ..Termination::default() });
        assert!(serde_json::from_str::<serde_json::Value>(&fatal.text()).is_ok());
        assert_eq!(Answer::Failed("ä".repeat(4096)).text().len(), MESSAGE_MAX);
    }
}
