-- Takes only views again; refused as long as a session has a table.

ALTER TABLE fm_storage.session_objects DROP CONSTRAINT session_objects_kind_check;
ALTER TABLE fm_storage.session_objects
ADD CONSTRAINT session_objects_kind_check CHECK (kind IN ('view', 'materialized view'));
COMMENT ON COLUMN fm_storage.session_objects.kind IS
    'view or materialized view.';
