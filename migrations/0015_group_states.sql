-- What people decided about groups of errors, and which groups somebody has been notified of.
-- depends: 0014_add_error_origins

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

-- A group without a row is open. Of two groups that merge, the strictest state stays; a split gives it to both.
CREATE FUNCTION fm_storage.follow_merged_groups() RETURNS trigger
    LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog AS $$
DECLARE
    ours BIGINT [];
    strictest RECORD;
BEGIN
    IF TG_OP = 'INSERT' THEN
        -- A regression that somebody was notified of is none again under the other name; what joins a known group is
        -- not new.
        INSERT INTO fm_storage.group_notices
        SELECT n.watcher, NEW.kept, n.event, n.occasion, n.due_at, n.delivered_at, n.attempts, n.last_error
        FROM fm_storage.group_notices AS n WHERE n.group_id = NEW.merged AND n.event = 'regressed'
        ON CONFLICT DO NOTHING;
        UPDATE fm_storage.group_notices SET delivered_at = now()
        WHERE group_id = NEW.merged AND delivered_at IS NULL;
    END IF;
    IF NOT EXISTS (SELECT FROM fm_storage.group_states WHERE group_id IN (NEW.kept, NEW.merged)) THEN
        RETURN NULL;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        INSERT INTO fm_storage.group_states (group_id, state, since, until)
        SELECT NEW.merged, s.state, s.since, s.until FROM fm_storage.group_states AS s WHERE s.group_id = NEW.kept
        ON CONFLICT (group_id) DO NOTHING;
        RETURN NULL;
    END IF;
    ours := ARRAY(
        SELECT NEW.kept UNION SELECT m.fingerprint FROM fm_storage.group_members AS m WHERE m.group_id = NEW.kept
        EXCEPT SELECT unnest(NEW.members || NEW.merged)
    );
    SELECT COALESCE(found.state, 'open') AS state, found.since, found.until INTO strictest
    FROM (VALUES (NEW.kept), (NEW.merged)) AS both_groups (group_id)
    LEFT JOIN (
        SELECT s.group_id, s.since, s.until, CASE
                WHEN s.state = 'muted' AND s.until <= now() THEN 'open'
                WHEN s.state = 'resolved' AND EXISTS (
                    SELECT FROM fm_storage.error_fingerprints AS f
                    WHERE f.timestamp > s.since AND f.timestamp < now() + INTERVAL '1 day' AND f.fingerprint
                        = ANY (CASE s.group_id WHEN NEW.kept THEN ours ELSE NEW.members || NEW.merged END)
                ) THEN 'regressed'
                ELSE s.state
            END AS state
        FROM fm_storage.group_states AS s
    ) AS found USING (group_id)
    ORDER BY array_position(ARRAY['regressed', 'open', 'muted', 'resolved'], COALESCE(found.state, 'open')),
        found.until NULLS LAST, found.since DESC
    LIMIT 1;
    DELETE FROM fm_storage.group_states WHERE group_id IN (NEW.kept, NEW.merged);
    IF strictest.state <> 'open' THEN
        INSERT INTO fm_storage.group_states (group_id, state, since, until)
        VALUES (NEW.kept, strictest.state, strictest.since, strictest.until);
    END IF;
    RETURN NULL;
END
$$;

COMMENT ON FUNCTION fm_storage.follow_merged_groups() IS
    'Of the states of two groups that merge the strictest stays: regressed, open, muted, resolved; a split gives it to both.';

CREATE TRIGGER follow_merged_groups AFTER INSERT ON fm_storage.group_merges
    FOR EACH ROW EXECUTE FUNCTION fm_storage.follow_merged_groups();
CREATE TRIGGER follow_split_groups AFTER UPDATE ON fm_storage.group_merges
    FOR EACH ROW WHEN (OLD.split_at IS NULL AND NEW.split_at IS NOT NULL)
    EXECUTE FUNCTION fm_storage.follow_merged_groups();

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

CREATE INDEX group_notices_group_idx ON fm_storage.group_notices (group_id);

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
