-- Forgets what the vector store should hold; the records themselves stay.

DROP VIEW fm_storage.vector_health;
DROP TABLE fm_storage.vector_rebuild;
DROP TABLE fm_storage.vector_store;
DROP TABLE fm_storage.vector_queue;
DROP TABLE fm_storage.vector_state;
DROP SEQUENCE fm_storage.vector_version;
