-- Groups above fingerprints: sibling templates are one group. Recording does not touch these tables.
-- depends: 0012_track_tables

CREATE TABLE fm_storage.group_members (
    fingerprint BIGINT PRIMARY KEY,
    group_id BIGINT NOT NULL,
    place BIGINT GENERATED ALWAYS AS IDENTITY,
    shape BIGINT,
    version SMALLINT NOT NULL,
    pinned BOOLEAN NOT NULL DEFAULT FALSE
);

CREATE INDEX group_members_group_idx ON fm_storage.group_members (group_id);
CREATE INDEX group_members_shape_idx ON fm_storage.group_members (shape);
CREATE INDEX group_members_version_idx ON fm_storage.group_members (version);

COMMENT ON TABLE fm_storage.group_members IS
    'The group of each fingerprint; written by merging, under one advisory lock, never by recording.';
COMMENT ON COLUMN fm_storage.group_members.fingerprint IS
    'The member, fingerprints.fingerprint; one that an older release made stays, as another name of its group.';
COMMENT ON COLUMN fm_storage.group_members.group_id IS
    'The group: the fingerprint of its oldest member. Of two groups that are merged the older one''s stays.';
COMMENT ON COLUMN fm_storage.group_members.place IS
    'Order of arrival; the least one is the oldest member.';
COMMENT ON COLUMN fm_storage.group_members.shape IS
    'Members that may be merged have the same shape; NULL for other names.';
COMMENT ON COLUMN fm_storage.group_members.version IS
    'Version of the rules by which the member was placed.';
COMMENT ON COLUMN fm_storage.group_members.pinned IS
    'Whether somebody split it off: it is not merged by itself again.';

CREATE TABLE fm_storage.group_merges (
    id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    kept BIGINT NOT NULL,
    merged BIGINT NOT NULL,
    members BIGINT [] NOT NULL,
    at TIMESTAMPTZ NOT NULL DEFAULT now(),
    split_at TIMESTAMPTZ
);

CREATE INDEX group_merges_kept_idx ON fm_storage.group_merges (kept);

COMMENT ON TABLE fm_storage.group_merges IS
    'Groups that became part of another one. What belongs to a group (its state) follows in a trigger on this table.';
COMMENT ON COLUMN fm_storage.group_merges.id IS
    'Number of the merge.';
COMMENT ON COLUMN fm_storage.group_merges.kept IS
    'The group that stayed.';
COMMENT ON COLUMN fm_storage.group_merges.merged IS
    'The group that became part of it.';
COMMENT ON COLUMN fm_storage.group_merges.members IS
    'The fingerprints that moved; a split moves them back.';
COMMENT ON COLUMN fm_storage.group_merges.at IS
    'When it happened.';
COMMENT ON COLUMN fm_storage.group_merges.split_at IS
    'When it was undone; NULL while it holds.';

CREATE VIEW fm_storage.error_groups AS
SELECT f.error_id, COALESCE(m.group_id, f.fingerprint) AS group_id
FROM fm_storage.error_fingerprints AS f LEFT JOIN fm_storage.group_members AS m ON m.fingerprint = f.fingerprint;

COMMENT ON VIEW fm_storage.error_groups IS
    'The group of each error, as ErrorManager.groups() lists them.';
COMMENT ON COLUMN fm_storage.error_groups.error_id IS
    'The error, project_errors.id.';
COMMENT ON COLUMN fm_storage.error_groups.group_id IS
    'Its group, group_members.group_id.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.group_members TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.group_merges TO fm_storage_app;
        GRANT SELECT ON fm_storage.error_groups TO fm_storage_app;
    END IF;
END
$$;
