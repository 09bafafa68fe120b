"""What one point is in both stores, and how the two differ.

A version that was never given out was written by another program. It must not be
believed: the sequence would be moved to its end, and with it every write.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fm_storage.outbox.agreement.sequence import furthest
from fm_storage.outbox.results import Difference
from fm_storage.postgres import Executor, Sql
from fm_storage.vector_state import VERSION_KEY, decode_id, payload_digest

if TYPE_CHECKING:
    from fm_storage.vectors import ScoredPoint

_LOOK_UP = Sql("""
SELECT g.point_id, s.ver, s.op, s.payload_hash,
  q.point_id IS NOT NULL AND NOT q.replay AS queued,
  q.quarantined_at IS NOT NULL AS set_aside,
  (SELECT last_value FROM fm_storage.vector_version) AS last
FROM unnest($2::text[]) AS g (point_id)
LEFT JOIN fm_storage.vector_state AS s
  ON s.collection = $1 AND s.point_id = g.point_id
LEFT JOIN fm_storage.vector_queue AS q
  ON q.collection = $1 AND q.point_id = g.point_id""")


@dataclass(frozen=True, slots=True)
class Known:
    """What PostgreSQL knows of one point; ``ver`` and ``op`` None for nothing."""

    ver: int | None
    op: str | None
    payload_hash: bytes | None
    queued: bool
    set_aside: bool
    last: int


async def look_up(
    executor: Executor, collection: str, ids: Sequence[str]
) -> dict[str, Known]:
    """Return what PostgreSQL knows of points, read after the points themselves."""
    records = await executor.fetch(_LOOK_UP, collection, list(ids))
    return {point_id: Known(*known) for point_id, *known in records}


class Pair:
    """One point in both stores.

    Attributes:
        kind: How the two differ, as ``Difference.kind`` says it; None if they
            do not.
        found: The version in the vector store, if it is a number at all.
        version: The same, if PostgreSQL can have given it out.
        foreign: Whether the outbox never wrote this point.
    """

    __slots__ = ("foreign", "found", "key", "kind", "known", "version")

    def __init__(
        self, key: str, known: Known, point: ScoredPoint | None, *, marked: int
    ) -> None:
        self.key = key
        self.known = known
        found = None if point is None else (point.marks or {}).get(VERSION_KEY)
        self.found = _number(found)
        given = self.found is not None and self.found <= furthest(known.last, marked)
        self.version = self.found if given else None
        unmarked = point is not None and VERSION_KEY not in (point.marks or ())
        unknown = known.op is None and self.version is None
        gone = known.op == "d" and unmarked
        self.foreign = point is not None and (unknown or gone)
        self.kind = None if self.foreign else self._kind(point, unmarked=unmarked)

    def _kind(self, point: ScoredPoint | None, *, unmarked: bool) -> str | None:
        known = self.known
        desired = known.op == "u"
        if point is None:
            return "missing" if desired else None
        if self.version is None and not unmarked:
            return "impossible"
        if not desired:
            return "orphan"
        assert known.ver is not None
        version = self.version or 0
        if version != known.ver:
            return "stale" if version < known.ver else "ahead"
        digest = known.payload_hash
        if digest is not None and payload_digest(point.payload) != digest:
            return "changed"
        return None

    @property
    def on_its_way(self) -> bool:
        """Whether the queue will resolve it.

        Not what the store would refuse: its own version is greater than any that
        is on its way. A tombstone is not on its way: the deletion was delivered,
        to a collection that the name no longer means, or before a late write.
        """
        return self.known.queued and self.kind not in {"ahead", "impossible"}

    def difference(self, collection: str) -> Difference:
        """Return the difference as it is reported."""
        return Difference(
            collection,
            id=decode_id(self.key),
            kind=self.kind or "",
            desired=self.known.ver,
            found=self.found,
        )


def _number(value: object) -> int | None:
    """Return a whole number as one, and nothing for anything else."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None
