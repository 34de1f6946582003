//! What a guest is told at its first boot: from flags, files and secrets to a seed.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bootyard_cloudinit::lint::Kind;
use bootyard_cloudinit::{
    Datasource, DiskImage, Hostname, ImageFormat, InstanceId, Interface, MetaData, Network,
    PasswordHash, Reading, Seed, SshPublicKey, User, UserData, UserName,
};
use bootyard_manifest::DataKind;
use bootyard_spec::{Class, Secret, shell_word};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser as _};

use crate::commands::seed_lint;
use crate::error::{Failure, read_input};
use crate::settings;

/// What the seed says.
#[derive(Debug, Args)]
#[command(next_help_heading = "Seed")]
pub(crate) struct SeedArgs {
    /// The guest's host name [default: what `--meta-data` has; with `run` the machine's name]
    #[arg(long, value_name = "NAME")]
    pub(crate) hostname: Option<Hostname>,
    /// SSH public keys: a file, the key itself, or - for standard input; for the default user, or for
    /// USER, who is added; may be repeated
    #[arg(long = "ssh-key", value_name = "[USER=]FILE|KEY|-", value_parser = for_user())]
    #[arg(allow_hyphen_values = true)]
    pub(crate) ssh_keys: Vec<ForUser>,
    /// Password of the default user or of USER as a hash, as `mkpasswd` and /etc/shadow have it
    #[arg(long = "password-hash", value_name = "[USER=]HASH", value_parser = for_user())]
    pub(crate) password_hashes: Vec<ForUser>,
    /// Let QEMU's guest agent manage the users' SSH keys under SELinux
    #[arg(long)]
    pub(crate) ga_manage_ssh: bool,
    /// User-data file: cloud-config, script, …; several are combined; - reads standard input
    #[arg(long, value_name = "FILE|-")]
    pub(crate) user_data: Vec<PathBuf>,
    /// User-data in base64, as KubeVirt's userDataBase64
    #[arg(long, value_name = "TEXT|@FILE", alias = "cloud-init-user-data")]
    pub(crate) user_data_base64: Option<OsString>,
    /// Secret with the user-data as `userdata`: a folder as a cluster mounts it, or a manifest
    #[arg(long, value_name = "FOLDER|FILE")]
    pub(crate) user_data_secret: Option<PathBuf>,
    /// Vendor-data file, which counts less than user-data; several are combined
    #[arg(long, value_name = "FILE|-")]
    pub(crate) vendor_data: Vec<PathBuf>,
    /// Secret with the vendor-data as `vendordata`
    #[arg(long, value_name = "FOLDER|FILE")]
    pub(crate) vendor_data_secret: Option<PathBuf>,
    /// Meta-data file, YAML or JSON, which counts more than what the flags here make
    #[arg(long, value_name = "FILE|-")]
    pub(crate) meta_data: Option<PathBuf>,
    /// Network configuration file, version 1 or 2; OpenStack's network_data.json for configdrive
    #[arg(long, value_name = "FILE|-", alias = "network-data")]
    pub(crate) network_config: Option<PathBuf>,
    /// The same in base64, as KubeVirt's networkDataBase64
    #[arg(long, value_name = "TEXT|@FILE", alias = "cloud-init-network-data")]
    pub(crate) network_data_base64: Option<OsString>,
    /// Secret with the same as `networkdata`
    #[arg(long, value_name = "FOLDER|FILE")]
    pub(crate) network_data_secret: Option<PathBuf>,
    /// Network interface to configure: mac=MAC, and name=, dhcp4=true|false, dhcp6=, address=IP/PREFIX,
    /// gateway=IP, nameserver=IP, mtu=; may be repeated
    #[arg(long = "interface", value_name = "mac=MAC[,KEY=VALUE…]")]
    pub(crate) interfaces: Vec<Interface>,
    /// Instance id; a changed one makes cloud-init run again [default: derived from the host name]
    #[arg(long, value_name = "ID")]
    pub(crate) instance_id: Option<InstanceId>,
    /// Make a random instance id, so that cloud-init runs again in a guest that has booted
    #[arg(long)]
    pub(crate) new_instance: bool,
    /// Kind of machine that the meta-data names, as KubeVirt's instancetype
    #[arg(long, value_name = "NAME")]
    pub(crate) instance_type: Option<String>,
    /// Take the seed whatever `seed lint` has against it, if only cloud-init sees what its user-data is
    #[arg(long)]
    pub(crate) no_lint: bool,
}

