-- A tracked table's triggers only note which rows changed; a drainer makes desired state of them, many at once.
-- depends: 0016_follow_many_errors

CREATE TABLE fm_storage.vector_changed (
    collection TEXT COLLATE "C" NOT NULL,
    point_id TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C",
    since TIMESTAMPTZ NOT NULL DEFAULT now()
) WITH (
    autovacuum_vacuum_scale_factor = 0.0,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0.0,
    autovacuum_analyze_threshold = 20000
);

CREATE INDEX vector_changed_collection_idx ON fm_storage.vector_changed (collection);

COMMENT ON TABLE fm_storage.vector_changed IS
    'Rows of tracked tables that were written since their points were last made desired state; in the commit of their writer.';
COMMENT ON COLUMN fm_storage.vector_changed.collection IS
    'Collection of the point.';
COMMENT ON COLUMN fm_storage.vector_changed.point_id IS
    'Point of the row, as in vector_state.';
COMMENT ON COLUMN fm_storage.vector_changed.key IS
    'Key of the row where it does not follow from the point, which is in lower case; else NULL.';
COMMENT ON COLUMN fm_storage.vector_changed.since IS
    'When it was written.';

-- Not a table: what a drainer sets must be seen by transactions that began before.
CREATE SEQUENCE fm_storage.vector_waiting AS SMALLINT MINVALUE 0 MAXVALUE 1 START WITH 0 NO CYCLE;

COMMENT ON SEQUENCE fm_storage.vector_waiting IS
    'Whether a drainer waits to be notified (last_value 1); a NOTIFY that nobody waits for costs as much as the row.';

CREATE OR REPLACE VIEW fm_storage.vector_health AS
SELECT
    collection,
    count(*) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS pending,
    count(*) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined,
    count(*) FILTER (WHERE replay) AS tombstones,
    count(*) FILTER (WHERE quarantined_at IS NULL AND attempts > 0) AS failing,
    max(now() - since) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS oldest_age
FROM (
    SELECT
        q.collection,
        q.since,
        q.replay,
        q.attempts,
        q.quarantined_at
    FROM fm_storage.vector_queue AS q
    UNION ALL
    SELECT
        c.collection,
        min(c.since) AS since,
        FALSE AS replay,
        0 AS attempts,
        NULL AS quarantined_at
    FROM fm_storage.vector_changed AS c
    GROUP BY c.collection, c.point_id
) AS waiting
GROUP BY collection;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_changed TO fm_storage_app;
        GRANT USAGE, SELECT, UPDATE ON SEQUENCE fm_storage.vector_waiting TO fm_storage_app;
    END IF;
END
$$;
