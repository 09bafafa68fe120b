-- Due points are found in one order for all collections; no data goes.
-- transactional: false
-- squawk-ignore-file ban-concurrent-index-creation-in-transaction

CREATE INDEX CONCURRENTLY vector_queue_due_at_idx
    ON fm_storage.vector_queue (due_at)
    WHERE quarantined_at IS NULL;
DROP INDEX CONCURRENTLY fm_storage.vector_queue_collection_due_at_idx;
