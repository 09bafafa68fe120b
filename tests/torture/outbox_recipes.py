"""Two ways to write a note to PostgreSQL and its vector to Qdrant.

``Guide`` is our own re-implementation of what Qdrant's guide "Keeping Postgres
and Qdrant in Sync" recommends as the default (tier 2): a table of events in the
same transaction, a worker that marks a batch ``processing``, commits, and
delivers event by event, five attempts each. ``Ours`` is the outbox of this
project. Apart, so that the processes that are killed and the one that kills
speak of the same thing.
"""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from fm_storage.config import OutboxConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool, Sql
from fm_storage.vector_state import delete_ctes, state_row, upsert_ctes
from fm_storage.vectors import Point, QdrantStore

__all__ = ["COLLECTION", "LEASE", "RECIPES", "TABLES", "Guide", "Ours", "Recipe"]

COLLECTION = "notes"
LEASE = float(os.environ.get("FM_TORTURE_LEASE", "2.5"))
DELAY = float(os.environ.get("FM_TORTURE_DELAY", "0"))
"""Longest pause, in seconds, put before and after each write to the store."""

SIZE = 8

TABLES = """
CREATE TABLE notes (id BIGINT PRIMARY KEY, rev BIGINT NOT NULL, body TEXT NOT NULL);
CREATE TABLE sync_outbox (
  id BIGSERIAL PRIMARY KEY, entity_id BIGINT NOT NULL, operation TEXT NOT NULL,
  payload JSONB, status TEXT NOT NULL DEFAULT 'pending',
  attempts INT NOT NULL DEFAULT 0, max_attempts INT NOT NULL DEFAULT 5,
  last_error TEXT, created_at TIMESTAMPTZ NOT NULL DEFAULT now())"""


def vector(note: int, rev: int) -> list[float]:
    """Give a vector that tells notes and revisions apart."""
    return [1.0, note % 97, rev % 89, note * rev % 83, 0.5, 2.0, -1.0, note % 7]


class SlowStore(QdrantStore):
    """The real store with random pauses around each write: calls outlive leases."""

    async def upsert_points(self, *arguments: Any, **options: Any) -> int:
        """Write after a pause, answer after another."""
        written: int = await self._slowly(
            lambda: super(SlowStore, self).upsert_points(*arguments, **options)
        )
        return written

    async def delete_points(self, *arguments: Any, **options: Any) -> None:
        """Delete after a pause, answer after another."""
        await self._slowly(
            lambda: super(SlowStore, self).delete_points(*arguments, **options)
        )

    async def _slowly(self, call: Callable[[], Awaitable[Any]]) -> Any:
        await asyncio.sleep(random.uniform(0, DELAY))
        result = await call()
        await asyncio.sleep(random.uniform(0, DELAY))
        return result


class Recipe(Protocol):
    """What the torture asks of a way to keep two stores in step."""

    name: str

    def __init__(self, pool: Pool, store: QdrantStore) -> None: ...

    async def write(self, note: int, rev: int) -> None:
        """Insert or update a note."""
        ...

    async def remove(self, note: int) -> None:
        """Delete a note."""
        ...

    async def work(self) -> None:
        """Deliver until cancelled."""
        ...

    async def finish(self) -> int:
        """Deliver what can be delivered; return what is stuck."""
        ...


_UPSERT_NOTE = (
    "INSERT INTO notes (id, rev, body) VALUES ($1, $2, $3) ON CONFLICT (id) "
    "DO UPDATE SET rev = EXCLUDED.rev, body = EXCLUDED.body"
)


