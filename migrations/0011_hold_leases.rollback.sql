-- Leases end by their time only; no data goes.
-- squawk-ignore-file ban-drop-column

ALTER TABLE fm_storage.vector_queue DROP COLUMN holder;
DROP TABLE fm_storage.vector_drainer;
