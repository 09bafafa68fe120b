-- What was decided about groups goes: all of them are open, and a watcher begins anew.

DROP TABLE fm_storage.group_notices;
DROP TABLE fm_storage.group_watchers;
DROP TABLE fm_storage.group_states;
