"""Moving a collection to a new definition while it is read and written.

A protocol over the store's calls: copy, copy what has changed since, exchange the
name, copy the last stragglers, drop the old one. A point that was copied carries a
fingerprint of its source until the end, so that a killed run goes on where it was
and copies nothing twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias

import orjson

from fm_storage._typing import Progress
from fm_storage.config import CollectionConfig
from fm_storage.errors import CollectionDamaged, CollectionNotFound
from fm_storage.vectors.points import CollectionInfo, Point, ScoredPoint, SparseVector
from fm_storage.vectors.request.definitions import spec_of
from fm_storage.vectors.request.points import MARK

Embed = Callable[[Sequence[ScoredPoint]], Awaitable[Sequence[Any]]]
"""Returns the new vectors of points, in order."""

Call: TypeAlias = "Callable[..., Awaitable[Any]]"


class _Collections(Protocol):
    """The calls of a ``QdrantStore`` that a reindex makes."""

    @property
    def collection_info(self) -> Callable[[str], Awaitable[CollectionInfo]]: ...
    @property
    def iter_points(self) -> Callable[..., AsyncIterator[ScoredPoint]]: ...
    @property
    def retrieve(self) -> Callable[..., Awaitable[list[ScoredPoint]]]: ...
    @property
    def count(self) -> Callable[[str], Awaitable[int]]: ...
    @property
    def ensure_collection_exists(self) -> Call: ...
    @property
    def upsert_points(self) -> Call: ...
    @property
    def delete_points(self) -> Call: ...
    @property
    def delete_payload(self) -> Call: ...
    @property
    def exchange(self) -> Call: ...
    @property
    def delete_collection(self) -> Call: ...


_PAGE = 200
_PASSES = 8


@dataclass(frozen=True, slots=True)
class ReindexReport:
    """What a reindex did.

    Attributes:
        collection: The name that the application uses.
        target: The collection that it stands for now.
        copied: Points copied by this run.
        deleted: Points removed from the copy because their source had gone.
        passes: How often the source was gone through.
    """

    collection: str
    target: str
    copied: int
    deleted: int
    passes: int


async def reindex(
    store: _Collections,
    collection: str,
    definition: CollectionConfig,
    embed: Embed | None = None,
    *,
    version: str = "",
    progress: Progress | None = None,
    exchanged: Callable[[], None],
) -> ReindexReport:
    """See ``QdrantStore.reindex()``; *exchanged* is called when the name is."""
    text = orjson.dumps([spec_of(definition), version], option=orjson.OPT_SORT_KEYS)
    target = f"{collection}__{blake2b(text, digest_size=5).hexdigest()}"
    retired = f"{collection}__retired"
    run = _Run(store, target, embed, progress)
    info = await store.collection_info(collection)
    passes = 0
    if info.name != target:
        with suppress(CollectionNotFound):
            try:
                await store.count(target)
            except CollectionDamaged:  # what an earlier run left is of no use
                await store.delete_collection(target)
        await store.ensure_collection_exists(target, definition)
        for _ in range(_PASSES):
            passes += 1
            if not await run.copy(info.name):
                break
        await store.exchange(collection, target, retired=retired)
    exchanged()
    old = retired if info.name in {collection, target} else info.name
    try:
        # What was written to the old one between the last pass and the exchange.
        await run.copy(old, stragglers=True)
        passes += 1
    except CollectionNotFound:
        pass  # a server cannot rename: the old one went with the exchange
    except CollectionDamaged:
        await store.delete_collection(old)  # as good as gone
    else:
        await store.delete_collection(old)
    await store.delete_payload(target, [MARK], {MARK: {"exists": True}})
    return ReindexReport(collection, target, run.copied, run.deleted, passes)


class _Run:
    def __init__(
        self,
        store: _Collections,
        target: str,
        embed: Embed | None,
        progress: Progress | None,
    ) -> None:
        self._store, self._target = store, target
        self._embed, self._progress = embed, progress
        self.copied = 0
        self.deleted = 0

    async def copy(self, source: str, *, stragglers: bool = False) -> int:
        """Go through the source once; return how many points had changed."""
        changed = 0
        total = await self._store.count(source)
        page: list[ScoredPoint] = []
        async for point in self._store.iter_points(
            source, with_vectors=True, page=_PAGE
        ):
            page.append(point)
            if len(page) == _PAGE:
                changed += await self._page(page, total, stragglers=stragglers)
                page = []
        changed += await self._page(page, total, stragglers=stragglers)
        return changed + await self._sweep(source)

    async def _page(
        self, page: list[ScoredPoint], total: int, *, stragglers: bool
    ) -> int:
        found = await self._store.retrieve(
            self._target, [point.id for point in page], with_payload=[MARK]
        )
        known = {point.id: (point.marks or {}).get(MARK) for point in found}
        wanted = []
        for point in page:
            mark = _fingerprint(point)
            there = point.id in known
            if there and known[point.id] is None and stragglers:
                continue  # written to the new one already: that is newer
            if not there or known[point.id] != mark:
                wanted.append((point, mark))
        if wanted:
            points = [point for point, _ in wanted]
            vectors: Sequence[Any] = [point.vector for point in points]
            if self._embed is not None:
                vectors = await self._embed(points)
            await self._store.upsert_points(
                self._target,
                [
                    Point(
                        point.id,
                        {} if vector is None else vector,  # it may have none
                        {**_whole(point), MARK: mark},
                    )
                    for (point, mark), vector in zip(wanted, vectors, strict=True)
                ],
            )
            self.copied += len(wanted)
        if self._progress is not None:
            self._progress(self.copied, total)
        return len(wanted)

    async def _sweep(self, source: str) -> int:
        """Remove copies whose source has gone."""
        gone = 0
        page: list[int | str] = []
        async for point in self._store.iter_points(
            self._target, filter={MARK: {"exists": True}}, with_payload=False
        ):
            page.append(point.id)
            if len(page) == _PAGE:
                gone += await self._remove(source, page)
                page = []
        return gone + await self._remove(source, page)

    async def _remove(self, source: str, ids: list[int | str]) -> int:
        found = await self._store.retrieve(source, ids, with_payload=False)
        gone = set(ids) - {point.id for point in found}
        if gone:
            await self._store.delete_points(self._target, gone)
            self.deleted += len(gone)
        return len(gone)


def _fingerprint(point: ScoredPoint) -> str:
    text = orjson.dumps(
        [_whole(point), _plain(point.vector)], option=orjson.OPT_SORT_KEYS
    )
    return blake2b(text, digest_size=12).hexdigest()


def _whole(point: ScoredPoint) -> dict[str, Any]:
    """Return the stored payload, without the mark of another reindex."""
    marks = {key: mark for key, mark in (point.marks or {}).items() if key != MARK}
    return {**point.payload, **marks}


def _plain(vector: Any) -> Any:
    if isinstance(vector, SparseVector):
        return [list(vector.indices), list(vector.values)]
    if isinstance(vector, dict):
        return {name: _plain(value) for name, value in vector.items()}
    return vector
