-- A drainer takes the due points of each collection by themselves, however many others wait.
-- depends: 0009_follow_changed_errors
-- transactional: false
-- squawk-ignore-file ban-concurrent-index-creation-in-transaction

CREATE INDEX CONCURRENTLY vector_queue_collection_due_at_idx
    ON fm_storage.vector_queue (collection, due_at)
    WHERE quarantined_at IS NULL;
DROP INDEX CONCURRENTLY fm_storage.vector_queue_due_at_idx;
