//! What must fit together in an object beyond the types of its fields: the rules of KubeVirt's and CDI's
//! admission webhooks, in their words, and those of this host.

mod data_volume;
mod disks;
mod domain;
mod names;
mod networks;
mod vm;
mod volumes;

use bootyard_yaml::{Mark, Node};

use crate::object::Object;
use crate::problem::{Problems, Told};
use crate::read::{of_entry, of_item};

/// An object under examination.
pub(crate) struct Check<'a> {
    root: &'a Node,
    problems: &'a mut Problems,
}

/// Adds all that is wrong with `object`, which was read from `root`.
pub(crate) fn object(object: &Object, root: &Node, problems: &mut Problems) {
    let mut check = Check { root, problems };
    names::metadata(object, &mut check);
    match object {
        Object::VirtualMachine(machine) => vm::machine(machine, &mut check),
        Object::VirtualMachineInstance(instance) => {
            vm::instance(&instance.spec, "spec", vm::Size::InFull, &mut check);
        }
        Object::DataVolume(volume) => data_volume::spec(&volume.spec, "spec", &mut check),
        Object::PersistentVolumeClaim(claim) => {
            data_volume::claim(&claim.spec, "spec", data_volume::Claimed::InFull, &mut check);
        }
        Object::DataSource(source) => data_volume::data_source(source, &mut check),
        Object::DataImportCron(cron) => data_volume::cron(cron, &mut check),
        Object::Secret(secret) => names::secret(secret, &mut check),
        Object::ConfigMap(map) => names::config_map(map, &mut check),
        Object::Instancetype(size) => domain::instancetype(size, &mut check),
        Object::Preference(_) | Object::StorageProfile(_) => {}
    }
}

impl Check<'_> {
    /// Something is wrong with the field at `path`.
    pub(crate) fn error(&mut self, path: &str, message: impl Into<String>) -> Told<'_> {
        if self.problems.is_wrong(path) {
            return Told(None);
        }
        let mark = locate(self.root, path);
        Told(Some(self.problems.error(path, mark, message)))
    }

    /// Something about the field at `path` is not what one may think.
    pub(crate) fn warn(&mut self, path: &str, message: impl Into<String>) -> Told<'_> {
        if self.problems.is_wrong(path) {
            return Told(None);
        }
        let mark = locate(self.root, path);
        Told(Some(self.problems.warn(path, mark, message)))
    }

    /// Whether something at or below `path` could not be read: what seems to be missing may stand there.
    pub(crate) fn knows_of(&self, path: &str) -> bool {
        self.problems.blame(path)
    }

    /// Whether the field at `path` itself could not be read.
    pub(crate) fn is_wrong(&self, path: &str) -> bool {
        self.problems.is_wrong(path)
    }
}

/// Where the field at `path` stands; of a field that is not there, the nearest around it that is.
fn locate(root: &Node, path: &str) -> Mark {
    let (mut node, mut mark) = (root, root.mark);
    for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
        let next = match step.strip_suffix(']') {
            Some(index) => {
                let item = index.parse().ok().and_then(|index: usize| node.items().get(index));
                item.map(|item| (&**item, of_item(item)))
            }
            None => node.entry(step).map(|entry| (&*entry.value, of_entry(entry))),
        };
        let Some((inner, place)) = next else { break };
        (node, mark) = (inner, place);
    }
    mark
}
