"""Moving a collection to a new definition: nothing lost, on every engine."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.errors import CollectionNotFound, InvalidName, InvalidVector
from fm_storage.vectors import Point, QdrantStore, ScoredPoint
from tests.fix_process import Child

WIDE = CollectionConfig(size=4, distance="Dot")


# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


async def widen(points: Sequence[ScoredPoint]) -> list[list[float]]:
    """Return vectors of another size."""
    return [[float(str(p.payload["n"])), 1.0, 2.0, 3.0] for p in points]


async def fill(store: QdrantStore, name: str, count: int = 450) -> None:
    """Make a collection of size 2."""
    await store.ensure_collection_exists(name, 2)
    await store.upsert_points(
        name, [Point(i, [1.0, i], {"n": i}) for i in range(1, count + 1)]
    )


@pytest.mark.parametrize("by_alias", [False, True])
async def test_collection_moves_to_another_size(
    any_store: QdrantStore, name: str, *, by_alias: bool
) -> None:
    """The name stays, the vectors are new, the payloads are the old ones."""
    public = name
    if by_alias:
        await fill(any_store, f"{name}_1")
        await any_store.set_aliases({name: f"{name}_1"})
    else:
        await fill(any_store, name)
    said: list[int] = []
    report = await any_store.reindex(
        public, WIDE, widen, progress=lambda done, _: said.append(done)
    )
    assert (report.copied, report.deleted) == (450, 0)
    assert said[-1] == 450
    info = await any_store.collection_info(public)
    assert (info.name, info.points) == (report.target, 450)
    assert info.vectors[""]["size"] == 4
    (point,) = await any_store.retrieve(public, [7], with_vectors=True)
    assert point.payload == {"n": 7}
    assert point.vector == [7.0, 1.0, 2.0, 3.0]
    left = [c for c in await any_store.list_collections() if c.startswith(name)]
    assert left == [report.target]
    again = await any_store.reindex(public, WIDE, widen)
    assert (again.copied, again.target) == (0, report.target)


async def test_writes_during_a_reindex_are_kept(
    any_store: QdrantStore, name: str
) -> None:
    """What is written, changed or deleted meanwhile is so in the new one too."""
    await fill(any_store, name)
    calls = 0

    async def embed(points: Sequence[ScoredPoint]) -> list[list[float]]:
        nonlocal calls
        calls += 1
        if calls == 2:
            await any_store.upsert_points(name, [Point(9000, [1.0, 1.0], {"n": 0})])
            await any_store.upsert_points(name, [Point(1, [1.0, 1.0], {"n": -1})])
            await any_store.delete_points(name, [2, 3])
        return await widen(points)

    report = await any_store.reindex(name, WIDE, embed)
    assert report.deleted == 2
    assert await any_store.count(name) == 449
    found = await any_store.retrieve(name, [1, 2, 3, 9000])
    assert [(p.id, p.payload["n"]) for p in found] == [(1, -1), (9000, 0)]


async def test_misfitting_vectors_exchange_nothing(
    any_store: QdrantStore, name: str
) -> None:
    """If the new vectors do not fit, the old collection goes on serving."""
    await fill(any_store, name, 10)

    async def wrong(points: Sequence[ScoredPoint]) -> list[list[float]]:
        return [[1.0] * 3 for _ in points]

    with pytest.raises(InvalidVector):
        await any_store.reindex(name, WIDE, wrong)
    assert (await any_store.collection_info(name)).vectors[""]["size"] == 2
    assert await any_store.count(name) == 10
    with pytest.raises(CollectionNotFound):
        await any_store.reindex(f"{name}_missing", WIDE, wrong)


async def test_without_embedding_vectors_are_copied(
    any_store: QdrantStore, name: str
) -> None:
    """Another distance or index needs no new vectors."""
    await fill(any_store, name, 20)
    await any_store.reindex(name, CollectionConfig(size=2, distance="Dot"))
    assert (await any_store.collection_info(name)).vectors[""]["distance"] == "Dot"
    assert await any_store.count(name) == 20


CODE = """
import asyncio, sys
from pathlib import Path
from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.vectors import QdrantStore

async def embed(points):
    print(len(points), flush=True)
    await asyncio.sleep(0.05)
    return [[1.0] * 4 for _ in points]

async def main():
    async with QdrantStore(QdrantConfig(), folder=Path(sys.argv[1])) as store:
        await store.reindex("a", CollectionConfig(size=4, distance="Dot"), embed)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_killed_reindex_goes_on_where_it_was(
    vector_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """After SIGKILL in the middle, the next run copies only the rest."""
    config = QdrantConfig(durability="process")
    async with QdrantStore(config, folder=vector_folder) as store:
        await fill(store, "a", 1000)
        process = await child(CODE, vector_folder)
        for _ in range(3):
            await process.line(60)
        await process.kill()
        report = await store.reindex("a", WIDE, widen)
        assert 0 < report.copied <= 800
        assert await store.count("a") == 1000
        assert (await store.collection_info("a")).vectors[""]["size"] == 4


async def test_name_is_exchanged_at_one_stroke(qdrant: QdrantStore) -> None:
    """A reader of the name never finds it missing, in the embedded engine."""
    await fill(qdrant, "a", 5)
    await fill(qdrant, "b", 6)
    await qdrant.set_aliases({"other": "a"})
    seen: set[int] = set()
    over = False

    async def read() -> None:
        while not over:
            seen.add(await qdrant.count("a"))

    reader = asyncio.create_task(read())
    await qdrant.exchange("a", "b", retired="old")
    over = True
    await reader
    assert seen <= {5, 6}
    assert await qdrant.list_aliases() == {"a": "b", "other": "b"}
    assert await qdrant.list_collections() == ["b", "old"]
    await fill(qdrant, "c", 1)
    with pytest.raises(InvalidName):
        await qdrant.exchange("c", "b", retired="old")
    with pytest.raises(CollectionNotFound):
        await qdrant.exchange("c", "nothing", retired="x")
    assert await qdrant.count("c") == 1
