//! What a volume becomes, out of what was asked for and what its storage class says.
//!
//! The order is CDI's: what was asked for, then the StorageProfile's sets, then the ConfigMap of
//! defaults (the class's lines before those for all), then the class's own sets, then what the
//! driver gives: a block device or a file, for one writer.

use bootyard_spec::{
    AccessMode, AccessModes, Claim, ClaimPropertySet, StorageClass, VolumeMode, shell_word,
};

use crate::{Error, ErrorKind};

/// The class that every store has: files in its own folder `volumes`.
pub(super) const BUILT_IN: &str = "local";
/// The folder of [`BUILT_IN`] in the store's.
pub(super) const BUILT_IN_FOLDER: &str = "volumes";

/// What files of a cluster say of one class.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Rules {
    /// Its StorageProfile.
    pub(super) profile: Vec<ClaimPropertySet>,
    /// The ConfigMap, of this class.
    pub(super) own: ClaimPropertySet,
    /// The ConfigMap, of all classes.
    pub(super) all: ClaimPropertySet,
}

/// The modes of a new volume of `class`. Fails where the class cannot give what was asked for.
pub(super) fn resolve(
    class: &StorageClass,
    rules: &Rules,
    claim: &Claim,
) -> Result<(VolumeMode, AccessModes), Error> {
    let given = class.driver.volume_mode();
    let (volume_mode, who) = volume_mode(class, rules, claim);
    if volume_mode != given {
        let (name, driver) = (&class.name, class.driver.name());
        let what = format!(
            "{who} for volume mode {volume_mode}, but class `{name}` has {given} volumes only \
             (driver {driver})"
        );
        let hint = "see the classes with `bootyard storage-class ls`; name one with \
                    `--storage-class`, or leave out the mode";
        return Err(
            Error::new(ErrorKind::Unsupported, name.as_str().as_ref(), what).with_hint(hint)
        );
    }
    let access_modes = access_modes(class, rules, claim, volume_mode);
    refuse_unknown(class, &claim.access_modes, volume_mode)?;
    Ok((volume_mode, access_modes))
}

/// The volume mode, and who asks for it.
fn volume_mode(class: &StorageClass, rules: &Rules, claim: &Claim) -> (VolumeMode, &'static str) {
    let given = class.driver.volume_mode();
    let of_sets = |sets: &[ClaimPropertySet]| {
        let fits = |set: &&ClaimPropertySet| set.access_modes.contain(&claim.access_modes);
        sets.iter().filter(fits).find_map(|set| set.volume_mode)
    };
    // What holds for all classes was not meant for one that cannot.
    let all = rules.all.volume_mode.filter(|mode| *mode == given);
    let candidates = [
        (claim.volume_mode, "you ask"),
        (of_sets(&rules.profile), "the StorageProfile asks"),
        (rules.own.volume_mode, "the ConfigMap of defaults asks"),
        (all, "the ConfigMap of defaults asks"),
        (of_sets(&class.claim_property_sets), "the class asks"),
    ];
    let first = candidates.into_iter().find_map(|(mode, who)| Some((mode?, who)));
    first.unwrap_or((given, "the driver asks"))
}

fn access_modes(
    class: &StorageClass,
    rules: &Rules,
    claim: &Claim,
    volume_mode: VolumeMode,
) -> AccessModes {
    let of_sets = |sets: &[ClaimPropertySet]| {
        let fits = |set: &&ClaimPropertySet| {
            set.volume_mode.is_none_or(|mode| mode == volume_mode) && !set.access_modes.is_empty()
        };
        sets.iter().find(fits).map(|set| set.access_modes.clone()).unwrap_or_default()
    };
    let candidates = [
        claim.access_modes.clone(),
        of_sets(&rules.profile),
        rules.own.access_modes.clone(),
        rules.all.access_modes.clone(),
        of_sets(&class.claim_property_sets),
    ];
    let first = candidates.into_iter().find(|modes| !modes.is_empty());
    first.unwrap_or_else(|| [AccessMode::ReadWriteOnce].into_iter().collect())
}

