-- What a rebuild must know to catch up with writers before the name is exchanged, and to tidy up after a kill.
-- depends: 0006_trust_vector_op

CREATE TABLE fm_storage.vector_exchange (
    collection TEXT COLLATE "C" PRIMARY KEY,
    target TEXT COLLATE "C" NOT NULL,
    since BIGINT NOT NULL,
    previous TEXT COLLATE "C"
);

COMMENT ON TABLE fm_storage.vector_exchange IS
    'Of each rebuild in vector_rebuild: from which version to catch up, and what to delete after the exchange.';
COMMENT ON COLUMN fm_storage.vector_exchange.collection IS
    'Collection that is, or was last, rebuilt.';
COMMENT ON COLUMN fm_storage.vector_exchange.target IS
    'The rebuild that this row belongs to.';
COMMENT ON COLUMN fm_storage.vector_exchange.since IS
    'Version at which that rebuild began; what is newer is copied again before the exchange.';
COMMENT ON COLUMN fm_storage.vector_exchange.previous IS
    'Collection that the name meant before the exchange, until it has been deleted.';
COMMENT ON COLUMN fm_storage.vector_rebuild.filling IS
    'Whether the rebuild has not ended: filling the target, or mending after the exchange; a killed one goes on.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.vector_exchange TO fm_storage_app;
    END IF;
END
$$;
