//! `bootyard seed build` with users, secrets and networks, as PyYAML and Python's MIME parser, which
//! cloud-init uses, read what it makes.

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Stdio};

use bootyard_testkit::{Cli, require_tool, run, sha256_file};
use expect_test::expect;
use serde_json::{Value, json};

const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f me";

/// Every leaf of user-data as `[content type, what is in it]`: YAML for a cloud-config, else the text.
const LEAVES: &str = "\
import email, json, sys, yaml
raw = open(sys.argv[1]).read()
message = email.message_from_string(raw)
def leaf(kind, text):
    if text.startswith('#cloud-config\\n'):
        return [kind, yaml.safe_load(text)]
    return [kind, text]
if message.is_multipart():
    parts = [p for p in message.walk() if not p.is_multipart()]
    print(json.dumps([leaf(p.get_content_type(), p.get_payload(decode=True).decode()) for p in parts]))
else:
    print(json.dumps([leaf('', raw)]))
";

fn cli(files: &[(&str, &str)]) -> Cli {
    let cli = Cli::from_env();
    for (name, content) in [("key.pub", KEY)].iter().chain(files) {
        let path = cli.work().join(name);
        fs_err::create_dir_all(path.parent().expect("a folder")).expect("a folder");
        fs_err::write(path, content).expect("a writable folder");
    }
    cli
}

fn has_tools() -> bool {
    require_tool("isoinfo") && require_tool("python3")
}

/// The arguments of a build of `seed.iso`.
fn words<'a>(flags: &[&'a str]) -> Vec<&'a str> {
    [&["seed", "build", "--hostname", "web-1", "-o", "seed.iso"], flags].concat()
}

fn build(cli: &Cli, flags: &[&str]) {
    let output = cli.run(words(flags));
    assert_eq!(output.code, Some(0), "{output}");
}

/// A file of the seed.
fn file(cli: &Cli, path: &str) -> String {
    run(Command::new("isoinfo").args(["-R", "-x", path, "-i"]).arg(cli.work().join("seed.iso")))
}

fn leaves(cli: &Cli) -> Value {
    let text = cli.root().join("user-data");
    fs_err::write(&text, file(cli, "/user-data")).expect("a writable folder");
    let found = run(Command::new("python3").args(["-c", LEAVES]).arg(text));
    serde_json::from_str(&found).expect("the script prints JSON")
}

#[test]
fn users_of_flags_go_behind_the_user_data() {
    if !has_tools() {
        return;
    }
    let config = "#cloud-config\nusers: [{name: carol}]\nruncmd: [a]\n";
    let cli = cli(&[("user.yaml", config), ("script", "#!/bin/sh\necho x\n")]);
    let bob = ["--ssh-key", "bob=key.pub", "--password-hash", "bob=$6$salt$hash"];
    let data = ["--user-data", "user.yaml", "--user-data", "script", "--ga-manage-ssh"];
    build(&cli, &[&bob[..], &data].concat());
    let merge = "dict(no_replace,recurse_list)+list(append)+str()";
    let expected = json!([
        ["text/cloud-config", {"users": [{"name": "carol"}], "runcmd": ["a"]}],
        ["text/x-shellscript", "#!/bin/sh\necho x\n"],
        ["text/cloud-config", {
            "merge_how": merge,
            "users": [{
                "name": "bob",
                "lock_passwd": false,
                "hashed_passwd": "$6$salt$hash",
                "ssh_authorized_keys": [KEY],
            }],
            "runcmd": [["setsebool", "-P", "virt_qemu_ga_manage_ssh", "on"]],
        }],
    ]);
    assert_eq!(leaves(&cli), expected);

    build(&cli, &["--user", "me", "--user", "you", "--ssh-key", KEY]);
    assert_eq!(leaves(&cli), json!([["", {"user": {"name": "me"}, "users": [{"name": "you"}]}]]));
    let meta_data: Value = serde_json::from_str(&file(&cli, "/meta-data")).unwrap();
    assert_eq!(meta_data["public-keys"], json!({"0": KEY}));
}

#[test]
fn keys_come_from_standard_input_too() {
    if !has_tools() {
        return;
    }
    let cli = cli(&[]);
    let mut build = cli.command(words(&["--ssh-key", "bob=-", "--ssh-key", "bob=key.pub"]));
    let mut child = build.stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let second = KEY.replace("HR4f", "HR4e");
    write!(child.stdin.take().unwrap(), "# two\n{second}\n\n{KEY}\n").unwrap();
    assert!(child.wait().unwrap().success());
    let bob = &leaves(&cli)[0][1]["users"][1];
    assert_eq!(bob["ssh_authorized_keys"], json!([second, KEY, KEY]));
}

