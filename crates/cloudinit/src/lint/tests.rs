//! What the linter says of documents with one mistake, of those without, and of hostile ones.
#![expect(clippy::disallowed_methods, reason = "a test measures its time")]

use std::io::Write as _;
use std::time::{Duration, Instant};

use bootyard_testkit::{corpus, skip, workspace_root};
use flate2::Compression;
use flate2::write::GzEncoder;

use super::*;

/// The findings, each as `line:column severity code path`.
fn found(kind: Kind, content: &[u8]) -> Vec<String> {
    let line = |finding: &Finding| {
        let number = |number: Option<usize>| number.map_or("-".to_owned(), |n| n.to_string());
        let (line, column) = (number(finding.line), number(finding.column));
        let part = finding.part.as_ref().map(|part| format!(" in {part}")).unwrap_or_default();
        let (severity, code) = (finding.severity.name(), finding.code.name());
        let path = if finding.path.is_empty() { "" } else { &format!(" {}", finding.path) };
        format!("{line}:{column} {severity} {code}{path}{part}")
    };
    check(kind, content).iter().map(line).collect()
}

fn check_user_data(cases: &[(&str, &[&str])]) {
    for (text, expected) in cases {
        assert_eq!(found(Kind::UserData, text.as_bytes()), *expected, "{text:?}");
    }
}

#[test]
fn what_is_right_is_passed_over_in_silence() {
    check_user_data(&[
        ("#cloud-config\npackages: [vim]\n", &[]),
        ("#cloud-config\r\npackages:\r\n- vim\r\n", &[]),
        ("#cloud-config\nruncmd:\n- [ls, -l]\n- docker ps --format '{{.Names}}'\n", &[]),
        (
            "#cloud-config\nusers:\n- default\n- {name: a, passwd: $6$x$y, sudo: 'ALL=(ALL) ALL'}\n",
            &[],
        ),
        ("#cloud-config\nchpasswd: {users: [{name: a, type: RANDOM}]}\n", &[]),
        ("#!/bin/sh\necho\n", &[]),
        ("#!/bin/sh\r\necho\r\n", &[]),
        ("#cloud-boothook\r\n#!/bin/sh\r\n", &[]),
        (
            "From nobody Mon Nov 23 00:51:48 2026\nContent-Type: multipart/mixed; boundary=X\n\
             MIME-Version: 1.0\n\n--X\nContent-Type: text/x-shellscript\n\n#!/bin/sh\n--X--\n",
            &[],
        ),
        ("#! /usr/bin/env python3\n", &[]),
        ("#cloud-boothook\n#!/bin/sh\n", &[]),
        ("#include\nhttps://h/a\n# comment\nhttp://h/b\n", &[]),
        ("#include https://h/a\n", &[]),
        ("#part-handler\nimport os\n", &[]),
        ("#cloud-config-jsonp\n[{\"op\": \"add\", \"path\": \"/a\", \"value\": 1}]\n", &[]),
        (
            "#cloud-config-archive\n- |\n  #!/bin/sh\n- {type: text/cloud-config, content: 'packages: [vim]'}\n",
            &[],
        ),
        (
            "#cloud-config-archive\n- {type: Text/Cloud-Config; charset=utf-8, content: 'packages: [vim]'}\n",
            &[],
        ),
        (
            "## template: jinja\n#cloud-config\nruncmd:\n- echo {{ v1.instance_id }}\nhostname: {{ ds.x }}\n",
            &[],
        ),
        (
            "## template: jinja\n#cloud-config\n{% if v1.region == 'a' %}\ntimezone: UTC\n{% else %}\ntimezone: CET\n{% endif %}\n",
            &[],
        ),
        ("## template: jinja\n{# why #}\n#!/bin/sh\necho {{ v1.region }}\n", &[]),
    ]);
}

