//! Runs a script, as GRUB would before it shows its menu, and then the entry that is chosen.
//!
//! Outside an entry a command that is not known fails quietly, as it would in a GRUB without that
//! module. Inside the entry that boots, nothing may be skipped that could matter: there an unknown
//! command is an error.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;

use super::script::{self, Action, Block, Command, Part, Text, Word};
use super::{Files, Line, Place, SearchBy, condition, env};
use crate::menu::Method;
use crate::{Error, ErrorKind, bls};

/// Bytes of a script; what `grub-mkconfig` writes has some kilobytes a kernel.
pub(crate) const CONFIG_MAX: u64 = 1 << 20;
/// Commands that one disk's scripts may run.
const STEPS_MAX: u32 = 20_000;
/// Functions within functions, and blocks within blocks.
const DEPTH_MAX: u32 = 64;
/// Scripts that one another may name by `configfile` and `source`.
const HOPS_MAX: u32 = 8;
/// Bytes of all words of one command after variables are replaced.
const WORDS_MAX: usize = 16 << 10;
/// Variables, functions, and items of the menu, each.
const NAMES_MAX: usize = 1024;

/// Commands that change nothing that this loader decides: what the screen and the keyboard do, and
/// modules, which are all there.
const IGNORED: [&str; 31] = [
    "background_color",
    "background_image",
    "boot",
    "clear",
    "echo",
    "export",
    "gfxmode",
    "insmod",
    "keymap",
    "load_video",
    "loadfont",
    "net_bootp",
    "play",
    "recordfail",
    "rmmod",
    "save_env",
    "savedefault",
    "serial",
    "set_background_image",
    "sleep",
    "terminal_input",
    "terminal_output",
    "terminfo",
    "true",
    "videoinfo",
    "videomode",
    "vbeinfo",
    "cpuid",
    "hdparm",
    "efi-watchdog",
    "increment",
];

/// One line of the menu.
#[derive(Debug, Clone)]
pub(crate) struct Item {
    /// GRUB's own, or one of the Boot Loader Specification.
    pub(crate) method: Method,
    pub(crate) title: String,
    pub(crate) id: Option<String>,
    pub(crate) submenu: bool,
    /// Where it is defined: a device, and a line of a file on it.
    pub(crate) device: Rc<str>,
    pub(crate) at: Line,
    body: Block,
    /// The words of its definition, which its body sees as `$1`, `$2`….
    words: Vec<String>,
}

/// A file that an entry loads, with the line that says so.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) place: Place,
    pub(crate) at: Line,
    /// Offset and length, where it is not the whole file.
    pub(crate) part: Option<(u64, u64)>,
}

impl Load {
    /// The whole of a file.
    pub(crate) const fn whole(place: Place, at: Line) -> Self {
        Self { place, at, part: None }
    }
}

/// What an entry loads.
#[derive(Debug, Clone, Default)]
pub(crate) struct Boot {
    pub(crate) kernel: Option<Load>,
    pub(crate) cmdline: String,
    pub(crate) initrds: Vec<Load>,
}

/// The state of one GRUB. Clones go on by themselves, but count their steps together.
#[derive(Clone)]
pub(crate) struct Grub<'a> {
    files: &'a dyn Files,
    variables: HashMap<Rc<str>, Rc<str>>,
    functions: HashMap<String, Function>,
    arguments: Vec<String>,
    menu: Vec<Item>,
    boot: Boot,
    /// The script that runs, for messages, and its device.
    file: Rc<str>,
    device: Rc<str>,
    in_entry: bool,
    status: bool,
    steps: Rc<Cell<u32>>,
    hops: u32,
    depth: u32,
}

#[derive(Clone)]
struct Function {
    body: Block,
    file: Rc<str>,
}

