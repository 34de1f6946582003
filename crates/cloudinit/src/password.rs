//! Passwords as a guest's `/etc/shadow` holds them (crypt(5)). A password itself gets into no seed.

use std::fmt;
use std::str::FromStr;

use bootyard_spec::Secret;
use sha_crypt::{Algorithm, Params, PasswordHasher as _, ShaCrypt};
use sha2::{Digest as _, Sha256};

use crate::{Error, ErrorKind, InstanceId};

/// Rounds of SHA-512 crypt: 20 times crypt's own default of 5000, which dates from 2007, and what a
/// log-in in a guest still does not notice.
const ROUNDS: u32 = 100_000;

/// Longest password that is taken: PAM's limit for a reply (`PAM_MAX_RESP_SIZE`).
const PASSWORD_MAX: usize = 512;

/// The methods of crypt(5) that guests know: MD5, bcrypt, SHA-256, SHA-512, scrypt, yescrypt and
/// gost-yescrypt.
const METHODS: [&str; 9] = ["1", "2a", "2b", "2y", "5", "6", "7", "y", "gy"];

/// A hashed password. It is shown to nobody: who has it can try passwords against it.
#[derive(Clone, PartialEq, Eq)]
pub struct PasswordHash(Secret);

impl PasswordHash {
    /// Hashes a password with SHA-512 crypt (`$6$`), which every Linux guest knows.
    ///
    /// The salt comes from the instance and the user, so that the same input makes the same seed,
    /// and two users or machines with the same password don't show it. It must not come from the
    /// password: the salt is public, and a fast digest of the password in it could be tried in
    /// place of the slow hash.
    pub fn of(password: &Secret, instance: &InstanceId, user: &str) -> Result<Self, Error> {
        let text = password.expose();
        let bad = |what: &str| Err(Error::new(ErrorKind::Password, what));
        if text.is_empty() {
            return bad("the password is empty");
        }
        if text.len() > PASSWORD_MAX {
            return bad("the password is longer than 512 bytes, which no log-in takes");
        }
        if text.chars().any(char::is_control) {
            return bad("the password has a line end or another control character in it");
        }
        let mut salt = Sha256::new();
        for part in ["bootyard password salt", instance.as_str(), user] {
            salt.update(part);
            salt.update([0]);
        }
        // 12 bytes are crypt's 16 characters.
        let salt = &salt.finalize()[..12];
        let params = Params::new(ROUNDS).expect("between crypt's limits of 1000 and 999999999");
        let hash = ShaCrypt::new(Algorithm::Sha512Crypt, params)
            .hash_password_with_salt(text.as_bytes(), salt)
            .expect("a salt in crypt's alphabet is a valid field");
        Ok(Self(Secret::new(hash.as_str().to_owned())))
    }

    /// True if cloud-init takes it for a hash where a password may stand, too (its `password` key).
    pub(crate) fn is_known_as_hash(&self) -> bool {
        let method = self.expose().split('$').nth(1);
        method.is_some_and(|method| ["1", "2a", "2y", "5", "6"].contains(&method))
    }

    /// The hash, for the seed.
    pub(crate) fn expose(&self) -> &str {
        self.0.expose()
    }
}

impl fmt::Debug for PasswordHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Takes `$METHOD$…`. Anything else could be the password itself, so that the error does not show it.
impl FromStr for PasswordHash {
    type Err = Error;

    fn from_str(hash: &str) -> Result<Self, Error> {
        let mut fields = hash.split('$');
        let is_hash = fields.next() == Some("")
            && fields.next().is_some_and(|method| METHODS.contains(&method))
            && fields.clone().count() >= 2 - usize::from(hash.starts_with("$2"))
            && fields.all(|field| !field.is_empty())
            && hash.chars().all(|c| c.is_ascii_graphic() && !":;*!\\".contains(c));
        if is_hash {
            return Ok(Self(Secret::new(hash.to_owned())));
        }
        let what = "this is not a password hash: expected `$METHOD$…`, as /etc/shadow has it";
        Err(Error::new(ErrorKind::Password, what).with_hint(
            "make one with `mkpasswd -m sha-512` or `openssl passwd -6`, in single quotes; or give \
             the password in a file with `--password-file`",
        ))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::disallowed_methods, reason = "openssl is the oracle")]

    use std::process::Command;

    use bootyard_testkit::{require_tool, run};

    use super::*;

    fn hash(password: &str, instance: &str, user: &str) -> Result<PasswordHash, Error> {
        PasswordHash::of(&Secret::new(password.to_owned()), &instance.parse().unwrap(), user)
    }

    #[test]
    fn openssl_makes_the_same_hash() {
        if !require_tool("openssl") {
            return;
        }
        for password in ["a", "hunter2", "Gr\u{fc}\u{df}e", &"long ".repeat(100), "-x $PATH"] {
            let ours = hash(password, "i-1", "bob").unwrap();
            let salt = ours.expose().strip_prefix("$6$").unwrap().rsplit_once('$').unwrap().0;
            assert!(salt.starts_with("rounds=100000$"), "{salt}");
            let file = tempfile::NamedTempFile::new().unwrap();
            fs_err::write(file.path(), format!("{password}\n")).unwrap();
            let words = ["passwd", "-6", "-salt", salt, "-in"];
            let theirs = run(Command::new("openssl").args(words).arg(file.path()));
            // openssl warns of, and cuts off, what is longer than 256 bytes.
            if password.len() <= 256 {
                assert_eq!(theirs.trim_end(), ours.expose());
            }
        }
    }

    #[test]
    fn the_salt_is_of_the_instance_and_the_user_and_not_of_the_password() {
        let salt = |password, instance, user| {
            let hash = hash(password, instance, user).unwrap();
            hash.expose().split('$').nth(3).unwrap().to_owned()
        };
        assert_eq!(hash("a", "i", "bob").unwrap(), hash("a", "i", "bob").unwrap());
        assert_eq!(salt("a", "i", "bob"), salt("b", "i", "bob"));
        assert_ne!(salt("a", "i", "bob"), salt("a", "j", "bob"));
        assert_ne!(salt("a", "i", "bob"), salt("a", "i", "eve"));
        assert_ne!(salt("a", "ib", "ob"), salt("a", "i", "bob"));
        assert_eq!(salt("a", "i", "bob").len(), 16);
    }

    #[test]
    fn what_is_no_password_or_no_hash_is_refused_and_never_shown() {
        for password in ["", "two\nlines", "nul\0", &"x".repeat(513)] {
            let error = hash(password, "i", "bob").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Password);
        }
        for text in
            ["hunter2", "", "$6$", "$6$salt", "$9$a$b", "x$6$a$b", "$6$a:b$c", "$6$$c", "$x"]
        {
            let error = text.parse::<PasswordHash>().unwrap_err();
            let shown = format!("{error} {error:?}");
            assert!(text.len() < 3 || !shown.contains(text), "{shown}");
        }
        for text in
            ["$6$salt$hash", "$6$rounds=9999$s$h", "$y$j9T$s$h", "$2b$12$abc./DEF", "$1$a$b"]
        {
            assert_eq!(format!("{:?}", text.parse::<PasswordHash>().unwrap()), "****");
        }
    }
}
