-- Changes by plain SQL no longer reach the vector store; the tables themselves keep their rows.
-- squawk-ignore-file ban-drop-column

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

DROP TRIGGER follow_truncated ON project_errors;
DROP TRIGGER follow_updated ON project_errors;
DROP TRIGGER follow_deleted ON project_errors;
DROP FUNCTION fm_storage.follow_errors();
DROP FUNCTION fm_storage.catalogue_collections();
DROP TABLE fm_storage.vector_cleared;
DROP TABLE fm_storage.vector_track;
ALTER TABLE fm_storage.vector_state DROP COLUMN source;
