"""States of groups: open, resolved, muted until a time, regressed.

A state is a row beside the errors, and a group without one is open. Recording
neither reads nor writes it: that a resolved group has come back is seen where
groups are read, by an error later than the resolution.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Literal, NamedTuple
from uuid import UUID

from fm_storage.catalog.query.arguments import refuse_unclear, span_of
from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Sql

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

State = Literal["open", "resolved", "muted", "regressed"]

# An error from beyond tomorrow has a wrong clock; it shows nothing.
_LATER = """SELECT FROM fm_storage.error_fingerprints AS f
    WHERE f.fingerprint = s.group_id AND f.timestamp > s.since
      AND f.timestamp < now() + interval '1 day'"""
EFFECTIVE = f"""SELECT s.group_id, s.since, s.until, CASE
    WHEN s.state = 'muted' AND s.until <= now() THEN 'open'
    WHEN s.state = 'resolved' AND EXISTS ({_LATER}) THEN 'regressed'
    ELSE s.state END AS state
FROM fm_storage.group_states AS s"""
"""Every group with a row, and the state that it has now."""

_STATES = Sql(
    f"SELECT * FROM ({EFFECTIVE}) AS s "
    "WHERE s.state <> 'open' AND ($1::bigint[] IS NULL OR s.group_id = ANY($1))"
)
# A clock that is ahead of ours must not make a group come back at once.
_SET = Sql(
    """INSERT INTO fm_storage.group_states AS s (group_id, state, since, until)
SELECT $1, $2, GREATEST($3::timestamptz, (
    SELECT max(f.timestamp) FROM fm_storage.error_fingerprints AS f
    WHERE f.fingerprint = $1 AND f.timestamp < now() + interval '1 day')), $4
ON CONFLICT (group_id) DO UPDATE
SET state = EXCLUDED.state, since = EXCLUDED.since, until = EXCLUDED.until"""
)
_GROUPS_OF = Sql(
    "SELECT error_id, fingerprint FROM fm_storage.error_fingerprints "
    "WHERE error_id = ANY($1::uuid[])"
)
# The one that asks most of people comes first; a group without a row is open.
_STRICTEST = Sql(
    f"""WITH old AS ({EFFECTIVE} WHERE s.group_id = ANY($2::bigint[] || $1::bigint)),
members AS (
  SELECT DISTINCT m.group_id, COALESCE(o.state, 'open') AS state, o.since, o.until
  FROM unnest($2::bigint[] || $1::bigint) AS m (group_id)
  LEFT JOIN old AS o USING (group_id)
)
SELECT * FROM members ORDER BY
  array_position(ARRAY['regressed', 'open', 'muted', 'resolved'], state),
  until NULLS LAST, since DESC LIMIT 1"""
)
_FORGET = Sql("DELETE FROM fm_storage.group_states WHERE group_id = ANY($1::bigint[])")
_KEEP = Sql("INSERT INTO fm_storage.group_states VALUES ($1, $2, $3, $4)")


class GroupState(NamedTuple):
    """State of a group; *since* and *until* are None where it has none."""

    state: State = "open"
    since: datetime | None = None
    until: datetime | None = None


OPEN = GroupState()


async def fetch_states(
    executor: Executor, groups: Sequence[int] | None = None
) -> dict[int, GroupState]:
    """Return the states of these groups, or of all; open ones are left out."""
    rows = await executor.fetch(_STATES, groups)
    return {
        row["group_id"]: GroupState(row["state"], row["since"], row["until"])
        for row in rows
    }


async def groups_of(executor: Executor, errors: Sequence[UUID]) -> dict[UUID, int]:
    """Return the groups of these errors; those that have none yet are left out."""
    return {row[0]: row[1] for row in await executor.fetch(_GROUPS_OF, list(errors))}


async def set_state(
    executor: Executor, group: int, state: State, until: datetime | None = None
) -> None:
    """Write the state that somebody decided on, from now on."""
    if state == "open":
        await executor.execute(_FORGET, [group])
    else:
        await executor.execute(_SET, group, state, datetime.now(UTC), until)


async def merge_states(executor: Executor, into: int, others: Sequence[int]) -> None:
    """Give group *into* the strictest of its own state and those of *others*.

    ``regressed`` before ``open`` before ``muted`` (the shorter one) before
    ``resolved``. Call it in the transaction that merges, before the errors change
    their group.
    """
    found = await executor.fetchrow(_STRICTEST, into, list(others))
    assert found is not None
    await executor.execute(_FORGET, [into, *others])
    if found["state"] != "open":
        await executor.execute(
            _KEEP, into, found["state"], found["since"], found["until"]
        )


def end_of_mute(until: datetime | timedelta | None) -> datetime | None:
    """Return when a mute ends, which may be given as a span.

    Raises:
        InvalidRecord: It has no zone, or is not in the future.
    """
    now = datetime.now(UTC)
    if isinstance(until, timedelta):
        return now + span_of(until, "until")
    refuse_unclear(until=until)
    if until is not None and until <= now:
        raise InvalidRecord(
            f"until is {until}, which has passed; give a later time, or a span "
            "(timedelta(days=7))",
            field="until",
        )
    return until