impl<'a> Grub<'a> {
    /// A GRUB whose configuration is the file at `config`.
    pub(crate) fn new(files: &'a dyn Files, config: &Place) -> Self {
        let directory = config.path.rsplit_once('/').map_or("", |(directory, _)| directory);
        let prefix = format!("({}){directory}", config.device);
        let features = [
            "200_final",
            "all_video_module",
            "chainloader_bpb",
            "default_font_path",
            "menuentry_id",
            "menuentry_options",
            "nativedisk_cmd",
            "ntldr",
            "platform_search_hint",
            "timeout_style",
        ];
        let mut variables: HashMap<Rc<str>, Rc<str>> =
            features.map(|name| (format!("feature_{name}").into(), "y".into())).into();
        let known = [
            ("root", config.device.as_str()),
            ("prefix", &prefix),
            ("config_directory", &prefix),
            ("grub_platform", "pc"),
            ("grub_cpu", "i386"),
        ];
        variables.extend(known.map(|(name, value)| (name.into(), value.into())));
        Self {
            files,
            variables,
            functions: HashMap::new(),
            arguments: Vec::new(),
            menu: Vec::new(),
            boot: Boot::default(),
            file: Rc::from(config.path.as_str()),
            device: Rc::from(config.device.as_str()),
            in_entry: false,
            status: true,
            steps: Rc::default(),
            hops: 0,
            depth: 0,
        }
    }

    /// Runs a script and returns the menu that it makes.
    pub(crate) fn menu(&mut self, text: &str) -> Result<Vec<Item>, Error> {
        let block = script::parse(text, &self.file)?;
        self.block(&block)?;
        Ok(std::mem::take(&mut self.menu))
    }

    /// The items of a submenu.
    pub(crate) fn open(&mut self, submenu: &Item) -> Result<Vec<Item>, Error> {
        self.run_item(submenu)?;
        Ok(std::mem::take(&mut self.menu))
    }

    /// Runs an entry and returns what it loads.
    pub(crate) fn boot(&mut self, entry: &Item) -> Result<Boot, Error> {
        self.in_entry = true;
        self.boot = Boot::default();
        self.variables.insert("chosen".into(), entry.title.as_str().into());
        self.run_item(entry)?;
        self.in_entry = false;
        let boot = std::mem::take(&mut self.boot);
        if boot.kernel.is_none() {
            let title = &entry.title;
            return Err(entry.at.error(format_args!("the entry `{title}` loads no Linux kernel")));
        }
        Ok(boot)
    }

    /// The value of a variable, empty if it has none.
    pub(crate) fn variable(&self, name: &str) -> &str {
        self.variables.get(name).map_or("", |value| value)
    }

    fn run_item(&mut self, item: &Item) -> Result<(), Error> {
        (self.file, self.device) = (Rc::clone(&item.at.file), Rc::clone(&item.device));
        self.arguments = item.words.clone();
        self.block(&item.body)
    }

    fn block(&mut self, block: &Block) -> Result<(), Error> {
        self.depth += 1;
        for command in block.iter() {
            self.command(command)?;
        }
        self.depth -= 1;
        Ok(())
    }

    fn command(&mut self, command: &Command) -> Result<(), Error> {
        let at = Line { file: Rc::clone(&self.file), number: command.line };
        self.step(&at)?;
        match &command.action {
            Action::Run(words) => {
                let words = self.expand(words, &at)?;
                self.run(&words, &at)
            }
            Action::If { arms, otherwise } => {
                for (condition, body) in arms {
                    if self.holds(condition)? {
                        return self.block(body);
                    }
                }
                self.status = true;
                self.block(otherwise)
            }
            Action::For { name, words, body } => {
                for word in self.expand(words, &at)? {
                    self.step(&at)?;
                    self.set(name, &word, &at)?;
                    self.block(body)?;
                }
                Ok(())
            }
            Action::While { until, condition, body } => {
                while self.holds(condition)? != *until {
                    self.step(&at)?;
                    self.block(body)?;
                }
                Ok(())
            }
            Action::Function { name, body } => {
                let function = Function { body: Rc::clone(body), file: Rc::clone(&self.file) };
                self.functions.insert(name.clone(), function);
                limit(self.functions.len(), NAMES_MAX, "functions", &at)
            }
            Action::Item { submenu, words, body } => self.item(*submenu, words, body, at),
            // Shown by no menu: it stands for a key.
            Action::Hidden => Ok(()),
        }
    }

