//! Text that must not be printed.

use std::fmt;

/// A password, key or token. Shows `****`; [`Secret::expose`] gives the real one to the code that
/// sends it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Keeps `text` from being shown.
    pub const fn new(text: String) -> Self {
        Self(text)
    }

    /// The real text.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("****")
    }
}

/// What CDI's secrets hold as `accessKeyId` and `secretKey`: user and password for HTTP and
/// registries, the key pair for S3.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credentials {
    /// The user, or the access key's id.
    pub id: String,
    /// The password, or the secret key.
    pub secret: Secret,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_never_shown() {
        let secret = Secret::new("hunter2".to_owned());
        let credentials = Credentials { id: "user".to_owned(), secret: secret.clone() };
        let shown = format!("{secret:?} {credentials:?}");
        assert_eq!(shown, "**** Credentials { id: \"user\", secret: **** }");
        assert_eq!(secret.expose(), "hunter2");
    }
}