/// Users of the seed, whose flags are a server's user and password elsewhere.
#[derive(Debug, Default, Args)]
#[command(next_help_heading = "Seed")]
pub(crate) struct UserArgs {
    /// Name of the user to log in as, in place of the image's own default user, with its rights; each
    /// further one is added, without rights
    #[arg(long = "user", value_name = "NAME")]
    pub(crate) users: Vec<UserName>,
    /// File with the password of the default user or of USER; only its hash gets into the seed
    #[arg(long = "password-file", value_name = "[USER=]FILE|-", value_parser = for_user())]
    pub(crate) password_files: Vec<ForUser>,
}

/// A value that is for a user, or for the default one.
#[derive(Clone)]
pub(crate) struct ForUser {
    user: Option<UserName>,
    value: OsString,
}

impl ForUser {
    /// `USER=VALUE` if that begins with the name of a user, else all of it. Options of a key are
    /// quoted after their `=`, as no file's name is.
    fn new(text: OsString) -> Self {
        let named = text.to_str().and_then(|text| {
            let (name, value) = text.split_once('=')?;
            let user = name.parse().ok().filter(|_| !value.starts_with('"'))?;
            Some(Self { user: Some(user), value: value.into() })
        });
        named.unwrap_or(Self { user: None, value: text })
    }
}

/// The value may be a secret.
impl fmt::Debug for ForUser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}=****", self.user)
    }
}

fn for_user() -> impl clap::builder::TypedValueParser<Value = ForUser> {
    OsStringValueParser::new().map(ForUser::new)
}

impl SeedArgs {
    /// The seed for a machine of this name, as an image; `None` if no flag asks for one.
    pub(crate) fn machine_seed(&self, name: &str) -> Result<Option<DiskImage>, Failure> {
        if !self.is_given() {
            return Ok(None);
        }
        let datasource = Datasource::NoCloud;
        let seed = gather(self, &UserArgs::default(), name.parse().ok(), datasource)?;
        Ok(Some(seed.build(datasource, ImageFormat::Iso, settings::seed_timestamp()?)?))
    }

    fn is_given(&self) -> bool {
        let lists = [
            self.ssh_keys.is_empty() && self.password_hashes.is_empty(),
            self.user_data.is_empty() && self.vendor_data.is_empty(),
            self.interfaces.is_empty(),
        ];
        let paths = [
            &self.user_data_secret,
            &self.vendor_data_secret,
            &self.network_data_secret,
            &self.meta_data,
            &self.network_config,
        ];
        lists.contains(&false)
            || paths.into_iter().any(Option::is_some)
            || self.user_data_base64.is_some()
            || self.network_data_base64.is_some()
            || self.hostname.is_some()
            || self.instance_id.is_some()
            || self.instance_type.is_some()
            || self.new_instance
            || self.ga_manage_ssh
    }
}