    /// Counts a step of the script.
    fn step(&mut self, at: &Line) -> Result<(), Error> {
        self.steps.set(self.steps.get() + 1);
        limit(self.steps.get() as usize, STEPS_MAX as usize, "commands", at)?;
        limit(self.depth as usize, DEPTH_MAX as usize, "blocks within each other", at)
    }

    fn holds(&mut self, condition: &Block) -> Result<bool, Error> {
        self.block(condition)?;
        Ok(self.status)
    }

    fn item(&mut self, submenu: bool, words: &[Word], body: &Block, at: Line) -> Result<(), Error> {
        let mut words = self.expand(words, &at)?.into_iter();
        let (mut title, mut id, mut rest) = (None, None, Vec::new());
        while let Some(word) = words.next() {
            match word.split_once('=').map_or((word.as_str(), None), |(a, b)| (a, Some(b))) {
                ("--id", value) => id = value.map(str::to_owned).or_else(|| words.next()),
                ("--class" | "--users" | "--hotkey" | "--source", None) => {
                    words.next();
                }
                (option, _) if option.starts_with("--") => {}
                _ if title.is_none() => title = Some(word),
                _ => rest.push(word),
            }
        }
        let Some(title) = title else { return Err(at.error("the menu entry has no title")) };
        rest.insert(0, title.clone());
        let body = Rc::clone(body);
        limit(self.menu.len(), NAMES_MAX, "menu entries", &at)?;
        let method = Method::Grub;
        let device = Rc::clone(&self.device);
        self.menu.push(Item { method, title, id, submenu, device, at, body, words: rest });
        Ok(())
    }

    /// Replaces variables, splits what was not quoted at blanks.
    fn expand(&self, words: &[Word], at: &Line) -> Result<Vec<String>, Error> {
        let (mut expanded, mut len) = (Vec::new(), 0);
        for word in words {
            // A word exists once something quoted, or something that is not blank, was put into it.
            let mut current: Option<String> = None;
            for Part { text, quoted } in word {
                let text = match text {
                    Text::Literal(text) => text,
                    Text::Variable(name) => self.value(name),
                };
                len += text.len() + 1;
                limit(len, WORDS_MAX, "bytes in the words of a command", at)?;
                if *quoted {
                    current.get_or_insert_default().push_str(text);
                    continue;
                }
                for (index, piece) in text.split(|c: char| c.is_ascii_whitespace()).enumerate() {
                    if index > 0 {
                        expanded.extend(current.take());
                    }
                    if !piece.is_empty() {
                        current.get_or_insert_default().push_str(piece);
                    }
                }
            }
            expanded.extend(current);
        }
        Ok(expanded)
    }

    fn value(&self, name: &str) -> &str {
        match name {
            "?" => {
                if self.status {
                    "0"
                } else {
                    "1"
                }
            }
            _ => match name.parse::<usize>() {
                Ok(0) => "",
                Ok(index) => self.arguments.get(index - 1).map_or("", String::as_str),
                Err(_) => self.variable(name),
            },
        }
    }

    fn set(&mut self, name: &str, value: &str, at: &Line) -> Result<(), Error> {
        self.variables.insert(name.into(), value.into());
        limit(self.variables.len(), NAMES_MAX, "variables", at)
    }

    /// Runs one simple command and, for each `!` before it, turns its status round.
    fn run(&mut self, words: &[String], at: &Line) -> Result<(), Error> {
        let negations = words.iter().take_while(|word| *word == "!").count();
        if let Some((name, arguments)) = words[negations..].split_first() {
            self.run_named(name, arguments, at)?;
        }
        self.status ^= !negations.is_multiple_of(2);
        Ok(())
    }

