//! Serves the progress as CDI's controller asks for it: by HTTPS with a certificate that nobody
//! vouches for.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use super::Refused;
use super::environment::MetricsOptions;
use crate::metrics::Metrics;

/// The text format of OpenMetrics, which Prometheus and CDI read.
const MEDIA_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves on all addresses, as a pod's container does.
pub(super) fn serve(metrics: &Metrics, options: &MetricsOptions) -> Result<(), Refused> {
    let acceptor = acceptor(options.only_tls13).map_err(|error| unable(&*error))?;
    let address = SocketAddr::from((Ipv4Addr::UNSPECIFIED, options.port));
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| unable(&error))?;
    let listener = runtime.block_on(TcpListener::bind(address));
    let listener = listener.map_err(|error| unable(&error))?;
    let serve = accept(listener, acceptor, metrics.clone());
    let server = thread::Builder::new().name("metrics".into());
    server.spawn(move || runtime.block_on(serve)).map_err(|error| unable(&error))?;
    Ok(())
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

async fn accept(listener: TcpListener, acceptor: TlsAcceptor, metrics: Metrics) {
    loop {
        // Too many open files, or a client that is gone already: the next one may come through.
        let Ok((stream, _)) = listener.accept().await else {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
            continue;
        };
        let (acceptor, metrics) = (acceptor.clone(), metrics.clone());
        tokio::spawn(async move {
            let limit = std::time::Duration::from_secs(30);
            // A client that does not finish is its own affair.
            let _ = tokio::time::timeout(limit, converse(stream, &acceptor, metrics)).await;
        });
    }
}

async fn converse(
    stream: TcpStream,
    acceptor: &TlsAcceptor,
    metrics: Metrics,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let stream = acceptor.accept(stream).await?;
    let service = service_fn(move |request| std::future::ready(answer(&request, &metrics)));
    let server = hyper::server::conn::http1::Builder::new();
    Ok(server.serve_connection(TokioIo::new(stream), service).await?)
}

fn answer(
    request: &Request<Incoming>,
    metrics: &Metrics,
) -> Result<Response<Full<Bytes>>, hyper::http::Error> {
    if request.uri().path() != "/metrics" {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default());
    }
    let body = Full::new(metrics.open_metrics().into());
    Response::builder().header(CONTENT_TYPE, MEDIA_TYPE).body(body)
}