#[test]
fn headers_line_ends_and_bytes_are_looked_at() {
    check_user_data(&[
        ("", &["-:- warning empty"]),
        ("packages: [vim]\n", &["1:1 error missing-header"]),
        ("# cloud-config\n", &["1:1 error misspelt-header"]),
        ("#cloud-confg\n", &["1:1 error misspelt-header"]),
        ("#Cloud-Config\na: 1\n", &["1:1 warning misspelt-header", "2:1 error unknown-key a"]),
        (" #cloud-config:\npackages: [a]\n", &["1:1 warning misspelt-header"]),
        ("\n#cloud-config\npackages: [a]\n", &["2:1 warning misspelt-header"]),
        (
            "\n#cloud-config-jsonp\n{}\n",
            &["2:1 warning misspelt-header", "3:1 error not-a-mapping"],
        ),
        ("\n#!/bin/sh\n", &["2:1 error misspelt-header"]),
        ("# by me\n#cloud-config\n", &["2:1 error misspelt-header"]),
        ("\u{feff}#cloud-config\n", &["1:1 error bom"]),
        ("#cloud-config\n", &["1:1 warning empty"]),
        ("#cloud-config\n- a\n", &["2:1 error not-a-mapping"]),
        ("#cloud-config\na:\n\t- b\n", &["3:1 error tab"]),
        ("#cloud-boothook\n#!/bin/sh\r\n", &["2:1 error crlf"]),
        ("#!/bin/sh\necho\r\n", &["2:1 warning crlf"]),
        ("#!\n", &["1:1 error no-interpreter"]),
        ("#!bash\n", &["1:1 error no-interpreter"]),
        ("#!/usr/bin/env\n", &["1:1 error no-interpreter"]),
        ("#cloud-boothook\necho\n", &["2:1 error no-interpreter"]),
        ("#include\nh/a\n", &["2:1 error wrong-value"]),
        ("#include\n", &["1:1 warning empty"]),
        ("#cloud-config-jsonp\n[}\n", &["2:2 error yaml"]),
        ("#cloud-config-archive\na: 1\n", &["2:1 error not-a-mapping"]),
        ("#cloud-config-archive\n- {type: text, content: a}\n", &["2:10 error packing [0]"]),
        ("#cloud-config-archive\n- {type: 3, content: a}\n", &["2:10 error packing [0]"]),
        ("#cloud-config-archive\n- '#!/bin/sh'\n- {content: 3}\n", &["3:13 error packing [1]"]),
        ("Content-Type: multipart/mixed\n\n", &["-:- error packing"]),
    ]);
    assert_eq!(found(Kind::UserData, b"#cloud-config\na: \xe4\n"), ["2:4 error not-utf8"]);
    let utf16 = check(Kind::UserData, b"\xff\xfe#\0c\0");
    assert!(utf16[0].message.ends_with("got UTF-16") && utf16[0].is_fatal(), "{utf16:?}");
    assert_eq!(found(Kind::MetaData, b"a: \xe4\n"), ["1:4 error not-utf8"]);
}

#[test]
fn what_no_schema_sees_is_found() {
    check_user_data(&[
        ("#cloud-config\npackages: [a]\npackages: [b]\n", &["3:1 warning duplicate-key"]),
        ("#cloud-config\nruncmd:\n- echo {{ v1.instance_id }}\n", &["3:8 warning template"]),
        ("#cloud-config\nhostname: {{ v1.region }}\n", &["2:12 error yaml"]),
        (
            "#cloud-config\nssh_authorized_keys:\n- |\n  -----BEGIN OPENSSH PRIVATE KEY-----\n",
            &["4:3 error private-key ssh_authorized_keys[0]"],
        ),
        ("#cloud-config\npassword: secret\n", &["2:1 warning plain-password password"]),
        (
            "#cloud-config\nusers:\n- name: a\n  passwd: secret\n",
            &["4:3 warning plain-password users[0].passwd"],
        ),
        (
            "#cloud-config\nusers:\n- {name: a, plain_text_passwd: 1234}\n",
            &[
                "3:13 warning plain-password users[0].plain_text_passwd",
                "3:32 error wrong-type users[0].plain_text_passwd",
            ],
        ),
        (
            "#cloud-config\nchpasswd:\n  list: |\n    a:secret\n    b:RANDOM\n",
            &["3:3 warning deprecated chpasswd.list", "3:3 warning plain-password chpasswd.list"],
        ),
        (
            "#cloud-config\nchpasswd:\n  users:\n  - {name: a, password: secret, type: text}\n",
            &["4:15 warning plain-password chpasswd.users[0].password"],
        ),
        (
            "## template: jinja\n#cloud-config\npackagess: [{{ v1.region }}]\n",
            &["3:1 error unknown-key packagess"],
        ),
        ("## template: jinja\n#cloud-config\nhostname: {{ v1.x \n", &["3:11 error template"]),
        ("## template: jinja\n#cloud-config\n{# x\nhostname: a\n", &["3:1 error template"]),
        (
            "## template: jinja\n#cloud-config\n{% for i in x %}\n a: {{ i }}\n{% endfor %}\nb: 1\n",
            &["6:1 warning template"],
        ),
    ]);
}

