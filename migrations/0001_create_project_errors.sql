-- The error catalogue's table, and the group role through which applications
-- that may not change the schema reach it and everything in schema fm_storage
-- (which the runner makes for its record before this file).

-- A role that may not create roles skips this; its DBA may create the group later.
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        CREATE ROLE fm_storage_app NOLOGIN;
    END IF;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE NOTICE 'no permission to create group role fm_storage_app; grants are skipped';
    WHEN duplicate_object OR unique_violation THEN
        NULL;  -- made at this moment from another database of the cluster
END
$$;

CREATE TABLE project_errors (
    id UUID PRIMARY KEY,
    timestamp TIMESTAMPTZ NOT NULL,
    message TEXT NOT NULL,
    stack_trace TEXT,
    module VARCHAR(255) NOT NULL,
    error_code VARCHAR(100) NOT NULL,
    manager_context JSONB,
    severity VARCHAR(50) NOT NULL
);

COMMENT ON TABLE project_errors IS
    'One row per recorded error; the entity ErrorEntry.';
COMMENT ON COLUMN project_errors.id IS
    'Identity, time-ordered (UUID version 7) unless the caller chose it; also the point id in the vector store.';
COMMENT ON COLUMN project_errors.timestamp IS
    'When the error happened, not when it was recorded.';
COMMENT ON COLUMN project_errors.message IS
    'What the error says, secrets masked.';
COMMENT ON COLUMN project_errors.stack_trace IS
    'Traceback as text, secrets masked; NULL if there was none.';
COMMENT ON COLUMN project_errors.module IS
    'Part of the application that failed.';
COMMENT ON COLUMN project_errors.error_code IS
    'Stable code of the kind of error, chosen by the application.';
COMMENT ON COLUMN project_errors.manager_context IS
    'JSON object with whatever helps to understand the error, secrets masked.';
COMMENT ON COLUMN project_errors.severity IS
    'DEBUG, INFO, WARNING, ERROR or CRITICAL.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT USAGE ON SCHEMA fm_storage TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON project_errors TO fm_storage_app;
        GRANT SELECT ON fm_storage.migrations TO fm_storage_app;  -- read at every start
    END IF;
END
$$;
