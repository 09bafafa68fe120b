-- Reads become scans; no data goes.
-- transactional: false

DROP INDEX CONCURRENTLY project_errors_severity_idx;
DROP INDEX CONCURRENTLY project_errors_error_code_idx;
DROP INDEX CONCURRENTLY project_errors_module_idx;
DROP INDEX CONCURRENTLY project_errors_timestamp_idx;