/// Reads everything that the flags name. `machine` is the guest's name if none is given.
pub(crate) fn gather(
    args: &SeedArgs,
    users: &UserArgs,
    machine: Option<Hostname>,
    datasource: Datasource,
) -> Result<Seed, Failure> {
    check_sources(args, users)?;
    let meta_data = args.meta_data.as_deref().map(meta_data).transpose()?;
    if let Some(meta_data) = &meta_data {
        check_meta_data(args, meta_data)?;
    }
    let named = meta_data.as_ref().and_then(MetaData::hostname);
    let hostname = args.hostname.as_ref().or(named).cloned().or(machine).ok_or_else(|| {
        Failure::new(Class::Usage, "the guest has no name")
            .with_hint("give it one with `--hostname`, or as `local-hostname` in `--meta-data`")
    })?;
    let mut seed = Seed::new(hostname);
    seed.meta_data = meta_data;
    seed.instance_id = match args.new_instance {
        true => Some(InstanceId::from_random(settings::random_bytes()?)),
        false => args.instance_id.clone(),
    };
    seed.instance_type.clone_from(&args.instance_type);
    add_users(args, users, &mut seed)?;
    seed.user_data = user_data(args)?;
    seed.vendor_data = vendor_data(args)?;
    seed.network = network(args, datasource)?;
    if !args.no_lint {
        let is_secret = |kind| match kind {
            Kind::UserData => args.user_data_secret.is_some(),
            Kind::VendorData => args.vendor_data_secret.is_some(),
            Kind::NetworkConfig => args.network_data_secret.is_some(),
            Kind::MetaData => false,
        };
        seed_lint::before_build(&seed, datasource, is_secret)?;
    }
    Ok(seed)
}

/// Refuses several sources of one thing, and several readers of standard input.
fn check_sources(args: &SeedArgs, users: &UserArgs) -> Result<(), Failure> {
    at_most_one(&[
        ("--user-data", !args.user_data.is_empty()),
        ("--user-data-base64", args.user_data_base64.is_some()),
        ("--user-data-secret", args.user_data_secret.is_some()),
    ])?;
    at_most_one(&[
        ("--vendor-data", !args.vendor_data.is_empty()),
        ("--vendor-data-secret", args.vendor_data_secret.is_some()),
    ])?;
    at_most_one(&[
        ("--network-config", args.network_config.is_some()),
        ("--network-data-base64", args.network_data_base64.is_some()),
        ("--network-data-secret", args.network_data_secret.is_some()),
        ("--interface", !args.interfaces.is_empty()),
    ])?;
    at_most_one(&[
        ("--instance-id", args.instance_id.is_some()),
        ("--new-instance", args.new_instance),
    ])?;
    let files = args.user_data.iter().chain(&args.vendor_data);
    let files =
        files.chain(&args.meta_data).chain(&args.network_config).map(|path| path.as_os_str());
    let for_users = args.ssh_keys.iter().chain(&users.password_files);
    let values = files.chain(for_users.map(|given| given.value.as_os_str()));
    let texts = args.user_data_base64.iter().chain(&args.network_data_base64);
    let in_base64 = texts.filter(|value| *value == "@-").count();
    if values.filter(|value| *value == "-").count() + in_base64 > 1 {
        let what = "`-` is given more than once: expected one reader of standard input";
        return Err(Failure::new(Class::Usage, what).with_hint("put the others into files"));
    }
    Ok(())
}

/// Refuses two flags that stand for the same.
fn at_most_one(flags: &[(&str, bool)]) -> Result<(), Failure> {
    let mut given = flags.iter().filter(|(_, is_given)| *is_given);
    let (Some((first, _)), Some((second, _))) = (given.next(), given.next()) else {
        return Ok(());
    };
    let what = format!("`{first}` and `{second}` stand for the same: expected one of them");
    Err(Failure::new(Class::Usage, what).with_hint(format!("leave out `{first}` or `{second}`")))
}

fn meta_data(path: &Path) -> Result<MetaData, Failure> {
    Ok(MetaData::parse(&path.display().to_string(), &read_input(path)?)?)
}

