-- Where an error came from (trace, release, environment), and how many were only counted; beside project_errors.
-- depends: 0013_merge_groups

CREATE TABLE fm_storage.error_origins (
    error_id UUID PRIMARY KEY,
    trace_id TEXT COLLATE "C",
    span_id TEXT COLLATE "C",
    release TEXT COLLATE "C",
    environment TEXT COLLATE "C"
);

COMMENT ON TABLE fm_storage.error_origins IS
    'One row per error of which any of this is known. Goes with its error.';
COMMENT ON COLUMN fm_storage.error_origins.error_id IS
    'The error, project_errors.id.';
COMMENT ON COLUMN fm_storage.error_origins.trace_id IS
    'Trace of OpenTelemetry, 32 hexadecimal digits; NULL if no span was active.';
COMMENT ON COLUMN fm_storage.error_origins.span_id IS
    'The span that was active, 16 hexadecimal digits.';
COMMENT ON COLUMN fm_storage.error_origins.release IS
    'Release of the application, as configured.';
COMMENT ON COLUMN fm_storage.error_origins.environment IS
    'Where it ran, as configured: production, staging.';

CREATE TABLE fm_storage.error_counts (
    fingerprint BIGINT NOT NULL,
    minute TIMESTAMPTZ NOT NULL,
    writer UUID NOT NULL,
    counted BIGINT NOT NULL,
    PRIMARY KEY (fingerprint, minute, writer)
);

CREATE INDEX error_counts_minute_idx ON fm_storage.error_counts (minute);

COMMENT ON TABLE fm_storage.error_counts IS
    'Errors beyond the limit of their group and minute (catalog.group_limit): counted, not stored.';
COMMENT ON COLUMN fm_storage.error_counts.fingerprint IS
    'Their group, as fingerprints.fingerprint.';
COMMENT ON COLUMN fm_storage.error_counts.minute IS
    'The minute in which they were recorded.';
COMMENT ON COLUMN fm_storage.error_counts.writer IS
    'Error manager that counted; it writes its whole count anew, so a repeat does no harm.';
COMMENT ON COLUMN fm_storage.error_counts.counted IS
    'How many.';

CREATE FUNCTION fm_storage.forget_origins() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        TRUNCATE fm_storage.error_origins;
    ELSE
        DELETE FROM fm_storage.error_origins AS o USING gone WHERE o.error_id = gone.id;
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION fm_storage.forget_origins() IS
    'Deletes the rows of error_origins whose errors were deleted.';

CREATE TRIGGER forget_origins AFTER DELETE ON project_errors
    REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.forget_origins();
CREATE TRIGGER forget_truncated_origins AFTER TRUNCATE ON project_errors
    FOR EACH STATEMENT EXECUTE FUNCTION fm_storage.forget_origins();

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.error_origins TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.error_counts TO fm_storage_app;
    END IF;
END
$$;