const MIME: &str = "Content-Type: multipart/mixed; boundary=\"XX\"\nMIME-Version: 1.0\n\n--XX\n\
    Content-Type: text/cloud-config\n\npackagess: [vim]\n--XX\nContent-Type: text/x-shellscript\n\n\
    echo hi\n--XX\nContent-Type: text/cloud-config\nContent-Transfer-Encoding: base64\n\n\
    cGFja2FnZXM6IHZpbQo=\n--XX\nContent-Type: text/x-odd\n\nx\n--XX--\n";

#[test]
fn packed_user_data_is_looked_into() {
    let in_parts = [
        "-:- warning wrong-value in part 4 (text/x-odd)",
        "1:11 error wrong-type packages in part 3 (text/cloud-config)",
        "7:1 error unknown-key packagess in part 1 (text/cloud-config)",
        "11:1 error no-interpreter in part 2 (text/x-shellscript)",
    ];
    assert_eq!(found(Kind::UserData, MIME.as_bytes()), in_parts);

    let mut gzip = GzEncoder::new(Vec::new(), Compression::fast());
    gzip.write_all(b"#cloud-config\npackages: vim\n").unwrap();
    let mut gzip = gzip.finish().unwrap();
    assert_eq!(found(Kind::UserData, &gzip), ["2:11 error wrong-type packages in unpacked"]);
    // Python passes over zeros at the end.
    let padded = [&gzip[..], &[0; 512]].concat();
    assert_eq!(found(Kind::UserData, &padded), ["2:11 error wrong-type packages in unpacked"]);
    let mut twice = GzEncoder::new(Vec::new(), Compression::fast());
    twice.write_all(&gzip).unwrap();
    assert_eq!(found(Kind::UserData, &twice.finish().unwrap()), ["-:- error packing"]);
    gzip.truncate(20);
    assert_eq!(found(Kind::UserData, &gzip), ["-:- error packing"]);

    // The lines and columns of a block are those of the file.
    let archive = "#cloud-config-archive\n- |\n  #cloud-config\n  packages:\n    vim: 1\n";
    let expected = ["4:3 error wrong-type packages in item 1"];
    assert_eq!(found(Kind::UserData, archive.as_bytes()), expected);
    let archive = "#cloud-config-archive\n- type: text/cloud-config\n  content: |\n\n    a: b | c\n- |\n  #!sh\n";
    let expected = [
        "5:5 error unknown-key a in item 1 (text/cloud-config)",
        "7:3 error no-interpreter in item 2",
    ];
    assert_eq!(found(Kind::UserData, archive.as_bytes()), expected);
}

