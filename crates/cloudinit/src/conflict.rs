//! What flags say of users, and user-data or vendor-data says otherwise: cloud-init would take only one
//! of both, and tell nobody. Here that is an error.

use serde_json::{Map, Value};

use crate::lint::{Config, configs};
use crate::user::DEFAULT;
use crate::{Error, ErrorKind, Seed, UserData, Users};

/// The keys by which a user of cloud-init's list has SSH keys, and a password.
const KEYS: [&str; 1] = ["ssh_authorized_keys"];
const PASSWORDS: [&str; 4] = ["lock_passwd", "passwd", "hashed_passwd", "plain_text_passwd"];

/// The keys of a cloud-config that say something of users.
const OF_USERS: [&str; 4] = ["user", "users", "password", "chpasswd"];

const LEAVE_OUT: &str = "leave out one of both: cloud-init would take only one";

/// Refuses a seed of which the guest would not do all that the flags say.
pub(crate) fn check(seed: &Seed) -> Result<(), Error> {
    if seed.users == Users::default() && seed.ssh_keys.is_empty() {
        return Ok(());
    }
    let read = |data: &[UserData]| -> Vec<(String, Config)> {
        let of = |data: &UserData| (data.input().to_owned(), data.content().to_vec());
        let named = data.iter().map(of);
        named
            .flat_map(|(input, content)| {
                configs(&content).into_iter().map(move |config| (input.clone(), config))
            })
            .collect()
    };
    let (users, vendors) = (read(&seed.user_data), read(&seed.vendor_data));
    for (input, config) in users.iter().chain(&vendors) {
        check_config(&seed.users, config).map_err(|error| error.in_input(input))?;
    }
    let made = seed.users.keys();
    for (input, config) in &vendors {
        let is_lost =
            |key: &&String| config.has(key) && !users.iter().any(|(_, config)| config.has(key));
        if let Some(key) = made.iter().find(is_lost) {
            let what = format!("flags make `{key}`, to which the vendor's gives way");
            let hint = "put it into the user-data, or leave out the flags";
            return Err(conflict(what, hint).in_input(input));
        }
    }
    check_keys(seed, &users, &vendors)
}

fn conflict(what: impl Into<String>, hint: impl Into<String>) -> Error {
    Error::new(ErrorKind::Conflict, what).with_hint(hint)
}

fn check_config(users: &Users, config: &Config) -> Result<(), Error> {
    let map = match config {
        Config::Read(map) => map,
        Config::Template(_) => return check_template(users, config),
    };
    for key in users.keys().iter().filter(|key| ["users", "runcmd"].contains(&key.as_str())) {
        if map.get(key).is_some_and(|value| !value.is_array()) {
            let what = format!("`{key}` is not a list, to which others could be added");
            return Err(conflict(what, "write one item to a line, each after `- `"));
        }
    }
    let said = check_default(users, map)
        .and_then(|()| check_chpasswd(users, map))
        .and_then(|()| check_list(users, map));
    said.map_err(|what| conflict(what, LEAVE_OUT))
}

fn check_template(users: &Users, config: &Config) -> Result<(), Error> {
    let is_of_users = users.default_name.is_some()
        || users.default_password.is_some()
        || !users.others.is_empty();
    match OF_USERS.iter().find(|key| is_of_users && config.has(key)) {
        Some(key) => {
            let what = format!("what this template makes of `{key}` is known to the guest only");
            Err(conflict(what, "describe all users in the template, and leave out the flags"))
        }
        None => Ok(()),
    }
}

/// What is said of the default user outside the list.
fn check_default(users: &Users, config: &Map<String, Value>) -> Result<(), String> {
    if let Some(user) = config.get("user") {
        if let Some(name) = &users.default_name {
            return Err(format!("`user` names the default user, and so does `--user {name}`"));
        }
        let named = user.get("name").unwrap_or(user);
        if let Some(other) = users.others.iter().find(|other| named == other.name.as_str()) {
            return Err(format!("`user` names `{}`, and so does a flag", other.name));
        }
    }
    if users.default_password.is_some() && config.contains_key("password") {
        return Err("`password` is the default user's, who has one from a flag".to_owned());
    }
    Ok(())
}

