//! A file of manifests: its documents, the objects in them, and everything that is wrong.

use bootyard_yaml::{Document, Mark, Node, Value};

use crate::check;
use crate::problem::{Problem, Problems, Severity};
use crate::read::{At, ObjectShape, Read};
use crate::types::data_volume::{DataImportCron, DataSource, DataVolume, PersistentVolumeClaim};
use crate::types::instancetype::{Instancetype, Preference};
use crate::types::storage::{ConfigMap, Secret, StorageProfile};
use crate::types::vm::{VirtualMachine, VirtualMachineInstance};

/// An object that this program knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Object {
    /// A virtual machine.
    VirtualMachine(Box<VirtualMachine>),
    /// A single run of one.
    VirtualMachineInstance(Box<VirtualMachineInstance>),
    /// A volume and what fills it.
    DataVolume(Box<DataVolume>),
    /// A volume.
    PersistentVolumeClaim(Box<PersistentVolumeClaim>),
    /// A name for what fills volumes.
    DataSource(Box<DataSource>),
    /// An import that is done again.
    DataImportCron(Box<DataImportCron>),
    /// A size of machines.
    Instancetype(Box<Instancetype>),
    /// What is filled in where a machine says nothing.
    Preference(Box<Preference>),
    /// Defaults of a storage class.
    StorageProfile(Box<StorageProfile>),
    /// Named texts.
    ConfigMap(Box<ConfigMap>),
    /// Named texts that nobody should see.
    Secret(Box<Secret>),
}

/// One object of a file, as far as it can be read.
#[derive(Debug)]
pub struct Manifest {
    /// `kind`, as far as there is one.
    pub kind: String,
    /// `metadata.name`, or `metadata.generateName`.
    pub name: String,
    /// The object; where something is wrong, something else stands in for it.
    pub object: Option<Object>,
    /// The same with its places.
    pub tree: std::rc::Rc<Node>,
    /// All that is wrong.
    pub problems: Vec<Problem>,
}

impl Manifest {
    /// Whether it can be taken.
    pub fn is_valid(&self) -> bool {
        self.problems.iter().all(|problem| problem.severity == Severity::Warning)
    }
}

/// The kind whose lines are never shown.
const SECRET: &str = "Secret";

/// Why a text holds no objects at all.
pub type Unreadable = Problem;

/// Reads all objects of a YAML or JSON text: documents, and Lists of them.
pub fn manifests(text: &[u8]) -> Result<Vec<Manifest>, Unreadable> {
    // Of a text that cannot be read, nobody knows which lines are a Secret's.
    let is_secret = text.windows(SECRET.len()).any(|part| part == SECRET.as_bytes());
    let fatal = |mark, message: String, hint| Problem {
        severity: Severity::Error,
        path: String::new(),
        mark,
        message,
        hint,
        is_secret,
    };
    let text = std::str::from_utf8(text).map_err(|error| {
        let before = &text[..error.valid_up_to()];
        let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
        let column = before.iter().rev().take_while(|byte| **byte != b'\n').count() + 1;
        fatal(Mark::at(line, column), "not UTF-8".to_owned(), None)
    })?;
    let documents =
        bootyard_yaml::documents(text).map_err(|flaw| fatal(flaw.mark, flaw.what, flaw.hint))?;
    let mut found = Vec::new();
    for Document { root, flaws } in documents {
        let Some(root) = root.filter(|root| root.value != Value::Null) else { continue };
        let first = found.len();
        match list_items(&root) {
            Some(items) => found.extend(items.iter().map(manifest)),
            None => found.push(manifest(&root)),
        }
        let problems = flaws.into_iter().map(|flaw| fatal(flaw.mark, flaw.what, flaw.hint));
        if let Some(manifest) = found.get_mut(first) {
            manifest.problems.extend(problems);
            manifest.problems.sort_by_key(|problem| (problem.mark.line, problem.mark.column));
        }
    }
    match found.is_empty() {
        true => Err(fatal(Mark::at(1, 1), "there is no object in it".to_owned(), None)),
        false => Ok(found),
    }
}

/// The objects of a `List`.
fn list_items(root: &Node) -> Option<&[std::rc::Rc<Node>]> {
    let kind = root.get("kind")?.text()?;
    let items = root.get("items")?;
    (kind.ends_with("List") && matches!(items.value, Value::List(_))).then(|| items.items())
}

fn manifest(root: &std::rc::Rc<Node>) -> Manifest {
    let mut problems = Problems::default();
    let text = |node: Option<&Node>| node.and_then(Node::text).unwrap_or_default().to_owned();
    let kind = text(root.get("kind"));
    let metadata = root.get("metadata");
    let name = text(metadata.and_then(|metadata| metadata.get("name")));
    let made = text(metadata.and_then(|metadata| metadata.get("generateName")));
    let version = text(root.get("apiVersion"));
    let at = At { path: "", node: root, mark: root.mark };
    let object = object(&version, &kind, at, &mut problems);
    problems.end_of_reading();
    if let Some(object) = &object {
        check::object(object, root, &mut problems);
    }
    let name = if name.is_empty() { made } else { name };
    let mut problems = problems.into_vec();
    let is_secret = kind == SECRET;
    problems.iter_mut().for_each(|problem| problem.is_secret = is_secret);
    Manifest { kind, name, object, tree: std::rc::Rc::clone(root), problems }
}

