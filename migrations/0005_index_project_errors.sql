-- The questions asked of the catalogue every day: the newest errors, of all, of a module, of a code, of a severity.
-- The key stands behind the time in each, so that pages continue where errors share a moment.
-- depends: 0004_create_fingerprints
-- transactional: false
-- squawk-ignore-file ban-concurrent-index-creation-in-transaction

CREATE INDEX CONCURRENTLY project_errors_timestamp_idx
    ON project_errors (timestamp, id);
CREATE INDEX CONCURRENTLY project_errors_module_idx
    ON project_errors (module, timestamp, id);
CREATE INDEX CONCURRENTLY project_errors_error_code_idx
    ON project_errors (error_code, timestamp, id);
CREATE INDEX CONCURRENTLY project_errors_severity_idx
    ON project_errors (severity, timestamp, id);
