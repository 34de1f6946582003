//! Scripts in, menus and loaded files out.

use std::collections::HashMap;
use std::fmt::Write;

use proptest::prelude::*;

use super::eval::{Boot, Grub};
use super::*;

/// The files of one file system, known by one UUID, label and device.
#[derive(Default)]
struct Memory(HashMap<String, Vec<u8>>);

const UUID: &str = "25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f";

impl Files for Memory {
    fn search(&self, by: SearchBy, value: &str) -> Result<Option<String>, Error> {
        let found = match by {
            SearchBy::Uuid => value == UUID,
            SearchBy::Label => value == "cloudimg-rootfs",
            SearchBy::File => self.0.contains_key(value),
        };
        Ok(found.then(|| "hd0,gpt9".to_owned()))
    }

    fn size(&self, _: &str, path: &str) -> Result<Option<u64>, Error> {
        Ok(self.0.get(path).map(|bytes| bytes.len() as u64))
    }

    fn read(&self, _: &str, path: &str, _: u64) -> Result<Option<Vec<u8>>, Error> {
        Ok(self.0.get(path).cloned())
    }

    fn names(&self, _: &str, path: &str) -> Result<Vec<String>, Error> {
        let folder = format!("{path}/");
        let names = self.0.keys().filter_map(|file| file.strip_prefix(&folder));
        Ok(names.map(str::to_owned).collect())
    }
}

fn memory(files: &[(&str, &str)]) -> Memory {
    Memory(files.iter().map(|(path, text)| (path.to_string(), text.as_bytes().into())).collect())
}

fn config() -> Place {
    Place { device: "hd0,gpt1".to_owned(), path: "/boot/grub/grub.cfg".to_owned() }
}

/// The first entry of `script` and what it loads.
fn first(script: &str, files: &Memory) -> Result<Boot, Error> {
    let place = config();
    let mut grub = Grub::new(files, &place);
    let menu = grub.menu(script)?;
    grub.boot(&menu[0])
}

/// Kernel, command line and initial RAM disks in one line.
fn shown(boot: &Boot) -> String {
    let kernel = boot.kernel.as_ref().expect("a kernel");
    let mut text = format!("({}){} {}", kernel.place.device, kernel.place.path, boot.cmdline);
    for initrd in &boot.initrds {
        write!(text, " + ({}){}", initrd.place.device, initrd.place.path).unwrap();
    }
    text
}

#[track_caller]
fn check(script: &str, expected: &str) {
    let files = memory(&[
        ("/present", "x"),
        ("/boot/grub/grubenv", "# GRUB Environment Block\nkernelopts=root=/dev/vda1 ro\n"),
    ]);
    assert_eq!(shown(&first(script, &files).unwrap()), expected, "{script}");
}

#[track_caller]
fn fails(script: &str, expected: &str) {
    let error = first(script, &Memory::default()).unwrap_err();
    assert_eq!(error.to_string(), format!("`/boot/grub/grub.cfg` {expected}"));
}

