-- Back to the function that joins the rows before and after.

CREATE OR REPLACE FUNCTION fm_storage.follow_errors() RETURNS trigger
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