/// Refuses flags that say what the meta-data file says otherwise.
fn check_meta_data(args: &SeedArgs, meta_data: &MetaData) -> Result<(), Failure> {
    let has_default_key = args.ssh_keys.iter().any(|key| key.user.is_none());
    let id = ["--instance-id", "--new-instance"][usize::from(args.new_instance)];
    for (flag, is_given, key) in [
        ("--hostname", args.hostname.is_some(), "local-hostname"),
        (id, args.instance_id.is_some() || args.new_instance, "instance-id"),
        ("--instance-type", args.instance_type.is_some(), "instance-type"),
        ("--ssh-key", has_default_key, "public-keys"),
    ] {
        if is_given && meta_data.has(key) {
            let what = format!("`{flag}` is given, and the meta-data file has `{key}`");
            let hint = format!("leave out `{flag}`, or `{key}` in the file");
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
    }
    Ok(())
}

/// The users with their keys and passwords. Who is named first is the default user.
fn add_users(args: &SeedArgs, users: &UserArgs, seed: &mut Seed) -> Result<(), Failure> {
    let mut names = users.users.iter();
    seed.users.default_name = names.next().cloned();
    seed.users.agent_manages_ssh = args.ga_manage_ssh;
    for name in names {
        let is_default = Some(name) == seed.users.default_name.as_ref();
        if is_default || seed.users.others.iter().any(|user| user.name == *name) {
            let what = format!("`--user {name}` is given twice");
            return Err(Failure::new(Class::Usage, what).with_hint("leave out one of them"));
        }
        seed.users.others.push(User::new(name.clone()));
    }
    for given in &args.ssh_keys {
        let keys = ssh_keys(&given.value)?;
        match other(seed, given) {
            Some(user) => user.ssh_keys.extend(keys),
            None => seed.ssh_keys.extend(keys),
        }
    }
    let instance = seed.instance_id();
    for given in &users.password_files {
        let name = given.user.as_ref().map_or("default", UserName::as_str);
        let hash = PasswordHash::of(&password(&given.value)?, &instance, name)?;
        set_password(seed, given, hash)?;
    }
    for given in &args.password_hashes {
        let hash = given.value.to_str().unwrap_or_default().parse()?;
        set_password(seed, given, hash)?;
    }
    Ok(())
}

/// The user beside the default one for whom the value is, added if need be.
fn other<'a>(seed: &'a mut Seed, given: &ForUser) -> Option<&'a mut User> {
    let name = given.user.as_ref().filter(|name| seed.users.default_name.as_ref() != Some(name))?;
    let others = &mut seed.users.others;
    let at = others.iter().position(|user| user.name == *name).unwrap_or_else(|| {
        others.push(User::new(name.clone()));
        others.len() - 1
    });
    others.get_mut(at)
}

fn set_password(seed: &mut Seed, given: &ForUser, hash: PasswordHash) -> Result<(), Failure> {
    let slot = match other(seed, given) {
        Some(user) => &mut user.password,
        None => &mut seed.users.default_password,
    };
    if slot.replace(hash).is_none() {
        return Ok(());
    }
    let whose =
        given.user.as_ref().map_or("the default user".to_owned(), |name| format!("`{name}`"));
    let what = format!("{whose} has two passwords");
    Err(Failure::new(Class::Usage, what)
        .with_hint("give one of `--password-file` and `--password-hash` for each user"))
}

/// How long a line of a private key is at least; few paths without a `.` are that long.
const SECRET_LEN: usize = 60;

/// Keys out of a file, of standard input, or of the value itself.
fn ssh_keys(value: &OsString) -> Result<Vec<SshPublicKey>, Failure> {
    // A text that is no name of a file must not get into a message about one: it may be a private key.
    let is_key = |text: &str| {
        let is_long = text.len() >= SECRET_LEN && !text.contains(['.', '~']);
        is_long || text.contains("-----BEGIN") || text.contains(['\n', ' '])
    };
    let text = value.to_str().filter(|text| is_key(text) && !Path::new(text).exists());
    if let Some(text) = text {
        return Ok(SshPublicKey::parse_all("--ssh-key", text.as_bytes())?);
    }
    let path = Path::new(value);
    let text = read_input(path).map_err(|failure| no_user(value, failure))?;
    Ok(SshPublicKey::parse_all(&path.display().to_string(), &text)?)
}

/// `USER=FILE` of which USER is no name of a user was taken for the name of a file.
fn no_user(value: &OsStr, failure: Failure) -> Failure {
    let name = value.to_str().and_then(|text| text.split_once('=')).map(|(name, _)| name);
    match name.and_then(|name| name.parse::<UserName>().err()) {
        Some(error) => failure.with_hint(format!("{error}; all of it was taken for a path")),
        None => failure,
    }
}

