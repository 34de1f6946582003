//! Tables of user-data and vendor-data beside flags, with what is said of them.

use crate::{ErrorKind, Seed, SshPublicKey, User, UserData};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// A seed with these of its flags: `bob`, with key and password; `me`, the default user's name; `pw`,
/// its password; `key`, its key; `agent`.
fn seed(flags: &str) -> Seed {
    let mut seed = Seed::new("web".parse().unwrap());
    let keys = SshPublicKey::parse_all("k", KEY.as_bytes()).unwrap();
    for flag in flags.split(' ') {
        let hash = Some("$6$salt$hash".parse().unwrap());
        match flag {
            "bob" => {
                let mut bob = User::new("bob".parse().unwrap());
                (bob.ssh_keys, bob.password) = (keys.clone(), hash);
                seed.users.others.push(bob);
            }
            "me" => seed.users.default_name = Some("me".parse().unwrap()),
            "pw" => seed.users.default_password = hash,
            "key" => seed.ssh_keys.clone_from(&keys),
            "agent" => seed.users.agent_manages_ssh = true,
            other => panic!("{other}"),
        }
    }
    seed
}

fn said(seed: &Seed) -> Option<String> {
    let error = super::check(seed).err()?;
    assert_eq!(error.kind(), ErrorKind::Conflict);
    Some(error.to_string())
}

/// The message without `` `u`:  ``, or nothing if the seed is taken.
const CASES: &[(&str, &str, &str)] = &[
    ("me", "user: you\n", "`user` names the default user, and so does `--user me`"),
    ("bob", "user: you\n", ""),
    ("bob", "user: {name: bob}\n", "`user` names `bob`, and so does a flag"),
    ("bob", "password: x\n", ""),
    ("me", "password: x\n", ""),
    ("pw", "password: x\n", "`password` is the default user's, who has one from a flag"),
    ("me pw", "password: x\n", "`password` is the default user's, who has one from a flag"),
    ("bob", "users: bob,eve\n", "`users` is not a list, to which others could be added"),
    ("bob", "users:\n", "`users` is not a list, to which others could be added"),
    ("me agent", "users: {carol: {}}\n", ""),
    ("me agent", "users:\n", ""),
    ("agent", "runcmd:\n", "`runcmd` is not a list, to which others could be added"),
    ("bob", "runcmd:\n", ""),
    ("bob", "users: [default, {name: eve, passwd: x}]\n", ""),
    ("bob", "users: [{name: bob, sudo: ALL}]\n", ""),
    (
        "bob",
        "users: [{name: bob, ssh-authorized-keys: []}]\n",
        "user `bob` has `ssh_authorized_keys` here, and from a flag",
    ),
    (
        "bob",
        "users: [{name: bob}, {name: bob, plain_text_passwd: x}]\n",
        "user `bob` has `plain_text_passwd` here, and from a flag",
    ),
    (
        "me",
        "users: [default, {name: me, sudo: ALL}]\n",
        "user `me` is listed, and by `--user me` the default user",
    ),
    (
        "me pw",
        "users: [{name: default, lock_passwd: true}]\n",
        "user `default` has `lock_passwd` here, and from a flag",
    ),
    (
        "pw",
        "users: [{hashed_passwd: x}]\n",
        "user `default` has `hashed_passwd` here, and from a flag",
    ),
    (
        "pw",
        "chpasswd: {users: [{name: eve, password: x}]}\n",
        "`chpasswd` has more than `expire`, and the default user a password from a flag, which would \
         not count",
    ),
    ("pw", "chpasswd: {expire: true}\n", ""),
    ("bob", "chpasswd: {list: 'eve:x'}\n", ""),
    (
        "bob",
        "chpasswd: {list: [\"eve:x\", \"bob:x\"]}\n",
        "user `bob` has a password in `chpasswd`, and from a flag",
    ),
    (
        "bob",
        "chpasswd:\n  list: |\n    bob:x\n",
        "user `bob` has a password in `chpasswd`, and from a flag",
    ),
    (
        "me pw",
        "chpasswd: {users: [{name: me, password: x}]}\n",
        "user `me` has a password in `chpasswd`, and from a flag",
    ),
    (
        "me",
        "locale: a\nlocale: b\nuser: al\n",
        "`user` names the default user, and so does `--user me`",
    ),
    (
        "bob",
        "write_files: [{path: /x, content: !!binary /w==}]\nusers: [{name: bob, passwd: x}]\n",
        "user `bob` has `passwd` here, and from a flag",
    ),
    ("bob", "users: [\n", ""),
    ("key", "runcmd: [a]\n", ""),
    ("key", "users: [default]\n", ""),
    ("key", "users: [{sudo: ALL}]\n", ""),
    ("key", "users: [carol]\ndisable_root: false\n", ""),
    ("key me", "users: [carol]\n", ""),
    ("key pw", "users: [carol]\n", ""),
    ("key", "users: [carol]\n", "`users` leaves out the default user, whose keys a flag gives"),
    ("key", "users: []\n", "`users` leaves out the default user, whose keys a flag gives"),
];

