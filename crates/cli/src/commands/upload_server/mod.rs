//! `bootyard upload-server`: takes one upload, as CDI's upload server does, and ends.

mod variables;

use std::cell::Cell;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bootyard_import::{Event, Events};
use bootyard_serve::{Access, Options, Outcome, Subject, Tls, TokenKey, Watch, serve};
use bootyard_spec::{Class, Secret, Target};
use bootyard_volume::Store;

use crate::args::UploadServerArgs;
use crate::error::{Failure, read_input};
use crate::json::{ArchiveLine, FailureLine, ListeningLine, ReportLine, UploadLine};
use crate::progress::Display;
use crate::{output, settings};

use super::import::{self, Limit};

pub(crate) use variables::UploadVariables;

pub(crate) fn run(args: UploadServerArgs) -> Result<ExitCode, Failure> {
    let json = args.json;
    let done = upload_server(args);
    if json && let Err(failure) = &done {
        // Whether or not somebody reads it, the failure itself decides the exit code.
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done
}

fn upload_server(args: UploadServerArgs) -> Result<ExitCode, Failure> {
    let args = settings::upload_variables()?.fill(args)?;
    let options = options(&args)?;
    let address = args.listen.unwrap_or(DEFAULT_ADDRESS);
    check_access(&args, &options, address)?;
    let listener = TcpListener::bind(address).map_err(|error| {
        let what = format!("cannot listen on {address}: {error}");
        Failure::new(Class::Usage, what).with_hint("choose another address with `--listen`")
    })?;
    let store = Store::open(&settings::store_home()?);
    let limit = Limit::start(args.deadline)?;
    let display = Display::new(args.json);
    let shown = Shown {
        display: &display,
        json: args.json,
        idle: Cell::default(),
        has_begun: Cell::default(),
    };
    shown.listening(&listener, options.tls.is_some())?;
    let outcome = serve(listener, &options, &store, &shown, &limit.cancel);
    let outcome = outcome.map_err(|error| {
        let is_stopped = matches!(error, bootyard_serve::Error::Stopped);
        let failure = Failure::from(error);
        if is_stopped && !shown.has_begun.get() {
            let failure = failure.with_hint("start it again: nothing had come yet");
            return limit.explain_as(failure, "no upload came within");
        }
        limit.explain_as(failure, "no upload was complete within")
    })?;
    let took = display.finish().saturating_sub(shown.idle.get());
    show(&outcome, took, args.json)?;
    Ok(ExitCode::SUCCESS)
}

/// On this machine only, on the port that CDI's server has.
const DEFAULT_ADDRESS: SocketAddr = SocketAddr::new(
    std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST),
    UploadVariables::DEFAULT_PORT,
);

fn options(args: &UploadServerArgs) -> Result<Options, Failure> {
    let target = match (&args.name, &args.to) {
        (Some(name), None) => Target::Volume(name.clone()),
        (None, Some(path)) => Target::Path(path.clone()),
        _ => {
            let what = "expected either `--name` or `--to`";
            return Err(Failure::new(Class::Usage, what)
                .with_hint("`--name VOLUME` for the store, `--to FILE` for a file or device"));
        }
    };
    let access = match (&args.token_file, &args.token_key) {
        (Some(path), _) => Access::Token(secret(path)?),
        (None, Some(path)) => Access::Signed(token_key(path)?, subject(args, &target)?),
        (None, None) => Access::Anyone,
    };
    let tls = match (&args.tls_cert, &args.tls_key) {
        (Some(certificates), Some(key)) => Some(Tls {
            certificates: read_input(certificates)?,
            key: secret(key)?,
            client_ca: args.client_ca.as_deref().map(read_input).transpose()?,
            client_name: args.client_name.clone(),
        }),
        (None, None) => None,
        _ => {
            let what = "TLS needs both a certificate and its key";
            return Err(Failure::new(Class::Usage, what)
                .with_hint("give both `--tls-cert` and `--tls-key`"));
        }
    };
    if args.client_name.is_some() && args.client_ca.is_none() {
        let what = "a client's name stands in a certificate, and none is asked for";
        return Err(Failure::new(Class::Usage, what)
            .with_hint("add `--client-ca`, or leave out `--client-name`"));
    }
    if tls.is_none() && args.client_ca.is_some() {
        let what = "certificates of clients need TLS";
        return Err(Failure::new(Class::Usage, what)
            .with_hint("add `--tls-cert` and `--tls-key`, or leave out `--client-ca`"));
    }
    Ok(Options {
        claim: args.claim.claim(matches!(target, Target::Volume(_)))?,
        target,
        size: args.size,
        max_size: args.max_size,
        output_format: args.output_format,
        preallocation: args.preallocation,
        access,
        tls,
        keep: args.keep,
        stall_timeout: args.stall_timeout.unwrap_or(STALL_TIMEOUT),
    })
}

