-- Groups can be computed again from project_errors.

DROP TRIGGER forget_truncated_errors ON project_errors;
DROP TRIGGER forget_deleted_errors ON project_errors;
DROP FUNCTION fm_storage.forget_deleted_errors();
DROP TABLE fm_storage.error_fingerprints;
DROP TABLE fm_storage.fingerprints;
