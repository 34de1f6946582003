//! Who may log in: the guest's default user and others, as the cloud-config that makes them.
//!
//! cloud-init merges cloud-configs part by part, and a later part's `users` takes the place of an
//! earlier one's. So that the user's own list counts and ours is not lost, our part comes last, and
//! appends. It asks for the image's default user, as an image does itself, if no list of the user's
//! is there to say who shall be. Nothing of ours is before the user's parts: these may have their own
//! `merge_how`.

use std::fmt;
use std::str::FromStr;

use crate::lint::configs;
use crate::yaml::Yaml;
use crate::{Error, ErrorKind, PasswordHash, SshPublicKey, UserData};

/// Longest name of a user (`LOGIN_NAME_MAX` of the shadow tools).
const NAME_MAX: usize = 32;

/// How cloud-init merges our part behind the user's: what is there stays, lists grow.
const MERGE: &str = "dict(no_replace,recurse_list)+list(append)+str()";

/// The default user in cloud-init's lists, whatever the image calls it.
pub(crate) const DEFAULT: &str = "default";

/// The name of a Unix user as useradd takes it: lower-case letters, digits, `_` and `-`, not a digit
/// or `-` first.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UserName(String);

impl UserName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for UserName {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self, Error> {
        let first = |c: char| c.is_ascii_lowercase() || c == '_';
        let allowed = |c: char| first(c) || c.is_ascii_digit() || c == '-';
        if name.len() > NAME_MAX || !name.starts_with(first) || !name.chars().all(allowed) {
            let what = format!(
                "`{name}` is not a user name: expected 1 to {NAME_MAX} of a-z, 0-9, `_` and `-`, a \
                 letter or `_` first"
            );
            return Err(Error::new(ErrorKind::Value, what));
        }
        if name == DEFAULT {
            let what = "`default` stands for the image's own default user in cloud-init";
            return Err(
                Error::new(ErrorKind::Value, what).with_hint("name no user to mean that one")
            );
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for UserName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A user beside the default one, made at the first boot if the image has none of that name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The log-in name.
    pub name: UserName,
    /// Keys that may log in.
    pub ssh_keys: Vec<SshPublicKey>,
    /// The password; log-in by password stays locked without.
    pub password: Option<PasswordHash>,
}

impl User {
    /// A user who cannot log in yet.
    pub const fn new(name: UserName) -> Self {
        Self { name, ssh_keys: Vec::new(), password: None }
    }

    fn entry(&self) -> Yaml {
        let mut entry = vec![("name".to_owned(), Yaml::text(self.name.as_str()))];
        if let Some(password) = &self.password {
            entry.extend(password_entries(password));
        }
        if !self.ssh_keys.is_empty() {
            entry.push(("ssh_authorized_keys".to_owned(), Yaml::texts(&self.ssh_keys)));
        }
        Yaml::Map(entry)
    }
}

/// What is done for users by a cloud-config of ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Users {
    /// Another name for the image's default user, who keeps the rights that the image gives it.
    pub default_name: Option<UserName>,
    /// The default user's password.
    pub default_password: Option<PasswordHash>,
    /// Users beside it.
    pub others: Vec<User>,
    /// Lets the guest agent of QEMU manage the users' keys where SELinux would not.
    pub agent_manages_ssh: bool,
}

impl Users {
    /// The whole of it, for a seed without user-data.
    pub(crate) fn part(&self) -> Option<UserData> {
        let entries = self.entries(true);
        (!entries.is_empty()).then(|| part(entries))
    }

    /// What goes behind the user's own, if there is anything to say.
    pub(crate) fn part_behind(&self, data: &[UserData]) -> Option<UserData> {
        let has_list =
            |data: &UserData| configs(data.content()).iter().any(|config| config.has("users"));
        let mut entries = self.entries(!data.iter().any(has_list));
        if entries.is_empty() {
            return None;
        }
        entries.insert(0, ("merge_how".to_owned(), Yaml::text(MERGE)));
        Some(part(entries))
    }

    /// The keys of the cloud-config.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.entries(true).into_iter().map(|(key, _)| key).collect()
    }

