//! cloud-init's own code merges the parts of a seed: no user gets lost, of whichever origin.

use bootyard_cloudinit::{Datasource, Seed, SshPublicKey, User, UserData};
use bootyard_testkit::{answer, cloud_init, skip};
use serde_json::{Value, json};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

const HASH: &str = "$6$salt$hash";

/// Takes user-data apart and merges it as cloud-init does at a boot, over the `users` that every image
/// has. Prints the cloud-config and the users that would be made of it, `debian` being the default.
const MERGE: &str = r#"
import json, sys, tempfile
from cloudinit import handlers, helpers, user_data, util
from cloudinit.distros import ug_util
from cloudinit.handlers import cloud_config

folder = tempfile.mkdtemp()
paths = helpers.Paths({"cloud_dir": folder, "run_dir": folder})
handler = cloud_config.CloudConfigPartHandler(paths)
handler.cloud_fn = folder + "/merged"
handler.handle_part(None, handlers.CONTENT_START, None, None, None, None)
for part in user_data.UserDataProcessor(paths).process(sys.stdin.buffer.read()).walk():
    if part.is_multipart():
        continue
    text = util.fully_decoded_payload(part)
    kind = part.get_content_type()
    if kind == "text/x-not-multipart":
        kind = handlers.type_from_starts_with(text)
    if kind == "text/cloud-config":
        handler.handle_part(None, kind, part.get_filename(), text, None, dict(part))
handler.handle_part(None, handlers.CONTENT_END, None, None, None, None)
config = util.load_yaml(open(folder + "/merged").read())
config = util.mergemanydict([config, {"users": ["default"]}])

class Debian:
    def get_default_user(self):
        return {"name": "debian", "lock_passwd": True, "groups": ["adm"], "sudo": ["ALL"]}

users, _ = ug_util.normalize_users_groups(config, Debian())
print(json.dumps([config, users]))
"#;

/// The merged cloud-config, and the users.
fn merged(seed: &Seed) -> (Value, Value) {
    let files = seed.files(Datasource::NoCloud).expect("a seed");
    let user_data = files.get("user-data").expect("every seed has it");
    let mut python = cloud_init().expect("the test is skipped without it");
    let found = answer(python.args(["-c", MERGE]), user_data);
    serde_json::from_slice(&found).expect("two objects")
}

fn seed(user_data: &[&str]) -> Seed {
    let mut seed = Seed::new("web".parse().expect("a host name"));
    let part = |text: &&str| UserData::parse("u", *text).expect("user-data");
    seed.user_data = user_data.iter().map(part).collect();
    let mut bob = User::new("bob".parse().expect("a user"));
    bob.ssh_keys = SshPublicKey::parse_all("k", KEY.as_bytes()).expect("a key");
    bob.password = Some(HASH.parse().expect("a hash"));
    seed.users.others.push(bob);
    seed
}

fn names(users: &Value) -> Vec<&str> {
    users.as_object().expect("users by their names").keys().map(String::as_str).collect()
}

#[test]
fn users_of_flags_stand_beside_those_of_the_user_data() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    let carol = "#cloud-config\nusers: [{name: carol}]\n";
    let with_default = "#cloud-config\nusers: [default, {name: carol}]\nruncmd: [a]\n";
    let no_replace =
        "#cloud-config\nmerge_how: dict(no_replace)+list()+str()\nusers: [{name: carol}]\n";
    let recursive = "#cloud-config\nmerge_how: list(append)+dict(recurse_array)+str()\n\
        users: [{name: carol}]\n";
    let merge_type = "MIME-Version: 1.0\nContent-Type: text/cloud-config\n\
        Merge-Type: list(append)+dict(recurse_array)+str()\n\n#cloud-config\nusers: [{name: carol}]\n";
    for (user_data, expected) in [
        (&[][..], &["bob", "debian"][..]),
        (&["#!/bin/sh\n"], &["bob", "debian"]),
        (&["#cloud-config\nruncmd: [a]\n"], &["bob", "debian"]),
        (&[carol], &["bob", "carol"]),
        (&[with_default, "#!/bin/sh\n"], &["bob", "carol", "debian"]),
        (&["#cloud-config\nusers: []\n"], &["bob"]),
        (&["#cloud-config\nusers: [{name: bob, sudo: ALL}]\n"], &["bob"]),
        (
            &["#cloud-config-archive\n- '#cloud-config\n\n  users: [{name: carol}]'\n"],
            &["bob", "carol"],
        ),
        // The user's own ways of merging, which count for the user's own parts only.
        (&[no_replace], &["bob", "carol"]),
        (&[recursive], &["bob", "carol"]),
        (&[with_default, recursive], &["bob", "carol", "debian"]),
        (&[merge_type], &["bob", "carol"]),
    ] {
        let (_, users) = merged(&seed(user_data));
        assert_eq!(names(&users), expected, "{user_data:?}");
        assert_eq!(users["bob"]["hashed_passwd"], HASH);
        assert_eq!(users["bob"]["ssh_authorized_keys"], json!([KEY]));
    }
    let (_, users) = merged(&seed(&["#cloud-config\nusers: [{name: bob, sudo: ALL}]\n"]));
    assert_eq!(users["bob"]["sudo"], "ALL");
}

#[test]
fn the_default_user_is_renamed_or_gets_its_password_and_keeps_its_rights() {
    if cloud_init().is_none() {
        skip!("no cloud-init; `cargo xtask setup` unpacks it");
    }
    for user_data in [&[][..], &["#cloud-config\nusers: [{name: carol}]\nruncmd: [a]\n"]] {
        let mut seed = seed(user_data);
        seed.users.agent_manages_ssh = true;
        seed.users.default_password = Some(HASH.parse().unwrap());
        let (config, users) = merged(&seed);
        assert_eq!(config["password"], HASH);
        assert_eq!(config["chpasswd"], json!({"expire": false}));
        assert_eq!(users["debian"]["sudo"], json!(["ALL"]));
        assert_eq!(config["runcmd"].as_array().unwrap().len(), 1 + user_data.len());

        seed.users.default_name = Some("me".parse().unwrap());
        let (config, users) = merged(&seed);
        assert_eq!(config.get("password"), None);
        assert_eq!(users.get("debian"), None);
        assert_eq!(users["me"]["hashed_passwd"], HASH);
        assert_eq!(users["me"]["lock_passwd"], json!(false));
        assert_eq!(
            [&users["me"]["groups"], &users["me"]["default"]],
            [&json!("adm"), &json!(true)]
        );
        assert!(names(&users).contains(&"bob"));
    }
}
