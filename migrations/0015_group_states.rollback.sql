-- What was decided about groups goes: all of them are open, and a watcher begins anew.

DROP TABLE fm_storage.group_notices;
DROP TABLE fm_storage.group_watchers;
DROP TRIGGER follow_split_groups ON fm_storage.group_merges;
DROP TRIGGER follow_merged_groups ON fm_storage.group_merges;
DROP FUNCTION fm_storage.follow_merged_groups();
DROP TABLE fm_storage.group_states;
