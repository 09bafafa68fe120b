"""What merging put together, member by member, and taking it apart again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fm_storage.catalog.query.groups import hex_of
from fm_storage.catalog.query.merging import locked
from fm_storage.errors import InvalidRecord, LockTimeout
from fm_storage.postgres import Sql

if TYPE_CHECKING:
    from fm_storage.postgres import Executor, Pool

_TRIES = 5

_MEMBERS = Sql(
    """SELECT m.fingerprint, g.module, g.template FROM fm_storage.group_members AS m
JOIN fm_storage.fingerprints AS g USING (fingerprint)
WHERE m.group_id = $1 ORDER BY m.place"""
)
_PIN = Sql(
    "UPDATE fm_storage.group_members SET pinned = TRUE "
    "WHERE fingerprint = ANY($1::bigint[])"
)
_MOVE = Sql(
    "UPDATE fm_storage.group_members SET group_id = $2 "
    "WHERE fingerprint = ANY($1::bigint[])"
)
_UNDONE = Sql(
    "UPDATE fm_storage.group_merges SET split_at = now() "
    "WHERE kept = $1 AND members <@ $2::bigint[] AND split_at IS NULL"
)
_SAME_STATE = Sql(
    """INSERT INTO fm_storage.group_states (group_id, state, since, until)
SELECT $2::bigint, state, since, until FROM fm_storage.group_states WHERE group_id = $1
ON CONFLICT (group_id) DO NOTHING"""
)


@dataclass(frozen=True, slots=True)
class GroupMember:
    """One of the fingerprints of a group.

    Attributes:
        fingerprint: Sixteen hexadecimal digits.
        module: Module of its errors.
        template: Their message without its variable parts.
    """

    fingerprint: str
    module: str
    template: str


async def fetch_members(pool: Pool, group: int) -> list[GroupMember]:
    """Return the members of a group, the oldest first."""
    rows = await pool.fetch(_MEMBERS, group)
    return [GroupMember(hex_of(row[0]), row[1], row[2]) for row in rows]


async def split_group(pool: Pool, group: int, members: Sequence[int]) -> int:
    """Make *members* of a group one of their own; return its number.

    They are pinned: merging by itself does not put them back. The part with the
    oldest member keeps the name, and both keep the state. One transaction.

    Raises:
        InvalidRecord: They are no members, or all of them.
        LockTimeout: Other processes have been merging for ten seconds.
    """
    names: list[int] = []

    async def split(tx: Executor) -> bool:
        every = [row[0] for row in await tx.fetch(_MEMBERS, group)]
        ours = [one for one in every if one in members]
        rest = [one for one in every if one not in members]
        if not ours or not rest or len(ours) < len(set(members)):
            raise InvalidRecord(
                f"group {hex_of(group)}: {len(ours)} of the {len(members)} given are "
                f"among its {len(every)} members; give some of them, not all",
                field="members",
            )
        moved = rest if group in ours else ours
        await tx.execute(_PIN, ours)
        await tx.execute(_MOVE, moved, moved[0])
        await tx.execute(_UNDONE, group, moved)
        await tx.execute(_SAME_STATE, group, moved[0])
        names.append(group if group in ours else moved[0])
        return True

    for _ in range(_TRIES):
        if await locked(pool, split):
            return names[0]
    raise LockTimeout(f"group {hex_of(group)}: other processes are merging; try again")
