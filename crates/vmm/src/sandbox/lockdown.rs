//! What a process gives up as a whole: its user, its files, its core dumps.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetStatus, Scope,
};
use rustix::process::{DumpableBehavior, Resource, Rlimit, set_dumpable_behavior, setrlimit};
use rustix::thread::{
    Gid, Uid, set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::{Options, failed};
use crate::error::Error;

/// Files that are opened after the sandbox was entered.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Files and folders with all that is in them, for reading.
    pub readable: Vec<PathBuf>,
    /// Files and folders in which everything is allowed: logs that are rotated, for instance.
    pub writable: Vec<PathBuf>,
}

/// The first user of the machines of root: the number of the process is added. Nobody else has these:
/// systemd's containers end below, and the highest process is far from the end of what it leaves unused
/// (`systemd.io/UIDS-GIDS`: 1879048192 to 2147483647).
const FIRST_USER: u32 = 0x7000_0000;
/// The user `nobody`, for where there are no other users: in containers, most often.
const NOBODY: u32 = 65_534;

/// The restrictions are the calling thread's; only later threads inherit them.
pub(super) fn require_one_thread() -> Result<(), Error> {
    let threads = fs_err::read_dir("/proc/self/task").map(Iterator::count);
    match threads {
        Ok(1) => Ok(()),
        Ok(count) => Err(failed("entering it")(format!("{count} threads run already").into())),
        Err(error) => Err(failed("counting threads")(error.into())),
    }
}

/// Becomes a user that owns nothing, if it is root. Every machine is another one, so that none can
/// signal or trace another. Says so where that cannot be.
pub(super) fn drop_user() -> Result<Option<String>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let own = FIRST_USER + std::process::id();
    let mut refusal = None;
    for id in [own, NOBODY] {
        match become_user(id) {
            Ok(()) => return Ok(None),
            Err(error) => refusal = Some(error),
        }
    }
    Ok(refusal.map(|error| format!("the machine keeps running as root: no other user: {error}")))
}

fn become_user(id: u32) -> rustix::io::Result<()> {
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    // Last, since it takes all privileges away.
    set_thread_res_uid(user, user, user)
}

/// No other process of this user may look into this one, and no core dump shows the guest's memory.
pub(super) fn forbid_dumps() -> Result<(), Error> {
    let none = Rlimit { current: Some(0), maximum: Some(0) };
    let done = setrlimit(Resource::Core, none)
        .and_then(|()| set_no_new_privs(true))
        .and_then(|()| set_dumpable_behavior(DumpableBehavior::NotDumpable));
    done.map_err(|errno| failed("giving up privileges")(errno.into()))
}

/// The newest version of Landlock of which something is asked here: signals and abstract sockets stay
/// within the machine from 6 on.
const LANDLOCK: ABI = ABI::V6;

/// Forbids all files but those that `options` names. Says so if this kernel cannot; that it can only do
/// part of it is for the doctor to say, since no start would be without that line on many a host.
pub(super) fn restrict_files(options: &Options) -> Result<Option<String>, Error> {
    let status = landlock(options).map_err(|error| failed("restricting files")(error.into()))?;
    let missing = "this kernel has no Landlock: the machine could open what its user may open";
    Ok((status == RulesetStatus::NotEnforced).then(|| missing.to_owned()))
}

fn landlock(options: &Options) -> Result<RulesetStatus, landlock::RulesetError> {
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::BestEffort);
    let ruleset = ruleset.handle_access(AccessFs::from_all(LANDLOCK))?;
    let ruleset =
        if options.tcp { ruleset } else { ruleset.handle_access(AccessNet::from_all(LANDLOCK))? };
    let mut created = ruleset.scope(Scope::from_all(LANDLOCK))?.create()?;
    created = allow(created, &options.files.readable, AccessFs::from_read(LANDLOCK))?;
    created = allow(created, &options.files.writable, AccessFs::from_all(LANDLOCK))?;
    Ok(created.restrict_self()?.ruleset)
}

/// A path that is not there is none that could be opened.
fn allow(
    mut ruleset: RulesetCreated,
    paths: &[PathBuf],
    access: landlock::BitFlags<AccessFs>,
) -> Result<RulesetCreated, landlock::RulesetError> {
    for path in paths {
        let Ok(opened) = PathFd::new(path) else { continue };
        let access = if path.is_dir() { access } else { access & AccessFs::from_file(LANDLOCK) };
        ruleset = ruleset.add_rule(PathBeneath::new(opened, access))?;
    }
    Ok(ruleset)
}
