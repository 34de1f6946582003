//! `bootyard seed lint`.

use std::fmt::Write as _;

use bootyard_testkit::Cli;
use expect_test::{Expect, expect};

fn write(cli: &Cli, name: &str, text: impl AsRef<[u8]>) {
    fs_err::write(cli.work().join(name), text).expect("a writable folder");
}

/// The findings of each file.
fn lint(files: &[(&str, &str)], expected: &Expect) {
    let cli = Cli::from_env();
    let mut told = String::new();
    for (name, text) in files {
        write(&cli, name, text);
        let output = cli.run(["seed", "lint", name]);
        let _ = writeln!(told, "{}{}", output.stdout, output.stderr);
    }
    expected.assert_eq(&told);
}

#[test]
fn typical_mistakes_are_shown_where_they_are() {
    lint(
        &[
            ("header.yaml", "# cloud-config\npackages: [vim]\n"),
            ("missing.yaml", "packages: [vim]\n"),
            (
                "misspelt.yaml",
                "#cloud-config\nusers:\n  - name: me\n    ssh_authorised_keys: [a]\n",
            ),
            ("runcmd.yaml", "#cloud-config\nruncmd: echo hello\n"),
            ("tab.yaml", "#cloud-config\nusers:\n\t- name: me\n"),
            ("mode.yaml", "#cloud-config\nwrite_files:\n- path: /etc/x\n  permissions: 0644\n"),
            ("jinja.yaml", "#cloud-config\nfinal_message: up {{ v1.local_hostname }}\n"),
            ("braces.yaml", "#cloud-config\nhostname: {{ v1.instance_id }}\n"),
            ("colon.yaml", "#cloud-config\nruncmd:\n- echo a: b: c\n"),
            ("quote.yaml", "#cloud-config\nfinal_message: \"a\\d\"\n"),
        ],
        &expect![[r#"
            header.yaml:1:1: error[misspelt-header]: expected a header such as `#cloud-config`, got `# cloud-config`
            1 | # cloud-config
              | ^^^^^^^^^^^^^^
              hint: write the first line exactly as `#cloud-config`
            1 file checked: 1 error, 0 warnings

            missing.yaml:1:1: error[missing-header]: expected a header such as `#cloud-config`, got `packages: [vim]`
            1 | packages: [vim]
              | ^^^^^^^^^^^^^^^
              hint: cloud-init ignores user-data without a header: begin a cloud-config with the line `#cloud-config`, a script with `#!/bin/sh`
            1 file checked: 1 error, 0 warnings

            misspelt.yaml:4:5: error[unknown-key]: `users[0]` takes no key `ssh_authorised_keys`
            4 |     ssh_authorised_keys: [a]
              |     ^^^^^^^^^^^^^^^^^^^
              hint: did you mean `ssh_authorized_keys`?
            1 file checked: 1 error, 0 warnings

            runcmd.yaml:2:9: error[wrong-type]: `runcmd`: expected a list, got text
            2 | runcmd: echo hello
              |         ^^^^^^^^^^
              hint: make it a list: begin each item with `- `
            1 file checked: 1 error, 0 warnings

            tab.yaml:3:1: error[tab]: a tab, which YAML does not take for a space
            3 |     - name: me
              | ^^^^
              hint: use spaces
            1 file checked: 1 error, 0 warnings

            mode.yaml:4:16: error[wrong-type]: `write_files[0].permissions`: expected text, got a number
            4 |   permissions: 0644
              |                ^^^^
              hint: quote it: without quotes YAML takes it for something else than text
            1 file checked: 1 error, 0 warnings

            jinja.yaml:2:19: warning[template]: an expression of Jinja, which is not rendered without the header
            2 | final_message: up {{ v1.local_hostname }}
              |                   ^^
              hint: make `## template: jinja` the first line, before `#cloud-config`
            1 file checked: 0 errors, 1 warning

            braces.yaml:2:12: error[yaml]: a mapping as a key, which cloud-init does not read
            2 | hostname: {{ v1.instance_id }}
              |            ^
              hint: quote a value that begins with `{` or `[`; for `{{ … }}` of Jinja, the first line has to be `## template: jinja`
            1 file checked: 1 error, 0 warnings

            colon.yaml:3:12: error[yaml]: mapping values are not allowed in this context
            3 | - echo a: b: c
              |            ^
              hint: a text with `: ` in it needs quotes
            1 file checked: 1 error, 0 warnings

            quote.yaml:2:16: error[yaml]: while parsing a quoted scalar, found unknown escape character
            2 | final_message: "a\d"
              |                ^
              hint: a backslash begins an escape in double quotes: use single quotes
            1 file checked: 1 error, 0 warnings

        "#]],
    );
}

#[test]
fn what_is_risky_or_old_is_a_warning() {
    lint(
        &[
            ("password.yaml", "#cloud-config\npassword: hunter2\nchpasswd: {expire: false}\n"),
            ("hash.yaml", "#cloud-config\nusers:\n- {name: me, passwd: hunter2}\n"),
            (
                "old.yaml",
                "#cloud-config\napt_update: true\nusers:\n- {name: a, lock-passwd: true}\n",
            ),
            ("twice.yaml", "#cloud-config\nruncmd: [a]\nruncmd: [b]\n"),
            ("script.sh", "#!/bin/sh\necho hello\r\n"),
            ("net.yaml", "version: 2\nethernets:\n  eth0:\n    adresses: [10.0.0.5/24]\n"),
            ("network-config", "network:\n  version: 1\n  ethernets: {eth0: {dhcp4: true}}\n"),
        ],
        &expect![[r#"
            password.yaml:2:1: warning[plain-password]: `password` is given in plain text: everyone who sees the seed can read it
            2 | password: *******
              | ^^^^^^^^
              hint: give its hash, as `mkpasswd --method=SHA-512` prints it, or use SSH keys
            1 file checked: 0 errors, 1 warning

            hash.yaml:3:14: warning[plain-password]: `users[0].passwd` is no hash: nobody can log in with it, and everyone who sees the seed can read it
            3 | - {name: me, passwd: *******}
              |              ^^^^^^
              hint: give its hash, as `mkpasswd --method=SHA-512` prints it, or use SSH keys
            1 file checked: 0 errors, 1 warning

            old.yaml:2:1: warning[deprecated]: `apt_update` is deprecated since cloud-init 22.2
            2 | apt_update: true
              | ^^^^^^^^^^
              hint: use `package_update` instead
            old.yaml:4:13: warning[deprecated]: `users[0].lock-passwd` is deprecated since cloud-init 22.3
            4 | - {name: a, lock-passwd: true}
              |             ^^^^^^^^^^^
              hint: use `lock_passwd` instead
            1 file checked: 0 errors, 2 warnings

            twice.yaml:3:1: warning[duplicate-key]: the key `runcmd` stands twice: what line 2 says is lost
            3 | runcmd: [b]
              | ^^^^^^
              hint: join the two, or remove one
            1 file checked: 0 errors, 1 warning

            script.sh:2:1: warning[crlf]: a line ends in CR LF, where the interpreter takes the CR for a character
            2 | echo hello
              | ^
              hint: convert the line ends, for example with `dos2unix`
            1 file checked: 0 errors, 1 warning

            net.yaml:4:5: warning[unknown-key]: cloud-init does not look at the key `adresses`
            4 |     adresses: [10.0.0.5/24]
              |     ^^^^^^^^
              hint: did you mean `addresses`?
            1 file checked: 0 errors, 1 warning

            network-config:2:12: error[wrong-value]: `network.ethernets` belongs to version 2, and this says 1
            2 |   version: 1
              |            ^
              hint: write `version: 2`
            1 file checked: 1 error, 0 warnings

        "#]],
    );
}

#[test]
fn every_file_is_checked_and_the_exit_code_tells() {
    let cli = Cli::from_env();
    write(&cli, "good.yaml", "#cloud-config\npackages: [vim]\n");
    write(&cli, "old.yaml", "#cloud-config\napt_update: true\n");
    write(&cli, "bad.yaml", "#cloud-config\npackages: vim\n");
    for (arguments, code) in [
        (&["good.yaml"][..], 0),
        (&["old.yaml"], 0),
        (&["old.yaml", "--strict"], 2),
        (&["bad.yaml", "good.yaml"], 2),
        (&["missing.yaml", "good.yaml"], 2),
        (&["--kind", "network-config", "good.yaml"], 2),
        (&["--schema-type", "cloud-config", "good.yaml"], 0),
    ] {
        let output = cli.run([&["seed", "lint"], arguments].concat());
        assert_eq!(output.code, Some(code), "{arguments:?}: {output}");
    }
    let output = cli.run(["seed", "lint", "missing.yaml", "bad.yaml", "old.yaml"]);
    expect![[r#"
        exit code: 2
        ----- stdout -----
        bad.yaml:2:11: error[wrong-type]: `packages`: expected a list, got text
        2 | packages: vim
          |           ^^^
          hint: make it a list: begin each item with `- `
        old.yaml:2:1: warning[deprecated]: `apt_update` is deprecated since cloud-init 22.2
        2 | apt_update: true
          | ^^^^^^^^^^
          hint: use `package_update` instead
        ----- stderr -----
        error: failed to open file `missing.yaml`: No such file or directory (os error 2)
        2 files checked: 1 error, 1 warning"#]]
    .assert_eq(&output.to_string());
}

#[test]
fn findings_are_json_for_programs() {
    let cli = Cli::from_env();
    write(&cli, "bad.yaml", "#cloud-config\nruncmd: x\npasword: y\n");
    let output = cli.run(["seed", "lint", "--json", "bad.yaml"]);
    expect![[r#"
        exit code: 2
        ----- stdout -----
        [{"file":"bad.yaml","part":null,"line":2,"column":9,"severity":"error","code":"wrong-type","path":"runcmd","message":"`runcmd`: expected a list, got text","hint":"make it a list: begin each item with `- `","fatal":false},{"file":"bad.yaml","part":null,"line":3,"column":1,"severity":"error","code":"unknown-key","path":"pasword","message":"cloud-init knows no key `pasword`","hint":"did you mean `password`?","fatal":false}]
        ----- stderr -----
        1 file checked: 2 errors, 0 warnings"#]].assert_eq(&output.to_string());
}

#[test]
fn folders_and_seed_images_are_looked_into() {
    let cli = Cli::from_env();
    write(&cli, "user-data", "#cloud-config\npackages: vim\n");
    write(&cli, "meta-data", "instance-id: a\n");
    let folder = cli.run(["seed", "lint", "."]);
    assert!(folder.stdout.contains("user-data:2:11: error[wrong-type]"), "{folder}");
    assert!(folder.stderr.contains("2 files checked"), "{folder}");
    for (image, datasource) in [("a.iso", "nocloud"), ("b.iso", "configdrive")] {
        let build = ["seed", "build", "--hostname", "h", "--user-data", "user-data", "-o", image];
        let built = cli.run([&build[..], &["--datasource", datasource]].concat());
        assert_eq!(built.code, Some(0), "{built}");
        assert!(built.stderr.contains("user-data:2:11: warning[wrong-type]"), "{built}");
        let output = cli.run(["seed", "lint", image]);
        assert_eq!(output.code, Some(2), "{output}");
        assert!(
            output.stdout.contains(&format!("{image}:user-data:2:11: error[wrong-type]")),
            "{output}"
        );
    }
}

#[test]
fn an_image_without_a_seed_is_not_called_right() {
    let cli = Cli::from_env();
    write(&cli, "key", "value\n");
    let made =
        cli.run(["create", "config-disk", "a.iso", "--type", "configmap", "--from-file", "key"]);
    assert_eq!(made.code, Some(0), "{made}");
    let output = cli.run(["seed", "lint", "a.iso"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("no seed with something to check is on `a.iso`"), "{output}");
}

#[test]
fn a_seed_of_which_nothing_would_be_applied_is_not_built() {
    let cli = Cli::from_env();
    write(&cli, "tab.yaml", "#cloud-config\nruncmd:\n\t- ls\n");
    let build = ["seed", "build", "--hostname", "h", "--user-data", "tab.yaml", "-o", "a.iso"];
    let output = cli.run(build);
    expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        tab.yaml:3:1: error[tab]: a tab, which YAML does not take for a space
        3 |     - ls
          | ^^^^
          hint: use spaces
        error: cloud-init would apply nothing of `tab.yaml`
        hint: mend what is said above, or take the seed all the same with `--no-lint`"#]]
    .assert_eq(&output.to_string());
    assert!(!cli.work().join("a.iso").exists());
    let output = cli.run([&build[..], &["--no-lint"]].concat());
    assert_eq!((output.code, output.stderr.as_str()), (Some(0), ""), "{output}");
}

#[test]
fn what_comes_out_of_a_secret_is_not_shown() {
    let cli = Cli::from_env();
    fs_err::create_dir(cli.work().join("secret")).unwrap();
    let text = "#cloud-config\nwrite_files:\n- {path: /x, encoding: hunter2, contents: hunter2}\n";
    write(&cli, "secret/userdata", text);
    let build = ["seed", "build", "--hostname", "h", "--user-data-secret", "secret", "-o", "a.iso"];
    let output = cli.run(build);
    assert_eq!(output.code, Some(0), "{output}");
    let told = "secret:3:24: warning[wrong-value]: what stands there is secret, and not shown";
    assert!(output.stderr.contains(told), "{output}");
    assert!(!output.to_string().contains("hunter2"), "{output}");
    for (file, text, rest) in [
        ("userdata", "hunter2\n", &["--user-data-secret", "secret", "--json"][..]),
        ("userdata", "#cloud-config\nhunter2: 1\n", &["--user-data-secret", "secret"]),
        ("userdata", "#cloud-config\nruncmd: hunter2\n", &["--user-data-secret", "secret"]),
        ("vendordata", "#cloud-config\n- hunter2\n", &["--vendor-data-secret", "secret"]),
        ("networkdata", "hunter2\n", &["--network-data-secret", "secret"]),
    ] {
        write(&cli, &format!("secret/{file}"), text);
        let build = ["seed", "build", "--hostname", "h", "-o", "a.iso"];
        let output = cli.run([&build[..], rest].concat());
        assert!(!output.stderr.is_empty(), "{text}");
        assert!(!output.to_string().contains("hunter2"), "{output}");
    }
    // What is no secret is shown beside one.
    write(&cli, "secret/userdata", "#cloud-config\n");
    write(&cli, "vendor", "#cloud-config\nruncmd: shown\n");
    let output = cli.run([&build[..], &["--vendor-data", "vendor"]].concat());
    assert!(output.stderr.contains("runcmd: shown"), "{output}");
}

#[test]
fn a_list_that_another_piece_replaces_is_told() {
    let cli = Cli::from_env();
    write(&cli, "a", "#cloud-config\nruncmd: [a]\n");
    write(&cli, "b", "#cloud-config\nruncmd: [b]\n");
    write(&cli, "m", "#cloud-config\nmerge_how: list(append)+dict()+str()\nruncmd: [b]\n");
    let build =
        ["seed", "build", "--hostname", "h", "-o", "a.iso", "--user-data", "a", "--user-data"];
    let output = cli.run([&build[..], &["b"]].concat());
    expect![[r#"
        b:2:1: warning[duplicate-key]: `runcmd` stands in `a` too: the list there is lost
          hint: join the two, or add the line `merge_how: dict(no_replace,recurse_list)+list(append)+str()`
    "#]]
    .assert_eq(&output.stderr);
    assert_eq!(output.code, Some(0));
    assert_eq!(cli.run([&build[..], &["m"]].concat()).stderr, "");
}

#[test]
fn what_cloud_init_takes_is_taken_without_the_linter() {
    let cli = Cli::from_env();
    for (text, code) in [
        ("\n#cloud-config\nruncmd: [a]\n", [0, 0]),
        ("#Cloud-Config\nruncmd: [a]\n", [0, 0]),
        ("#!/bin/sh\r\necho\r\n", [0, 0]),
        ("\n#!/bin/sh\n", [2, 0]),
        ("runcmd: [a]\n", [2, 2]),
    ] {
        write(&cli, "a", text);
        let build = ["seed", "build", "--hostname", "h", "--user-data", "a", "-o"];
        for (flags, code) in [(&["-"][..], code[0]), (&["-", "--no-lint"], code[1])] {
            let output = cli.run([&build[..], flags].concat());
            assert_eq!(output.code, Some(code), "{text} {flags:?}");
        }
    }
}

#[test]
fn a_kind_is_of_one_file() {
    let cli = Cli::from_env();
    fs_err::create_dir(cli.work().join("seed")).expect("a folder");
    fs_err::write(cli.work().join("seed/user-data"), "#cloud-config\n").expect("a file");
    let output = cli.run(["seed", "lint", "--kind", "user-data", "seed"]);
    assert_eq!(output.code, Some(2), "{output}");
    assert!(output.stderr.contains("`seed` holds several files"), "{output}");
}