#[test]
fn words_are_quoted_and_replaced_as_in_grub() {
    for (script, expected) in [
        ("menuentry a { linux /k a  b\tc }", "(hd0,gpt1)/k a b c"),
        ("menuentry a { linux k }", "(hd0,gpt1)/k "),
        (
            "menuentry a { linux (hd0,gpt5)/k; initrd /i (hd1)/j }",
            "(hd0,gpt5)/k  + (hd0,gpt1)/i + (hd1)/j",
        ),
        ("menuentry a { linux /k 'a b' \"c\\\"d\" e\\ f }", r#"(hd0,gpt1)/k "a b" c\"d "e f""#),
        (
            "set x='1 2'\nmenuentry a { linux /k $x \"$x\" ${x}3 '$x' $nothing \"\" }",
            r#"(hd0,gpt1)/k 1 2 "1 2" 1 23 $x "#,
        ),
        ("x=a\nset y=${x}b\nmenuentry a { linux /k p=$y q=$x.$y }", "(hd0,gpt1)/k p=ab q=a.ab"),
        ("menuentry a {\n linux /k \\\n  one # no more\n}", "(hd0,gpt1)/k one"),
        ("menuentry 'the title' --class x { linux /k $1 }", "(hd0,gpt1)/k the title"),
        ("menuentry a { initrd /old\n linux /k\n initrd /i\n }", "(hd0,gpt1)/k  + (hd0,gpt1)/i"),
    ] {
        check(script, expected);
    }
}

#[test]
fn conditions_loops_and_functions_run() {
    for (script, expected) in [
        (
            "if [ a = b ]; then x=1; elif [ -s /present ]; then x=2; else x=3; fi\nmenuentry a { linux /k $x }",
            "(hd0,gpt1)/k 2",
        ),
        (
            "if [ -e /absent ]\nthen\nx=1\nelse\nx=3\nfi\nmenuentry a { linux /k $x }",
            "(hd0,gpt1)/k 3",
        ),
        ("for i in 1 2 3; do x=$x$i; done\nmenuentry a { linux /k $x }", "(hd0,gpt1)/k 123"),
        ("until [ x$x = xaaa ]; do x=a$x; done\nmenuentry a { linux /k $x }", "(hd0,gpt1)/k aaa"),
        (
            "function f {\n set r=\"${1}-$2\"\n}\nmenuentry a { f p q; linux /k $r $1 }",
            "(hd0,gpt1)/k p-q a",
        ),
        ("if ! unknown_command; then x=1; fi\nmenuentry a { linux /k $x }", "(hd0,gpt1)/k 1"),
        ("load_env\nmenuentry a { linux /k $kernelopts }", "(hd0,gpt1)/k root=/dev/vda1 ro"),
        ("load_env other\nmenuentry a { linux /k $kernelopts }", "(hd0,gpt1)/k "),
    ] {
        check(script, expected);
    }
}

#[test]
fn search_sets_the_device() {
    for search in [
        "search --no-floppy --fs-uuid --set=root --hint-bios=hd0,gpt1 25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f",
        "search --fs-uuid --set root 25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f",
        "search -u -s -n 25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f",
        "search --label --set=root cloudimg-rootfs",
        "search --set=root --file /present",
        "search.fs_uuid 25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f root hd0,gpt1",
        "search.fs_label cloudimg-rootfs root",
        "search --set=dev --file /present\nset root=$dev",
    ] {
        check(&format!("{search}\nmenuentry a {{ linux /k }}"), "(hd0,gpt9)/k ");
    }
    check("search --fs-uuid --set=root 0000\nmenuentry a { linux /k }", "(hd0,gpt1)/k ");
}

#[test]
fn other_scripts_are_followed_a_few_times() {
    let files = memory(&[
        ("/next.cfg", "menuentry b { linux /b $x }"),
        ("/loop.cfg", "configfile /loop.cfg"),
    ]);
    let boot = first("x=1\nmenuentry a { linux /a }\nconfigfile /next.cfg", &files).unwrap();
    assert_eq!(shown(&boot), "(hd0,gpt1)/b 1");
    let error = first("configfile /loop.cfg", &files).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TooLarge);
    assert_eq!(
        error.to_string(),
        "`/loop.cfg` line 1: expected at most 8 scripts that name each other"
    );
}

#[test]
fn what_is_not_understood_names_file_and_line() {
    for (script, expected) in [
        (
            "menuentry a {\n\n chainloader +1\n}",
            "line 3: `chainloader` starts another boot loader, as Windows has one, which is not supported",
        ),
        ("menuentry a {\n linux /k\n", "line 1: the block has no `}`"),
        ("\nif [ a ]; then\n x=1\n", "line 3: expected `fi`"),
        ("}\n", "line 1: expected a command, got `}`"),
        ("\n'open\n", "line 2: the quote `'` has no end"),
        ("x=\"open", "line 1: the quote `\"` has no end"),
        ("menuentry { linux /k }", "line 1: the menu entry has no title"),
        ("menuentry a { linux }", "line 1: `linux` names no kernel"),
        (
            "menuentry a {\nlinux /k\ninitrd newc:a:/b }",
            "line 3: `newc:a:/b` is made by GRUB, which is not supported",
        ),
        ("if [ a b ]; then x=1; fi", "line 1: expected `]`, got `b`"),
    ] {
        fails(script, expected);
    }
}

#[test]
fn endless_and_exploding_scripts_end() {
    for (script, expected) in [
        ("while true; do x=1; done", "line 1: expected at most 20000 commands"),
        ("function f { f; }\nf", "line 1: expected at most 64 blocks within each other"),
        (
            "x=aaaaaaaaaaaaaaaa\nwhile true; do\n x=$x$x$x$x\ndone",
            "line 3: expected at most 16384 bytes in the words of a command",
        ),
        (
            "while true; do menuentry a { linux /k }; done",
            "line 1: expected at most 1024 menu entries",
        ),
        ("while true; do\n x=a$x\n set $x=1\ndone", "line 3: expected at most 1024 variables"),
        (&"if true; then\n".repeat(20), "line 16: expected at most 16 blocks within each other"),
    ] {
        fails(script, expected);
    }
}