#[test]
fn a_password_is_hashed_and_nowhere_in_clear() {
    if !has_tools() || !require_tool("openssl") {
        return;
    }
    let cli = cli(&[("password", "correct horse\r\n")]);
    let flags = ["--password-file", "password", "--password-file", "bob=password"];
    let output = cli.run(words(&flags));
    assert_eq!(output.code, Some(0), "{output}");
    let seed = cli.work().join("seed.iso");
    let image = fs_err::read(&seed).unwrap();
    assert!(!image.windows(7).any(|window| window == b"correct"));
    assert!(!output.to_string().contains("correct"));
    assert_eq!(fs_err::metadata(&seed).unwrap().permissions().mode() & 0o777, 0o600);

    let config = &leaves(&cli)[0][1];
    let hashes = [&config["password"], &config["users"][1]["hashed_passwd"]];
    let hashes = hashes.map(|hash| hash.as_str().expect("a hash"));
    assert_ne!(hashes[0], hashes[1]);
    fs_err::write(cli.work().join("line"), "correct horse\n").unwrap();
    for hash in hashes {
        let (salt, _) = hash.strip_prefix("$6$").unwrap().rsplit_once('$').unwrap();
        let words = ["passwd", "-6", "-salt", salt, "-in", "line"];
        let made = run(Command::new("openssl").args(words).current_dir(cli.work()));
        assert_eq!(made.trim_end(), hash);
    }
    let digest = sha256_file(&seed);
    build(&cli, &flags);
    assert_eq!(sha256_file(&seed), digest);
    build(&cli, &[&flags[..], &["--new-instance"]].concat());
    assert_ne!(sha256_file(&seed), digest);
}

#[test]
fn a_megabyte_of_user_data_arrives_whole() {
    if !has_tools() {
        return;
    }
    let config = format!("#cloud-config\n# {}\n", "0123456789abcde\n# ".repeat(1 << 16));
    let cli = cli(&[("user.yaml", &config)]);
    build(&cli, &["--user-data", "user.yaml"]);
    assert!(file(&cli, "/user-data") == config);
    build(&cli, &["--user-data", "user.yaml", "--user-data", "user.yaml"]);
    assert!(file(&cli, "/user-data").matches(&config).count() == 2);
}

#[test]
fn secrets_are_folders_or_manifests() {
    if !has_tools() {
        return;
    }
    let manifest = "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {userData: '#!a', \
        networkdata: 'version: 2', vendordata: '#!v'}\n";
    let cli = cli(&[
        ("secret/userdata", "#!a"),
        ("secret/networkData", "version: 2"),
        ("secret/vendordata", "#!v"),
        ("secret.yaml", manifest),
        ("empty/x", ""),
    ]);
    let [user, network, vendor] =
        ["--user-data-secret", "--network-data-secret", "--vendor-data-secret"];
    for path in ["secret", "secret.yaml"] {
        build(&cli, &[user, path, network, path, vendor, path]);
        assert_eq!(file(&cli, "/user-data"), "#!a");
        assert_eq!(file(&cli, "/network-config"), "version: 2");
        assert_eq!(file(&cli, "/vendor-data"), "#!v");
    }
    build(&cli, &["--user-data-base64", "IyFh", "--network-data-base64", "dmVyc2lvbjog\nMg=="]);
    assert_eq!(file(&cli, "/user-data"), "#!a");
    assert_eq!(file(&cli, "/network-config"), "version: 2");
    crate::check(
        &cli,
        &words(&[user, "empty"]),
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: secret `empty` has neither `userdata` nor `userData`
            hint: `kubectl create secret generic NAME --from-file=userdata=FILE` makes one, and so does a file `empty/userdata`"#]],
    );
}

#[test]
fn meta_data_counts_before_what_flags_make() {
    if !has_tools() {
        return;
    }
    let meta = "local-hostname: web-2\ninstance-id: i-7\nregion: no\nmode: 0755\nlist: [1, a]\n";
    let cli = cli(&[("meta.yaml", meta)]);
    let flags =
        ["seed", "build", "-o", "seed.iso", "--meta-data", "meta.yaml", "--instance-type", "u1"];
    let line = cli.run([&flags[..], &["--json"]].concat());
    let line: Value = serde_json::from_str(&line.stdout).unwrap();
    assert_eq!(line["instance_id"], "i-7");
    assert_eq!(line["hostname"], "web-2");
    let found: Value = serde_json::from_str(&file(&cli, "/meta-data")).unwrap();
    let expected = json!({"local-hostname": "web-2", "instance-id": "i-7", "instance-type": "u1",
        "region": false, "mode": 493, "list": [1, "a"]});
    assert_eq!(found, expected);
    let drive = cli.run([&flags[..], &["--datasource", "configdrive"]].concat());
    assert_eq!(drive.code, Some(0), "{drive}");
    let found = file(&cli, "/openstack/latest/meta_data.json");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(
        [&found["uuid"], &found["instance_id"], &found["hostname"]],
        ["i-7", "i-7", "web-2"]
    );
    crate::check(
        &cli,
        &words(&["--meta-data", "meta.yaml"]),
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: `--hostname` is given, and the meta-data file has `local-hostname`
            hint: leave out `--hostname`, or `local-hostname` in the file"#]],
    );
}

