//! What a new volume of the store shall be: from flags to a claim.

use bootyard_spec::{AccessMode, Claim, Class, StorageClassName, VolumeMode};
use clap::Args;

use crate::error::Failure;

/// The class and modes of a new volume.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Volumes of the store")]
pub(crate) struct ClaimArgs {
    /// Storage class of the volume [default: the default one; see `bootyard storage-class ls`]
    #[arg(long, value_name = "CLASS")]
    pub(crate) storage_class: Option<StorageClassName>,
    /// Who may use it at a time: ReadWriteOnce (RWO), ReadWriteMany (RWX), ReadOnlyMany (ROX); may be
    /// repeated [default: as the class has it]
    #[arg(long = "access-mode", value_name = "MODE", value_delimiter = ',')]
    pub(crate) access_modes: Vec<AccessMode>,
    /// What it is to a machine: Filesystem or Block [default: as the class has it]
    #[arg(long, value_name = "MODE")]
    pub(crate) volume_mode: Option<VolumeMode>,
}

impl ClaimArgs {
    /// The claim of a volume. Refuses flags that would have no effect, where the target is none.
    pub(crate) fn claim(&self, is_volume: bool) -> Result<Claim, Failure> {
        let given = [
            ("--storage-class", self.storage_class.is_some()),
            ("--access-mode", !self.access_modes.is_empty()),
            ("--volume-mode", self.volume_mode.is_some()),
        ];
        if let Some((flag, _)) = given.into_iter().find(|(_, given)| *given && !is_volume) {
            let what = format!("`{flag}` is for volumes of the store");
            let hint = format!("leave out `{flag}`, or name a volume of the store");
            return Err(Failure::new(Class::Usage, what).with_hint(hint));
        }
        Ok(Claim {
            class: self.storage_class.clone(),
            access_modes: self.access_modes.iter().copied().collect(),
            volume_mode: self.volume_mode,
        })
    }
}
