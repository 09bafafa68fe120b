-- Groups can be computed again from project_errors.

DROP TABLE fm_storage.error_fingerprints;
DROP TABLE fm_storage.fingerprints;
