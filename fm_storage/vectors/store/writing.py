"""Calls that write points: checked whole, split, sent a few at a time."""

from __future__ import annotations

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from typing import Any, TypeVar
from uuid import UUID

from fm_storage._typing import Progress
from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.errors import InvalidRecord, InvalidVector
from fm_storage.vectors.points import Point, PointId, to_wire_id
from fm_storage.vectors.request.filters import Filter, normal_filter
from fm_storage.vectors.request.payloads import encode_payload
from fm_storage.vectors.request.points import (
    Encoded,
    encode_points,
    in_batches,
)
from fm_storage.vectors.store.call import StoreCalls

__all__ = ["WritingCalls"]

T = TypeVar("T")

_ENCODE_CHUNK = 128
_HERE = 40_000  # numbers: about a millisecond


class WritingCalls(StoreCalls):
    """Calls that write points."""

    async def upsert_points(
        self,
        collection: str,
        points: Iterable[Point],
        *,
        newer_by: str | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Write points, replacing those with the same id; return how many were given.

        Nothing is sent unless every point fits. Large sets are split by bytes
        and count and sent a few at a time; if one request fails for good, or the
        call is cancelled, others may have been applied.

        Args:
            collection: Name of an existing collection or alias.
            points: ``Point`` objects (``PointStruct`` of the client will do).
            newer_by: Payload field with a number: a stored point is replaced
                only by one whose number is greater.
            progress: Called as ``progress(done, total)`` after each request.

        Raises:
            CollectionNotFound: There is no such collection.
            DimensionMismatch: A vector's length is not the collection's.
            InvalidVector: A vector is unknown, missing, or not finite.
            InvalidRecord: An id or a payload cannot be stored.

        See https://qdrant.tech/documentation/concepts/points/.
        """
        return await self._call(
            "upsert_points",
            collection,
            lambda: self._upsert(collection, list(points), newer_by, progress),
            once=True,
        )

    async def _upsert(
        self,
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
        progress: Progress | None,
    ) -> int:
        try:
            spec = await self._spec(collection)
            await self._upsert_as(spec, collection, points, newer_by, progress)
        except InvalidVector:
            # The definition may have changed since it was last looked up.
            changed = await self._changed_spec(collection)
            if changed is None:
                raise
            await self._upsert_as(changed, collection, points, newer_by, progress)
        return len(points)

    async def _upsert_as(
        self,
        spec: dict[str, Any],
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
        progress: Progress | None,
    ) -> None:
        encoded = await self._encoded(spec, collection, points, newer_by)
        batches = list(
            in_batches(
                _last_of_each(encoded, by_version=newer_by is not None),
                max_points=self.config.max_batch_points,
                max_bytes=self.config.max_batch_bytes,
            )
        )
        done = 0

        async def send(batch: list[Encoded]) -> None:
            nonlocal done
            await self._retry.run(
                lambda: self._backend.upsert(collection, batch, newer_by=newer_by),
                active=self._backend.retries,
            )
            done += len(batch)
            if progress is not None:
                progress(done, len(encoded))

        await _bounded(batches, send, limit=self.config.max_concurrency)

    async def _encoded(
        self,
        spec: dict[str, Any],
        collection: str,
        points: Sequence[Any],
        newer_by: str | None,
    ) -> list[Encoded]:
        def encode(some: Iterable[Any], start: int) -> list[Encoded]:
            return encode_points(
                some,
                spec,
                collection,
                start=start,
                limit=self.config.max_batch_bytes,
                newer_by=newer_by,
            )

        numbers = sum(int(v["size"]) for v in spec["vectors"].values()) or 64
        if len(points) <= _ENCODE_CHUNK and len(points) * numbers <= _HERE:
            return encode(points, 0)
        encoded: list[Encoded] = []
        for start in range(0, len(points), _ENCODE_CHUNK):
            some = yielding_gil(points[start : start + _ENCODE_CHUNK], 128)
            encoded += await asyncio.to_thread(encode, some, start)
        return encoded

    async def delete_points(
        self,
        collection: str,
        ids_or_filter: Iterable[PointId] | Filter,
        *,
        newer_by: str | None = None,
        up_to: Mapping[PointId, int] | None = None,
    ) -> None:
        """Delete points by id, or those that match a filter; absent ones are fine.

        Args:
            collection: Name of an existing collection or alias.
            ids_or_filter: Ids, or a filter in any form.
            newer_by: With *up_to*: payload field with a number.
            up_to: With *newer_by*: a point is deleted only if its number is
                not greater than the one given for its id.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: An id or the filter is wrong, or *up_to* lacks an id.
        """
        ids, chosen = _ids_or_filter(ids_or_filter)
        if ids == []:
            return
        bounds: list[int] | None = None
        if (newer_by is None) != (up_to is None) or (up_to is not None and ids is None):
            raise InvalidRecord(
                f"collection {collection!r}: newer_by and up_to go together, with ids",
                field="up_to",
            )
        if up_to is not None:
            limits = {to_wire_id(key)[0]: value for key, value in up_to.items()}
            try:
                bounds = [limits[number] for number in ids or ()]
            except KeyError as exc:
                raise InvalidRecord(
                    f"collection {collection!r}: up_to has no number for "
                    f"point {exc.args[0]!r}",
                    field="up_to",
                ) from None
        await self._call(
            "delete_points",
            collection,
            lambda: self._backend.delete(
                collection, ids=ids, chosen=chosen, newer_by=newer_by, up_to=bounds
            ),
        )

    async def set_payload(
        self,
        collection: str,
        payload: Mapping[str, object],
        ids_or_filter: Iterable[PointId] | Filter,
        *,
        key: str | None = None,
        overwrite: bool = False,
    ) -> None:
        """Merge *payload* into that of points chosen by id or filter.

        Args:
            collection: Name of an existing collection or alias.
            payload: Fields to set.
            ids_or_filter: Ids, or a filter in any form; absent ids are skipped.
            key: Payload object to merge into; the top by default.
            overwrite: Replace the whole payload instead.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: The payload, an id or the filter is wrong.
        """
        ids, chosen = _ids_or_filter(ids_or_filter)
        text = encode_payload(payload, collection)
        if ids == []:
            return
        await self._call(
            "set_payload",
            collection,
            lambda: self._backend.set_payload(
                collection, text, ids=ids, chosen=chosen, key=key, overwrite=overwrite
            ),
        )

    async def delete_payload(
        self,
        collection: str,
        keys: Sequence[str],
        ids_or_filter: Iterable[PointId] | Filter,
    ) -> None:
        """Remove fields from the payload of points chosen by id or filter.

        Raises:
            CollectionNotFound: There is no such collection.
            InvalidRecord: An id or the filter is wrong.
        """
        ids, chosen = _ids_or_filter(ids_or_filter)
        if ids == []:
            return
        await self._call(
            "delete_payload",
            collection,
            lambda: self._backend.delete_payload(
                collection, keys, ids=ids, chosen=chosen
            ),
        )


def _ids_or_filter(
    given: Iterable[PointId] | Filter,
) -> tuple[list[int | str] | None, dict[str, Any] | None]:
    if isinstance(given, Mapping) or hasattr(given, "model_dump"):
        chosen = normal_filter(given)
        if chosen is None:
            raise InvalidRecord(
                "filter: it is empty and would match every point; "
                "use delete_collection(), or name a condition",
                field="filter",
            )
        return None, chosen
    if isinstance(given, str | int | UUID):
        given = [given]
    return list(dict.fromkeys(to_wire_id(value)[0] for value in given)), None


def _last_of_each(points: Sequence[Encoded], *, by_version: bool) -> list[Encoded]:
    """Keep one point per id, as writing them in order would.

    Requests of one call run side by side, so two points of one id must not end
    up in two of them.
    """
    kept: dict[int | str, Encoded] = {}
    for point in points:
        before = kept.get(point.id)
        if before is None or not by_version or point.version > before.version:
            kept[point.id] = point
    return list(kept.values())


async def _bounded(
    items: Sequence[T], work: Callable[[T], Awaitable[None]], *, limit: int
) -> None:
    """Work on *items*, a few at a time; the first failure ends the rest."""
    if len(items) == 1:
        await work(items[0])
        return
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(min(limit, len(items))):
                group.create_task(worker())
    except ExceptionGroup as failures:
        first: BaseException = failures
        while isinstance(first, BaseExceptionGroup):
            first = first.exceptions[0]
        raise first from None