    fn run_named(&mut self, name: &str, arguments: &[String], at: &Line) -> Result<(), Error> {
        if let Some(function) = self.functions.get(name).cloned() {
            return self.call(&function, arguments);
        }
        self.status = true;
        match name {
            "set" => match arguments.first().and_then(|word| word.split_once('=')) {
                Some((name, value)) => self.set(name, value, at),
                None => Ok(()),
            },
            "unset" => {
                arguments.iter().for_each(|name| drop(self.variables.remove(name.as_str())));
                Ok(())
            }
            "[" | "test" => {
                let end = arguments.len() - usize::from(name == "[" && !arguments.is_empty());
                let size = |path: &str| self.size(path);
                self.status = condition::holds(&arguments[..end], &size, at)?;
                Ok(())
            }
            "search" | "search.fs_uuid" | "search.fs_label" | "search.file" => {
                self.search(name, arguments, at)
            }
            "load_env" => self.load_env(arguments),
            "configfile" | "normal" | "source" | "." => self.hop(name, arguments, at),
            "blscfg" => self.blscfg(at),
            "linux" | "linux16" | "linuxefi" => self.linux(arguments, at),
            "initrd" | "initrd16" | "initrdefi" => self.initrd(arguments, at),
            "false" => {
                self.status = false;
                Ok(())
            }
            _ if IGNORED.contains(&name) => Ok(()),
            _ => self.assignment_or_unknown(name, at),
        }
    }

    fn assignment_or_unknown(&mut self, word: &str, at: &Line) -> Result<(), Error> {
        let is_name =
            |name: &str| name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
        match word.split_once('=') {
            Some((name, value)) if is_name(name) => self.set(name, value, at),
            _ if self.in_entry => Err(at.error(not_linux(word))),
            _ => {
                self.status = false;
                Ok(())
            }
        }
    }

    fn call(&mut self, function: &Function, arguments: &[String]) -> Result<(), Error> {
        let arguments = std::mem::replace(&mut self.arguments, arguments.to_vec());
        let file = std::mem::replace(&mut self.file, Rc::clone(&function.file));
        self.block(&function.body)?;
        (self.arguments, self.file) = (arguments, file);
        Ok(())
    }

    /// `search --fs-uuid|--label|--file [--set[=NAME]] VALUE`, or `search.fs_uuid VALUE NAME`.
    fn search(&mut self, command: &str, arguments: &[String], at: &Line) -> Result<(), Error> {
        let mut by = match command {
            "search.fs_uuid" => SearchBy::Uuid,
            "search.fs_label" => SearchBy::Label,
            _ => SearchBy::File,
        };
        let (mut variable, mut values) = (None, Vec::new());
        let mut words = arguments.iter().map(String::as_str);
        while let Some(word) = words.next() {
            match word.split_once('=').map_or((word, None), |(a, b)| (a, Some(b))) {
                ("--fs-uuid" | "-u", _) => by = SearchBy::Uuid,
                ("--label" | "--fs-label" | "-l", _) => by = SearchBy::Label,
                ("--file" | "-f", _) => by = SearchBy::File,
                ("--set" | "-s", name) => variable = name,
                ("--hint", None) => drop(words.next()),
                (option, _) if option.starts_with('-') => {}
                _ => values.push(word),
            }
        }
        let (name, value) = match *values.as_slice() {
            [] => {
                self.status = false;
                return Ok(());
            }
            [value] => (variable.unwrap_or("root"), value),
            [value, name, ..] if command != "search" => (name, value),
            // `--set NAME VALUE`
            [name, value, ..] => (variable.unwrap_or(name), value),
        };
        match self.files.search(by, value)? {
            Some(device) => self.set(name, &device, at),
            None => {
                self.status = false;
                Ok(())
            }
        }
    }

