-- Every fingerprint is a group again; merging finds the groups anew, but not what was split off.

DROP VIEW fm_storage.error_groups;
DROP TABLE fm_storage.group_merges;
DROP TABLE fm_storage.group_members;
