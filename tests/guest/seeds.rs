//! What a real cloud-init makes of our seeds: a Debian 12 guest boots from each kind of them and tells
//! what it found done. Nothing of the seed may be lost, and nothing be done twice.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bootyard_cloudinit::{Image, ImageFormat, Tree};
use bootyard_testkit::{Cli, pseudo_random, skip};
use expect_test::expect;
use fs_err::os::unix::fs::symlink;

use crate::{guest, need};

/// Limit for a boot: many times what a quiet machine with two cores needs.
const BOOT_LIMIT: Duration = Duration::from_secs(600);

/// A key as `ssh-keygen` writes it, up to its comment, by which the guest tells keys apart.
const KEY: &str =
    "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAABAgMEBQYHCAkKCwwNDg8QERITFBUWFxgZGhscHR4f";

/// Of "correct horse", by `openssl passwd -6`.
const HASH: &str = "$6$carolsalt$vHduUVOAAGdFs3mP8a.dgkmb5mkbX0mv18gdBHh1TNrC.257ApK4/xxeUwzFznEbj03NWkYj/yHprOBgUaZeA0";

/// The address of the machine's network card.
const MAC: &str = "52:54:00:b0:07:01";

const NETWORK: &str = "\
version: 2
ethernets:
  lan0:
    match: {macaddress: \"@MAC@\"}
    set-name: lan0
    addresses: [192.0.2.10/24, \"2001:db8::10/64\"]
    routes: [{to: 0.0.0.0/0, via: 192.0.2.1}]
    nameservers: {addresses: [192.0.2.53], search: [example.org]}
    mtu: 1400
";

/// A cloud-config that is not YAML beside a boothook.
const TAB: &str = "\
MIME-Version: 1.0
Content-Type: multipart/mixed; boundary=part

--part
Content-Type: text/cloud-boothook

@BOOTHOOK@
--part
Content-Type: text/cloud-config

#cloud-config
runcmd:
\t- touch /tab
--part--
";

const TEMPLATE: &str = "\
## template: jinja
#!/bin/sh
echo 'template of {{ v1.local_hostname }} in {{ ds.meta_data.rack }}' >>/var/lib/runs
";

/// Runs in each boot: when cloud-init is done, writes the facts on the second disk and ends the guest.
const BOOTHOOK: &str = r#"#cloud-boothook
#!/bin/sh
[ -e /run/report.sh ] || echo boothook >>/var/lib/runs
cat >/run/report.sh <<'END'
exec >/run/report 2>&1
tr -d '\n' </run/cloud-init/result.json | tr -s ' '
echo
cloud-init status --long | grep -v last_update
grep -E 'WARNING|ERROR|CRITICAL' /var/log/cloud-init.log | cut -d' ' -f4-
echo "instance: $(cat /var/lib/cloud/data/instance-id), host name: $(hostname -f)"
@FACTS@
END
systemd-run --no-block --unit=report --property=After=cloud-final.service \
    sh -c 'sh /run/report.sh; cp /run/report /dev/vdb; sync; systemctl poweroff'
"#;

/// What a seed can change in a guest. The check against cloud-init's schema comes last, since it runs
/// boothooks again.
const FACTS: &str = r#"
cd /home
for user in *; do
    id "$user"
    grep "^$user:" /etc/shadow | cut -d: -f1,2
    cut -d' ' -f3 "$user/.ssh/authorized_keys" | sort
    grep "^$user" /etc/sudoers.d/90-cloud-init-users
done
stat -c '%A %U:%G %s %n' /etc/app/*
sha256sum /etc/app/*
cat /etc/app/plain.conf
sort /var/lib/runs | uniq -c
cat /etc/ssh/ssh_host_ed25519_key.pub >>/var/lib/host-keys
echo "host keys so far: $(sort -u /var/lib/host-keys | wc -l)"
card=$(basename "$(dirname "$(grep -l @MAC@ /sys/class/net/*/address)")")
echo "mtu $(cat "/sys/class/net/$card/mtu")"
ip -oneline addr show scope global | tr -s ' ' | cut -d' ' -f2-4
ip route show default | sed 's/ *$//'
resolvectl --no-pager status "$card" | grep -E 'DNS (Servers|Domain)' | sed 's/^ *//'
cloud-init schema --system
"#;

/// A machine's disk, and the folder of its seeds.
struct Machine {
    cli: Cli,
}

