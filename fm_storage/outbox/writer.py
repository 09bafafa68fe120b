"""The writing half of the outbox, on any executor.

A transaction has one of its own: what it writes commits or rolls back with the
rest of that transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol
from uuid import UUID

from fm_storage.concurrency.batcher import Batcher
from fm_storage.errors import InvalidRecord
from fm_storage.postgres.arguments import of_kind
from fm_storage.vector_state import (
    DELETE_MANY,
    DELETE_MANY_FAST,
    UPSERT_MANY,
    UPSERT_MANY_FAST,
    Shapes,
    StateRow,
    encode_ids,
    state_row,
)

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

_CHUNK = 1000
_STATEMENTS = {
    ("u", True): UPSERT_MANY,
    ("u", False): UPSERT_MANY_FAST,
    ("d", True): DELETE_MANY,
    ("d", False): DELETE_MANY_FAST,
}


class PointLike(Protocol):
    """A ``Point``, or an ``Unembedded`` one without a vector."""

    @property
    def id(self) -> int | str | UUID:
        """Id of the point."""
        ...

    @property
    def payload(self) -> Mapping[str, object]:
        """JSON payload."""
        ...


class Change(NamedTuple):
    """What one call wants of points of one collection: their rows by id, if any."""

    collection: str
    op: str
    durable: bool
    rows: Mapping[str, StateRow | None]

    def parameters(self, keys: Sequence[str]) -> tuple[Any, ...]:
        """Return the parameters of the statement for some of the points."""
        if self.op == "d":
            return self.collection, keys
        rows: list[Any] = [self.rows[key] for key in keys]
        return (
            self.collection,
            keys,
            [row.vectors for row in rows],
            [row.payload for row in rows],
            [row.payload_hash for row in rows],
        )


async def write_together(executor: Executor, calls: Sequence[Change]) -> None:
    """Write changes of one kind in one collection, which have no point in common.

    In one transaction, durable if any of them is to be.
    """
    first = calls[0]
    rows = {key: row for call in calls for key, row in call.rows.items()}
    durable = any(call.durable for call in calls)
    change = Change(first.collection, first.op, durable, rows)
    sql = _STATEMENTS[change.op, durable]
    # Sorted, so that two writers lock the same points in the same order.
    keys = sorted(rows)
    if len(keys) <= _CHUNK:
        if keys:
            await executor.execute(sql, *change.parameters(keys))
        return
    async with executor.transaction() as tx:
        for start in range(0, len(keys), _CHUNK):
            part = keys[start : start + _CHUNK]
            await tx.execute(sql, *change.parameters(part))


class BoundOutbox:
    """``upsert()`` and ``delete()`` within whatever *executor* stands for.

    Args:
        executor: Where they are written.
        wake: Called after that.
        shapes: What is known of the collections.
        batcher: Writes, instead, what is not in a transaction of the caller.
    """

    def __init__(
        self,
        executor: Executor,
        *,
        wake: Callable[[], None],
        shapes: Shapes,
        batcher: Batcher[Change, None] | None = None,
    ) -> None:
        self._executor = executor
        self._batcher = batcher
        self._wake = wake
        self._shapes = shapes

    async def upsert(
        self, collection: str, points: Iterable[PointLike], *, durable: bool = True
    ) -> int:
        """Make points desired, as they are now; return how many.

        All of them or none, together with the executor's transaction if it is
        one. Of several with one id the last counts. ``Unembedded`` points get
        their vectors while draining, from the registered vectorizer.

        Args:
            collection: The collection that they belong to.
            points: ``Point`` or ``Unembedded``.
            durable: Pin ``synchronous_commit = on`` for the transaction. False is
                faster where the server's default is off, and a crash of the server
                may then lose what was written last, in both stores alike.

        Raises:
            InvalidRecord: An id or payload cannot be stored; nothing was written.
            InvalidVector: A vector is not finite, or not one of a collection whose
                definition is known; nothing was written.
            DimensionMismatch: A vector has not the size that is known for the
                collection; nothing was written.
        """
        of_kind(collection, str, "collection", "give its name")
        shape = self._shapes.get(collection)
        rows: dict[str, StateRow | None] = {}
        try:
            given = list(points)
        except TypeError:
            raise InvalidRecord(
                f"points: it is a {type(points).__name__}; give a list", field="points"
            ) from None
        for index, point in enumerate(given):
            if not hasattr(point, "payload"):
                raise InvalidRecord(
                    f"point {index}: is a {type(point).__name__}; give a Point or "
                    "Unembedded",
                    index=index,
                )
            row = state_row(
                point.id,
                getattr(point, "vector", None),
                point.payload,
                collection=collection,
                index=index,
                shape=shape,
            )
            rows[row.point_id] = row
        return await self._run(Change(collection, "u", durable, rows))

    async def delete(
        self,
        collection: str,
        ids: Iterable[int | str | UUID],
        *,
        durable: bool = True,
    ) -> int:
        """Make points undesired; ones that never were are fine. Return how many.

        *durable* is that of ``upsert()``.

        Raises:
            InvalidRecord: An id is none; nothing was written.
        """
        of_kind(collection, str, "collection", "give its name")
        keys = dict.fromkeys(encode_ids(ids))
        return await self._run(Change(collection, "d", durable, keys))

    async def _run(self, change: Change) -> int:
        if self._batcher is None or len(change.rows) > _CHUNK:
            await write_together(self._executor, [change])
        elif change.rows:
            keys = [(change.collection, key) for key in change.rows]
            await self._batcher.add(change, keys, (change.collection, change.op))
        self._wake()
        return len(change.rows)
