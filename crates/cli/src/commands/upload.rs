//! `bootyard upload`: a file to an upload server, or by the same engine into the store here.

use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use bootyard_import::{Event, Events, Moved, Phase};
use bootyard_source::{ErrorKind, Options, Sending, Sent, Upload, upload};
use bootyard_spec::{Class, ImportRequest, SafeUrl, Secret, Source, Target, VolumeName};
use bootyard_volume::Store;
use indicatif::HumanBytes;

use crate::args::{ContentType, UploadArgs};
use crate::error::{Failure, read_input};
use crate::json::{FailureLine, ReportLine, UploadedLine};
use crate::progress::Display;
use crate::{output, settings};

use super::import;

pub(crate) fn run(args: &UploadArgs) -> Result<ExitCode, Failure> {
    let json = args.json;
    let source = match args.file.as_path() {
        path if path == Path::new("-") => Source::Stdin,
        path => Source::File(path.to_owned()),
    };
    let done = match (&args.to, &args.name) {
        (Some(server), _) => send(args, source, server),
        (None, Some(name)) => import_here(args, source, name),
        (None, None) => Err(Failure::new(Class::Usage, "expected either NAME or `--to`")),
    };
    if json && let Err(failure) = &done {
        // Whether or not somebody reads it, the failure itself decides the exit code.
        let _ = output::json_line(&FailureLine::new(failure));
    }
    done.map(|()| ExitCode::SUCCESS)
}

fn import_here(args: &UploadArgs, source: Source, name: &VolumeName) -> Result<(), Failure> {
    let request = ImportRequest {
        source,
        target: Target::Volume(name.clone()),
        claim: args.claim.claim(true)?,
        size: args.size,
        max_size: None,
        checksum: args.checksum.clone(),
        output_format: args.output_format,
        preallocation: false,
        relocate_gpt: false,
        cache: None,
    };
    let store = Store::open(&settings::store_home()?);
    let (display, cancel) = (Display::new(args.json), import::cancel_on_signal()?);
    let report = bootyard_import::run(&request, &store, &Options::default(), &display, &cancel)?;
    let took = display.finish();
    match args.json {
        true => output::json_line(&ReportLine::new(&report, took.as_secs_f64())),
        false => output::result(&import::summary(&report, took)),
    }
}

fn send(args: &UploadArgs, source: Source, server: &SafeUrl) -> Result<(), Failure> {
    args.claim.claim(false)?;
    if !matches!(server.expose().scheme(), "http" | "https") {
        let what = format!("`{server}` is no upload server: expected http:// or https://");
        return Err(Failure::new(Class::Usage, what));
    }
    let pem = |path: &Path| {
        String::from_utf8(read_input(path)?)
            .map(Secret::new)
            .map_err(|_| Failure::new(Class::Usage, format!("`{}` is not a text", path.display())))
    };
    let token = args.token_file.as_deref().map(pem).transpose()?;
    let token = token.map(|token| Secret::new(token.expose().trim().to_owned()));
    let defaults = Options::default();
    let options = Options {
        extra_ca: args.ca_file.as_deref().map(read_input).transpose()?.unwrap_or_default(),
        client_identity: args.client_cert.as_deref().map(pem).transpose()?,
        insecure_skip_verify: args.insecure_skip_verify,
        attempts: args.retries.map_or(defaults.attempts, |retries| retries.saturating_add(1)),
        stall_timeout: args.stall_timeout.unwrap_or(defaults.stall_timeout),
        proxy: settings::proxies()?,
        ..defaults
    };
    let request = Upload {
        source,
        server: server.clone(),
        token: token.or_else(settings::upload_token),
        archive: args.content_type == ContentType::Archive,
    };
    let display = Display::new(args.json);
    let sent = run_upload(&request, &options, &display)?;
    let took = display.finish();
    match args.json {
        true => output::json_line(&UploadedLine::new(&request, &sent, took.as_secs_f64())),
        false => output::result(&summary(&request, &sent, took)),
    }
}

fn run_upload(request: &Upload, options: &Options, display: &Display) -> Result<Sent, Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(Class::Other, error))?;
    let cancel = import::cancel_on_signal()?;
    display.event(Event::Phase(Phase::Connecting));
    let begun = std::cell::Cell::new(false);
    let tell = |sending| {
        if !begun.replace(true) {
            display.event(Event::Phase(Phase::Transferring));
        }
        match sending {
            Sending::Sent(fetched, total) => {
                display.event(Event::Moved(Moved { fetched, total, written: 0 }));
            }
            Sending::Resumed(at) => display.event(Event::Resumed(at)),
            Sending::Retried(count, why) => display.retried(count, &why),
            Sending::Verifying => display.event(Event::Phase(Phase::Verifying)),
        }
    };
    let sent = runtime.block_on(async {
        tokio::select! {
            sent = upload(request, options, &tell) => Some(sent),
            () = cancel.cancelled() => None,
        }
    });
    match sent {
        Some(Ok(sent)) => Ok(sent),
        Some(Err(error)) => {
            // What the server says or does is the target's affair.
            let is_source = matches!(
                error.kind(),
                ErrorKind::NotAFile
                    | ErrorKind::InUse
                    | ErrorKind::Read
                    | ErrorKind::Changed
                    | ErrorKind::NotFound
            ) || error.kind() == ErrorKind::Denied && error.http_status().is_none();
            let failure = Failure::from(error);
            Err(if is_source { failure } else { failure.with_class(Class::Target) })
        }
        None => Err(Failure::new(Class::Interrupted, "the upload was stopped")
            .with_hint("run the same command again: a server of ours goes on from there")),
    }
}

fn summary(request: &Upload, sent: &Sent, took: Duration) -> String {
    let resumed = match sent.resumed_bytes {
        0 => String::new(),
        bytes => format!(", {} of them by an earlier attempt", HumanBytes(bytes)),
    };
    let compared = if sent.compared { "compared by the server" } else { "not compared" };
    format!(
        "uploaded {}\n  server   {}\n  source   {}{resumed} in {:.1} s\n  digest   {} ({compared})\n",
        request.source,
        request.server,
        HumanBytes(sent.bytes),
        took.as_secs_f64(),
        sent.sha256,
    )
}
