"""Points set aside: listing them, trying them again, giving them up.

These are a person's decisions; the drainer only sets points aside.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from fm_storage.outbox.results import Quarantined
from fm_storage.postgres import Executor, Sql
from fm_storage.vector_state import decode_id, delete_ctes, encode_ids

_CHOSEN = """q.quarantined_at IS NOT NULL
  AND ($1::text IS NULL OR q.collection = $1)
  AND ($2::text[] IS NULL OR q.point_id = ANY ($2))"""

_LIST = Sql(
    "SELECT q.collection, q.point_id, q.ver, q.last_error, q.attempts, q.since, "
    f"q.quarantined_at FROM fm_storage.vector_queue AS q WHERE {_CHOSEN} "
    "ORDER BY q.quarantined_at, q.point_id LIMIT $3"
)
_RETRY = Sql(
    "WITH tried AS (UPDATE fm_storage.vector_queue AS q "
    "SET quarantined_at = NULL, due_at = now(), leased = FALSE "
    f"WHERE {_CHOSEN} RETURNING 1) SELECT count(*) FROM tried"
)
_DISCARD = Sql(
    "WITH chosen AS (SELECT q.collection, q.point_id "
    f"FROM fm_storage.vector_queue AS q WHERE {_CHOSEN} ORDER BY 1, 2 FOR UPDATE), "
    + delete_ctes(
        collection="rec.collection", point_id="rec.point_id", source="chosen AS rec"
    )
    + " SELECT count(*) FROM fm_state"
)


class Quarantine:
    """The three statements on one executor."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    async def list(
        self, collection: str | None = None, *, limit: int = 100
    ) -> list[Quarantined]:
        """Return points that are set aside, longest first."""
        records = await self._executor.fetch(_LIST, collection, None, limit)
        return [
            Quarantined(
                collection=record["collection"],
                id=decode_id(record["point_id"]),
                version=record["ver"],
                error=record["last_error"] or "",
                attempts=record["attempts"],
                since=record["since"],
                quarantined_at=record["quarantined_at"],
            )
            for record in records
        ]

    async def retry(
        self, collection: str | None = None, ids: Iterable[object] | None = None
    ) -> int:
        """Deliver points once more, all by default; return how many."""
        count: int = await self._executor.fetchval(_RETRY, collection, _encoded(ids))
        return count

    async def discard(
        self, collection: str | None = None, ids: Iterable[object] | None = None
    ) -> int:
        """Give points up: they become undesired, in both stores. Return how many."""
        count: int = await self._executor.fetchval(_DISCARD, collection, _encoded(ids))
        return count


def _encoded(ids: Iterable[object] | None) -> Sequence[str] | None:
    return None if ids is None else encode_ids(ids)