/// The password in a file, without the line end behind it.
fn password(value: &OsString) -> Result<Secret, Failure> {
    let path = Path::new(value);
    let bytes = read_input(path).map_err(|failure| no_user(value, failure))?;
    let text = String::from_utf8(bytes).map_err(|_| {
        let what = format!("password file `{}`: expected text in UTF-8", path.display());
        Failure::new(Class::Usage, what)
    })?;
    if text.starts_with('\u{feff}') {
        let what = format!(
            "password file `{}` begins with a byte-order mark, which nobody types at a log-in",
            path.display()
        );
        return Err(Failure::new(Class::Usage, what).with_hint("save it as UTF-8 without BOM"));
    }
    let line = text.strip_suffix('\n').unwrap_or(&text);
    Ok(Secret::new(line.strip_suffix('\r').unwrap_or(line).to_owned()))
}

fn user_data(args: &SeedArgs) -> Result<Vec<UserData>, Failure> {
    if let Some(value) = &args.user_data_base64 {
        let flag = "--user-data-base64";
        return Ok(vec![UserData::read(flag, base64(flag, value)?, reading(args))?]);
    }
    match &args.user_data_secret {
        Some(path) => secret_part(args, path, ["userdata", "userData"]),
        None => parts(args, &args.user_data),
    }
}

fn vendor_data(args: &SeedArgs) -> Result<Vec<UserData>, Failure> {
    match &args.vendor_data_secret {
        Some(path) => secret_part(args, path, ["vendordata", "vendorData"]),
        None => parts(args, &args.vendor_data),
    }
}

const fn reading(args: &SeedArgs) -> Reading {
    Reading { is_secret: false, is_lenient: args.no_lint }
}

fn secret_part(args: &SeedArgs, path: &Path, keys: [&str; 2]) -> Result<Vec<UserData>, Failure> {
    let reading = Reading { is_secret: true, ..reading(args) };
    Ok(vec![UserData::read(&path.display().to_string(), secret(path, keys)?, reading)?])
}

fn parts(args: &SeedArgs, paths: &[PathBuf]) -> Result<Vec<UserData>, Failure> {
    let part = |path: &PathBuf| {
        let content = read_input(path)?;
        Ok(UserData::read(&path.display().to_string(), content, reading(args))?)
    };
    paths.iter().map(part).collect()
}

fn network(args: &SeedArgs, datasource: Datasource) -> Result<Option<Network>, Failure> {
    if !args.interfaces.is_empty() {
        return Ok(Some(Network::Interfaces(args.interfaces.clone())));
    }
    let (name, bytes) = if let Some(path) = &args.network_config {
        (path.display().to_string(), read_input(path)?)
    } else if let Some(value) = &args.network_data_base64 {
        let flag = "--network-data-base64";
        (flag.to_owned(), base64(flag, value)?)
    } else if let Some(path) = &args.network_data_secret {
        (path.display().to_string(), secret(path, ["networkdata", "networkData"])?)
    } else {
        return Ok(None);
    };
    let got = match std::str::from_utf8(&bytes) {
        Ok(text) if !text.trim().is_empty() => return Ok(Some(Network::Text(bytes))),
        Ok(_) => "nothing",
        Err(_) => "bytes that are not UTF-8",
    };
    let expected = match datasource {
        Datasource::NoCloud => "YAML",
        Datasource::ConfigDrive => "JSON",
    };
    let what = format!("network configuration `{name}`: expected {expected}, got {got}");
    Err(Failure::new(Class::Usage, what))
}

/// The bytes of a value in base64, or of the file that it names; line ends in it are left out.
fn base64(flag: &str, value: &OsString) -> Result<Vec<u8>, Failure> {
    let text = match value.to_str().map(|text| text.strip_prefix('@').ok_or(text)) {
        Some(Ok(path)) => read_input(Path::new(path))?,
        Some(Err(text)) => text.as_bytes().to_vec(),
        None => value.as_encoded_bytes().to_vec(),
    };
    let text: Vec<u8> = text.into_iter().filter(|b| !b.is_ascii_whitespace()).collect();
    STANDARD.decode(text).map_err(|error| {
        Failure::new(Class::Usage, format!("`{flag}`: expected base64: {error}"))
            .with_hint(format!("`{flag}` takes the text itself, or `@FILE`; see base64(1)"))
    })
}

