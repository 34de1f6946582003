//! The progress, as CDI's controller asks for it: a counter of per cents, by HTTPS with a certificate
//! that nobody vouches for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use bootyard_import::{Event, Moved};
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Refused;
use super::environment::MetricsOptions;

/// Without the `_total` that a counter gets.
const NAME: &str = "kubevirt_cdi_import_progress";
const HELP: &str = "The import progress in percentage";
const LABEL: &str = "ownerUID";

/// What a counter shows at most before the disk has its name.
const UNFINISHED_MAX: f64 = 99.0;

/// The text format of OpenMetrics, which Prometheus and CDI read.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// A counter, and who may ask for it.
#[derive(Debug)]
pub(super) struct Metrics {
    counter: Counter<f64, AtomicU64>,
    shown: Mutex<f64>,
    registry: Arc<Registry>,
}

impl Metrics {
    /// The progress of this owner's import: nothing yet.
    pub(super) fn new(owner_uid: &str) -> Self {
        let family = Family::<Vec<(String, String)>, Counter<f64, AtomicU64>>::default();
        let counter = family.get_or_create_owned(&vec![(LABEL.into(), owner_uid.to_owned())]);
        let mut registry = Registry::default();
        registry.register(NAME, HELP, family);
        Self { counter, shown: Mutex::default(), registry: Arc::new(registry) }
    }

    /// Serves on all addresses, as a pod's container does.
    pub(super) fn serve(&self, options: &MetricsOptions) -> Result<(), Refused> {
        let acceptor = acceptor(options.only_tls13).map_err(|error| unable(&*error))?;
        let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, options.port));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| unable(&error))?;
        let listener = runtime.block_on(TcpListener::bind(address));
        let listener = listener.map_err(|error| unable(&error))?;
        let serve = serve(listener, acceptor, Arc::clone(&self.registry));
        let server = thread::Builder::new().name("metrics".into());
        server.spawn(move || runtime.block_on(serve)).map_err(|error| unable(&error))?;
        Ok(())
    }

    /// Notes what has moved.
    pub(super) fn event(&self, event: Event<'_>) {
        if let Event::Moved(Moved { fetched, total: Some(total), .. }) = event
            && total > 0
        {
            self.rise((fetched as f64 / total as f64 * 100.0).min(UNFINISHED_MAX));
        }
    }

    /// The disk has its name.
    pub(super) fn done(&self) {
        self.rise(100.0);
    }

    /// Never falls, whatever was begun anew.
    fn rise(&self, to: f64) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        if to > *shown {
            self.counter.inc_by(to - *shown);
            *shown = to;
        }
    }
}

fn unable(error: &(dyn std::error::Error + 'static)) -> Refused {
    Refused::new(format!("cannot serve metrics: {}", super::chain(error)))
}

/// TLS with a certificate made for this process.
fn acceptor(only_tls13: bool) -> Result<TlsAcceptor, Box<dyn std::error::Error + Send + Sync>> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()])?;
    let key = PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
    let versions = if only_tls13 { &[&rustls::version::TLS13][..] } else { rustls::ALL_VERSIONS };
    let config = ServerConfig::builder_with_protocol_versions(versions)
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, registry: Arc<Registry>) {
    loop {
        // Too many open files, or a client that is gone already: the next one may come through.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, registry) = (acceptor.clone(), Arc::clone(&registry));
        tokio::spawn(async move {
            let limit = std::time::Duration::from_secs(30);
            // A client that does not finish is its own affair.
            let _ = tokio::time::timeout(limit, converse(stream, &acceptor, registry)).await;
        });
    }
}

async fn converse(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    registry: Arc<Registry>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = acceptor.accept(stream).await?;
    let service = service_fn(move |request| std::future::ready(answer(&request, &registry)));
    let server = hyper::server::conn::http1::Builder::new();
    Ok(server.serve_connection(TokioIo::new(stream), service).await?)
}

fn answer(
    request: &Request<Incoming>,
    registry: &Registry,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    if request.uri().path() != "/metrics" {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default());
    }
    let mut text = String::new();
    // Writing into a string does not fail.
    let _ = encode(&mut text, registry);
    Response::builder().header(CONTENT_TYPE, MEDIA_TYPE).body(Full::new(text.into()))
}
