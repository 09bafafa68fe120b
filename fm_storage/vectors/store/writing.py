"""Writing points: checked whole, split, sent a few requests at a time."""

from __future__ import annotations

import asyncio
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar
from uuid import UUID

from fm_storage._typing import Progress
from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.errors import InvalidRecord, RecordNotFound
from fm_storage.vectors.points import PointId, ScoredPoint, no_point
from fm_storage.vectors.request.filters import Filter, normal_filter
from fm_storage.vectors.request.operations import (
    Delete,
    DeletePayload,
    DeleteVectors,
    Retrieve,
    Scroll,
    SetPayload,
    UpdateVectors,
    Upsert,
)
from fm_storage.vectors.request.points import (
    MARKS,
    RESERVED_ID,
    Encoded,
    encode_payload,
    encode_points,
    encode_updates,
    in_batches,
    listed,
    to_wire_id,
)
from fm_storage.vectors.store.call import Calls
from fm_storage.vectors.store.reading import retrieve

T = TypeVar("T")
OnChosen: TypeAlias = Delete | DeletePayload | DeleteVectors | SetPayload

_ENCODE_CHUNK = 128
_HERE = 40_000  # numbers: about a millisecond
_IDS = 10_000  # of one request
_PAGE = 500


async def upsert(
    calls: Calls,
    collection: str,
    points: Sequence[Any],
    *,
    newer_by: str | None,
    update_filter: Filter,
    progress: Progress | None,
) -> int:
    """See ``QdrantStore.upsert_points()``."""
    condition = normal_filter(update_filter)

    async def upsert_as(spec: dict[str, Any]) -> None:
        def encode(some: Iterable[Any], start: int) -> list[Encoded]:
            return encode_points(
                some,
                spec,
                collection,
                start=start,
                limit=calls.config.max_batch_bytes,
                newer_by=newer_by,
            )

        encoded = await _encoded(spec, points, encode)
        batches = [encoded]
        if len(encoded) != 1:
            once = _last_of_each(encoded, by_version=newer_by is not None)
            batches = [
                *in_batches(
                    once,
                    max_points=calls.config.max_batch_points,
                    max_bytes=calls.config.max_batch_bytes,
                )
            ]
        done = 0

        async def send(batch: list[Encoded]) -> None:
            nonlocal done
            await calls.ask("upsert", collection, Upsert(batch, newer_by, condition))
            done += len(batch)
            if progress is not None:
                progress(done, len(encoded))

        await _bounded(batches, send, limit=calls.config.max_concurrency)

    await calls.fitted(collection, upsert_as)
    return len(points)


async def update_vectors(
    calls: Calls, collection: str, points: Sequence[Any], update_filter: Filter
) -> None:
    """See ``QdrantStore.update_vectors()``."""
    condition = normal_filter(update_filter)

    async def encode(spec: dict[str, Any]) -> list[Encoded]:
        def some(part: Iterable[Any], start: int) -> list[Encoded]:
            return encode_updates(part, spec, collection, start=start)

        return await _encoded(spec, points, some)

    encoded = await calls.fitted(collection, encode)
    batches = in_batches(
        encoded,
        max_points=calls.config.max_batch_points,
        max_bytes=calls.config.max_batch_bytes,
    )
    absent: RecordNotFound | None = None
    for batch in batches:
        try:
            request = UpdateVectors(batch, condition)
            await calls.ask("update_vectors", collection, request)
        except RecordNotFound as exc:  # the others were written
            names = {str(to_wire_id(point.id)[0]): point.id for point in points}
            absent = no_point(collection, names.get(str(exc.key), exc.key))
    if absent is not None:
        raise absent


async def set_payload(
    calls: Calls, collection: str, payload: Mapping[str, Any], request: SetPayload
) -> None:
    """See ``QdrantStore.set_payload()``.

    What fm_storage keeps in a payload outlives its replacement: the id as it was
    given, and the marks.
    """
    if request.overwrite:
        kept: list[SetPayload] = []
        plain: list[int | str] = []
        async for point in _bare(calls, collection, request):
            number, mapped = to_wire_id(point.id)
            if mapped or point.marks:
                text = encode_payload(
                    {**(payload or {}), **(point.marks or {})},
                    collection,
                    kept_id=point.id if mapped else None,
                )
                kept.append(SetPayload(text, [number], None, None, overwrite=True))
            else:
                plain.append(number)

        async def send(one: SetPayload) -> None:
            await calls.ask("set_payload", collection, one)

        if kept:
            await _bounded(kept, send, limit=calls.config.max_concurrency)
            request = replace(request, ids=plain, filter=None)
    await on_chosen(calls, "set_payload", collection, request)