#[test]
fn meta_data_and_network_configuration_are_checked() {
    for (kind, text, expected) in [
        (Kind::MetaData, "instance-id: a\nlocal-hostname: b\n", &[][..]),
        (Kind::MetaData, "{\"instance-id\": \"a\"}\n", &[]),
        (Kind::MetaData, "instance_id: a\n", &["1:1 warning unknown-key instance_id"]),
        (Kind::MetaData, "instance-id: 1\n", &["1:14 warning wrong-type instance-id"]),
        (Kind::MetaData, "local-hostname: b\n", &["1:1 warning missing-key instance-id"]),
        (Kind::MetaData, "- a\n", &["1:1 error not-a-mapping"]),
        (Kind::NetworkConfig, "version: 2\nethernets: {eth0: {dhcp4: true}}\n", &[]),
        (Kind::NetworkConfig, "network: {version: 2, ethernets: {eth0: {dhcp4: true}}}\n", &[]),
        (Kind::NetworkConfig, "network: {config: disabled}\n", &[]),
        (
            Kind::NetworkConfig,
            "ethernets: {eth0: {dhcp4: true}}\n",
            &["1:1 error missing-key version"],
        ),
        (
            Kind::NetworkConfig,
            "version: 1\nethernets: {eth0: {dhcp4: true}}\n",
            &["1:10 error wrong-value version"],
        ),
        (Kind::NetworkConfig, "version: '2'\n", &["1:10 error wrong-value version"]),
        (
            Kind::NetworkConfig,
            "version: 2\nvlans: {v: {routes: [{to: '::/0', via: '::1'}, {to: default, via: '::1'}]}}\n",
            &["2:53 warning wrong-value vlans.v.routes[1].to"],
        ),
        (
            Kind::NetworkConfig,
            "version: 2\nethernets: {eth0: {adresses: [a], link-local: [], nameservers: {adresses: []}}}\n",
            &[
                "2:20 warning unknown-key ethernets.eth0.adresses",
                "2:65 error unknown-key ethernets.eth0.nameservers.adresses",
            ],
        ),
        (
            Kind::NetworkConfig,
            "network:\n  version: 2\n  ethernets: {eth0: {mtu: a, gateway4: [b]}}\nfoo: 1\n",
            &[
                "3:27 error wrong-type network.ethernets.eth0.mtu",
                "3:30 error wrong-type network.ethernets.eth0.gateway4",
                "4:1 error unknown-key foo",
            ],
        ),
        (
            Kind::NetworkConfig,
            "version: 1\nconfig:\n- {type: physcal, name: a}\n- {type: vlam, name: b}\n\
             - {type: bond, name: 3}\n- {type: physical}\n",
            &[
                "3:10 error wrong-value config[0].type",
                "4:10 error wrong-value config[1].type",
                "5:22 error wrong-type config[2].name",
                "6:3 error missing-key config[3]",
            ],
        ),
        (
            Kind::NetworkConfig,
            "network:\n  version: 1\n  config: [{type: physical}, {type: physical, name: 3}]\n",
            &[
                "3:12 error missing-key network.config[0]",
                "3:53 error wrong-type network.config[1].name",
            ],
        ),
    ] {
        assert_eq!(found(kind, text.as_bytes()), expected, "{text:?}");
    }
}

#[test]
fn the_kind_is_told_by_name_and_content() {
    for (name, content, kind) in [
        ("user-data", "", Kind::UserData),
        ("web.network_config.yaml", "", Kind::NetworkConfig),
        ("meta-data", "", Kind::MetaData),
        ("vendor-data.txt", "", Kind::VendorData),
        ("a.yaml", "#cloud-config\nversion: 1\n", Kind::UserData),
        ("a.yaml", "# net\nnetwork:\n  version: 2\n", Kind::NetworkConfig),
        ("a.yaml", "version: 2\nethernets: {}\n", Kind::NetworkConfig),
        ("a.yaml", "instance-id: x\n", Kind::MetaData),
        ("-", "packages: [a]\n", Kind::UserData),
    ] {
        assert_eq!(Kind::guess(name, content.as_bytes()), kind, "{name} {content}");
    }
}

