-- Dual write: what the vector store should hold, and what it has yet to be told.
-- depends: 0002_create_session_registry

-- JSON readers keep integers exactly up to 2^53 only, and versions travel in payloads.
CREATE SEQUENCE fm_storage.vector_version AS BIGINT MAXVALUE 9007199254740991;

COMMENT ON SEQUENCE fm_storage.vector_version IS
    'Version of each desired state; greater is newer. Taken under the lock of the row in vector_state.';

CREATE TABLE fm_storage.vector_state (
    collection TEXT COLLATE "C" NOT NULL,
    point_id TEXT COLLATE "C" NOT NULL,
    ver BIGINT NOT NULL,
    op TEXT COLLATE "C" NOT NULL CHECK (op IN ('u', 'd')),
    vectors BYTEA,
    payload JSONB,
    payload_hash BYTEA,
    PRIMARY KEY (collection, point_id)
) WITH (fillfactor = 90);

-- Floats do not compress; trying costs more than the insert.
ALTER TABLE fm_storage.vector_state ALTER COLUMN vectors SET STORAGE EXTERNAL;

COMMENT ON TABLE fm_storage.vector_state IS
    'Desired state: one row per point that the vector store holds or held. Never removed, so that versions of one point only grow.';
COMMENT ON COLUMN fm_storage.vector_state.collection IS
    'Collection of the vector store, or its alias.';
COMMENT ON COLUMN fm_storage.vector_state.point_id IS
    'Integer in digits, UUID in lower case, any other text behind "s:".';
COMMENT ON COLUMN fm_storage.vector_state.ver IS
    'Version, travels in the payload as _ver.';
COMMENT ON COLUMN fm_storage.vector_state.op IS
    'u: the point should exist as this row says; d: it should not exist.';
COMMENT ON COLUMN fm_storage.vector_state.vectors IS
    'Vectors as little-endian float32 frames (dense and sparse, by name); NULL with op u: to be embedded by the drainer.';
COMMENT ON COLUMN fm_storage.vector_state.payload IS
    'Payload of the point without reserved keys.';
COMMENT ON COLUMN fm_storage.vector_state.payload_hash IS
    'Digest of the payload that verify() compares; NULL until the first delivery if the writer did not know it.';

CREATE TABLE fm_storage.vector_queue (
    collection TEXT COLLATE "C" NOT NULL,
    point_id TEXT COLLATE "C" NOT NULL,
    ver BIGINT NOT NULL,
    due_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    since TIMESTAMPTZ NOT NULL DEFAULT now(),
    leased BOOLEAN NOT NULL DEFAULT FALSE,
    replay BOOLEAN NOT NULL DEFAULT FALSE,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    quarantined_at TIMESTAMPTZ,
    PRIMARY KEY (collection, point_id)
) WITH (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.0,
    autovacuum_analyze_threshold = 20000
);

CREATE INDEX vector_queue_due_at_idx
    ON fm_storage.vector_queue (due_at)
    WHERE quarantined_at IS NULL;

COMMENT ON TABLE fm_storage.vector_queue IS
    'Points whose desired state has not been delivered; a row goes once its version has been.';
COMMENT ON COLUMN fm_storage.vector_queue.collection IS
    'As in vector_state.';
COMMENT ON COLUMN fm_storage.vector_queue.point_id IS
    'As in vector_state.';
COMMENT ON COLUMN fm_storage.vector_queue.ver IS
    'Version to deliver; the row is removed only if it still is the one delivered.';
COMMENT ON COLUMN fm_storage.vector_queue.due_at IS
    'When a drainer may take the row: end of a lease, of a pause after failure, or of the wait before a tombstone is replayed.';
COMMENT ON COLUMN fm_storage.vector_queue.since IS
    'Since when the vector store has been behind on this point.';
COMMENT ON COLUMN fm_storage.vector_queue.leased IS
    'Whether a drainer holds the row until due_at.';
COMMENT ON COLUMN fm_storage.vector_queue.replay IS
    'Whether this is a delivered deletion waiting to be sent once more, after any call of a drainer that lost its lease.';
COMMENT ON COLUMN fm_storage.vector_queue.attempts IS
    'Deliveries of this version that failed.';
COMMENT ON COLUMN fm_storage.vector_queue.last_error IS
    'Why the last of them failed.';
