//! What a user meets first: no arguments, wrong arguments.

use bootyard_testkit::Cli;
use expect_test::expect;

use crate::check;

#[test]
fn an_import_needs_a_target() {
    check(
        &Cli::from_env(),
        &["import", "x.qcow2"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the following required arguments were not provided:
          <--name <NAME>|--to <FILE|BLOCKDEV>>

        Usage: bootyard import <--name <NAME>|--to <FILE|BLOCKDEV>> <SOURCE>

        For more information, try '--help'."#]],
    );
}

#[test]
fn an_import_has_one_target() {
    let arguments = ["import", "x.qcow2", "--name", "a", "--to", "b"];
    check(
        &Cli::from_env(),
        &arguments,
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: the argument '--name <NAME>' cannot be used with '--to <FILE|BLOCKDEV>'

        Usage: bootyard import <--name <NAME>|--to <FILE|BLOCKDEV>> <SOURCE>

        For more information, try '--help'."#]],
    );
}

#[test]
fn wrong_values_say_what_was_expected() {
    let cli = Cli::from_env();
    let import = |option: &'static str, value: &'static str| {
        let output = cli.run(["import", "x.qcow2", "--name", "a", option, value]);
        let line = output.stderr.lines().next().unwrap_or_default().to_owned();
        format!("{}: {line}", output.code.unwrap_or(-1))
    };
    let lines = [
        import("--size", "10GB"),
        import("--max-size", "many"),
        import("--checksum", "sha256:00"),
        import("--checksum", "d41d8cd98f00b204e9800998ecf8427e"),
        import("--output-format", "vmdk"),
        import("--connections", "0"),
        import("--connections", "65"),
    ];
    expect![[r#"
        2: error: invalid value '10GB' for '--size <QTY>': unknown suffix `GB` in `10GB`; expected one of Ki, Mi, Gi, Ti, Pi, Ei, k, M, G, T, P, E
        2: error: invalid value 'many' for '--max-size <QTY>': expected a number with an optional suffix such as `10Gi`, got `many`
        2: error: invalid value 'sha256:00' for '--checksum <ALG:HEX>': expected 64 hexadecimal digits for sha256, got 2
        2: error: invalid value 'd41d8cd98f00b204e9800998ecf8427e' for '--checksum <ALG:HEX>': expected ALGORITHM:HEX such as `sha256:9f86…`, got `d41d8cd98f00b204e9800998ecf8427e`
        2: error: invalid value 'vmdk' for '--output-format <FORMAT>': unknown output format `vmdk`; expected raw, qcow2 or qcow2-zstd
        2: error: invalid value '0' for '--connections <N>': 0 is not in 1..=64
        2: error: invalid value '65' for '--connections <N>': 65 is not in 1..=64"#]].assert_eq(&lines.join("\n"));
}

#[test]
fn names_and_sources_are_checked_before_anything_happens() {
    let cli = Cli::from_env();
    check(
        &cli,
        &["import", "x.qcow2", "--name", "../etc"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: invalid value '../etc' for '--name <NAME>': `../etc` has '/' at character 3; expected a-z, 0-9, `-` or `.`

        For more information, try '--help'."#]],
    );
    check(
        &cli,
        &["import", "ftp://host/x.qcow2", "--name", "a"],
        &expect![[r#"
        exit code: 2
        ----- stdout -----

        ----- stderr -----
        error: invalid value 'ftp://host/x.qcow2' for '<SOURCE>': unsupported source scheme `ftp`; expected http, https, s3, gs, docker, oci, oci-archive, docker-archive, volume or file

        For more information, try '--help'."#]],
    );
}