#[test]
fn any_number_of_negations_takes_no_stack() {
    let many = "! ".repeat(7000);
    let mut script = String::new();
    for depth in 0..50 {
        writeln!(script, "function f{depth} {{ {many}f{} }}", depth + 1).unwrap();
    }
    script += "function f50 { false; }\nif f0; then x=even; fi\nif ! f0; then x=odd; fi\n";
    check(&format!("{script}menuentry a {{ linux /k $x }}"), "(hd0,gpt1)/k odd");
    check("if ! ! ! false; then x=y; fi; menuentry a { linux /k $x }", "(hd0,gpt1)/k y");
}

/// What `update-grub` writes, by folder of `testdata/grub`.
fn fixture(name: &str) -> String {
    let path = format!("{}/../../testdata/grub/{name}/grub.cfg", env!("CARGO_MANIFEST_DIR"));
    fs_err::read_to_string(path).unwrap()
}

const DEBIAN_CMDLINE: &str = "root=UUID=25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f ro console=tty0 console=ttyS0,115200 earlyprintk=ttyS0,115200 consoleblank=0";

#[test]
fn debians_own_menu_is_understood() {
    for name in ["debian-12", "debian-12-saved"] {
        let (files, place) = (Memory::default(), config());
        let mut grub = Grub::new(&files, &place);
        let menu = grub.menu(&fixture(name)).unwrap();
        let titles: Vec<&str> = menu.iter().map(|item| item.title.as_str()).collect();
        assert_eq!(titles, ["Debian GNU/Linux", "Advanced options for Debian GNU/Linux"]);
        assert_eq!(
            menu[0].id.as_deref(),
            Some("gnulinux-simple-25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f")
        );
        assert_eq!(
            shown(&grub.boot(&menu[0]).unwrap()),
            format!(
                "(hd0,gpt9)/boot/vmlinuz-6.1.0-56-cloud-amd64 {DEBIAN_CMDLINE} + (hd0,gpt9)/boot/initrd.img-6.1.0-56-cloud-amd64"
            )
        );
        let advanced = grub.open(&menu[1]).unwrap();
        assert_eq!(advanced.len(), 4);
        let recovery = shown(&grub.boot(&advanced[3]).unwrap());
        assert!(
            recovery.contains("vmlinuz-6.1.0-53-cloud-amd64") && recovery.contains(" ro single ")
        );
    }
}

#[test]
fn the_saved_entry_is_the_default() {
    let env = "# GRUB Environment Block\nsaved_entry=some-id\nprev_saved_entry=\n";
    let (files, place) = (memory(&[("/boot/grub/grubenv", env)]), config());
    let mut grub = Grub::new(&files, &place);
    grub.menu(&fixture("debian-12-saved")).unwrap();
    assert_eq!(grub.variable("default"), "some-id");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_text_hangs_or_panics(text in ".{0,400}") {
        let _ = first_if_any(&text);
    }

    #[test]
    fn no_mix_of_its_words_hangs_or_panics(words in proptest::collection::vec(word(), 0..120)) {
        let _ = first_if_any(&words.concat());
    }
}

fn word() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec![
        " ",
        " ",
        " ",
        "\n",
        ";",
        "{",
        " {",
        "}",
        " }",
        "if ",
        "then ",
        "elif ",
        "else ",
        "fi ",
        "[ ",
        " ]",
        "while ",
        "until ",
        "for ",
        "in ",
        "do ",
        "done ",
        "function ",
        "f",
        "f ",
        "menuentry ",
        "submenu ",
        "'",
        "\"",
        "\\",
        "$",
        "${",
        "$x",
        "${x}",
        "x=",
        "x",
        "1",
        "-s ",
        "-a ",
        "! ",
        "( ",
        ") ",
        "= ",
        "set ",
        "linux ",
        "initrd ",
        "search --set=root --file ",
        "configfile ",
        "/next.cfg",
        "--id ",
        "true",
        "false",
        "#",
        "load_env",
        "source ",
        "é",
    ])
}

fn first_if_any(text: &str) -> Result<(), Error> {
    let files = memory(&[("/next.cfg", text), ("/boot/grub/grubenv", text)]);
    let place = config();
    let mut grub = Grub::new(&files, &place);
    for item in grub.menu(text)? {
        if item.submenu {
            grub.open(&item)?;
        } else {
            grub.boot(&item)?;
        }
    }
    Ok(())
}

/// What RHEL 9 has in `/boot/grub2/grub.cfg`, as far as it matters.
const RHEL: &str = r#"
set pager=1
if [ -f ${config_directory}/grubenv ]; then
  load_env -f ${config_directory}/grubenv
elif [ -s $prefix/grubenv ]; then
  load_env
