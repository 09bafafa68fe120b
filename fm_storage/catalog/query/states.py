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

MEMBERS = """SELECT {0} UNION ALL
    SELECT m.fingerprint FROM fm_storage.group_members AS m WHERE m.group_id = {0}"""
"""The fingerprints of a group."""

# An error from beyond tomorrow has a wrong clock; it shows nothing.
STATES = f"""SELECT group_id, since, until, state FROM (
  SELECT s.group_id, s.since, s.until, CASE
    WHEN s.state = 'muted' AND s.until <= now() THEN 'open'
    WHEN s.state = 'resolved' AND EXISTS (
      SELECT FROM fm_storage.error_fingerprints AS f
      WHERE f.fingerprint IN ({MEMBERS.format("s.group_id")})
        AND f.timestamp > s.since AND f.timestamp < now() + interval '1 day'
    ) THEN 'regressed' ELSE s.state END AS state
  FROM fm_storage.group_states AS s WHERE {{}}) AS found
WHERE state <> 'open'"""
"""The states that groups have now, of those rows for which a condition holds."""

_STATES = Sql(STATES.format("$1::bigint[] IS NULL OR s.group_id = ANY($1)"))
# A clock that is ahead of ours must not make a group come back at once.
_SET = Sql(
    f"""INSERT INTO fm_storage.group_states AS s (group_id, state, since, until)
SELECT $1::bigint, $2, GREATEST($3::timestamptz, (
    SELECT max(f.timestamp) FROM fm_storage.error_fingerprints AS f
    WHERE f.fingerprint IN ({MEMBERS.format("$1::bigint")})
      AND f.timestamp < now() + interval '1 day')), $4
ON CONFLICT (group_id) DO UPDATE
SET state = EXCLUDED.state, since = EXCLUDED.since, until = EXCLUDED.until"""
)
_OPEN = Sql("DELETE FROM fm_storage.group_states WHERE group_id = $1")
_GROUPS_OF = Sql(
    "SELECT error_id, group_id FROM fm_storage.error_groups "
    "WHERE error_id = ANY($1::uuid[])"
)
_GROUP_OF_MEMBER = Sql(
    "SELECT group_id FROM fm_storage.group_members WHERE fingerprint = $1"
)


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
        await executor.execute(_OPEN, group)
    else:
        await executor.execute(_SET, group, state, datetime.now(UTC), until)


async def group_of(executor: Executor, member: int) -> int:
    """Return the group that a fingerprint belongs to; by itself it is one."""
    found: int | None = await executor.fetchval(_GROUP_OF_MEMBER, member)
    return member if found is None else found


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
