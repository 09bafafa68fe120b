"""The writing half of the outbox, on any executor.

A transaction has one of its own: what it writes commits or rolls back with the
rest of that transaction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol
from uuid import UUID

from fm_storage.vector_state import (
    DELETE_MANY,
    DELETE_MANY_FAST,
    UPSERT_MANY,
    UPSERT_MANY_FAST,
    Shapes,
    StateRow,
    encode_id,
    state_row,
)

if TYPE_CHECKING:
    from fm_storage.postgres import Executor

_CHUNK = 1000


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


class BoundOutbox:
    """``upsert()`` and ``delete()`` within whatever *executor* stands for."""

    def __init__(
        self, executor: Executor, *, wake: Callable[[], None], shapes: Shapes
    ) -> None:
        self._executor = executor
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
        shape = self._shapes.get(collection)
        rows: dict[str, StateRow] = {}
        for index, point in enumerate(points):
            row = state_row(
                point.id,
                getattr(point, "vector", None),
                point.payload,
                collection=collection,
                index=index,
                shape=shape,
            )
            rows[row.point_id] = row
        # Sorted, so that two writers lock the same points in the same order.
        ordered = [rows[key] for key in sorted(rows)]
        sql = UPSERT_MANY if durable else UPSERT_MANY_FAST
        return await self._run(sql, collection, ordered, _columns)

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
        keys = sorted({encode_id(one, index=nr) for nr, one in enumerate(ids)})
        sql = DELETE_MANY if durable else DELETE_MANY_FAST
        return await self._run(sql, collection, keys, lambda part: (part,))

    async def _run(
        self,
        sql: str,
        collection: str,
        rows: Sequence[Any],
        columns: Callable[[Sequence[Any]], tuple[Sequence[Any], ...]],
    ) -> int:
        if len(rows) <= _CHUNK:
            if rows:
                await self._executor.execute(sql, collection, *columns(rows))
        else:
            async with self._executor.transaction() as tx:
                for start in range(0, len(rows), _CHUNK):
                    part = rows[start : start + _CHUNK]
                    await tx.execute(sql, collection, *columns(part))
        self._wake()
        return len(rows)


def _columns(rows: Sequence[StateRow]) -> tuple[Sequence[Any], ...]:
    return (
        [row.point_id for row in rows],
        [row.vectors for row in rows],
        [row.payload for row in rows],
        [row.payload_hash for row in rows],
    )