COMMENT ON COLUMN fm_storage.vector_queue.quarantined_at IS
    'Since when the point is set aside because the vector store refuses it alone; a newer version lifts this.';

CREATE TABLE fm_storage.vector_store (
    singleton BOOLEAN PRIMARY KEY DEFAULT TRUE CHECK (singleton),
    installation UUID NOT NULL DEFAULT gen_random_uuid(),
    identity TEXT,
    location TEXT,
    attached_at TIMESTAMPTZ
);

INSERT INTO fm_storage.vector_store DEFAULT VALUES;

COMMENT ON TABLE fm_storage.vector_store IS
    'Which vector store belongs to this database; one row.';
COMMENT ON COLUMN fm_storage.vector_store.singleton IS
    'Keeps the table to one row.';
COMMENT ON COLUMN fm_storage.vector_store.installation IS
    'Identity of this database, kept in the vector store''s marker; survives a restore.';
COMMENT ON COLUMN fm_storage.vector_store.identity IS
    'Identity of the vector store; NULL before the first delivery.';
COMMENT ON COLUMN fm_storage.vector_store.location IS
    'Where that store was: URL, or host and folder.';
COMMENT ON COLUMN fm_storage.vector_store.attached_at IS
    'When it was first used, or last exchanged.';

CREATE TABLE fm_storage.vector_rebuild (
    collection TEXT COLLATE "C" PRIMARY KEY,
    target TEXT COLLATE "C" NOT NULL,
    filling BOOLEAN NOT NULL DEFAULT TRUE,
    reached TEXT COLLATE "C" NOT NULL DEFAULT '',
    copied BIGINT NOT NULL DEFAULT 0,
    started_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    flipped_at TIMESTAMPTZ
);

COMMENT ON TABLE fm_storage.vector_rebuild IS
    'Rebuilds under way, and when each collection was last exchanged for a rebuilt one.';
COMMENT ON COLUMN fm_storage.vector_rebuild.collection IS
    'Collection that is, or was last, rebuilt.';
COMMENT ON COLUMN fm_storage.vector_rebuild.target IS
    'Collection of the vector store that is filled behind the name.';
COMMENT ON COLUMN fm_storage.vector_rebuild.filling IS
    'Whether the target is still being filled; a killed rebuild goes on from there.';
COMMENT ON COLUMN fm_storage.vector_rebuild.reached IS
    'Greatest point_id that has been copied; where a killed rebuild goes on.';
COMMENT ON COLUMN fm_storage.vector_rebuild.copied IS
    'Points copied so far.';
COMMENT ON COLUMN fm_storage.vector_rebuild.started_at IS
    'When the rebuild began.';
COMMENT ON COLUMN fm_storage.vector_rebuild.flipped_at IS
    'When the name began to mean the target; a delivery claimed earlier does not count. NULL before the first time.';

CREATE VIEW fm_storage.vector_health AS
SELECT
    collection,
    count(*) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS pending,
    count(*) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined,
    count(*) FILTER (WHERE replay) AS tombstones,
    count(*) FILTER (WHERE quarantined_at IS NULL AND attempts > 0) AS failing,
    max(now() - since) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS oldest_age
FROM fm_storage.vector_queue
GROUP BY collection;

COMMENT ON VIEW fm_storage.vector_health IS
    'How far the vector store is behind, by collection; empty when it is not.';
COMMENT ON COLUMN fm_storage.vector_health.collection IS
    'Collection concerned.';
COMMENT ON COLUMN fm_storage.vector_health.pending IS
    'Points to deliver.';
COMMENT ON COLUMN fm_storage.vector_health.quarantined IS
    'Points set aside because the vector store refuses them.';
COMMENT ON COLUMN fm_storage.vector_health.tombstones IS
    'Delivered deletions waiting to be sent once more.';
COMMENT ON COLUMN fm_storage.vector_health.failing IS
    'Points whose last delivery failed and will be tried again.';
COMMENT ON COLUMN fm_storage.vector_health.oldest_age IS
    'How long the longest waiting point has waited.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT USAGE, SELECT, UPDATE ON SEQUENCE fm_storage.vector_version TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_state TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_queue TO fm_storage_app;
        GRANT SELECT, UPDATE ON fm_storage.vector_store TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_rebuild TO fm_storage_app;
        GRANT SELECT ON fm_storage.vector_health TO fm_storage_app;
    END IF;
END
$$;