async def _bare(
    calls: Calls, collection: str, request: SetPayload
) -> AsyncIterator[ScoredPoint]:
    """Yield the points that a request chooses, with what is kept in them alone."""
    payload = {"include": [RESERVED_ID, *MARKS]}
    if request.ids is not None:
        wanted = Retrieve(request.ids, payload, with_vector=False)
        for point in await retrieve(calls, collection, wanted):
            yield point
        return
    offset = None
    while True:
        page = Scroll(_PAGE, offset, request.filter, payload, with_vector=False)
        points, offset = await calls.ask("scroll", collection, page)
        for point in points:
            yield point
        if offset is None:
            return


async def on_chosen(
    calls: Calls, asked: str, collection: str, request: OnChosen
) -> None:
    """Carry out an operation on points chosen by filter, or by ids: some at a time."""
    if request.ids is None:
        await calls.ask(asked, collection, request)
        return
    for at in range(0, len(request.ids), _IDS):
        part = replace(request, ids=request.ids[at : at + _IDS])
        if isinstance(part, Delete) and part.up_to is not None:
            part = replace(part, up_to=part.up_to[at : at + _IDS])
        await calls.ask(asked, collection, part)


async def _encoded(
    spec: dict[str, Any],
    points: Sequence[Any],
    encode: Callable[[Iterable[Any], int], list[Encoded]],
) -> list[Encoded]:
    numbers = sum(int(v["size"]) for v in spec["vectors"].values()) or 64
    if len(points) <= _ENCODE_CHUNK and len(points) * numbers <= _HERE:
        return encode(points, 0)
    encoded: list[Encoded] = []
    for start in range(0, len(points), _ENCODE_CHUNK):
        some = yielding_gil(points[start : start + _ENCODE_CHUNK], 128)
        encoded += await asyncio.to_thread(encode, some, start)
    return encoded


def deletion(
    collection: str,
    chosen: Iterable[PointId] | Filter,
    newer_by: str | None,
    up_to: Mapping[PointId, int] | None,
) -> Delete:
    """Return the request of ``QdrantStore.delete_points()``."""
    ids, matching = ids_or_filter_of(chosen)
    if (newer_by is None) != (up_to is None) or (up_to is not None and ids is None):
        raise InvalidRecord(
            f"collection {collection!r}: newer_by and up_to go together, with ids",
            field="up_to",
        )
    if up_to is None:
        return Delete(ids, matching)
    limits = {to_wire_id(key)[0]: value for key, value in up_to.items()}
    try:
        bounds = [limits[number] for number in ids or ()]
    except KeyError as exc:
        raise InvalidRecord(
            f"collection {collection!r}: up_to has no number for point {exc.args[0]!r}",
            field="up_to",
        ) from None
    return Delete(ids, matching, newer_by, bounds)


def ids_or_filter_of(
    given: Iterable[PointId] | Filter,
) -> tuple[list[int | str] | None, dict[str, Any] | None]:
    """Return native ids, or a filter, for what the application chooses points by.

    Raises:
        InvalidRecord: An id or the filter is wrong, or the filter is empty.
    """
    if isinstance(given, Mapping) or hasattr(given, "model_dump"):
        chosen = normal_filter(given)
        if chosen is None:
            raise InvalidRecord(
                "filter: it is empty and would match every point; "
                "use delete_collection(), or name a condition",
                field="filter",
            )
        return None, chosen
    return wire_ids(given), None


def wire_ids(given: Any) -> list[int | str]:
    """Return native ids, each once, for one id or several.

    Raises:
        InvalidRecord: One of them is wrong.
    """
    many = [given] if isinstance(given, str | int | UUID) else listed(given, "ids")
    return list(dict.fromkeys(to_wire_id(value)[0] for value in many))


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
