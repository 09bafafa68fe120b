-- What people decided about groups of errors, and which groups somebody has been notified of.
-- depends: 0012_track_tables

CREATE TABLE fm_storage.group_states (
    group_id BIGINT PRIMARY KEY,
    state TEXT COLLATE "C" NOT NULL CHECK (state IN ('resolved', 'muted', 'regressed')),
    since TIMESTAMPTZ NOT NULL,
    until TIMESTAMPTZ
);

COMMENT ON TABLE fm_storage.group_states IS
    'States of groups; a group without a row is open. Recording never reads it: a resolved group has regressed when it has an error later than since.';
COMMENT ON COLUMN fm_storage.group_states.group_id IS
    'The group, as in error_groups.';
COMMENT ON COLUMN fm_storage.group_states.state IS
    'resolved, muted, or regressed (which is written where it must outlive the errors that show it).';
COMMENT ON COLUMN fm_storage.group_states.since IS
    'When the group was resolved or muted; errors from before are none that came back.';
COMMENT ON COLUMN fm_storage.group_states.until IS
    'End of the muting; NULL for no end.';

CREATE TABLE fm_storage.group_watchers (
    watcher TEXT COLLATE "C" PRIMARY KEY,
    since TIMESTAMPTZ NOT NULL
);

COMMENT ON TABLE fm_storage.group_watchers IS
    'Names under which ErrorManager.watch() was called.';
COMMENT ON COLUMN fm_storage.group_watchers.watcher IS
    'The name.';
COMMENT ON COLUMN fm_storage.group_watchers.since IS
    'Groups whose first error is older are not new to this watcher.';

CREATE TABLE fm_storage.group_notices (
    watcher TEXT COLLATE "C" NOT NULL,
    group_id BIGINT NOT NULL,
    event TEXT COLLATE "C" NOT NULL CHECK (event IN ('new', 'regressed')),
    occasion BIGINT NOT NULL,
    due_at TIMESTAMPTZ NOT NULL,
    delivered_at TIMESTAMPTZ,
    attempts INTEGER NOT NULL DEFAULT 0,
    last_error TEXT,
    PRIMARY KEY (watcher, group_id, event, occasion)
);

CREATE INDEX group_notices_due_idx
    ON fm_storage.group_notices (watcher, due_at) WHERE delivered_at IS NULL;

COMMENT ON TABLE fm_storage.group_notices IS
    'What each watcher has been notified of, and what it is still to be notified of.';
COMMENT ON COLUMN fm_storage.group_notices.watcher IS
    'The watcher, group_watchers.watcher.';
COMMENT ON COLUMN fm_storage.group_notices.group_id IS
    'The group, as in error_groups.';
COMMENT ON COLUMN fm_storage.group_notices.event IS
    'new or regressed.';
COMMENT ON COLUMN fm_storage.group_notices.occasion IS
    'Of a regression the time of the resolution, in microseconds since 1970; 0 for a new group.';
COMMENT ON COLUMN fm_storage.group_notices.due_at IS
    'When the watcher is notified next; later after each failure.';
COMMENT ON COLUMN fm_storage.group_notices.delivered_at IS
    'When its function returned; NULL before that.';
COMMENT ON COLUMN fm_storage.group_notices.attempts IS
    'Calls of its function that failed.';
COMMENT ON COLUMN fm_storage.group_notices.last_error IS
    'The last failure.';

DO $$
BEGIN
    IF EXISTS (SELECT FROM pg_roles WHERE rolname = 'fm_storage_app') THEN
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.group_states TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.group_watchers TO fm_storage_app;
        GRANT SELECT, INSERT, UPDATE, DELETE ON fm_storage.group_notices TO fm_storage_app;
    END IF;
END
$$;
