//! Credentials for a registry, from the files in which `docker login` and `podman login` keep them
//! (containers-auth.json(5)), credential helpers included.

use std::path::Path;

use bootyard_spec::{Credentials, Secret};
use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::Reference;
use serde_json::{Map, Value};

use crate::error::ErrorKind;
use crate::file::blocking;
use crate::{Error, Options};

/// Under what docker keeps the credentials of its own registry.
const DOCKER_IO: &str = "https://index.docker.io/v1/";
/// The most bytes of such a file.
const FILE_MAX: u64 = 4 << 20;

/// Who we are to a registry.
#[derive(Debug, Clone)]
pub(super) enum Login {
    Anonymous,
    Basic(Credentials),
    /// What a server of tokens gives one for, and nobody else may see.
    Identity(Secret),
}

/// The credentials for an image, from the first place that has some.
pub(super) async fn find(reference: &Reference, options: &Options) -> Result<Login, Error> {
    if let Some(credentials) = &options.credentials {
        return Ok(Login::Basic(credentials.clone()));
    }
    let (reference, image) = (reference.clone(), options.image.clone());
    blocking(move || {
        if let Some(path) = &image.auth_file {
            let found = in_file(path, &reference)?;
            return Ok(found.unwrap_or(Login::Anonymous));
        }
        for path in &image.default_auth_files {
            match in_file(path, &reference) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Ok(None) => {}
                Ok(Some(found)) => return Ok(found),
                Err(error) => return Err(error),
            }
        }
        Ok(Login::Anonymous)
    })
    .await
}

fn in_file(path: &Path, reference: &Reference) -> Result<Option<Login>, Error> {
    let bad = |why: &str| {
        let what = format!("`{}` is no file with registry credentials: {why}", path.display());
        Error::new(ErrorKind::Setup, what)
    };
    let size = fs_err::metadata(path).map_err(|error| Error::file(path, error))?.len();
    if size > FILE_MAX {
        return Err(bad("it is too large"));
    }
    let bytes = fs_err::read(path).map_err(|error| Error::file(path, error))?;
    let file: Value = serde_json::from_slice(&bytes).map_err(|_| bad("it is no JSON"))?;
    let Some(key) = key(&file, reference) else { return Ok(None) };
    match docker_credential::get_credential_from_reader(&bytes[..], &key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(Some(Login::Basic(Credentials { id: user, secret: Secret::new(password) })))
        }
        Ok(DockerCredential::IdentityToken(token)) => Ok(Some(Login::Identity(Secret::new(token)))),
        // Helpers also fail for registries that they know nothing of. What they say may hold a secret.
        Err(
            CredentialRetrievalError::NoCredentialConfigured
            | CredentialRetrievalError::HelperFailure { .. },
        ) => Ok(None),
        Err(error) => Err(bad(&error.to_string())),
    }
}

/// The key under which the file has something for this image: the longest prefix of
/// `HOST/NAMESPACE/NAME` in `auths`, a helper for the host, or the store for everything.
fn key(file: &Value, reference: &Reference) -> Option<String> {
    let empty = Map::new();
    let section = |name: &str| file.get(name).and_then(Value::as_object).unwrap_or(&empty);
    let (auths, helpers) = (section("auths"), section("credHelpers"));
    let host = reference.registry();
    let mut names = vec![format!("{host}/{}", reference.repository())];
    while let Some((shorter, _)) = names.last().and_then(|name| name.rsplit_once('/')) {
        names.push(shorter.to_owned());
    }
    if host == "docker.io" {
        names.extend([DOCKER_IO, "index.docker.io", "registry-1.docker.io"].map(str::to_owned));
    }
    let in_auths = |name: &String| {
        let urls = [name.clone(), format!("https://{name}"), format!("https://{name}/")];
        urls.into_iter()
            .find(|url| auths.get(url).is_some_and(|entry| entry != &Value::Object(Map::new())))
    };
    let helper = || names.iter().find(|name| helpers.contains_key(*name)).cloned();
    let store =
        || file.get("credsStore").map(|_| if host == "docker.io" { DOCKER_IO } else { host });
    names.iter().find_map(in_auths).or_else(helper).or_else(|| store().map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_prefix_has_the_credentials() {
        let file = serde_json::json!({
            "auths": {
                "quay.io": {"auth": "x"},
                "quay.io/team": {"auth": "x"},
                "quay.io/team/disk": {"auth": "x"},
                "https://index.docker.io/v1/": {"auth": "x"},
                "https://old.example": {"auth": "x"},
                "empty.example": {},
            },
            "credHelpers": {"gcr.io": "gcloud", "empty.example": "other"},
        });
        for (image, expected) in [
            ("quay.io/other/disk", Some("quay.io")),
            ("quay.io/team/other", Some("quay.io/team")),
            ("quay.io/team/disk:v1", Some("quay.io/team/disk")),
            ("quay.io/teams/disk", Some("quay.io")),
            ("debian", Some(DOCKER_IO)),
            ("old.example/x", Some("https://old.example")),
            ("gcr.io/p/x", Some("gcr.io")),
            ("empty.example/x", Some("empty.example")),
            ("nobody.example/x", None),
        ] {
            assert_eq!(key(&file, &image.parse().unwrap()).as_deref(), expected, "{image}");
        }
        let store = serde_json::json!({"credsStore": "pass"});
        assert_eq!(key(&store, &"h.example/x".parse().unwrap()).as_deref(), Some("h.example"));
    }
}
