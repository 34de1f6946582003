//! The HTTP of the AWS SDK's own look-ups (STS, SSO, a machine's metadata): our client, so that the
//! proxies and authorities of [`Options`] hold for them as well. Never for the object.

use std::error::Error as StdError;
use std::net::IpAddr;
use std::time::Duration;

use aws_sdk_s3::config::{HttpClient, RuntimeComponents};
use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use reqwest::{Client, Method, Url};
use tokio::time::timeout;

use crate::{Error, Options, ProxyOptions, client};

/// How long an answer may take if the SDK does not say.
const LIMIT: Duration = Duration::from_secs(10);

/// The longest answer: credentials are a few KiB.
const ANSWER_MAX: usize = 1 << 20;

/// Asks the servers that give credentials.
#[derive(Debug, Clone)]
pub(super) struct LookUp {
    client: Client,
    /// For the machine's own servers, which no proxy reaches.
    direct: Client,
}

/// As patient as the SDK wants one kind of look-up to be.
#[derive(Debug)]
struct Patient {
    look_up: LookUp,
    limit: Duration,
}

impl LookUp {
    pub(super) fn new(options: &Options) -> Result<Self, Error> {
        // Who does not verify the server of an object still wants to know who gets a role's token.
        let options = Options { insecure_skip_verify: false, ..options.clone() };
        let ca = options.proxy.ca.clone();
        let direct =
            Options { proxy: ProxyOptions { ca, ..ProxyOptions::default() }, ..options.clone() };
        Ok(Self { client: client::new(&options)?, direct: client::new(&direct)? })
    }

    async fn ask(self, request: HttpRequest) -> Result<HttpResponse, BoxError> {
        let url: Url = request.uri().parse()?;
        let client = if is_own(&url) { &self.direct } else { &self.client };
        let mut asked = client.request(Method::from_bytes(request.method().as_bytes())?, url);
        for (name, value) in request.headers() {
            asked = asked.header(name, value);
        }
        let body = request.body().bytes().ok_or("a request without end")?;
        let mut answer = asked.body(body.to_vec()).send().await?;
        let mut body = Vec::new();
        while let Some(bytes) = answer.chunk().await? {
            if body.len() + bytes.len() > ANSWER_MAX {
                return Err("an answer without end".into());
            }
            body.extend_from_slice(&bytes);
        }
        let status = answer.status().as_u16().try_into()?;
        let mut response = HttpResponse::new(status, SdkBody::from(body));
        for (name, value) in answer.headers() {
            if let Ok(value) = value.to_str() {
                response.headers_mut().try_append(name.as_str().to_owned(), value.to_owned())?;
            }
        }
        Ok(response)
    }
}

type BoxError = Box<dyn StdError + Send + Sync>;

impl HttpClient for LookUp {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        _components: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let limit = settings.connect_timeout().zip(settings.read_timeout());
        let limit = limit.map_or(LIMIT, |(connect, read)| connect + read);
        SharedHttpConnector::new(Patient { look_up: self.clone(), limit })
    }
}

impl HttpConnector for Patient {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (look_up, limit) = (self.look_up.clone(), self.limit);
        HttpConnectorFuture::new(async move {
            match timeout(limit, look_up.ask(request)).await {
                Ok(answer) => answer.map_err(ConnectorError::io),
                Err(late) => Err(ConnectorError::timeout(late.into())),
            }
        })
    }
}

/// Whether only this machine can reach it: link-local and loopback addresses.
fn is_own(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    match host.parse() {
        Ok(IpAddr::V4(address)) => address.is_link_local() || address.is_loopback(),
        Ok(IpAddr::V6(address)) => address.is_unique_local() || address.is_loopback(),
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machines_metadata_is_asked_without_a_proxy() {
        for (url, own) in [
            ("http://169.254.169.254/latest/api/token", true),
            ("http://[fd00:ec2::254]/latest", true),
            ("http://127.0.0.1:51679/role", true),
            ("https://sts.amazonaws.com/", false),
            ("http://10.0.0.1/", false),
        ] {
            assert_eq!(is_own(&url.parse().unwrap()), own, "{url}");
        }
    }
}
