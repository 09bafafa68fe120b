-- A rebuild under way is mended after its exchange instead of before; no data goes.

COMMENT ON COLUMN fm_storage.vector_rebuild.filling IS
    'Whether the target is still being filled; a killed rebuild goes on from there.';
DROP TABLE fm_storage.vector_exchange;