    /// With `is_first`, nobody else says whether the default user shall be.
    fn entries(&self, is_first: bool) -> Vec<(String, Yaml)> {
        let mut entries = Vec::new();
        let mut users = Vec::new();
        match (&self.default_name, &self.default_password) {
            (Some(name), password) => {
                let name = ("name".to_owned(), Yaml::text(name.as_str()));
                let password = password.iter().flat_map(password_entries);
                let user = std::iter::once(name).chain(password).collect();
                entries.push(("user".to_owned(), Yaml::Map(user)));
            }
            // In the list, the image's own `lock_passwd` would count before ours (until 23.1).
            (None, Some(password)) => {
                let expire = ("expire".to_owned(), Yaml::Bool(false));
                entries.push(("password".to_owned(), Yaml::text(password.expose())));
                entries.push(("chpasswd".to_owned(), Yaml::Map(vec![expire])));
                users.push(Yaml::text(DEFAULT));
            }
            (None, None) if is_first && !self.others.is_empty() => users.push(Yaml::text(DEFAULT)),
            (None, None) => {}
        }
        users.extend(self.others.iter().map(User::entry));
        if !users.is_empty() {
            entries.push(("users".to_owned(), Yaml::List(users)));
        }
        if self.agent_manages_ssh {
            let words = Yaml::texts(&["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]);
            entries.push(("runcmd".to_owned(), Yaml::List(vec![words])));
        }
        entries
    }

    /// Refuses a hash that cloud-init would take for the password itself.
    pub(crate) fn check(&self) -> Result<(), Error> {
        match &self.default_password {
            Some(password) if self.default_name.is_none() && !password.is_known_as_hash() => {
                let what = "cloud-init takes this kind of hash only for a user with a name";
                Err(Error::new(ErrorKind::Password, what).with_hint(
                    "name the user with `--user NAME`, or make the hash with `mkpasswd -m sha-512`",
                ))
            }
            _ => Ok(()),
        }
    }
}

/// `hashed_passwd` is set for a user whom the image has already, too; `passwd` is not.
fn password_entries(password: &PasswordHash) -> [(String, Yaml); 2] {
    [
        ("lock_passwd".to_owned(), Yaml::Bool(false)),
        ("hashed_passwd".to_owned(), Yaml::text(password.expose())),
    ]
}

fn part(entries: Vec<(String, Yaml)>) -> UserData {
    UserData::cloud_config(format!("#cloud-config\n{}", Yaml::Map(entries).document()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn users() -> Users {
        let mut bob = User::new("bob".parse().unwrap());
        bob.ssh_keys = SshPublicKey::parse_all("k", KEY.as_bytes()).unwrap();
        bob.password = Some("$6$salt$hash".parse().unwrap());
        Users { others: vec![bob], ..Users::default() }
    }

    fn text(part: Option<UserData>) -> String {
        String::from_utf8(part.unwrap().content().to_vec()).unwrap()
    }

    #[test]
    fn others_stand_beside_the_images_default_user() {
        let users = users();
        expect_test::expect![[r##"
            #cloud-config
            users:
              - "default"
              - name: "bob"
                lock_passwd: false
                hashed_passwd: "$6$salt$hash"
                ssh_authorized_keys:
                  - "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f"
        "##]]
        .assert_eq(&text(users.part()));
        for (user_data, has_default) in [
            ("#!/bin/sh\n", true),
            ("#cloud-config\nruncmd: [a]\n", true),
            ("#cloud-config\nusers: [eve]\n", false),
        ] {
            let behind = text(users.part_behind(&[UserData::parse("u", user_data).unwrap()]));
            assert!(behind.starts_with("#cloud-config\nmerge_how: \"dict(no_replace,"), "{behind}");
            assert_eq!(behind.contains("\"default\""), has_default, "{user_data}");
        }
        assert_eq!(Users::default().part(), None);
        assert_eq!(Users::default().part_behind(&[]), None);
    }

    #[test]
    fn the_default_user_is_renamed_with_its_password_and_keeps_its_rights() {
        let password = Some("$6$salt$hash".parse().unwrap());
        let mut users = Users { default_password: password, ..Users::default() };
        let unnamed = "#cloud-config\npassword: \"$6$salt$hash\"\nchpasswd:\n  expire: false\n\
            users:\n  - \"default\"\n";
        assert_eq!(text(users.part()), unnamed);
        users.default_name = Some("me".parse().unwrap());
        let named = "#cloud-config\nuser:\n  name: \"me\"\n  lock_passwd: false\n  \
            hashed_passwd: \"$6$salt$hash\"\n";
        assert_eq!(text(users.part()), named);
        users.default_password = Some("$y$j9T$salt$hash".parse().unwrap());
        users.check().unwrap();
        users.default_name = None;
        let error = users.check().unwrap_err().to_string();
        assert_eq!(error, "cloud-init takes this kind of hash only for a user with a name");
    }

    #[test]
    fn user_names_are_useradds() {
        for name in ["bob", "_x", "a-1_b", &"a".repeat(32)] {
            assert!(name.parse::<UserName>().is_ok(), "{name}");
        }
        for name in
            ["", "Bob", "1a", "-a", "a b", "a:b", "\u{e4}", "a.b", "default", &"a".repeat(33)]
        {
            assert!(name.parse::<UserName>().is_err(), "{name}");
        }
    }
}
