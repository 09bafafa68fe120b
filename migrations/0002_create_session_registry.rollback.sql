-- Views that still exist lose their rows and must be dropped by hand: run
-- fm-storage sessions reap first.

DROP TABLE fm_storage.session_objects;
DROP TABLE fm_storage.session_owners;
