-- Traces, releases, environments and counts go; the errors stay.

DROP TRIGGER forget_truncated_origins ON project_errors;
DROP TRIGGER forget_origins ON project_errors;
DROP FUNCTION fm_storage.forget_origins();
DROP TABLE fm_storage.error_counts;
DROP TABLE fm_storage.error_origins;