impl Machine {
    /// Imports the guest, and puts a network card with [`MAC`] into every machine that QEMU runs.
    fn import(image: &Path) -> Self {
        let cli = Cli::from_env().limit(BOOT_LIMIT);
        let bin = cli.root().join("bin");
        fs_err::create_dir(&bin).expect("a folder");
        // The engine starts QEMU by the `setpriv` beside it.
        symlink("/usr/bin/setpriv", bin.join("setpriv")).expect("a link");
        let qemu = bin.join("qemu-system-x86_64");
        let script = format!(
            "#!/bin/sh\nexec /usr/bin/qemu-system-x86_64 \"$@\" -netdev user,id=net0,restrict=on \
             -device virtio-net-pci,netdev=net0,mac={MAC},romfile=\n"
        );
        fs_err::write(&qemu, script).expect("a script");
        fs_err::set_permissions(&qemu, Permissions::from_mode(0o755)).expect("a program");
        let path = format!("{}:/usr/bin:/bin", bin.display());
        let machine = Self { cli: cli.env("PATH", &path) };
        machine.run(&["import", &image.display().to_string(), "--name", "debian"]);
        machine
    }

    #[track_caller]
    fn run(&self, words: &[&str]) {
        let output = self.cli.run(words);
        assert_eq!(output.code, Some(0), "{output}");
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        fs_err::write(self.cli.work().join(name), content).expect("a file");
    }

    /// A seed as one makes it by hand, with a tab in its vendor-data, beside which the report is asked
    /// for.
    fn handmade(&self, name: &str, label: &str, files: &[(&str, &str)]) {
        let mut tree = Tree::new();
        let meta_data = format!("instance-id: {name}\nlocal-hostname: {name}\n");
        let vendor_data = TAB.replace("@BOOTHOOK@", &BOOTHOOK.replace("@FACTS@", ""));
        for (name, content) in [("meta-data", &*meta_data), ("vendor-data", &vendor_data)] {
            tree.insert(name, content).expect("a file");
        }
        for (name, content) in files {
            tree.insert(name, *content).expect("another file");
        }
        let image = Image { format: ImageFormat::Iso, label, timestamp: 0 }.build(&tree);
        self.write(name, image.expect("an image").into_bytes());
    }

    /// Boots the volume with the seed `seed` and gives what the guest reports.
    #[track_caller]
    fn boot(&self) -> String {
        self.boot_with(&["--disk", "debian", "--disk", "./report", "--seed", "seed"])
    }

    #[track_caller]
    fn boot_with(&self, disks: &[&str]) -> String {
        self.write("report", vec![0; 1 << 20]);
        let limit = format!("{}s", BOOT_LIMIT.as_secs() - 30);
        let size = ["--cpus", "2", "--memory", "1Gi", "--timeout", &limit];
        // Its only network card is that of the script.
        let machine = ["run", "--engine", "qemu", "--net", "none"];
        let output = self.cli.run([&machine[..], disks, &size].concat());
        assert_eq!(output.code, Some(0), "{output}");
        let report = fs_err::read(self.cli.work().join("report")).expect("the report's disk");
        let text = report.split(|byte| *byte == 0).next().unwrap_or_default();
        assert!(!text.is_empty(), "the guest reported nothing: {output}");
        String::from_utf8_lossy(text).into_owned()
    }

    /// Writes what both kinds of seed are made from, and gives the flags that name it.
    fn inputs(&self) -> Vec<&'static str> {
        let large = STANDARD.encode(pseudo_random(100 << 10, 3));
        let boothook = BOOTHOOK.replace("@FACTS@", FACTS).replace("@MAC@", MAC);
        for (name, content) in [
            ("own.pub", format!("{KEY} own\n{KEY} other")),
            ("alice.pub", format!("{KEY} alice")),
            ("alice.password", "correct horse\n".to_owned()),
            ("config.yaml", cloud_config(&large)),
            ("boothook", boothook),
            ("script", "#!/bin/sh\necho \"script of $(id -un)\" >>/var/lib/runs\n".to_owned()),
            ("template", TEMPLATE.to_owned()),
            ("vendor.yaml", "#cloud-config\nmanage_etc_hosts: true\n".to_owned()),
            ("vendor", "#!/bin/sh\necho 'script of the vendor' >>/var/lib/runs\n".to_owned()),
            ("meta.json", r#"{"rack": "b7"}"#.to_owned()),
        ] {
            self.write(name, content);
        }
        let flags = "--hostname web-1.example.org --ssh-key own.pub --ssh-key alice=alice.pub \
            --password-file alice=alice.password --user-data config.yaml --user-data boothook \
            --user-data script --user-data template --vendor-data vendor.yaml --vendor-data vendor \
            --meta-data meta.json";
        flags.split_whitespace().collect()
    }
}

