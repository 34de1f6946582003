//! Which path means what: CDI's endpoints, and ours.

use hyper::Method;

/// The resumable protocol's collection of uploads.
pub(crate) const UPLOADS: &str = "/v1/uploads";

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Route {
    /// Whether the server is alive.
    Health,
    /// Whether there is an endpoint here; CDI's clients ask before they send.
    Discovery,
    /// One upload in one request.
    Upload(Form),
    /// The resumable protocol: the collection, or one upload in it.
    Resumable(Option<String>),
}

/// What the body of an upload is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// The image.
    Plain,
    /// The field `file` of a form (`multipart/form-data`).
    Multipart,
    /// A tar archive that becomes a folder.
    Archive,
}

/// The route of a request, as CDI's server has it: nothing but POST, and HEAD where a client may
/// answer later.
pub(crate) fn route(method: &Method, path: &str) -> Option<Route> {
    if path == "/healthz" {
        return Some(Route::Health);
    }
    if let Some(rest) = path.strip_prefix(UPLOADS) {
        return match rest.strip_prefix('/') {
            None if rest.is_empty() => Some(Route::Resumable(None)),
            Some(id) if !id.is_empty() && !id.contains('/') => {
                Some(Route::Resumable(Some(id.to_owned())))
            }
            _ => None,
        };
    }
    let rest = path.strip_prefix("/v1beta1/").or_else(|| path.strip_prefix("/v1alpha1/"))?;
    let (name, is_async) = match rest.strip_suffix("-async") {
        Some(name) => (name, true),
        None => (rest, false),
    };
    let form = match (name, is_async) {
        ("upload", _) => Form::Plain,
        ("upload-form", _) => Form::Multipart,
        ("upload-archive", false) => Form::Archive,
        _ => return None,
    };
    match *method {
        Method::POST => Some(Route::Upload(form)),
        Method::HEAD if is_async => Some(Route::Discovery),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_cdi() {
        let (post, head) = (Method::POST, Method::HEAD);
        for (method, path, expected) in [
            (&post, "/v1beta1/upload", Some(Route::Upload(Form::Plain))),
            (&post, "/v1alpha1/upload-async", Some(Route::Upload(Form::Plain))),
            (&post, "/v1beta1/upload-form", Some(Route::Upload(Form::Multipart))),
            (&post, "/v1beta1/upload-form-async", Some(Route::Upload(Form::Multipart))),
            (&post, "/v1alpha1/upload-archive", Some(Route::Upload(Form::Archive))),
            (&head, "/v1beta1/upload-async", Some(Route::Discovery)),
            (&head, "/v1beta1/upload-form-async", Some(Route::Discovery)),
            (&head, "/v1beta1/upload", None),
            (&Method::GET, "/v1beta1/upload", None),
            (&Method::PUT, "/v1beta1/upload-async", None),
            (&post, "/v1beta1/upload-archive-async", None),
            (&post, "/v1/upload", None),
            (&post, "/v1beta1/upload/", None),
            (&Method::GET, "/healthz", Some(Route::Health)),
            (&post, "/v1/uploads", Some(Route::Resumable(None))),
            (&head, "/v1/uploads/abc", Some(Route::Resumable(Some("abc".to_owned())))),
            (&head, "/v1/uploads/", None),
            (&head, "/v1/uploads/a/b", None),
            (&head, "/v1/uploadsx", None),
        ] {
            assert_eq!(route(method, path), expected, "{method} {path}");
        }
    }
}