#[test]
fn user_data_that_says_something_else_than_the_flags_is_refused_in_every_packing() {
    for (flags, config, message) in CASES {
        let mut seed = seed(flags);
        let mime = "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\n#cloud-config\n";
        for data in [
            format!("#cloud-config\n{config}"),
            format!("{mime}{config}"),
            format!("#cloud-config-archive\n- {{content: {config:?}}}\n"),
            format!("## template: jinja\n#cloud-config\n{config}"),
        ] {
            // Of a template that is no YAML nobody knows what the guest makes of it.
            if data.starts_with("##") && *config == "users: [\n" {
                continue;
            }
            seed.user_data = vec![UserData::parse("u", data.clone()).unwrap()];
            let expected = (!message.is_empty()).then(|| format!("`u`: {message}"));
            assert_eq!(said(&seed), expected, "{flags}: {data}");
        }
    }
}

#[test]
fn templates_that_may_say_something_of_users_are_refused_beside_flags() {
    let head = "## template: jinja\n#cloud-config\n";
    for (flags, template, message) in [
        ("bob", "{% if a %}\nusers: [eve]\n{% endif %}\n", "`users`"),
        ("pw", "{% if a %}\n\"chpasswd\": {}\n{% endif %}\n", "`chpasswd`"),
        ("bob", "users: [\n", "`users`"),
        ("bob", "{% if a %}\nruncmd: [eve]\n{% endif %}\n", ""),
        ("agent", "{% if a %}\nusers: [eve]\n{% endif %}\n", ""),
        ("key", "{% if a %}\nusers: [eve]\n{% endif %}\n", ""),
        ("bob", "users: [{name: '{{ v1.x }}', passwd: x}]\n", ""),
        ("key", "users: [{name: '{{ v1.x }}'}]\n", ""),
    ] {
        let mut seed = seed(flags);
        seed.user_data = vec![UserData::parse("u", format!("{head}{template}")).unwrap()];
        let what =
            |key| format!("`u`: what this template makes of {key} is known to the guest only");
        assert_eq!(
            said(&seed),
            (!message.is_empty()).then(|| what(message)),
            "{flags}: {template}"
        );
    }
}

#[test]
fn vendor_data_that_would_give_way_to_flags_is_refused() {
    let lost = |key| Some(format!("`v`: flags make `{key}`, to which the vendor's gives way"));
    for (flags, vendor, user, expected) in [
        ("bob", "users: [default, {name: ops}]\n", "", lost("users")),
        ("agent", "runcmd: [a]\n", "", lost("runcmd")),
        (
            "me",
            "user: {sudo: ALL}\n",
            "",
            Some("`v`: `user` names the default user, and so does `--user me`".to_owned()),
        ),
        ("bob", "runcmd: [a]\n", "", None),
        // The user-data's list takes the place of the vendor's in any case.
        ("bob", "users: [default, {name: ops}]\n", "users: [default]\n", None),
        ("key", "users: [default, {name: ops}]\n", "", None),
        ("key", "users: [{name: ops}]\n", "users: [default]\n", None),
        (
            "key",
            "users: [{name: ops}]\n",
            "",
            Some("`v`: `users` leaves out the default user, whose keys a flag gives".to_owned()),
        ),
    ] {
        let mut seed = seed(flags);
        let config = |name, text| UserData::parse(name, format!("#cloud-config\n{text}")).unwrap();
        seed.vendor_data = vec![config("v", vendor)];
        seed.user_data = vec![config("u", user)];
        assert_eq!(said(&seed), expected, "{flags}: {vendor}");
    }
}

#[test]
fn the_remedy_names_a_user_of_the_list() {
    use bootyard_spec::Explain as _;
    let mut seed = seed("key");
    seed.user_data = vec![UserData::parse("u", "#cloud-config\nusers: [{name: carol}]\n").unwrap()];
    let hint = super::check(&seed).unwrap_err().hint().unwrap();
    assert_eq!(hint, "say whose they are, as in `--ssh-key carol=…`, or add `- default`");
}