class Ours:
    """Desired state, in the same statement as the note."""

    name = "fm_storage"
    _write = Sql(
        f"WITH rec AS ({_UPSERT_NOTE} RETURNING id), "
        + upsert_ctes(
            collection="$4",
            point_id="rec.id::text",
            vectors="$5",
            payload="$6",
            payload_hash="$7",
            source="rec",
            durable=True,
        )
        + " SELECT ver FROM fm_state"
    )
    _remove = Sql(
        "WITH rec AS (DELETE FROM notes WHERE id = $1 RETURNING id), "
        + delete_ctes(
            collection="$2", point_id="rec.id::text", source="rec", durable=True
        )
        + " SELECT ver FROM fm_state"
    )

    def __init__(self, pool: Pool, store: QdrantStore) -> None:
        self._pool = pool
        self.outbox = Outbox(
            pool,
            store,
            OutboxConfig(
                batch_size=50, lease=LEASE, max_backoff=0.2, poll_interval=0.1
            ),
        )

    async def write(self, note: int, rev: int) -> None:
        """Insert or update a note."""
        row = state_row(note, vector(note, rev), {"rev": rev})
        await self._pool.execute(
            self._write,
            *(note, rev, f"note {note}", COLLECTION),
            *(row.vectors, row.payload, row.payload_hash),
        )
        self.outbox.wake()

    async def remove(self, note: int) -> None:
        """Delete a note."""
        await self._pool.execute(self._remove, note, COLLECTION)
        self.outbox.wake()

    async def work(self) -> None:
        """Deliver until cancelled."""
        async with self.outbox:
            await asyncio.Event().wait()

    async def finish(self) -> int:
        """Deliver what can be delivered; return what is stuck."""
        report = await self.outbox.drain(timeout=60)
        return report.remaining


class Guide:
    """Events in the same transaction, marked while they are processed."""

    name = "guide, tier 2"
    _batch = 50

    def __init__(self, pool: Pool, store: QdrantStore) -> None:
        self._pool = pool
        self._store = store

    async def write(self, note: int, rev: int) -> None:
        """Insert or update a note."""
        async with self._pool.transaction() as tx:
            await tx.execute(_UPSERT_NOTE, note, rev, f"note {note}")
            await tx.execute(
                "INSERT INTO sync_outbox (entity_id, operation, payload) "
                "VALUES ($1, 'upsert', $2)",
                note,
                {"rev": rev, "vector": vector(note, rev)},
            )

    async def remove(self, note: int) -> None:
        """Delete a note."""
        async with self._pool.transaction() as tx:
            await tx.execute("DELETE FROM notes WHERE id = $1", note)
            await tx.execute(
                "INSERT INTO sync_outbox (entity_id, operation) VALUES ($1, 'delete')",
                note,
            )

    async def work(self) -> None:
        """Deliver until cancelled."""
        while True:
            if not await self._process_batch():
                await asyncio.sleep(0.05)

    async def finish(self) -> int:
        """Deliver what can be delivered; return what is stuck."""
        while await self._process_batch():
            pass
        stuck: int = await self._pool.fetchval(
            "SELECT count(*) FROM sync_outbox WHERE status <> 'completed'"
        )
        return stuck

    async def _process_batch(self) -> int:
        events = await self._pool.fetch(
            "UPDATE sync_outbox SET status = 'processing', attempts = attempts + 1 "
            "WHERE id IN (SELECT id FROM sync_outbox WHERE status IN "
            "('pending', 'failed') AND attempts < max_attempts "
            "ORDER BY created_at LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING *",
            self._batch,
        )
        for event in sorted(events, key=lambda e: e["created_at"]):
            await self._process(event["id"], event["entity_id"], event["payload"])
        return len(events)

    async def _process(
        self, event: int, note: int, payload: dict[str, object] | None
    ) -> None:
        try:
            if payload is None:
                await self._store.delete_points(COLLECTION, [note])
            else:
                snapshot: list[float] = payload["vector"]  # type: ignore[assignment]  # JSON of ours
                point = Point(note, snapshot, {"rev": payload["rev"]})
                await self._store.upsert_points(COLLECTION, [point])
        except Exception as exc:
            await self._pool.execute(
                "UPDATE sync_outbox SET last_error = $2, status = CASE WHEN "
                "attempts >= max_attempts THEN 'failed' ELSE 'pending' END "
                "WHERE id = $1",
                event,
                str(exc)[:200],
            )
            return
        await self._pool.execute(
            "UPDATE sync_outbox SET status = 'completed' WHERE id = $1", event
        )


RECIPES: dict[str, type[Recipe]] = {"guide": Guide, "ours": Ours}
