-- Rows that anyone writes: a tracked table's rows, and changes of project_errors by plain SQL, become desired state.
-- depends: 0011_hold_leases

ALTER TABLE fm_storage.vector_state ADD COLUMN source BIGINT;

COMMENT ON COLUMN fm_storage.vector_state.source IS
    'Hash of the text of a tracked row, so that a changed text is found by comparing; NULL for points of other origin.';

CREATE TABLE fm_storage.vector_track (
    collection TEXT COLLATE "C" PRIMARY KEY,
    relation OID NOT NULL UNIQUE,
    definition JSONB NOT NULL,
    since BIGINT NOT NULL,
    reached TEXT,
    filled BIGINT NOT NULL DEFAULT 0,
    filled_at TIMESTAMPTZ,
    partitions OID [] NOT NULL,
    doubtful BOOLEAN NOT NULL DEFAULT FALSE
);

COMMENT ON TABLE fm_storage.vector_track IS
    'Tables whose rows are points of a collection, kept so by triggers.';
COMMENT ON COLUMN fm_storage.vector_track.collection IS
    'Collection of the points.';
COMMENT ON COLUMN fm_storage.vector_track.relation IS
    'The table.';
COMMENT ON COLUMN fm_storage.vector_track.definition IS
    'Name of the table, its key, and the columns that are the text and the payload.';
COMMENT ON COLUMN fm_storage.vector_track.since IS
    'Version at which the triggers began; the backfill changes nothing that is newer.';
COMMENT ON COLUMN fm_storage.vector_track.reached IS
    'Greatest key that the backfill has read; where one that was interrupted goes on.';
COMMENT ON COLUMN fm_storage.vector_track.filled IS
    'Rows that the backfill has read.';
COMMENT ON COLUMN fm_storage.vector_track.filled_at IS
    'When the backfill ended; NULL before that.';
COMMENT ON COLUMN fm_storage.vector_track.partitions IS
    'Partitions when the rows were last compared with the points; attaching and detaching one fires no trigger.';
COMMENT ON COLUMN fm_storage.vector_track.doubtful IS
    'Whether rows and points have to be compared: a partition came or went, or a trigger met a row that it cannot follow.';

CREATE TABLE fm_storage.vector_cleared (
    collection TEXT COLLATE "C" PRIMARY KEY,
    ver BIGINT NOT NULL
);

COMMENT ON TABLE fm_storage.vector_cleared IS
    'Collections whose table was emptied at once; a drainer deletes their points in batches.';
COMMENT ON COLUMN fm_storage.vector_cleared.collection IS
    'Collection of the points.';
COMMENT ON COLUMN fm_storage.vector_cleared.ver IS
    'Points up to this version are undesired.';

CREATE FUNCTION fm_storage.catalogue_collections() RETURNS SETOF TEXT
    LANGUAGE sql STABLE SET search_path = pg_catalog AS $$
WITH RECURSIVE named AS (
    (SELECT s.collection FROM fm_storage.vector_state AS s
     WHERE s.collection >= 'project_errors_' ORDER BY s.collection LIMIT 1)
    UNION ALL
    SELECT n.collection FROM named AS f CROSS JOIN LATERAL (
        SELECT s.collection FROM fm_storage.vector_state AS s
        WHERE s.collection > f.collection ORDER BY s.collection LIMIT 1) AS n
    WHERE f.collection < 'project_errors`'
)
SELECT collection FROM named WHERE collection < 'project_errors`'
$$;

COMMENT ON FUNCTION fm_storage.catalogue_collections() IS
    'Collections of the error catalogue, one for each vectorizer that was ever used; one index look-up for each.';

CREATE FUNCTION fm_storage.follow_errors() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        INSERT INTO fm_storage.vector_cleared AS k (collection, ver)
        SELECT c, nextval('fm_storage.vector_version') FROM fm_storage.catalogue_collections() AS c
        ON CONFLICT (collection) DO UPDATE SET ver = nextval('fm_storage.vector_version');
    ELSIF TG_OP = 'DELETE' THEN
        WITH fm_state AS (
            UPDATE fm_storage.vector_state AS s
            SET ver = nextval('fm_storage.vector_version'), op = 'd', vectors = NULL, payload = NULL, payload_hash = NULL
            FROM fm_storage.catalogue_collections() AS c, older AS o
            WHERE s.collection = c AND s.point_id = o.id::text AND s.op = 'u'
            RETURNING s.collection, s.point_id, s.ver
        )
        INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
        SELECT collection, point_id, ver FROM fm_state
        ON CONFLICT (collection, point_id) DO UPDATE
        SET ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL, replay = FALSE,
            due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END,
            since = CASE WHEN q.replay THEN now() ELSE q.since END;
    ELSE
        WITH fm_state AS (
            UPDATE fm_storage.vector_state AS s
            SET ver = nextval('fm_storage.vector_version'), vectors = NULL, payload_hash = NULL,
                payload = s.payload || jsonb_build_object('module', n.module, 'at', extract(epoch FROM n.timestamp),
                    'severity', CASE n.severity WHEN 'DEBUG' THEN 10 WHEN 'INFO' THEN 20 WHEN 'WARNING' THEN 30
                        WHEN 'CRITICAL' THEN 50 ELSE 40 END)
            FROM fm_storage.catalogue_collections() AS c, older AS o JOIN newer AS n ON n.id = o.id
            WHERE s.collection = c AND s.point_id = n.id::text AND s.op = 'u'
                AND (n.message, n.module, n.error_code, n.stack_trace, n.timestamp, n.severity)
                    IS DISTINCT FROM (o.message, o.module, o.error_code, o.stack_trace, o.timestamp, o.severity)
            RETURNING s.collection, s.point_id, s.ver
        )
        INSERT INTO fm_storage.vector_queue AS q (collection, point_id, ver)
        SELECT collection, point_id, ver FROM fm_state
        ON CONFLICT (collection, point_id) DO UPDATE
        SET ver = EXCLUDED.ver, attempts = 0, last_error = NULL, quarantined_at = NULL, replay = FALSE,
            due_at = CASE WHEN q.leased THEN q.due_at ELSE now() END,
            since = CASE WHEN q.replay THEN now() ELSE q.since END;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION fm_storage.follow_errors() IS
    'Makes changes of project_errors by any statement desired state: what is deleted goes from the vector store, what is changed is embedded again.';

CREATE TRIGGER follow_deleted AFTER DELETE ON project_errors
    REFERENCING OLD TABLE AS older
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.follow_errors();
CREATE TRIGGER follow_updated AFTER UPDATE ON project_errors
    REFERENCING OLD TABLE AS older NEW TABLE AS newer
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.follow_errors();
CREATE TRIGGER follow_truncated AFTER TRUNCATE ON project_errors
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.follow_errors();

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_track TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_cleared TO fm_storage_app;
    END IF;
END
$$;