    /// `load_env [--file FILE] [NAME…]`.
    fn load_env(&mut self, arguments: &[String]) -> Result<(), Error> {
        let mut path = format!("{}/grubenv", self.variable("prefix"));
        let mut names = Vec::new();
        let mut words = arguments.iter();
        while let Some(word) = words.next() {
            match word.as_str() {
                "--file" | "-f" => path = words.next().cloned().unwrap_or_default(),
                option if option.starts_with('-') => {}
                _ => names.push(word),
            }
        }
        let block = self.read(&path)?;
        let variables = block.and_then(|block| env::parse(&block));
        self.status = variables.is_some();
        for (name, value) in variables.unwrap_or_default().into_iter().take(NAMES_MAX) {
            if names.is_empty() || names.contains(&&name) {
                self.variables.insert(name.into(), value.into());
            }
        }
        Ok(())
    }

    /// `source FILE` runs another script here; `configfile FILE` starts its own menu.
    fn hop(&mut self, command: &str, arguments: &[String], at: &Line) -> Result<(), Error> {
        let Some(path) = arguments.first() else { return Ok(()) };
        self.hops += 1;
        limit(self.hops as usize, HOPS_MAX as usize, "scripts that name each other", at)?;
        let Some(text) = self.read(path)? else {
            self.status = false;
            return Ok(());
        };
        let place = self.place(path);
        let (file, device) = (Rc::from(place.path), Rc::from(place.device));
        let block = script::parse(&String::from_utf8_lossy(&text), &file)?;
        if matches!(command, "configfile" | "normal") {
            self.menu.clear();
        }
        let file = std::mem::replace(&mut self.file, file);
        let device = std::mem::replace(&mut self.device, device);
        self.block(&block)?;
        (self.file, self.device) = (file, device);
        Ok(())
    }

    /// Adds the entries of the Boot Loader Specification, the newest version first. They are written
    /// in GRUB's language, too: their variables are replaced.
    fn blscfg(&mut self, at: &Line) -> Result<(), Error> {
        let device = [self.variable("boot"), self.variable("root")];
        let device = device.into_iter().find(|device| !device.is_empty()).unwrap_or_default();
        let device = device.trim_matches(['(', ')']).to_owned();
        let given = self.variable("blsdir").trim_end_matches('/').to_owned();
        let folders = bls::FOLDERS.map(str::to_owned);
        let folders = Some(given).into_iter().filter(|folder| !folder.is_empty()).chain(folders);
        for folder in folders {
            let names = |path: &str| self.files.names(&device, path).map(Some);
            let read = |path: &str| self.files.read(&device, path, bls::ENTRY_MAX);
            let mut entries = bls::read(names, read, &folder)?;
            if entries.is_empty() {
                continue;
            }
            entries.sort_by(|(_, a), (_, b)| bls::compare_versions(&b.order.file, &a.order.file));
            limit(self.menu.len() + entries.len(), NAMES_MAX, "menu entries", at)?;
            for (file, entry) in entries {
                let item = self.specified(&device, file, &entry)?;
                self.menu.push(item);
            }
            return Ok(());
        }
        Ok(())
    }