/// Users, files and commands. The large file's `content` is base64.
fn cloud_config(content: &str) -> String {
    format!(
        "#cloud-config
users:
  - default
  - name: carol
    shell: /bin/bash
    lock_passwd: false
    passwd: {HASH}
    ssh_authorized_keys: [{KEY} carol]
write_files:
  - path: /etc/app/plain.conf
    permissions: '0640'
    owner: root:adm
    content: |
      Grüße
      \ttab
  - path: /etc/app/big.bin
    permissions: '0600'
    encoding: b64
    content: {content}
runcmd:
  - echo 'runcmd of the shell' >>/var/lib/runs
  - [sh, -c, echo 'runcmd of a list' >>/var/lib/runs]
"
    )
}

#[test]
fn a_nocloud_iso_is_applied_once() {
    let machine = Machine::import(&need!(guest()));
    machine.write("network.yaml", NETWORK.replace("@MAC@", MAC));
    let flags = machine.inputs();
    let build = ["seed", "build", "-o", "seed", "--network-config", "network.yaml"];
    machine.run(&[&build[..], &flags].concat());
    expect![[r#"
        { "v1": { "datasource": "DataSourceNoCloud [seed=/dev/vdc][dsmode=net]", "errors": [] }}
        status: done
        boot_status_code: enabled-by-generator
        detail:
        DataSourceNoCloud [seed=/dev/vdc][dsmode=net]
        instance: 0eea5950-c79c-5b29-a822-081b0ac664ec, host name: web-1.example.org
        uid=1001(alice) gid=1001(alice) groups=1001(alice)
        alice:$6$rounds=100000$BGt63Uoll2Vs3eSi$l1iX4X4tvHwe7oaCJsOK8MxrMCiubUynQ.HMA8.6WL6wNsLw3zZ8FPghZFTVo7H9.o4pGse905b7UVKeQVyp2.
        alice
        uid=1000(carol) gid=1000(carol) groups=1000(carol)
        carol:$6$carolsalt$vHduUVOAAGdFs3mP8a.dgkmb5mkbX0mv18gdBHh1TNrC.257ApK4/xxeUwzFznEbj03NWkYj/yHprOBgUaZeA0
        carol
        uid=1002(debian) gid=1003(debian) groups=1003(debian),4(adm),20(dialout),24(cdrom),25(floppy),27(sudo),29(audio),30(dip),44(video),46(plugdev),1002(netdev)
        debian:!
        other
        own
        debian ALL=(ALL) NOPASSWD:ALL
        -rw------- root:root 102400 /etc/app/big.bin
        -rw-r----- root:adm 13 /etc/app/plain.conf
        be0199e4b479aa901e0d7970562a75113934521c1f848946e873fcede9ba33b1  /etc/app/big.bin
        e06a32898e4185605bd8aa9b1e63f0e633ec6f9954288dfb7df4c34ea36511c9  /etc/app/plain.conf
        Grüße
        	tab
              1 boothook
              1 runcmd of a list
              1 runcmd of the shell
              1 script of root
              1 script of the vendor
              1 template of web-1 in b7
        host keys so far: 1
        mtu 1400
        lan0 inet 192.0.2.10/24
        lan0 inet6 2001:db8::10/64
        default via 192.0.2.1 dev lan0 proto static
        DNS Servers: 192.0.2.53
        DNS Domain: example.org
        Valid cloud-config: system userdata
    "#]].assert_eq(&machine.boot());
    expect![[r#"
        { "v1": { "datasource": "DataSourceNoCloud [seed=/dev/vdc][dsmode=net]", "errors": [] }}
        status: done
        boot_status_code: enabled-by-generator
        detail:
        DataSourceNoCloud [seed=/dev/vdc][dsmode=net]
        instance: 0eea5950-c79c-5b29-a822-081b0ac664ec, host name: web-1.example.org
        uid=1001(alice) gid=1001(alice) groups=1001(alice)
        alice:$6$rounds=100000$BGt63Uoll2Vs3eSi$l1iX4X4tvHwe7oaCJsOK8MxrMCiubUynQ.HMA8.6WL6wNsLw3zZ8FPghZFTVo7H9.o4pGse905b7UVKeQVyp2.
        alice
        uid=1000(carol) gid=1000(carol) groups=1000(carol)
        carol:$6$carolsalt$vHduUVOAAGdFs3mP8a.dgkmb5mkbX0mv18gdBHh1TNrC.257ApK4/xxeUwzFznEbj03NWkYj/yHprOBgUaZeA0
        carol
        uid=1002(debian) gid=1003(debian) groups=1003(debian),4(adm),20(dialout),24(cdrom),25(floppy),27(sudo),29(audio),30(dip),44(video),46(plugdev),1002(netdev)
        debian:!
        other
        own
        debian ALL=(ALL) NOPASSWD:ALL
        -rw------- root:root 102400 /etc/app/big.bin
        -rw-r----- root:adm 13 /etc/app/plain.conf
        be0199e4b479aa901e0d7970562a75113934521c1f848946e873fcede9ba33b1  /etc/app/big.bin
        e06a32898e4185605bd8aa9b1e63f0e633ec6f9954288dfb7df4c34ea36511c9  /etc/app/plain.conf
        Grüße
        	tab
              2 boothook
              1 runcmd of a list
              1 runcmd of the shell
              1 script of root
              1 script of the vendor
              1 template of web-1 in b7
        host keys so far: 1
        mtu 1400
        lan0 inet 192.0.2.10/24
        lan0 inet6 2001:db8::10/64
        default via 192.0.2.1 dev lan0 proto static
        DNS Servers: 192.0.2.53
        DNS Domain: example.org
        Valid cloud-config: system userdata
    "#]].assert_eq(&machine.boot());
}

#[test]
fn a_config_drive_on_fat_is_applied_and_another_instance_once_more() {
    let machine = Machine::import(&need!(guest()));
    let interface = format!(
        "mac={MAC},name=lan0,address=192.0.2.10/24,gateway=192.0.2.1,nameserver=192.0.2.53,mtu=1400"
    );
    let build = ["seed", "build", "-o", "seed", "--format", "fat", "--interface", &interface];
    let flags = [&build[..], &machine.inputs()].concat();
    machine.run(&[&flags[..], &["--datasource", "configdrive", "--user", "admin"]].concat());
    expect![[r#"
        { "v1": { "datasource": "DataSourceConfigDrive [net,ver=2][source=/dev/vdc]", "errors": [] }}
        status: done
        boot_status_code: enabled-by-generator
        detail:
        DataSourceConfigDrive [net,ver=2][source=/dev/vdc]
        instance: 0eea5950-c79c-5b29-a822-081b0ac664ec, host name: web-1.example.org
        uid=1002(admin) gid=1003(admin) groups=1003(admin),4(adm),20(dialout),24(cdrom),25(floppy),27(sudo),29(audio),30(dip),44(video),46(plugdev),1002(netdev)
        admin:!
        other
        own
        admin ALL=(ALL) NOPASSWD:ALL
        uid=1001(alice) gid=1001(alice) groups=1001(alice)
        alice:$6$rounds=100000$BGt63Uoll2Vs3eSi$l1iX4X4tvHwe7oaCJsOK8MxrMCiubUynQ.HMA8.6WL6wNsLw3zZ8FPghZFTVo7H9.o4pGse905b7UVKeQVyp2.
        alice
        uid=1000(carol) gid=1000(carol) groups=1000(carol)
        carol:$6$carolsalt$vHduUVOAAGdFs3mP8a.dgkmb5mkbX0mv18gdBHh1TNrC.257ApK4/xxeUwzFznEbj03NWkYj/yHprOBgUaZeA0
        carol
        -rw------- root:root 102400 /etc/app/big.bin
        -rw-r----- root:adm 13 /etc/app/plain.conf
        be0199e4b479aa901e0d7970562a75113934521c1f848946e873fcede9ba33b1  /etc/app/big.bin
        e06a32898e4185605bd8aa9b1e63f0e633ec6f9954288dfb7df4c34ea36511c9  /etc/app/plain.conf
        Grüße
        	tab
              1 boothook
              1 runcmd of a list
              1 runcmd of the shell
              1 script of root
              1 script of the vendor
              1 template of web-1 in b7
        host keys so far: 1
        mtu 1400
        lan0 inet 192.0.2.10/24
        default via 192.0.2.1 dev lan0 proto static
        DNS Servers: 192.0.2.53
        Valid cloud-config: system userdata
    "#]].assert_eq(&machine.boot());
    machine.run(&[&flags[..], &["--instance-id", "another"]].concat());
    expect![[r#"
        { "v1": { "datasource": "DataSourceNoCloud [seed=/dev/vdc][dsmode=net]", "errors": [] }}
        status: done
        boot_status_code: enabled-by-generator
        detail:
        DataSourceNoCloud [seed=/dev/vdc][dsmode=net]
        instance: another, host name: web-1.example.org
        uid=1002(admin) gid=1003(admin) groups=1003(admin),4(adm),20(dialout),24(cdrom),25(floppy),27(sudo),29(audio),30(dip),44(video),46(plugdev),1002(netdev)
        admin:!
        other
        own
        admin ALL=(ALL) NOPASSWD:ALL
        uid=1001(alice) gid=1001(alice) groups=1001(alice)
        alice:$6$rounds=100000$XIIXZ126kzwMsUEU$MlnlQ4VZuNb6t70ttEjzWi8pK7vxfyZyZneecRE1JXtnYq9P3y3ONnU5gyKC3b7uPiZYwrWGVuUHWJgZJWcSQ/
        alice
        uid=1000(carol) gid=1000(carol) groups=1000(carol)
        carol:$6$carolsalt$vHduUVOAAGdFs3mP8a.dgkmb5mkbX0mv18gdBHh1TNrC.257ApK4/xxeUwzFznEbj03NWkYj/yHprOBgUaZeA0
        carol
        uid=1003(debian) gid=1004(debian) groups=1004(debian),4(adm),20(dialout),24(cdrom),25(floppy),27(sudo),29(audio),30(dip),44(video),46(plugdev),1002(netdev)
        debian:!
        other
        own
        debian ALL=(ALL) NOPASSWD:ALL
        -rw------- root:root 102400 /etc/app/big.bin
        -rw-r----- root:adm 13 /etc/app/plain.conf
        be0199e4b479aa901e0d7970562a75113934521c1f848946e873fcede9ba33b1  /etc/app/big.bin
        e06a32898e4185605bd8aa9b1e63f0e633ec6f9954288dfb7df4c34ea36511c9  /etc/app/plain.conf
        Grüße
        	tab
              2 boothook
              2 runcmd of a list
              2 runcmd of the shell
              2 script of root
              2 script of the vendor
              2 template of web-1 in b7
        host keys so far: 2
        mtu 1400
        lan0 inet 192.0.2.10/24
        default via 192.0.2.1 dev lan0 proto static
        DNS Servers: 192.0.2.53
        Valid cloud-config: system userdata
    "#]].assert_eq(&machine.boot());
}

/// What docs/seeds.md says of mistakes: of the three seeds the last one that has a good label counts,
/// its user-data has no header, and its network has a route that this cloud-init does not know.
#[test]
fn what_a_guest_does_not_understand_it_passes_over() {
    let machine = Machine::import(&need!(guest()));
    let network = NETWORK.replace("@MAC@", MAC).replace("0.0.0.0/0", "default");
    let user_data = ("user-data", "#cloud-config\n{}\n");
    machine.handmade("first", "CIDATA", &[user_data]);
    let headless = ("user-data", "runcmd: [touch /headless]\n");
    machine.handmade("second", "cidata", &[headless, ("network-config", &network)]);
    machine.handmade("third", "CiData", &[user_data]);
    let disks = [
        "--disk", "debian", "--disk", "./report", "--disk", "./first", "--disk", "./second",
        "--seed", "third",
    ];
    expect![[r#"
        { "v1": { "datasource": "DataSourceNoCloud [seed=/dev/vdd][dsmode=net]", "errors": [ "Address default is not a valid ip address" ] }}
        status: error
        boot_status_code: enabled-by-generator
        detail:
        Address default is not a valid ip address
        network_state.py[ERROR]: Address default is not a valid ip network
        util.py[WARNING]: failed stage init-local
        util.py[WARNING]: Failed loading yaml blob. Invalid format at line 3 column 1: "while scanning for the next token
        __init__.py[WARNING]: Unhandled non-multipart (text/x-not-multipart) userdata: 'b'runcmd: [touch /headless'...'
        util.py[WARNING]: Failed loading yaml blob. Invalid format at line 3 column 1: "while scanning for the next token
        cloud_config.py[WARNING]: Failed at merging in cloud config part from part-002: empty cloud config
        instance: second, host name: second
    "#]].assert_eq(&machine.boot_with(&disks));
}