#[test]
fn no_finding_shows_a_secret() {
    for text in [
        "#cloud-config\npassword: hunter2\nruncmd: x\n",
        "#cloud-config\nusers: [{name: a, passwd: hunter2, shel: x}]\n",
        "#cloud-config\nusers:\n- name: a\n  passwd: [hunter2]\n",
        "#cloud-config\nusers:\n- name: a\n  plain_text_passwd: |\n    hunter2\n  lock_passwd: 'no'\n",
        "#cloud-config\nchpasswd:\n  list: |\n    a:hunter2\n  expires: 1\n",
        "#cloud-config\nchpasswd:\n  list: [a:hunter2, 1]\n",
        "#cloud-config\nchpasswd: {users: [{name: a, password: hunter2, type: hunter3}]}\n",
        "#cloud-config\npassword: hunter2: x\n",
        "#cloud-config\npassword: \"hunter2\n",
        "#cloud-config\nchpasswd:\n  list: |\n    a:hunter2\n\tb:hunter2\n",
        "#cloud-config\npassword: @hunter2\n",
        "password: hunter2\n",
        "#cloud-config\nubuntu_pro: {token: [hunter2]}\n",
        "#cloud-config\nssh_keys:\n  rsa_private: |\n    -----BEGIN OPENSSH PRIVATE KEY-----\nhunter2\n",
        "#cloud-config\na: |\n    -----BEGIN RSA PRIVATE KEY-----\n\thunter2\n    -----END RSA PRIVATE KEY-----\n",
        "#cloud-config\nusers:\n- plain_text_passwd:\n    a\n    hunter2: x\n",
        "#cloud-config\nusers:\n- name: a\n  passwd: >\n    a\n  \thunter2\n",
        "#cloud-config\nusers:\n- name: a\n  passwd:\n    hunter2: x\n",
        "hunter2\n",
        "password=hunter2\n",
        "a\npassword=hunter2\n",
        "#include\nuser:hunter2@h\n",
        "#cloud-config\nruncmd:\n- curl -H \"Authorization: Bearer hunter2\" https://x: y\n",
        "#cloud-config\nruncmd: {x: \"curl -u me:hunter2 http://h\", y: z}\n",
        "#cloud-config\nruncmd: {x: \"curl http://me:hunter2@h/\", y: z}\n",
        "#cloud-config\nwrite_files:\n- path: /x\n  contnt: token=hunter2\n",
        "#cloud-config\npassword: !hunter2\n",
        "#cloud-config\npassword: *hunter2\n",
    ] {
        let findings = check(Kind::UserData, text.as_bytes());
        assert!(!findings.is_empty(), "{text}");
        assert!(!format!("{findings:?}").contains("hunter2"), "{text}: {findings:#?}");
    }
}

/// Dates and times are passwords, too.
#[test]
fn no_finding_shows_a_password_that_is_a_date() {
    for value in ["2001-13-45", "2001-12-13"] {
        for text in [
            format!("#cloud-config\nchpasswd: {{list: {value}}}\n"),
            format!("#cloud-config\nusers: [{{name: b, passwd: {value}, foo: x}}]\n"),
        ] {
            let findings = format!("{:?}", check(Kind::UserData, text.as_bytes()));
            assert!(findings.contains("code") && !findings.contains(value), "{text}: {findings}");
        }
    }
}

#[test]
fn what_is_no_secret_is_shown() {
    for (text, shown) in [
        (
            "#cloud-config\na: |\n -----BEGIN PRIVATE KEY-----\n x\n -----END PRIVATE KEY-----\n\tb: 1\n",
            "\tb: 1",
        ),
        ("#cloud-config\nusers:\n- passwd: x\n  name: @me\n", "  name: @me"),
        ("#cloud-config\nrun: {x: ls -u /home}\n", "run: {x: ls -u /home}"),
        ("#cloud-config\nclone: git@h:x/y\n", "clone: git@h:x/y"),
    ] {
        let findings = check(Kind::UserData, text.as_bytes());
        assert_eq!(findings[0].excerpt.as_deref(), Some(shown), "{text}");
    }
}

#[test]
fn every_example_of_cloud_init_has_no_errors() {
    /// Not meant to be user-data: a text about the kernel's command line; what is ignored on purpose;
    /// an octal number as PyYAML prints it, which the schema refuses.
    const NOT_VALID: [&str; 3] =
        ["kernel-command-line.txt", "plain-ignored.txt", "user_data.1.txt"];
    let Some(corpus) = corpus() else {
        skip!("no corpus");
    };
    let mut checked = 0;
    for folder in ["examples", "examples/seed", "data", "data/kernel_cmdline_match"] {
        for entry in fs_err::read_dir(corpus.join("cloud-init").join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap();
            if path.is_dir() || NOT_VALID.contains(&name) || name == "README" {
                continue;
            }
            let content = fs_err::read(&path).unwrap();
            let findings = check(Kind::guess(name, &content), &content);
            let errors: Vec<_> =
                findings.iter().filter(|f| f.severity == Severity::Error).collect();
            assert!(errors.is_empty(), "{name}: {errors:#?}");
            checked += 1;
        }
    }
    assert!(checked > 35, "the corpus is there");
}

