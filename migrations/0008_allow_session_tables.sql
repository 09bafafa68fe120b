-- Sessions make unlogged tables as well, which are registered, and go, like their views.
-- There are as many rows as temporary views, so looking at all of them at once blocks nobody.
-- depends: 0007_resume_rebuild
-- squawk-ignore-file ban-drop-constraint, constraint-missing-not-valid

ALTER TABLE fm_storage.session_objects DROP CONSTRAINT session_objects_kind_check;
ALTER TABLE fm_storage.session_objects
ADD CONSTRAINT session_objects_kind_check CHECK (kind IN ('view', 'materialized view', 'table'));
COMMENT ON COLUMN fm_storage.session_objects.kind IS
    'view, materialized view or table (unlogged).';
