//! S3 and GCS as a user names them: images from a real S3 server, and every way to credentials.

use std::process::Command;
use std::sync::OnceLock;

use bootyard_testkit::{Answer, AnswerServer, Cli, S3Server, require_tool, run, sha256_file};

use crate::Images;

/// One server for all tests of this process: its start takes seconds.
pub(crate) fn server() -> Option<&'static S3Server> {
    static SERVER: OnceLock<S3Server> = OnceLock::new();
    let tools = ["weed", "curl", "qemu-img", "xz", "gzip", "zstd"];
    if !tools.into_iter().all(require_tool) {
        return None;
    }
    Some(SERVER.get_or_init(S3Server::start))
}

/// A command line with an empty home, that knows the server's key and looks for no other.
fn cli(server: &S3Server) -> Cli {
    Cli::from_env()
        .env("AWS_ACCESS_KEY_ID", S3Server::KEY)
        .env("AWS_SECRET_ACCESS_KEY", S3Server::SECRET)
        .env("AWS_ENDPOINT_URL_S3", &server.endpoint())
        .env("AWS_EC2_METADATA_DISABLED", "true")
}

/// The images that every source must bring over.
pub(crate) fn make_images(images: &Images) -> [&'static str; 6] {
    images.convert("disk.qcow2", &["-c"]);
    let raw = images.path("disk.raw");
    let words = ["convert", "-f", "raw", "-O", "vmdk", "-o", "subformat=streamOptimized"];
    run(Command::new("qemu-img").args(words).arg(&raw).arg(images.path("disk.vmdk")));
    for (tool, file) in [("xz", "disk.qcow2"), ("gzip", "disk.raw"), ("zstd", "disk.raw")] {
        run(Command::new(tool).args(["-q", "-k", "-1"]).arg(images.path(file)));
    }
    ["disk.raw", "disk.qcow2", "disk.qcow2.xz", "disk.raw.gz", "disk.raw.zst", "disk.vmdk"]
}

#[test]
fn from_s3_every_image_becomes_the_disk_that_it_was() {
    let Some(server) = server() else { return };
    let images = Images::new();
    let (digest, cli) = (sha256_file(images.path("disk.raw")), cli(server));
    for (index, name) in make_images(&images).into_iter().enumerate() {
        server.put(&format!("private/formats/{name}"), &images.path(name));
        let (source, volume) = (format!("s3://private/formats/{name}"), format!("v{index}"));
        let output = cli.run(["import", &source, "--name", &volume]);
        assert_eq!(output.code, Some(0), "{name}: {output}");
        let made = cli.store().join(format!("volumes/{volume}/disk.raw"));
        assert_eq!(sha256_file(made), digest, "{name}");
    }
}

#[test]
fn a_profile_names_server_region_and_keys() {
    let Some(server) = server() else { return };
    let images = Images::new();
    server.put("private/profile.raw", &images.path("disk.raw"));
    let cli = Cli::from_env().env("AWS_EC2_METADATA_DISABLED", "true");
    let folder = cli.root().join("home/.aws");
    fs_err::create_dir(&folder).expect("a folder for the profile");
    let config = format!(
        "[profile images]\nregion = eu-north-1\nendpoint_url = {}\naws_access_key_id = {}\n\
         aws_secret_access_key = {}\n",
        server.endpoint(),
        S3Server::KEY,
        S3Server::SECRET
    );
    fs_err::write(folder.join("config"), config).expect("a profile");
    let words = ["import", "s3://private/profile.raw", "--s3-profile", "images", "--to", "disk"];
    let output = cli.run(words);
    assert_eq!(output.code, Some(0), "{output}");
    assert_eq!(sha256_file(cli.work().join("disk")), sha256_file(images.path("disk.raw")));
}

/// A security token service and an S3 server that opens only to what it gives out. The roles of
/// SeaweedFS want an identity provider; what counts here is that the SDK asks and its token arrives.
fn temporary(action: &'static str) -> AnswerServer {
    AnswerServer::serve(move |question| {
        if question.body.contains(&format!("Action={action}")) {
            let body = format!(
                "<{action}Response xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
                 <{action}Result><Credentials><AccessKeyId>ASIATEMPORARY</AccessKeyId>\
                 <SecretAccessKey>secret</SecretAccessKey><SessionToken>given-token</SessionToken>\
                 <Expiration>2099-01-01T00:00:00Z</Expiration></Credentials>\
                 <AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn>\
                 <AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser>\
                 </{action}Result></{action}Response>"
            );
            return Answer::new(200, body).header("content-type", "text/xml");
        }
        let opens = ["/bucket/disk.raw?", "=ASIATEMPORARY", "X-Amz-Security-Token=given-token"];
        if opens.into_iter().all(|part| question.path.contains(part)) {
            Answer::new(200, vec![7; 1 << 20])
        } else {
            Answer::new(403, "<Error><Code>AccessDenied</Code><Message>No.</Message></Error>")
        }
    })
}