/// What a secret has under the first of these keys: a folder as a cluster mounts it, with a file for
/// each key, or the manifest of a Secret.
fn secret(path: &Path, keys: [&str; 2]) -> Result<Vec<u8>, Failure> {
    let failed = |error| Failure::new(Class::Usage, error);
    let [first, second] = keys;
    if fs_err::metadata(path).map_err(failed)?.is_dir() {
        let mut files = keys.into_iter().map(|key| path.join(key));
        if let Some(file) = files.find(|file| file.exists()) {
            return read_input(&file);
        }
    } else {
        let shown = path.display();
        let object = bootyard_manifest::data_object(&read_input(path)?)
            .map_err(|error| failed(std::io::Error::other(format!("`{shown}`: {error}"))))?;
        if object.kind != DataKind::Secret {
            let what = format!("`{shown}`: kind: expected Secret, got ConfigMap");
            return Err(Failure::new(Class::Usage, what));
        }
        let mut entries = object.entries;
        if let Some(value) = keys.into_iter().find_map(|key| entries.remove(key)) {
            return Ok(value);
        }
    }
    let what = format!("secret `{}` has neither `{first}` nor `{second}`", path.display());
    let hint = format!(
        "`kubectl create secret generic NAME --from-file={first}=FILE` makes one, and so does a file \
         `{}`",
        shell_word(path.join(first))
    );
    Err(Failure::new(Class::Usage, what).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: SeedArgs,
        #[command(flatten)]
        users: UserArgs,
    }

    const KEY: &str =
        "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

    fn gathered(flags: &[&str]) -> Result<Seed, Failure> {
        let line = ["seed", "--hostname", "h"];
        let line = Line::parse_from(line.iter().chain(flags));
        gather(&line.args, &line.users, None, Datasource::NoCloud)
    }

    #[test]
    fn keys_and_passwords_go_to_their_users() {
        let option = format!("command=\"x=1 y\" {KEY}");
        let seed = gathered(&[
            "--user",
            "me",
            "--user",
            "you",
            "--ssh-key",
            KEY,
            "--ssh-key",
            &format!("me={KEY} a"),
            "--ssh-key",
            &option,
            "--ssh-key",
            &format!("eve={KEY}"),
            "--ssh-key",
            &format!("eve={option}"),
            "--password-hash",
            "you=$6$a$b",
            "--password-hash",
            "$6$c$d",
        ])
        .unwrap();
        assert_eq!(seed.users.default_name.as_ref().unwrap().as_str(), "me");
        assert_eq!(seed.ssh_keys.len(), 3);
        assert!(seed.users.default_password.is_some());
        let others: Vec<(&str, usize, bool)> = seed
            .users
            .others
            .iter()
            .map(|user| (user.name.as_str(), user.ssh_keys.len(), user.password.is_some()))
            .collect();
        assert_eq!(others, [("you", 0, true), ("eve", 2, false)]);
    }

    #[test]
    fn a_machine_has_a_seed_if_any_flag_asks_for_one() {
        let seed = |flags: &[&str]| {
            let line = Line::parse_from(["run"].iter().chain(flags));
            line.args.machine_seed("web").unwrap()
        };
        assert_eq!(seed(&[]), None);
        let named = seed(&["--hostname", "web"]);
        assert!(named.is_some());
        for flag in ["--instance-type=u1", "--password-hash=$6$a$b", "--user-data-base64=IyFh"] {
            let seed = seed(&[flag]);
            assert!(seed.is_some() && seed != named, "{flag}");
        }
    }

    #[test]
    fn a_new_instance_is_another_each_time_and_else_it_stays() {
        let id = |flags: &[&str]| gathered(flags).unwrap().instance_id();
        assert_eq!(id(&[]), id(&[]));
        assert_ne!(id(&["--new-instance"]), id(&["--new-instance"]));
    }

    #[test]
    fn what_is_no_user_before_the_equals_sign_is_told() {
        let key = gathered(&["--ssh-key", "Deploy=k.pub"]).unwrap_err();
        let password = gathered(&["--password-file", "Deploy=k"]).unwrap_err();
        for failure in [key, password] {
            assert!(
                failure.render().contains("`Deploy` is not a user name"),
                "{}",
                failure.render()
            );
        }
    }

    #[test]
    fn keys_may_begin_with_a_byte_order_mark() {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs_err::write(file.path(), format!("\u{feff}{KEY}\n")).unwrap();
        let seed = gathered(&["--ssh-key", file.path().to_str().unwrap()]).unwrap();
        assert_eq!(seed.ssh_keys[0].to_string(), KEY);
    }

    #[test]
    fn flags_that_contradict_each_other_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &str| {
            let path = folder.path().join(name);
            fs_err::write(&path, content).unwrap();
            path.to_str().unwrap().to_owned()
        };
        let meta = file("meta", "instance-id: i\npublic-keys: [x]\nlocal-hostname: n\n");
        let (empty, config) = (file("empty", " \n"), file("config", "#cloud-config\n"));
        let password = file("password", "two\nlines\n");
        let marked = file("marked", "\u{feff}hunter2\n");
        let private = format!("hunter2{}", "b3BlbnNzaC1rZXktdjEA".repeat(3));
        let map = file("map", "apiVersion: v1\nkind: ConfigMap\ndata: {userdata: x}\n");
        let folder = folder.path().to_str().unwrap();
        let mac = "mac=52:54:00:00:00:01";
        for (flags, message) in [
            (&["--user-data", "-", "--ssh-key", "-"][..], "`-` is given more than once"),
            (&["--user-data", "-", "--password-file", "a=-"], "`-` is given more than once"),
            (
                &["--user-data", &config, "--user-data-base64", "eA=="],
                "`--user-data` and `--user-data-base64`",
            ),
            (
                &["--network-config", &config, "--interface", mac],
                "`--network-config` and `--interface`",
            ),
            (&["--new-instance", "--instance-id", "i"], "`--instance-id` and `--new-instance`"),
            (
                &["--meta-data", &meta],
                "`--hostname` is given, and the meta-data file has `local-hostname`",
            ),
            (&["--network-config", &empty], "expected YAML, got nothing"),
            (&["--network-data-base64", "/w=="], "expected YAML, got bytes that are not UTF-8"),
            (&["--user-data-base64", "x!"], "`--user-data-base64`: expected base64"),
            (&["--user", "a", "--user", "a"], "`--user a` is given twice"),
            (
                &["--password-hash", "$6$a$b", "--password-hash", "$6$a$c"],
                "the default user has two passwords",
            ),
            (
                &["--password-hash", "a=$6$a$b", "--password-hash", "a=$6$a$c"],
                "`a` has two passwords",
            ),
            (&["--password-hash", "hunter2"], "this is not a password hash"),
            (&["--password-file", &marked], "begins with a byte-order mark"),
            (&["--ssh-key", &private], "`--ssh-key` line 1: expected a key type"),
            (&["--user-data", "-", "--network-data-base64", "@-"], "`-` is given more than once"),
            (&["--password-file", &password], "the password has a line end"),
            (
                &["--ssh-key", "-----BEGIN OPENSSH PRIVATE KEY-----"],
                "`--ssh-key`: this is a private key",
            ),
            (&["--user-data-secret", folder], "has neither `userdata` nor `userData`"),
            (&["--user-data-secret", &map], "expected Secret, got ConfigMap"),
        ] {
            let failure = gathered(flags).unwrap_err();
            assert_eq!(failure.exit_code(), 2);
            assert!(failure.message().contains(message), "{}", failure.message());
            assert!(!failure.render().contains("hunter2"));
        }
    }
}