fi
if [ "${next_entry}" ] ; then
   set default="${next_entry}"
   set next_entry=
   save_env next_entry
   set boot_once=true
else
   set default="${saved_entry}"
fi
menuentry_id_option="--id"
search --no-floppy --fs-uuid --set=root 25e0f7ba-05cb-4d17-ae3d-21eb0e1a8e4f
insmod part_gpt
insmod xfs
if [ -z "${kernelopts}" ]; then
  set kernelopts="root=/dev/vda4 ro fallback"
fi
insmod increment
if [ -n "${boot_counter}" -a "${boot_success}" = "0" ]; then
  increment boot_indeterminate
fi
blscfg
"#;

#[test]
fn blscfg_lists_the_newest_first_and_replaces_grubs_variables() {
    let entry = |version: &str| {
        format!(
            "title RHEL ({version})\nversion {version}\nlinux /vmlinuz-{version}\n\
             initrd /initramfs-{version}.img $tuned_initrd\noptions $kernelopts $tuned_params\n\
             grub_users $grub_users\ngrub_arg --unrestricted\ngrub_class kernel\n"
        )
    };
    let (old, new) = (entry("5.14.0-70.el9.x86_64"), entry("5.14.0-427.el9.x86_64"));
    let env = "# GRUB Environment Block\nkernelopts=root=LABEL=root console=ttyS0\n\
               tuned_params=skew_tick=1\nsaved_entry=abc-5.14.0-70.el9.x86_64\n####";
    let mut files = memory(&[
        ("/loader/entries/abc-5.14.0-70.el9.x86_64.conf", &old),
        ("/loader/entries/abc-5.14.0-427.el9.x86_64.conf", &new),
        ("/loader/entries/README", "no entry"),
        ("/boot/grub/grubenv", env),
    ]);
    let place = config();
    let mut grub = Grub::new(&files, &place);
    let menu = grub.menu(RHEL).unwrap();
    let titles: Vec<&str> = menu.iter().map(|item| item.title.as_str()).collect();
    assert_eq!(titles, ["RHEL (5.14.0-427.el9.x86_64)", "RHEL (5.14.0-70.el9.x86_64)"]);
    assert_eq!(menu[1].id.as_deref(), Some(grub.variable("default")));
    assert_eq!(
        shown(&grub.clone().boot(&menu[0]).unwrap()),
        "(hd0,gpt9)/vmlinuz-5.14.0-427.el9.x86_64 root=LABEL=root console=ttyS0 skew_tick=1 \
         + (hd0,gpt9)/initramfs-5.14.0-427.el9.x86_64.img"
    );
    // Without the block, what the script itself says.
    files.0.remove("/boot/grub/grubenv");
    let mut grub = Grub::new(&files, &place);
    let menu = grub.menu(RHEL).unwrap();
    let shown = shown(&grub.boot(&menu[1]).unwrap());
    assert!(shown.contains("root=/dev/vda4 ro fallback +"), "{shown}");
}

#[test]
fn an_entry_of_the_specification_that_cannot_boot_is_named_with_its_line() {
    let files = memory(&[
        ("/loader/entries/a.conf", "title a\n\nlinux /a\noptions \"open\n"),
        ("/loader/entries/b.conf", "title b\nefi /shell.efi\n"),
        ("/loader/entries/c.conf", "title c\n"),
    ]);
    let place = config();
    let error = Grub::new(&files, &place).menu("blscfg").unwrap_err();
    assert_eq!(error.to_string(), "`/loader/entries/a.conf` line 1: the quote `\"` has no end");
    let mut files = files;
    files.0.remove("/loader/entries/a.conf");
    let mut grub = Grub::new(&files, &place);
    let menu = grub.menu("blscfg").unwrap();
    let errors: Vec<String> =
        menu.iter().map(|item| grub.clone().boot(item).unwrap_err().to_string()).collect();
    assert_eq!(
        errors,
        [
            "`/loader/entries/c.conf` line 1: the entry `c` loads no Linux kernel",
            "`/loader/entries/b.conf` line 2: `chainloader` starts another boot loader, as Windows \
             has one, which is not supported",
        ]
    );
}

#[test]
fn opensuse_keys_of_the_menu_are_no_entries() {
    let script = "hiddenentry 'Text mode' --hotkey 't' {\n set textmode=true\n}\n\
                  menuentry 'openSUSE' { linux /boot/vmlinuz root=UUID=1 ${extra_cmdline} quiet }";
    let boot = first(script, &memory(&[])).unwrap();
    assert_eq!(shown(&boot), "(hd0,gpt1)/boot/vmlinuz root=UUID=1 quiet");
}