#[test]
fn interfaces_are_made_for_either_data_source() {
    if !has_tools() {
        return;
    }
    let cli = cli(&[]);
    let interface =
        "mac=52:54:00:12:34:56,address=10.0.0.5/24,gateway=10.0.0.1,nameserver=10.0.0.1";
    build(&cli, &["--interface", interface]);
    let text = cli.root().join("network");
    fs_err::write(&text, file(&cli, "/network-config")).unwrap();
    let script = "import json, sys, yaml; print(json.dumps(yaml.safe_load(open(sys.argv[1]))))";
    let found = run(Command::new("python3").args(["-c", script]).arg(text));
    let expected = json!({"version": 2, "ethernets": {"eth0": {
        "match": {"macaddress": "52:54:00:12:34:56"}, "set-name": "eth0", "dhcp4": false, "dhcp6": false,
        "addresses": ["10.0.0.5/24"], "gateway4": "10.0.0.1", "nameservers": {"addresses": ["10.0.0.1"]},
    }}});
    assert_eq!(serde_json::from_str::<Value>(&found).unwrap(), expected);
    build(&cli, &["--datasource", "configdrive", "--interface", interface]);
    let found = file(&cli, "/openstack/latest/network_data.json");
    let found: Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["links"][0]["ethernet_mac_address"], "52:54:00:12:34:56");
    crate::check(
        &cli,
        &words(&["--interface", "mac=52:54:00:12:34"]),
        &expect![[r#"
            exit code: 2
            ----- stdout -----

            ----- stderr -----
            error: invalid value 'mac=52:54:00:12:34' for '--interface <mac=MAC[,KEY=VALUE…]>': `52:54:00:12:34` is not a MAC address: expected six bytes such as 52:54:00:12:34:56

            For more information, try '--help'."#]],
    );
}

#[test]
fn a_contradiction_is_told_with_its_remedy() {
    let config = "#cloud-config\nusers: [{name: bob, ssh_authorized_keys: [x]}]\n";
    let cli = cli(&[("user.yaml", config), ("v2.yaml", "version: 2\n")]);
    let mut text = String::new();
    for flags in [
        &["--ssh-key", "bob=key.pub", "--user-data", "user.yaml"][..],
        &["--user-data", "user.yaml", "--user-data-secret", "secret"],
        &["--password-hash", "hunter2"],
        &["--password-hash", "$y$j9T$salt$hash"],
        &["--datasource", "configdrive", "--network-config", "v2.yaml"],
        &["--ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----"],
    ] {
        let output = cli.run(words(flags));
        assert_eq!(output.code, Some(2), "{output}");
        text += &output.stderr;
    }
    assert!(!text.contains("hunter2"));
    assert!(!cli.work().join("seed.iso").exists());
    expect![[r#"
        error: `user.yaml`: user `bob` has `ssh_authorized_keys` here, and from a flag
        hint: leave out one of both: cloud-init would take only one
        error: `--user-data` and `--user-data-secret` stand for the same: expected one of them
        hint: leave out `--user-data` or `--user-data-secret`
        error: this is not a password hash: expected `$METHOD$…`, as /etc/shadow has it
        hint: make one with `mkpasswd -m sha-512` or `openssl passwd -6`, in single quotes; or give the password in a file with `--password-file`
        error: cloud-init takes this kind of hash only for a user with a name
        hint: name the user with `--user NAME`, or make the hash with `mkpasswd -m sha-512`
        error: network configuration of a config drive has to be OpenStack's JSON object
        hint: a config drive takes OpenStack's `network_data.json`, which `--interface` makes; cloud-init's own network-config goes with `--datasource nocloud`
        error: `--ssh-key`: this is a private key
        hint: give the public half, usually the file of the same name with `.pub`; a private key must not leave your machine
    "#]].assert_eq(&text);
}