fn object(version: &str, kind: &str, at: At<'_>, problems: &mut Problems) -> Option<Object> {
    fn of<T: Read>(
        make: impl Fn(Box<T>) -> Object,
        at: At<'_>,
        problems: &mut Problems,
    ) -> Option<Object> {
        Some(make(Box::new(T::read(at, problems))))
    }
    if !matches!(at.node.value, Value::Map(_)) {
        crate::read::expected("an object", at, problems);
        return None;
    }
    let (group, _) = version.split_once('/').unwrap_or(("", version));
    match (group, kind) {
        ("kubevirt.io", "VirtualMachine") => of(Object::VirtualMachine, at, problems),
        ("kubevirt.io", "VirtualMachineInstance") => {
            of(Object::VirtualMachineInstance, at, problems)
        }
        ("cdi.kubevirt.io", "DataVolume") => of(Object::DataVolume, at, problems),
        ("cdi.kubevirt.io", "DataSource") => of(Object::DataSource, at, problems),
        ("cdi.kubevirt.io", "DataImportCron") => of(Object::DataImportCron, at, problems),
        ("cdi.kubevirt.io", "StorageProfile") => of(Object::StorageProfile, at, problems),
        (
            "instancetype.kubevirt.io",
            "VirtualMachineInstancetype" | "VirtualMachineClusterInstancetype",
        ) => of(Object::Instancetype, at, problems),
        (
            "instancetype.kubevirt.io",
            "VirtualMachinePreference" | "VirtualMachineClusterPreference",
        ) => of(Object::Preference, at, problems),
        ("", "PersistentVolumeClaim") => of(Object::PersistentVolumeClaim, at, problems),
        ("", "ConfigMap") => of(Object::ConfigMap, at, problems),
        ("", "Secret") => of(Object::Secret, at, problems),
        _ => {
            unknown(version, kind, at.node, problems);
            None
        }
    }
}

/// A kind of object.
pub(crate) struct KindEntry {
    /// Its name.
    pub(crate) kind: &'static str,
    /// The version under which it is written.
    pub(crate) version: &'static str,
    /// What people call it on a command line.
    pub(crate) short: &'static [&'static str],
    /// Its fields.
    pub(crate) shape: &'static ObjectShape,
}

const KUBEVIRT: &str = "kubevirt.io/v1";
const CDI: &str = "cdi.kubevirt.io/v1beta1";
const INSTANCETYPE: &str = "instancetype.kubevirt.io/v1beta1";

/// All kinds.
pub(crate) const KINDS: [KindEntry; 13] = [
    entry("VirtualMachine", KUBEVIRT, &["vm", "vms"], &VirtualMachine::SHAPE),
    entry("VirtualMachineInstance", KUBEVIRT, &["vmi", "vmis"], &VirtualMachineInstance::SHAPE),
    entry("DataVolume", CDI, &["dv", "dvs"], &DataVolume::SHAPE),
    entry("DataSource", CDI, &["das"], &DataSource::SHAPE),
    entry("DataImportCron", CDI, &["dic", "dics"], &DataImportCron::SHAPE),
    entry("StorageProfile", CDI, &[], &StorageProfile::SHAPE),
    entry("VirtualMachineInstancetype", INSTANCETYPE, &["vminstancetype"], &Instancetype::SHAPE),
    entry(
        "VirtualMachineClusterInstancetype",
        INSTANCETYPE,
        &["vmclusterinstancetype"],
        &Instancetype::SHAPE,
    ),
    entry("VirtualMachinePreference", INSTANCETYPE, &["vmpref", "vmp"], &Preference::SHAPE),
    entry("VirtualMachineClusterPreference", INSTANCETYPE, &["vmcp"], &Preference::SHAPE),
    entry("PersistentVolumeClaim", "v1", &["pvc", "pvcs"], &PersistentVolumeClaim::SHAPE),
    entry("ConfigMap", "v1", &["cm"], &ConfigMap::SHAPE),
    entry("Secret", "v1", &[], &Secret::SHAPE),
];

const fn entry(
    kind: &'static str,
    version: &'static str,
    short: &'static [&'static str],
    shape: &'static ObjectShape,
) -> KindEntry {
    KindEntry { kind, version, short, shape }
}

/// The kind that people mean on a command line: by its name, alone or in the plural, or a short form.
pub(crate) fn kind_named(word: &str) -> Option<&'static KindEntry> {
    let word = word.to_ascii_lowercase();
    KINDS.iter().find(|entry| {
        let kind = entry.kind.to_ascii_lowercase();
        word == kind || word.strip_suffix('s') == Some(&kind) || entry.short.contains(&&*word)
    })
}

/// Tells that an object is of none of our kinds.
fn unknown(version: &str, kind: &str, root: &Node, problems: &mut Problems) {
    for field in ["apiVersion", "kind"] {
        if root.get(field).is_none() {
            problems.error(field, root.mark, "Required value");
            return;
        }
    }
    let mark = |field: &str| root.get(field).map_or(root.mark, |node| node.mark);
    if let Some(KindEntry { version: known, .. }) = KINDS.iter().find(|entry| entry.kind == kind) {
        let message = format!("no matches for kind \"{kind}\" in version \"{version}\"");
        problems.error("apiVersion", mark("apiVersion"), message).hint(format!("write `{known}`"));
        return;
    }
    let problem =
        problems.error("kind", mark("kind"), format!("the kind {kind} is not known here"));
    match bootyard_spec::near_word(kind, KINDS.iter().map(|entry| entry.kind)) {
        Some(near) => problem.hint(format!("did you mean `{near}`?")),
        None => problem.hint("`bootyard explain` lists the kinds"),
    }
}