#[test]
fn a_pod_with_a_web_identity_gets_its_keys_of_sts() {
    let server = temporary("AssumeRoleWithWebIdentity");
    let cli = Cli::from_env();
    let token = cli.root().join("token");
    fs_err::write(&token, "the.pods.token").expect("a token");
    let cli = cli
        .env("AWS_ROLE_ARN", "arn:aws:iam::1:role/importer")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string())
        .env("AWS_REGION", "eu-north-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL", &server.url());
    let output = cli.run(["import", "s3://bucket/disk.raw", "--to", "disk"]);
    assert_eq!(output.code, Some(0), "{output}");
    assert!(server.questions()[0].body.contains("WebIdentityToken=the.pods.token"));
}

#[test]
fn behind_a_proxy_the_token_service_is_asked_through_it_as_well() {
    let proxy = temporary("AssumeRoleWithWebIdentity");
    let cli = Cli::from_env();
    let token = cli.root().join("token");
    fs_err::write(&token, "the.pods.token").expect("a token");
    let cli = cli
        .env("http_proxy", &proxy.url())
        .env("AWS_ROLE_ARN", "arn:aws:iam::1:role/importer")
        .env("AWS_WEB_IDENTITY_TOKEN_FILE", &token.display().to_string())
        .env("AWS_REGION", "eu-north-1")
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL_STS", "http://sts.invalid")
        .env("AWS_ENDPOINT_URL_S3", "http://s3.invalid");
    let output = cli.run(["import", "s3://bucket/disk.raw", "--s3-path-style", "--to", "disk"]);
    assert_eq!(output.code, Some(0), "{output}");
    let paths: Vec<String> = proxy.questions().into_iter().map(|asked| asked.path).collect();
    assert_eq!(paths[0], "http://sts.invalid/");
    assert!(paths[1].starts_with("http://s3.invalid/bucket/disk.raw?"), "{paths:?}");
}

#[test]
fn a_profile_may_assume_a_role() {
    let server = temporary("AssumeRole");
    let cli = Cli::from_env()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL", &server.url());
    let folder = cli.root().join("home/.aws");
    fs_err::create_dir(&folder).expect("a folder for the profile");
    let config = "[profile images]\nrole_arn = arn:aws:iam::1:role/importer\n\
                  source_profile = base\nregion = eu-north-1\n";
    fs_err::write(folder.join("config"), config).expect("a profile");
    let keys = "[base]\naws_access_key_id = AKIABASE\naws_secret_access_key = secret\n";
    fs_err::write(folder.join("credentials"), keys).expect("keys");
    let words = ["import", "s3://bucket/disk.raw", "--s3-profile", "images", "--to", "disk"];
    let output = cli.run(words);
    assert_eq!(output.code, Some(0), "{output}");
    let asked = &server.questions()[0];
    assert!(asked.header("authorization").is_some_and(|value| value.contains("AKIABASE")));
}

#[test]
fn who_has_no_credentials_is_told_where_to_put_them() {
    let cli = Cli::from_env()
        .env("AWS_EC2_METADATA_DISABLED", "true")
        .env("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9");
    let output = cli.run(["import", "s3://bucket/disk.raw", "--to", "disk"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stderr.contains("no credentials for `s3://bucket/disk.raw`"), "{output}");
    assert!(output.stderr.contains("hint: ") && output.stderr.contains("--s3-anonymous"));
}

#[test]
fn from_gcs_the_emulator_of_the_environment_is_asked() {
    let server = AnswerServer::serve(|question| match question.path.as_str() {
        "/bucket/disk.raw" => Answer::new(200, vec![7; 1 << 20]),
        _ => Answer::new(404, "<Error><Code>NoSuchKey</Code></Error>"),
    });
    let cli = Cli::from_env().env("STORAGE_EMULATOR_HOST", &server.host());
    let output = cli.run(["import", "gs://bucket/disk.raw", "--to", "disk"]);
    assert_eq!(output.code, Some(0), "{output}");
    let output = cli.run(["import", "gs://bucket/other.raw", "--to", "other"]);
    assert_eq!(output.code, Some(3), "{output}");
    assert!(output.stderr.contains("`gs://bucket/other.raw` answered with HTTP status 404"));
}
