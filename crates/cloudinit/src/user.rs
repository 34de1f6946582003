//! Who may log in: the guest's default user and others, as the cloud-config that makes them.
//!
//! cloud-init merges cloud-configs part by part, and a later part's `users` takes the place of an
//! earlier one's. So that the user's own list counts and ours is not lost, there are two parts of ours:
//! one before the user's, which asks for the image's default user as an image does itself, and gives
//! way to any list of the user's; and one behind it, which appends.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use crate::yaml::Yaml;
use crate::{Error, ErrorKind, Format, Parts, PasswordHash, SshPublicKey, UserData};

/// Longest name of a user (`LOGIN_NAME_MAX` of the shadow tools).
const NAME_MAX: usize = 32;

/// How cloud-init merges our part behind the user's: what is there stays, lists grow.
const MERGE: &str = "dict(no_replace,recurse_list)+list(append)+str()";

/// The default user in cloud-init's lists, whatever the image calls it.
const DEFAULT: &str = "default";

/// The keys by which a user of cloud-init's list has SSH keys, and a password.
const KEYS_KEY: &str = "ssh_authorized_keys";
const PASSWORD_KEYS: [&str; 4] = ["lock_passwd", "passwd", "hashed_passwd", "plain_text_passwd"];

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
            entry.push((KEYS_KEY.to_owned(), Yaml::texts(&self.ssh_keys)));
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
    /// The part that goes before the user's own, if one is needed.
    pub(crate) fn part_before(&self) -> Option<UserData> {
        let names_default = self.default_name.is_some() || self.default_password.is_some();
        let is_needed = !self.others.is_empty() && !names_default;
        is_needed.then(|| part(vec![("users".to_owned(), Yaml::texts(&[DEFAULT]))]))
    }

    /// The part that goes behind the user's own, if there is anything to say.
    pub(crate) fn part_behind(&self) -> Option<UserData> {
        let mut entries = self.entries();
        if entries.is_empty() {
            return None;
        }
        entries.insert(0, ("merge_how".to_owned(), Yaml::text(MERGE)));
        Some(part(entries))
    }

    /// Both parts as one, for a seed without user-data.
    pub(crate) fn only_part(&self) -> Option<UserData> {
        let mut entries = self.entries();
        if self.part_before().is_some()
            && let Some((_, Yaml::List(users))) = entries.iter_mut().find(|(key, _)| key == "users")
        {
            users.insert(0, Yaml::text(DEFAULT));
        }
        (!entries.is_empty()).then(|| part(entries))
    }

    fn entries(&self) -> Vec<(String, Yaml)> {
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

    /// Refuses user-data that says something else about the same users: one of both would be lost.
    pub(crate) fn check_against(&self, data: &UserData) -> Result<(), Error> {
        if *self == Self::default() {
            return Ok(());
        }
        for part in Parts::of(data.content()).parts {
            let checked = match part.format {
                Some(Format::CloudConfig) => self.check_config(&part.content),
                Some(Format::CloudConfigArchive) => self.check_archive(&part.content),
                _ => Ok(()),
            };
            checked.map_err(|error| error.in_input(data.input()))?;
        }
        Ok(())
    }

    /// What has no header in an archive is a cloud-config, too.
    fn check_archive(&self, archive: &[u8]) -> Result<(), Error> {
        let text = std::str::from_utf8(archive).unwrap_or_default();
        let items = serde_saphyr::from_str::<Vec<Value>>(text).unwrap_or_default();
        let contents = items.iter().filter_map(|item| item.get("content").unwrap_or(item).as_str());
        contents.into_iter().try_for_each(|content| self.check_config(content.as_bytes()))
    }

    /// What is no YAML is for the linter to tell.
    fn check_config(&self, config: &[u8]) -> Result<(), Error> {
        let text = std::str::from_utf8(config).unwrap_or_default();
        let Ok(config) = serde_saphyr::from_str::<Value>(text) else { return Ok(()) };
        let twice = |what: String| {
            let hint = "leave out one of both: cloud-init would take only one";
            Error::new(ErrorKind::Conflict, what).with_hint(hint)
        };
        if let (Some(name), Some(_)) = (&self.default_name, config.get("user")) {
            let what = format!("`user` names the default user, and so does `--user {name}`");
            return Err(twice(what));
        }
        if self.default_name.is_none()
            && self.default_password.is_some()
            && config.get("password").is_some()
        {
            return Err(twice(
                "`password` is the default user's, who has one from a flag".to_owned(),
            ));
        }
        match config.get("users") {
            None => Ok(()),
            Some(Value::Array(users)) => self.check_list(users).map_err(twice),
            Some(_) => {
                let what = "`users` is not a list, to which others could be added";
                let hint = "write one user to a line, each after `- `";
                Err(Error::new(ErrorKind::Conflict, what).with_hint(hint))
            }
        }
    }

    fn check_list(&self, users: &[Value]) -> Result<(), String> {
        let others = self
            .others
            .iter()
            .map(|user| (user.name.as_str(), user.password.is_some(), !user.ssh_keys.is_empty()));
        for (name, has_password, has_keys) in others {
            let Some(theirs) = users.iter().find(|user| user.get("name") == Some(&name.into()))
            else {
                continue;
            };
            let says = |keys: &'static [&'static str]| {
                keys.iter().find(|key| {
                    theirs.get(**key).or_else(|| theirs.get(key.replace('_', "-"))).is_some()
                })
            };
            let password = says(&PASSWORD_KEYS).filter(|_| has_password);
            if let Some(key) = password.or_else(|| says(&[KEYS_KEY]).filter(|_| has_keys)) {
                return Err(format!("user `{name}` has `{key}` here, and from a flag"));
            }
        }
        Ok(())
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
        .assert_eq(&text(users.only_part()));
        assert_eq!(text(users.part_before()), "#cloud-config\nusers:\n  - \"default\"\n");
        let behind = text(users.part_behind());
        assert!(behind.starts_with("#cloud-config\nmerge_how: \"dict(no_replace,"), "{behind}");
        assert!(!behind.contains("\"default\""), "{behind}");
        assert_eq!(Users::default().only_part(), None);
        assert_eq!(Users::default().part_before(), None);
        assert_eq!(Users::default().part_behind(), None);
    }

    #[test]
    fn the_default_user_is_renamed_with_its_password_and_keeps_its_rights() {
        let password = Some("$6$salt$hash".parse().unwrap());
        let mut users = Users { default_password: password, ..Users::default() };
        let unnamed = "#cloud-config\npassword: \"$6$salt$hash\"\nchpasswd:\n  expire: false\n\
            users:\n  - \"default\"\n";
        assert_eq!(text(users.only_part()), unnamed);
        users.default_name = Some("me".parse().unwrap());
        let named = "#cloud-config\nuser:\n  name: \"me\"\n  lock_passwd: false\n  \
            hashed_passwd: \"$6$salt$hash\"\n";
        assert_eq!(text(users.only_part()), named);
        assert_eq!(users.part_before(), None);
        users.default_password = Some("$y$j9T$salt$hash".parse().unwrap());
        users.check().unwrap();
        users.default_name = None;
        let error = users.check().unwrap_err().to_string();
        assert_eq!(error, "cloud-init takes this kind of hash only for a user with a name");
    }

    #[test]
    fn user_data_that_says_the_same_twice_is_refused() {
        let mut named = users();
        named.default_name = Some("me".parse().unwrap());
        named.default_password = named.others[0].password.clone();
        let unnamed = Users { default_name: None, ..named.clone() };
        for (users, config, message) in [
            (
                &named,
                "user: you\n",
                Some("`u`: `user` names the default user, and so does `--user me`"),
            ),
            (&users(), "user: you\n", None),
            (&users(), "password: x\n", None),
            (
                &unnamed,
                "password: x\n",
                Some("`u`: `password` is the default user's, who has one from a flag"),
            ),
            (
                &users(),
                "users: bob,eve\n",
                Some("`u`: `users` is not a list, to which others could be added"),
            ),
            (&users(), "users: [default, {name: eve, passwd: x}]\n", None),
            (&users(), "users: [{name: bob, sudo: ALL}]\n", None),
            (
                &users(),
                "users: [{name: bob, ssh-authorized-keys: []}]\n",
                Some("`u`: user `bob` has `ssh_authorized_keys` here, and from a flag"),
            ),
            (
                &users(),
                "users: [{name: bob, plain_text_passwd: x}]\n",
                Some("`u`: user `bob` has `plain_text_passwd` here, and from a flag"),
            ),
            (&users(), "users: [\n", None),
            (&Users::default(), "users: bob\nuser: bob\n", None),
        ] {
            let part = UserData::parse("u", format!("#cloud-config\n{config}")).unwrap();
            let said = users.check_against(&part).map_err(|error| error.to_string());
            assert_eq!(said.err().as_deref(), message, "{config}");
            let head = "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n#cloud-config\n";
            let archive = format!("#cloud-config-archive\n- {{content: {config:?}}}\n");
            for data in [format!("{head}{config}"), archive] {
                let said = users.check_against(&UserData::parse("u", data).unwrap());
                let said = said.map_err(|error| error.to_string()).err();
                assert_eq!(said.as_deref(), message, "{config}");
            }
        }
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