/// Refuses access modes that none of the class's sets has.
fn refuse_unknown(
    class: &StorageClass,
    asked: &AccessModes,
    volume_mode: VolumeMode,
) -> Result<(), Error> {
    let sets = &class.claim_property_sets;
    let has = |set: &ClaimPropertySet| {
        set.volume_mode.is_none_or(|mode| mode == volume_mode)
            && (set.access_modes.is_empty() || set.access_modes.contain(asked))
    };
    if sets.is_empty() || asked.is_empty() || sets.iter().any(has) {
        return Ok(());
    }
    let offered: Vec<String> = sets.iter().map(|set| set.access_modes.to_string()).collect();
    let (name, offered) = (&class.name, offered.join(" or "));
    let what = format!("class `{name}` has no {volume_mode} volumes for {asked}; it has {offered}");
    let hint = format!(
        "see `bootyard storage-class ls`, or ask for `--access-mode {}`",
        shell_word(offered.split(' ').next().unwrap_or("RWO"))
    );
    Err(Error::new(ErrorKind::Unsupported, name.as_str().as_ref(), what).with_hint(hint))
}

#[cfg(test)]
mod tests {
    use bootyard_spec::{Explain, StorageDriver};

    use super::*;

    fn set(modes: &str, mode: Option<VolumeMode>) -> ClaimPropertySet {
        ClaimPropertySet { access_modes: modes.parse().unwrap(), volume_mode: mode }
    }

    fn check(
        class: &StorageClass,
        rules: &Rules,
        claim: (&str, Option<VolumeMode>),
        expected: &str,
    ) {
        let claim =
            Claim { class: None, access_modes: claim.0.parse().unwrap(), volume_mode: claim.1 };
        let found = match resolve(class, rules, &claim) {
            Ok((volume_mode, access_modes)) => format!("{volume_mode} {access_modes}"),
            Err(error) => {
                assert!(error.hint().is_some(), "{error}");
                error.to_string()
            }
        };
        assert_eq!(found, expected);
    }

    #[test]
    fn the_flag_comes_before_profile_config_class_and_driver() {
        let file = StorageDriver::Directory("/v".into());
        let mut class = StorageClass::new("fast".parse().unwrap(), file);
        let mut rules = Rules::default();
        check(&class, &rules, ("", None), "Filesystem RWO");
        class.claim_property_sets = vec![set("RWX", None), set("ROX,RWO", None)];
        check(&class, &rules, ("", None), "Filesystem RWX");
        rules.all = set("ROX", Some(VolumeMode::Block));
        check(&class, &rules, ("", None), "Filesystem ROX");
        rules.own = set("RWO", None);
        check(&class, &rules, ("", None), "Filesystem RWO");
        rules.profile =
            vec![set("RWX", Some(VolumeMode::Block)), set("RWX,ROX", Some(VolumeMode::Filesystem))];
        check(
            &class,
            &rules,
            ("", None),
            "the StorageProfile asks for volume mode Block, but class `fast` has Filesystem volumes \
             only (driver directory)",
        );
        check(&class, &rules, ("", Some(VolumeMode::Filesystem)), "Filesystem RWX,ROX");
        check(&class, &rules, ("ROX", None), "Filesystem ROX");
    }

    #[test]
    fn what_a_class_cannot_give_is_refused() {
        let devices = StorageDriver::Devices(vec!["/dev/vdb".into()]);
        let mut class = StorageClass::new("disks".parse().unwrap(), devices);
        let none = Rules::default();
        check(&class, &none, ("RWX", None), "Block RWX");
        check(
            &class,
            &none,
            ("", Some(VolumeMode::Filesystem)),
            "you ask for volume mode Filesystem, but class `disks` has Block volumes only (driver \
             devices)",
        );
        class.claim_property_sets = vec![set("RWO,ROX", Some(VolumeMode::Block))];
        check(&class, &none, ("ROX", None), "Block ROX");
        check(
            &class,
            &none,
            ("RWX", None),
            "class `disks` has no Block volumes for RWX; it has RWO,ROX",
        );
    }
}
