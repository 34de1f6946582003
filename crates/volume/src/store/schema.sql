CREATE TABLE volume (
    -- Never used again: who holds one can do nothing to a later volume of that name.
    id           INTEGER PRIMARY KEY AUTOINCREMENT,
    name         TEXT NOT NULL UNIQUE,
    class        TEXT NOT NULL,
    volume_mode  TEXT NOT NULL,
    access_modes TEXT NOT NULL,
    format       TEXT NOT NULL,
    content_type TEXT NOT NULL DEFAULT 'kubevirt',
    -- Relative to the store's folder where it is in there.
    path         BLOB NOT NULL UNIQUE,
    state        TEXT NOT NULL CHECK (state IN ('preparing', 'ready', 'removing')),
    -- What the guest sees, in bytes; 0 where nobody knows yet.
    size         INTEGER NOT NULL DEFAULT 0,
    source       TEXT,
    sha256       TEXT,
    fingerprint  TEXT,
    -- A machine has had it for writing: the fingerprint is of what it was before.
    written      INTEGER NOT NULL DEFAULT 0,
    -- The machine whose life it shares.
    owner        TEXT,
    -- The volume that it is a snapshot of, or an overlay over.
    parent       TEXT,
    -- The process that makes it.
    holder       INTEGER,
    created      INTEGER NOT NULL DEFAULT (unixepoch())
) STRICT;

CREATE TABLE label (
    volume INTEGER NOT NULL REFERENCES volume (id) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (volume, name)
) STRICT;

CREATE TABLE class (
    name           TEXT PRIMARY KEY,
    driver         TEXT NOT NULL,
    -- For `loop`: the size of a sector.
    sector_size    INTEGER,
    -- In thousandths.
    overhead       INTEGER NOT NULL,
    preallocation  INTEGER NOT NULL,
    is_default     INTEGER NOT NULL,
    clone_strategy TEXT,
    minimum_size   INTEGER
) STRICT;

-- Folders and devices of a class; for `lvm-thin` the group and the pool.
CREATE TABLE class_path (
    class    TEXT NOT NULL REFERENCES class (name) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    path     BLOB NOT NULL,
    PRIMARY KEY (class, position)
) STRICT;

-- What volumes of a class can be: as the class was added ('class'), by its StorageProfile
-- ('profile') and by the ConfigMap of defaults ('config', with an empty class for all).
CREATE TABLE claim_rule (
    origin       TEXT NOT NULL CHECK (origin IN ('class', 'profile', 'config')),
    class        TEXT NOT NULL,
    position     INTEGER NOT NULL,
    access_modes TEXT NOT NULL,
    volume_mode  TEXT,
    PRIMARY KEY (origin, class, position)
) STRICT;

-- The rest of a StorageProfile. Its class need not be here yet.
CREATE TABLE profile (
    class          TEXT PRIMARY KEY,
    clone_strategy TEXT,
    minimum_size   INTEGER
) STRICT;

INSERT INTO class VALUES ('local', 'directory', NULL, 60, FALSE, TRUE, NULL, NULL);
INSERT INTO class_path VALUES ('local', 0, CAST('volumes' AS BLOB));