#[test]
fn hostile_files_cost_little() {
    let begin = Instant::now();
    let mut bomb = "#cloud-config\nusers: &a [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 0..8 {
        bomb += &format!(
            "k{level}: &{} [{}]\n",
            (b'b' + level) as char,
            format!("*{},", (b'a' + level) as char).repeat(10)
        );
    }
    check(Kind::UserData, bomb.as_bytes());
    check(Kind::UserData, format!("#cloud-config\nruncmd: {}", "[".repeat(1 << 16)).as_bytes());
    check(Kind::UserData, format!("#cloud-config\n{}", "a: 1\n".repeat(1 << 16)).as_bytes());
    check(
        Kind::UserData,
        format!("## template: jinja\n{}", "{{ x }}{% a %}".repeat(1 << 16)).as_bytes(),
    );
    let line = format!("#cloud-config\nruncmd: [{}]\n", "{a: 1},".repeat(100_000));
    let findings = check(Kind::UserData, line.as_bytes());
    assert!(findings.iter().all(|finding| finding.excerpt.is_none()));
    let keys: String = (0..1 << 14).map(|number| format!("a{number}: 1\n")).collect();
    assert_eq!(check(Kind::UserData, format!("#cloud-config\n{keys}").as_bytes()).len(), 1000);
    check(Kind::UserData, format!("#include\n{}", "x\n".repeat(1 << 18)).as_bytes());
    let mut zeros = GzEncoder::new(Vec::new(), Compression::fast());
    zeros.write_all(&vec![b'#'; 64 << 20]).unwrap();
    assert_eq!(found(Kind::UserData, &zeros.finish().unwrap()), ["-:- error packing"]);
    assert!(begin.elapsed() < Duration::from_secs(60), "{:?}", begin.elapsed());
}

/// What the fuzzer does for longer: bytes of documents are exchanged, doubled and left out.
#[test]
fn broken_documents_break_nothing() {
    let text =
        |name: &str| fs_err::read(workspace_root().join("testdata/lint").join(name)).unwrap();
    let mut documents: Vec<Vec<u8>> = vec![MIME.into()];
    for (name, header) in [("cloud-config.txt", "#cloud-config\n"), ("network.txt", "")] {
        let text = String::from_utf8(text(name)).unwrap();
        let cases = text.split("### ").filter_map(|case| case.split_once('\n'));
        documents.extend(cases.map(|(_, document)| format!("{header}{document}").into_bytes()));
    }
    documents.push(
        b"#cloud-config-archive\n- |\n  ## template: jinja\n  #cloud-config\n  a: {{ b }}\n".into(),
    );
    let mut state = 1_u64;
    let mut random = |below: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % below.max(1)
    };
    const BYTES: &[u8] = b"\n\t\r :-[]{}#&*!|>'\"%@,?<~.0a\xff\xef\xc3\0";
    for round in 0..600 {
        let mut document = documents[round % documents.len()].clone();
        for _ in 0..=random(6) {
            let at = random(document.len());
            match random(4) {
                0 => document.insert(at, BYTES[random(BYTES.len())]),
                1 => document[at] = BYTES[random(BYTES.len())],
                2 => document.truncate(at.max(1)),
                _ => {
                    let piece = document[at..(at + random(30)).min(document.len())].to_vec();
                    let to = random(document.len());
                    document.splice(to..to, piece);
                }
            }
        }
        for kind in Kind::ALL {
            for finding in check(kind, &document) {
                assert!(finding.line != Some(0) && finding.column != Some(0) && finding.width > 0);
                assert!(finding.excerpt.is_none_or(|excerpt| !excerpt.contains('\n')));
            }
        }
    }
}

#[test]
fn every_code_is_described() {
    let text = fs_err::read_to_string(workspace_root().join("docs/seeds.md")).unwrap();
    for code in Code::ALL {
        assert!(text.contains(&format!("\n| `{code}` | ")), "{code}");
    }
}
