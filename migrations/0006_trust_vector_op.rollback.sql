-- Has the server look at every operation again; no data goes.

ALTER TABLE fm_storage.vector_state
ADD CONSTRAINT vector_state_op_check CHECK (op IN ('u', 'd')) NOT VALID;
ALTER TABLE fm_storage.vector_state VALIDATE CONSTRAINT vector_state_op_check;
