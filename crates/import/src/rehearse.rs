//! What an import would do, found out without doing it.

use bootyard_source as source;
use bootyard_spec::{ImportRequest, Source, Target};
use bootyard_volume::{Prospect, Store};

use crate::joined::Joined;
use crate::opened::{Lookup, Opened};
use crate::run::{Resolved, refuse_same, resolve, runtime};
use crate::transfer::unless;
use crate::trust::refuse_dubious;
use crate::{Besides, Cancel, Error, Plan, Probe, plan};

/// Looks at the target, reads as much of the source as tells what it is, and plans the import: fails
/// where [`run`](crate::run()) would before it has moved anything. Needs what that needs.
pub fn rehearse(
    request: &ImportRequest,
    besides: &Besides,
    store: &Store,
    options: &source::Options,
    cancel: &Cancel,
) -> Result<Plan, Error> {
    let Resolved { request, is_raw, _idle } = resolve(request, store)?;
    refuse_same(&request, store)?;
    let target = match &request.target {
        Target::Volume(name) => Prospect::of_volume(store, name)?,
        Target::Path(path) => Prospect::of_path(path)?,
    };
    if !besides.is_empty() {
        let joined = Joined::open(&request.source, besides, options)?;
        let plan = joined.plan(&request, target.capacity())?;
        target.fits(plan.file_len())?;
        return Ok(plan);
    }
    let probe = match request.source {
        Source::Blank => Probe::blank(),
        _ => {
            // Ends after what was opened: it waits for the reader of a file.
            let (runtime, lookup) = (runtime()?, Lookup::default());
            let opening = Opened::open(&request.source, options, is_raw, &lookup);
            let opened = runtime.block_on(unless(cancel, opening))??;
            refuse_dubious(&request, &opened.probe.chain, &opened.object)?;
            opened.probe
        }
    };
    let plan = plan(&request, &Probe { capacity: target.capacity(), ..probe })?;
    target.fits(plan.file_len())?;
    Ok(plan)
}
