-- Who has temporary views, and which: a view exists if and only if its row does.
-- depends: 0001_create_project_errors

CREATE TABLE fm_storage.session_owners (
    id UUID PRIMARY KEY,
    lock_key BIGINT NOT NULL,
    incarnation TEXT NOT NULL,
    leases INTEGER NOT NULL DEFAULT 1,
    condemned_at TIMESTAMPTZ,
    application_name TEXT NOT NULL,
    host TEXT NOT NULL,
    pid INTEGER NOT NULL,
    created_by NAME NOT NULL DEFAULT session_user,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE fm_storage.session_owners IS
    'One row per process (StorageManager) that has sessions; alive while it holds the advisory lock of its lease.';
COMMENT ON COLUMN fm_storage.session_owners.id IS
    'Identity, random.';
COMMENT ON COLUMN fm_storage.session_owners.lock_key IS
    'Key of the advisory lock that the owner holds on its lease connection; a collision can delay a reaper, never mislead it.';
COMMENT ON COLUMN fm_storage.session_owners.incarnation IS
    'Server in which the lease was last taken: system identifier, timeline, start of the postmaster. After a restart owners get more time.';
COMMENT ON COLUMN fm_storage.session_owners.leases IS
    'How often the lease was taken; two looks that see different numbers do not add up.';
COMMENT ON COLUMN fm_storage.session_owners.condemned_at IS
    'When a reaper began with the views; an owner that comes back afterwards has lost its sessions.';
COMMENT ON COLUMN fm_storage.session_owners.application_name IS
    'application_name of the owner, for people.';
COMMENT ON COLUMN fm_storage.session_owners.host IS
    'Host of the owner, for people.';
COMMENT ON COLUMN fm_storage.session_owners.pid IS
    'Process of the owner, for people; nothing is decided by it.';
COMMENT ON COLUMN fm_storage.session_owners.created_by IS
    'Role that made the row; applications may not set it.';
COMMENT ON COLUMN fm_storage.session_owners.created_at IS
    'When the row was made, for people; no two times are ever compared.';

CREATE TABLE fm_storage.session_objects (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    owner_id UUID NOT NULL REFERENCES fm_storage.session_owners (id),
    session_id UUID NOT NULL,
    schema_name NAME NOT NULL,
    name NAME NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('view', 'materialized view')),
    oid OID,
    adopted BOOLEAN NOT NULL DEFAULT false,
    keep BOOLEAN NOT NULL DEFAULT false,
    released BOOLEAN NOT NULL DEFAULT false,
    rows_made BIGINT,
    refused_sqlstate TEXT,
    refused_because TEXT,
    refused_times INTEGER NOT NULL DEFAULT 0,
    created_by NAME NOT NULL DEFAULT session_user,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    CONSTRAINT session_objects_name_key UNIQUE (schema_name, name)
);

CREATE INDEX session_objects_owner_idx ON fm_storage.session_objects (owner_id, id);
CREATE INDEX session_objects_session_idx ON fm_storage.session_objects (session_id, id);

COMMENT ON TABLE fm_storage.session_objects IS
    'One row per temporary view, written in the transaction that creates the view.';
COMMENT ON COLUMN fm_storage.session_objects.id IS
    'Order of creation: views are dropped newest first.';
COMMENT ON COLUMN fm_storage.session_objects.owner_id IS
    'Owner; the foreign key keeps a reaper away while a CREATE is under way.';
COMMENT ON COLUMN fm_storage.session_objects.session_id IS
    'Session of the owner that the view belongs to.';
COMMENT ON COLUMN fm_storage.session_objects.schema_name IS
    'Schema of the view.';
COMMENT ON COLUMN fm_storage.session_objects.name IS
    'Name of the view; generated names are never used again.';
COMMENT ON COLUMN fm_storage.session_objects.kind IS
    'view or materialized view.';
COMMENT ON COLUMN fm_storage.session_objects.oid IS
    'Identity of the view in pg_class; a relation with another one is not ours, whatever its name.';
COMMENT ON COLUMN fm_storage.session_objects.adopted IS
    'Whether the view existed before it was registered; only its own session drops it.';
COMMENT ON COLUMN fm_storage.session_objects.keep IS
    'Whether reapers leave the view alone (automatic clean-up switched off).';
COMMENT ON COLUMN fm_storage.session_objects.released IS
    'Whether the session that kept the view has ended: from then on sessions reap --kept may drop it although its owner lives.';
COMMENT ON COLUMN fm_storage.session_objects.rows_made IS
    'Rows of a materialized view when it was created.';
COMMENT ON COLUMN fm_storage.session_objects.refused_sqlstate IS
    'SQLSTATE of the last refused DROP; NULL if none was refused.';
COMMENT ON COLUMN fm_storage.session_objects.refused_because IS
    'Why the last DROP was refused, for people.';
COMMENT ON COLUMN fm_storage.session_objects.refused_times IS
    'How many times a DROP was refused.';
COMMENT ON COLUMN fm_storage.session_objects.created_by IS
    'Role that made the row and must own the view; applications may not set it, so that nobody can have another role''s view dropped.';
COMMENT ON COLUMN fm_storage.session_objects.created_at IS
    'When the view was made, for people.';

-- created_by is left out on purpose: it is always the role that logged in.
DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, DELETE ON fm_storage.session_owners TO fm_storage_app;
        GRANT INSERT (id, lock_key, incarnation, application_name, host, pid)
            ON fm_storage.session_owners TO fm_storage_app;
        GRANT UPDATE (incarnation, leases, condemned_at)
            ON fm_storage.session_owners TO fm_storage_app;
        GRANT SELECT, DELETE ON fm_storage.session_objects TO fm_storage_app;
        GRANT INSERT (owner_id, session_id, schema_name, name, kind, oid, adopted, keep)
            ON fm_storage.session_objects TO fm_storage_app;
        GRANT UPDATE (oid, keep, released, rows_made, refused_sqlstate, refused_because, refused_times)
            ON fm_storage.session_objects TO fm_storage_app;
    END IF;
END
$$;
