-- Tables are no longer tracked, until track() of the earlier release is called for each; their points stay.

DO $$
DECLARE
    made RECORD;
BEGIN
    FOR made IN
        SELECT t.tgname, t.tgrelid::regclass AS tracked FROM pg_trigger AS t
        JOIN pg_proc AS p ON p.oid = t.tgfoid
        WHERE p.pronamespace = 'fm_storage'::regnamespace AND p.proname LIKE 'track\_%' AND t.tgparentid = 0
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', made.tgname, made.tracked);
    END LOOP;
    FOR made IN
        SELECT p.oid::regprocedure AS called FROM pg_proc AS p
        WHERE p.pronamespace = 'fm_storage'::regnamespace AND p.proname LIKE 'track\_%'
    LOOP
        EXECUTE format('DROP FUNCTION %s', made.called);
    END LOOP;
END
$$;

DELETE FROM fm_storage.vector_track;

CREATE OR REPLACE VIEW fm_storage.vector_health AS
SELECT
    collection,
    count(*) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS pending,
    count(*) FILTER (WHERE quarantined_at IS NOT NULL) AS quarantined,
    count(*) FILTER (WHERE replay) AS tombstones,
    count(*) FILTER (WHERE quarantined_at IS NULL AND attempts > 0) AS failing,
    max(now() - since) FILTER (WHERE quarantined_at IS NULL AND NOT replay) AS oldest_age
FROM fm_storage.vector_queue
GROUP BY collection;

DROP SEQUENCE fm_storage.vector_waiting;
DROP TABLE fm_storage.vector_changed;