/// cloud-init gives the users in `chpasswd` their passwords last, and the default user none if there
/// are any.
fn check_chpasswd(users: &Users, config: &Map<String, Value>) -> Result<(), String> {
    let Some(chpasswd) = config.get("chpasswd") else { return Ok(()) };
    if users.default_name.is_none() && users.default_password.is_some() {
        let only_expires =
            chpasswd.as_object().is_some_and(|map| map.keys().eq(["expire"].iter().copied()));
        return match only_expires {
            true => Ok(()),
            false => {
                Err("`chpasswd` has more than `expire`, and the default user a password from \
                          a flag, which would not count"
                    .to_owned())
            }
        };
    }
    let lines = match chpasswd.get("list") {
        Some(Value::String(text)) => text.lines().collect(),
        Some(Value::Array(items)) => items.iter().filter_map(Value::as_str).collect(),
        _ => Vec::new(),
    };
    let lines = lines.into_iter().filter_map(|line| Some(line.split_once(':')?.0.trim()));
    let entries = chpasswd.get("users").and_then(Value::as_array);
    let entries = entries.into_iter().flatten().filter_map(|user| user.get("name")?.as_str());
    let mut names = lines.chain(entries);
    match names.find(|name| has_password(users, name)) {
        Some(name) => Err(format!("user `{name}` has a password in `chpasswd`, and from a flag")),
        None => Ok(()),
    }
}

fn has_password(users: &Users, name: &str) -> bool {
    let default = users.default_name.as_ref().filter(|_| users.default_password.is_some());
    let others = users.others.iter().filter(|user| user.password.is_some()).map(|user| &user.name);
    default.into_iter().chain(others).any(|with| with.as_str() == name)
}

fn check_list(users: &Users, config: &Map<String, Value>) -> Result<(), String> {
    for (name, theirs) in config.get("users").into_iter().flat_map(listed) {
        let says = |keys: &[&'static str]| {
            let has = |key: &&str| {
                theirs.get(*key).or_else(|| theirs.get(key.replace('_', "-"))).is_some()
            };
            keys.iter().copied().find(has)
        };
        if users.default_name.as_ref().is_some_and(|ours| ours.as_str() == name) {
            return Err(format!(
                "user `{name}` is listed, and by `--user {name}` the default user"
            ));
        }
        let (has_password, has_keys) = match name {
            DEFAULT => (users.default_password.is_some(), false),
            _ => match users.others.iter().find(|user| user.name.as_str() == name) {
                Some(user) => (user.password.is_some(), !user.ssh_keys.is_empty()),
                None => continue,
            },
        };
        let password = has_password.then(|| says(&PASSWORDS)).flatten();
        if let Some(key) = password.or_else(|| has_keys.then(|| says(&KEYS)).flatten()) {
            return Err(format!("user `{name}` has `{key}` here, and from a flag"));
        }
    }
    Ok(())
}

/// The users of `users` as cloud-init names them: who has no name is the default user.
fn listed(users: &Value) -> Vec<(&str, &Value)> {
    let split = |text| str::split(text, [',', ' ']).filter(|name| !name.is_empty());
    match users {
        Value::String(names) => split(names).map(|name| (name, &Value::Null)).collect(),
        Value::Object(map) => map.iter().map(|(name, user)| (name.as_str(), user)).collect(),
        Value::Array(items) => items
            .iter()
            .flat_map(|item| match item {
                Value::Object(map) => {
                    let name = map.get("name").map_or(DEFAULT, |name| name.as_str().unwrap_or(""));
                    vec![(name, item)]
                }
                Value::Array(names) => {
                    let names = names.iter().filter_map(Value::as_str);
                    names.map(|name| (name, &Value::Null)).collect()
                }
                Value::String(names) if !names.is_empty() => listed(item),
                // What a template puts there.
                _ => vec![("", item)],
            })
            .collect(),
        _ => Vec::new(),
    }
}

/// Keys without a user are the default user's. If a list leaves that one out, nobody gets them.
fn check_keys(
    seed: &Seed,
    users: &[(String, Config)],
    vendors: &[(String, Config)],
) -> Result<(), Error> {
    let has_default = seed.users.default_name.is_some() || seed.users.default_password.is_some();
    // With these, somebody else may get the keys.
    let has_another = users.iter().chain(vendors).any(|(_, config)| {
        config.has("user") || config.has("disable_root") || matches!(config, Config::Template(_))
    });
    if seed.ssh_keys.is_empty() || has_default || has_another {
        return Ok(());
    }
    let lists = |all: &mut dyn Iterator<Item = &(String, Config)>| -> Vec<(String, Value)> {
        all.filter_map(|(input, config)| Some((input.clone(), config.get("users")?.clone())))
            .collect()
    };
    let mut found = lists(&mut users.iter());
    if found.is_empty() {
        found = lists(&mut vendors.iter());
    }
    let mut names = found.iter().flat_map(|(_, list)| listed(list));
    let Some((input, list)) = found.last() else { return Ok(()) };
    if names.any(|(name, _)| name == DEFAULT || name.is_empty()) {
        return Ok(());
    }
    let user = listed(list).first().map_or("USER", |(name, _)| *name).to_owned();
    let what = "`users` leaves out the default user, whose keys a flag gives";
    let hint = format!("say whose they are, as in `--ssh-key {user}=…`, or add `- default`");
    Err(conflict(what, hint).in_input(input))
}

#[cfg(test)]
mod tests;
