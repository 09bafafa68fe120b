-- Groups keep the time, severity and text that an error had when it was recorded.

DROP TRIGGER follow_changed_errors ON project_errors;
DROP FUNCTION fm_storage.follow_changed_errors();
