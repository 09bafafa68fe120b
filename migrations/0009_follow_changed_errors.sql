-- An error that is changed (a repository's update(), plain SQL) keeps its row in error_fingerprints true: time and
-- severity follow; where the group may be another one, the row goes, and whoever next asks for groups makes it anew.
-- depends: 0008_allow_session_tables

CREATE FUNCTION fm_storage.follow_changed_errors() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    DELETE FROM fm_storage.error_fingerprints AS f
    USING older JOIN newer ON newer.id = older.id
    WHERE f.error_id = older.id
        AND (newer.message, newer.module, newer.error_code, newer.stack_trace)
            IS DISTINCT FROM
            (older.message, older.module, older.error_code, older.stack_trace);
    UPDATE fm_storage.error_fingerprints AS f
    SET timestamp = newer.timestamp,
        severity = CASE newer.severity
            WHEN 'DEBUG' THEN 10 WHEN 'INFO' THEN 20 WHEN 'WARNING' THEN 30 WHEN 'CRITICAL' THEN 50 ELSE 40
        END
    FROM older JOIN newer ON newer.id = older.id
    WHERE f.error_id = older.id
        AND (newer.timestamp, newer.severity) IS DISTINCT FROM (older.timestamp, older.severity);
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION fm_storage.follow_changed_errors() IS
    'Keeps error_fingerprints true when errors are changed: time and severity follow, a changed text is grouped anew.';

CREATE TRIGGER follow_changed_errors AFTER UPDATE ON project_errors
    REFERENCING OLD TABLE AS older NEW TABLE AS newer
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.follow_changed_errors();