    /// The menu's line for an entry of the Boot Loader Specification.
    fn specified(&self, device: &str, file: Rc<str>, entry: &bls::Entry) -> Result<Item, Error> {
        let on_device = |paths: &str| {
            let path = |path: &str| match path.starts_with('/') {
                true => format!("({device}){path}"),
                false => path.to_owned(),
            };
            paths.split_whitespace().map(path).collect::<Vec<_>>().join(" ")
        };
        let mut options = bls::Entry::joined(&entry.options);
        if options.is_empty() {
            options = self.variable("default_kernelopts").to_owned();
        }
        let mut body = Vec::new();
        let mut command = |line: u32, text: String| -> Result<(), Error> {
            let block = script::parse(&text, &file)?;
            body.extend(block.iter().map(|command| Command { line, ..command.clone() }));
            Ok(())
        };
        if let Some((line, program)) = &entry.efi {
            command(*line, format!("chainloader {program}"))?;
        }
        if let Some((line, kernel)) = &entry.linux {
            command(*line, format!("linux {} {options}", on_device(kernel)))?;
        }
        if let Some((line, _)) = entry.initrds.first() {
            let paths = bls::Entry::joined(&entry.initrds);
            command(*line, format!("initrd {}", on_device(&paths)))?;
        }
        let (title, id) = (entry.title(), Some(entry.id()));
        let words = vec![title.clone()];
        let at = Line { file, number: 1 };
        let body = body.into();
        let (method, device) = (Method::Bls, Rc::from(device));
        Ok(Item { method, title, id, submenu: false, device, at, body, words })
    }

    fn linux(&mut self, arguments: &[String], at: &Line) -> Result<(), Error> {
        let Some((path, words)) = arguments.split_first() else {
            return Err(at.error("`linux` names no kernel"));
        };
        let words: Vec<String> = words.iter().map(|word| quote_for_kernel(word)).collect();
        self.boot = Boot {
            kernel: Some(Load::whole(self.place(path), at.clone())),
            cmdline: words.join(" "),
            initrds: Vec::new(),
        };
        Ok(())
    }

    fn initrd(&mut self, arguments: &[String], at: &Line) -> Result<(), Error> {
        let files = arguments.iter().filter(|word| !word.starts_with("--"));
        let load = |path: &String| Load::whole(self.place(path), at.clone());
        if let Some(path) = arguments.iter().find(|word| word.starts_with("newc:")) {
            return Err(at.error(format_args!("`{path}` is made by GRUB, which is not supported")));
        }
        self.boot.initrds = files.map(load).collect();
        Ok(())
    }

    /// Resolves `(device)/path`, or `/path` of the device in `root`.
    fn place(&self, path: &str) -> Place {
        let split = path.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let (device, path) = split.unwrap_or((self.variable("root"), path));
        let slash = if path.starts_with('/') { "" } else { "/" };
        Place { device: device.to_owned(), path: format!("{slash}{path}") }
    }

    fn size(&self, path: &str) -> Result<Option<u64>, Error> {
        let place = self.place(path);
        self.files.size(&place.device, &place.path)
    }

    fn read(&self, path: &str) -> Result<Option<Vec<u8>>, Error> {
        let place = self.place(path);
        self.files.read(&place.device, &place.path, CONFIG_MAX)
    }
}

/// Why a command of an entry cannot be carried out.
fn not_linux(command: &str) -> String {
    let what = match command {
        "chainloader" | "ntldr" | "ntboot" => "starts another boot loader, as Windows has one",
        "multiboot" | "multiboot2" | "module" | "module2" | "xen_hypervisor" => {
            "starts a kernel that is not Linux, such as Xen"
        }
        "kfreebsd" | "kopenbsd" | "knetbsd" => "starts a kernel of a BSD",
        "cryptomount" => "unlocks an encrypted volume",
        "fwsetup" => "enters the firmware's settings",
        "loopback" => "opens a disk image on the disk",
        _ => return format!("unknown command `{command}`"),
    };
    format!("`{command}` {what}, which is not supported")
}

/// Quotes a word as GRUB does when it joins words to a kernel command line.
fn quote_for_kernel(word: &str) -> String {
    let mut quoted = String::with_capacity(word.len());
    for c in word.chars() {
        if matches!(c, '\\' | '\'' | '"') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    if word.contains(' ') { format!("\"{quoted}\"") } else { quoted }
}

fn limit(count: usize, most: usize, what: &str, at: &Line) -> Result<(), Error> {
    if count > most {
        let what = format_args!("expected at most {most} {what}");
        return Err(at.error_of(ErrorKind::TooLarge, what));
    }
    Ok(())
}