/// How long a client may send nothing.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);

fn secret(path: &Path) -> Result<Secret, Failure> {
    let text = String::from_utf8(read_input(path)?);
    let text = text.ok().map(|text| text.trim().to_owned()).filter(|text| !text.is_empty());
    let empty = || Failure::new(Class::Usage, format!("`{}` holds no text", path.display()));
    text.map(Secret::new).ok_or_else(empty)
}

fn token_key(path: &Path) -> Result<TokenKey, Failure> {
    TokenKey::from_pem(&read_input(path)?).map_err(|error| {
        Failure::new(Class::Usage, format!("cannot use `{}`: {error}", path.display()))
    })
}

/// What a token must name: by default the volume, in any namespace.
fn subject(args: &UploadServerArgs, target: &Target) -> Result<Subject, Failure> {
    let text = match (&args.token_subject, target) {
        (Some(text), _) => text.clone(),
        (None, Target::Volume(name)) => name.to_string(),
        (None, Target::Path(_)) => {
            let what = "a token names a PersistentVolumeClaim, and the target is a path";
            let hint = "say which one with `--token-subject NAMESPACE/NAME`";
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
    };
    Ok(match text.split_once('/') {
        Some((namespace, name)) => {
            Subject { namespace: Some(namespace.to_owned()), name: name.to_owned() }
        }
        None => Subject { namespace: None, name: text },
    })
}

/// Refuses to let anyone in from elsewhere unless that was asked for.
fn check_access(
    args: &UploadServerArgs,
    options: &Options,
    address: SocketAddr,
) -> Result<(), Failure> {
    let asks = !matches!(options.access, Access::Anyone)
        || options.tls.as_ref().is_some_and(|tls| tls.client_ca.is_some());
    if asks || address.ip().is_loopback() || args.anonymous {
        return Ok(());
    }
    let what = format!("anyone who reaches {address} could write the target");
    Err(Failure::new(Class::Usage, what).with_hint(
        "give `--token-file`, `--token-key` or `--client-ca`, listen on 127.0.0.1, or allow it with \
         `--anonymous`",
    ))
}

/// Shows what happens: as an import does, and what only a server has.
struct Shown<'a> {
    display: &'a Display,
    json: bool,
    /// How long it waited before the last upload began.
    idle: Cell<Duration>,
    /// An upload has begun.
    has_begun: Cell<bool>,
}

impl Shown<'_> {
    fn listening(&self, listener: &TcpListener, tls: bool) -> Result<(), Failure> {
        let address = listener.local_addr().map_err(|error| Failure::new(Class::Other, error))?;
        let url = format!("{}://{address}", if tls { "https" } else { "http" });
        if self.json {
            return output::json_line(&ListeningLine::new(&url));
        }
        output::error(&format!("listening on {url}\n"));
        Ok(())
    }
}

impl Events for Shown<'_> {
    fn event(&self, event: Event<'_>) {
        self.display.event(event);
    }
}

impl Watch for Shown<'_> {
    fn begun(&self, name: &str) {
        self.idle.set(self.display.elapsed());
        self.has_begun.set(true);
        if self.json {
            let _ = output::json_line(&UploadLine::begun(name));
        } else {
            output::error(&format!("{name}\n"));
        }
    }

    fn failed(&self, name: &str, error: &bootyard_import::Error) {
        if self.json {
            let _ = output::json_line(&UploadLine::failed(name, &error.to_string()));
        } else {
            output::error(&format!("{name} failed: {}\n", chain(error)));
        }
    }
}

/// An error and its causes in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |&error| error.source());
    let mut texts: Vec<String> = causes.map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

fn show(outcome: &Outcome, took: Duration, json: bool) -> Result<(), Failure> {
    match outcome {
        Outcome::Disk(report) if json => {
            output::json_line(&ReportLine::new(report, took.as_secs_f64()))
        }
        Outcome::Disk(report) => output::result(&import::summary(report, took)),
        Outcome::Archive(report) if json => {
            output::json_line(&ArchiveLine::new(report, took.as_secs_f64()))
        }
        Outcome::Archive(report) => {
            let (path, members) = (report.path.display(), report.unpacked.members);
            output::result(&format!("unpacked {members} members\n  path     {path}\n"))
        }
    }
}
