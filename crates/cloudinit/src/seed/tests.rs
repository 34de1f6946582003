//! The files of a seed, letter by letter, and what makes a name.

use bootyard_spec::Explain as _;

use super::*;

const KEY: &str = "ssh-ed25519 \
    AAAAC3NzaC1lZDI1NTE5AAAAIGyQ7aKqmHWdN8i4cRkXzdn3SuNOqmJLlyXhHKzsqzZg \\u00fc\"";

fn seed() -> Seed {
    let mut seed = Seed::new("debian.example.org".parse().unwrap());
    seed.ssh_keys = SshPublicKey::parse_all("k", KEY.as_bytes()).unwrap();
    seed.user_data = vec![UserData::parse("u", "#cloud-config\n").unwrap()];
    seed.vendor_data = vec![UserData::parse("v", "#!/bin/sh\n").unwrap()];
    seed
}

fn check(seed: &Seed, datasource: Datasource, expected: &[(&str, &str)]) {
    let mut tree = Tree::new();
    for (path, text) in expected {
        tree.insert(path, *text).unwrap();
    }
    assert_eq!(seed.files(datasource).unwrap(), tree);
}

#[test]
fn nocloud_has_kubevirts_meta_data() {
    let mut seed = seed();
    seed.network = Some(Network::Text(b"version: 2\n".to_vec()));
    let meta_data = r#"{
  "instance-id": "fc11f808-2fa1-54bd-b979-1db9ce9c4d95",
  "local-hostname": "debian.example.org",
  "public-keys": {
    "0": "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGyQ7aKqmHWdN8i4cRkXzdn3SuNOqmJLlyXhHKzsqzZg \\u00fc\""
  }
}
"#;
    check(
        &seed,
        Datasource::NoCloud,
        &[
            ("meta-data", meta_data),
            ("user-data", "#cloud-config\n"),
            ("vendor-data", "#!/bin/sh\n"),
            ("network-config", "version: 2\n"),
        ],
    );
}

#[test]
fn config_drive_has_openstacks_layout() {
    let mut seed = seed();
    seed.instance_id = Some("i-1".parse().unwrap());
    seed.ssh_keys.clear();
    seed.network = Some(Network::Text(br#"{"links": []}"#.to_vec()));
    let meta_data = "{\n  \"hostname\": \"debian.example.org\",\n  \"instance_id\": \"i-1\",\n  \"uuid\": \"i-1\"\n}\n";
    check(
        &seed,
        Datasource::ConfigDrive,
        &[
            ("openstack/latest/meta_data.json", meta_data),
            ("openstack/latest/user_data", "#cloud-config\n"),
            ("openstack/latest/vendor_data.json", "{\n  \"cloud-init\": \"#!/bin/sh\\n\"\n}\n"),
            ("openstack/latest/network_data.json", "{\"links\": []}"),
        ],
    );
}

#[test]
fn nocloud_without_user_data_has_an_empty_file() {
    let seed = Seed::new("a".parse().unwrap());
    let id = InstanceId::from_machine_name("a");
    let meta_data = format!("{{\n  \"instance-id\": \"{id}\",\n  \"local-hostname\": \"a\"\n}}\n");
    check(&seed, Datasource::NoCloud, &[("meta-data", &meta_data), ("user-data", "")]);
}

#[test]
fn a_config_drive_refuses_what_it_cannot_hold() {
    let mut seed = seed();
    seed.network = Some(Network::Text(b"version: 2\n".to_vec()));
    let error = seed.files(Datasource::ConfigDrive).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NetworkConfig);
    assert!(error.hint().unwrap().contains("--datasource nocloud"));

    seed.network = None;
    seed.vendor_data = vec![UserData::parse("v", [0x1f, 0x8b, 0xff]).unwrap()];
    let error = seed.files(Datasource::ConfigDrive).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::UserData);
}

#[test]
fn several_pieces_of_vendor_data_are_one_document_for_either_data_source() {
    let mut seed = seed();
    seed.vendor_data.push(UserData::parse("w", "#cloud-config\n").unwrap());
    let document = String::from_utf8(mime::join(&seed.vendor_data)).unwrap();
    let contents = |datasource, path: &str| {
        let tree = seed.files(datasource).unwrap();
        tree.get(path).unwrap().to_vec()
    };
    assert_eq!(contents(Datasource::NoCloud, "vendor-data"), document.as_bytes());
    let found = contents(Datasource::ConfigDrive, "openstack/latest/vendor_data.json");
    assert_eq!(serde_json::from_slice::<Value>(&found).unwrap(), json!({"cloud-init": document}));
}

#[test]
fn the_instance_id_is_the_meta_datas_then_the_given_one_then_the_names() {
    let mut seed = Seed::new("web".parse().unwrap());
    assert_eq!(seed.instance_id(), InstanceId::from_machine_name("web"));
    seed.instance_id = Some("given".parse().unwrap());
    assert_eq!(seed.instance_id().as_str(), "given");
    seed.meta_data = Some(MetaData::parse("m", b"instance-id: of-file").unwrap());
    assert_eq!(seed.instance_id().as_str(), "of-file");
    let random = InstanceId::from_random([0xff; 16]);
    assert_eq!(random.as_str(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
}

#[test]
fn host_names_follow_rfc_1123() {
    for name in ["a", "Debian-12", "0.example.org", &"a".repeat(63), "xn--bcher-kva"] {
        assert!(name.parse::<Hostname>().is_ok(), "{name}");
    }
    let long = [&*"a".repeat(63); 4].join(".");
    for name in ["", "-a", "a-", "a..b", ".a", "a.", "a_b", "ä", "a b", &"a".repeat(64), &long] {
        assert!(name.parse::<Hostname>().is_err(), "{name}");
    }
}

#[test]
fn instance_ids_are_file_names() {
    for id in ["iid-1", "5f1c6d0a-0000-4000-8000-000000000000", "i_1:x.y"] {
        assert!(id.parse::<InstanceId>().is_ok(), "{id}");
    }
    for id in ["", ".", "..", "a/b", "a b", "a\n", &"a".repeat(256)] {
        assert!(id.parse::<InstanceId>().is_err(), "{id}");
    }
}
