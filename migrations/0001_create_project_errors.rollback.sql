-- The schema stays, for it also holds the record of migrations; the role stays,
-- for it belongs to the whole cluster.

DROP TABLE project_errors;

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        REVOKE SELECT ON fm_storage.migrations FROM fm_storage_app;
        REVOKE USAGE ON SCHEMA fm_storage FROM fm_storage_app;
    END IF;
END
$$;
