-- Grouping of the error catalogue: which errors are the same, beside project_errors.
-- depends: 0003_create_vector_state

CREATE TABLE fm_storage.fingerprints (
    fingerprint BIGINT PRIMARY KEY,
    module TEXT COLLATE "C" NOT NULL,
    error_code TEXT COLLATE "C" NOT NULL,
    template TEXT NOT NULL
);

COMMENT ON TABLE fm_storage.fingerprints IS
    'One row per group of equal errors, written once and never changed, so that recording never waits for a counter.';
COMMENT ON COLUMN fm_storage.fingerprints.fingerprint IS
    'Hash of module, code, normalised message and stack frames; the same on every machine.';
COMMENT ON COLUMN fm_storage.fingerprints.module IS
    'Module of every error of the group.';
COMMENT ON COLUMN fm_storage.fingerprints.error_code IS
    'Code of every error of the group.';
COMMENT ON COLUMN fm_storage.fingerprints.template IS
    'The message with numbers, identifiers, addresses and paths replaced.';

CREATE TABLE fm_storage.error_fingerprints (
    error_id UUID PRIMARY KEY,
    fingerprint BIGINT NOT NULL,
    timestamp TIMESTAMPTZ NOT NULL,
    severity SMALLINT NOT NULL
);

-- Counting groups and drawing timelines reads these narrow indexes only, never
-- the wide rows of project_errors.
CREATE INDEX error_fingerprints_group_idx
    ON fm_storage.error_fingerprints (fingerprint, timestamp) INCLUDE (severity);
CREATE INDEX error_fingerprints_time_idx
    ON fm_storage.error_fingerprints (timestamp) INCLUDE (fingerprint, severity);

-- Instead of a foreign key, whose check would cost every insert: rows arrive only
-- in the statement that inserts their error, and go with it, whoever deletes it.
CREATE FUNCTION fm_storage.forget_deleted_errors() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE fm_storage.error_fingerprints;
    ELSE
        DELETE FROM fm_storage.error_fingerprints AS f USING gone
        WHERE f.error_id = gone.id;
    END IF;
    RETURN NULL;
END
$$;

CREATE TRIGGER forget_deleted_errors AFTER DELETE ON project_errors
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.forget_deleted_errors();

CREATE TRIGGER forget_truncated_errors AFTER TRUNCATE ON project_errors
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.forget_deleted_errors();

COMMENT ON FUNCTION fm_storage.forget_deleted_errors() IS
    'Deletes the rows of error_fingerprints whose errors were deleted.';
COMMENT ON TABLE fm_storage.error_fingerprints IS
    'One narrow row per error: its group, time and severity. Goes with its error.';
COMMENT ON COLUMN fm_storage.error_fingerprints.error_id IS
    'The error, project_errors.id.';
COMMENT ON COLUMN fm_storage.error_fingerprints.fingerprint IS
    'Its group, fingerprints.fingerprint.';
COMMENT ON COLUMN fm_storage.error_fingerprints.timestamp IS
    'Copy of project_errors.timestamp.';
COMMENT ON COLUMN fm_storage.error_fingerprints.severity IS
    'project_errors.severity as a number: DEBUG 10, INFO 20, WARNING 30, ERROR 40, CRITICAL 50.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.fingerprints TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.error_fingerprints TO fm_storage_app;
    END IF;
END
$$;
