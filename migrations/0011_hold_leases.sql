-- Whose lease a point is on: a drainer that is gone loses its leases at once, instead of when they end.
-- depends: 0010_drain_by_collection

CREATE TABLE fm_storage.vector_drainer (
    holder INTEGER PRIMARY KEY,
    since TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE fm_storage.vector_drainer IS
    'Drainers; one whose session lock (hashtext(''fm_storage.drainer''), holder) is free has ended, and others take its leases over.';
COMMENT ON COLUMN fm_storage.vector_drainer.holder IS
    'Number of the drainer, and of its session lock.';
COMMENT ON COLUMN fm_storage.vector_drainer.since IS
    'When it began.';

ALTER TABLE fm_storage.vector_queue ADD COLUMN holder INTEGER;

COMMENT ON COLUMN fm_storage.vector_queue.holder IS
    'Drainer whose lease it is, or was last; NULL if that one holds no session lock.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_drainer TO fm_storage_app;
    END IF;
END
$$;
