"""Damaged files and a full disk: what they stop, and what goes on."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from fm_storage.config import CollectionConfig, QdrantConfig
from fm_storage.errors import (
    CollectionDamaged,
    EmbeddedFailed,
    VectorStoreUnavailable,
)
from fm_storage.vectors import Point, QdrantStore
from fm_storage.vectors.embedded.process import engine as process
from tests.support.waiting import until

FAST = QdrantConfig(durability="process")


async def two_collections(folder: Path) -> Path:
    """Make ``hurt`` and ``well``; return the folder of the first one's files."""
    async with QdrantStore(FAST, folder=folder) as store:
        for name in ("hurt", "well"):
            await store.ensure_collection_exists(name, 2)
            await store.upsert_points(name, [Point(i, [1.0, i]) for i in range(20)])
    manifest = orjson.loads((folder / "qdrant" / "catalogue.json").read_bytes())
    entry = manifest["collections"]["hurt"]
    return folder / "qdrant" / "shards" / str(entry["folder"])


def damage(files: Path, pattern: str, how: str) -> None:
    """Overwrite, shorten or remove the files that match."""
    for file in [path for path in files.rglob(pattern) if path.is_file()]:
        if how == "overwritten":
            with file.open("r+b") as out:
                out.write(b"\xde\xad\xbe\xef" * 1000)
        elif how == "shortened":
            os.truncate(file, file.stat().st_size // 3)
        else:
            file.unlink()


@pytest.mark.parametrize("how", ["overwritten", "shortened", "removed"])
@pytest.mark.parametrize("pattern", ["wal/*", "*.json", "vector_storage/**/*", "*"])
async def test_damaged_collection_stops_only_itself(
    vector_folder: Path, pattern: str, how: str
) -> None:
    """Others are served by the same process; it can be deleted and made anew."""
    damage(await two_collections(vector_folder), pattern, how)
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ready()
        pid = store.statistics().engine_pid
        for _ in range(3):
            calls: list[Callable[[], Awaitable[object]]] = [
                lambda: store.count("hurt"),
                lambda: store.search("hurt", [1.0, 0.0], 30),
                lambda: store.scroll("hurt", limit=30, with_vectors=True),
                lambda: store.upsert_points("hurt", [Point(5, [1.0, 1.0])]),
            ]
            for call in calls:
                [found] = await asyncio.gather(call(), return_exceptions=True)
                if isinstance(found, Exception):
                    assert isinstance(found, CollectionDamaged)
                    assert found.collection == "hurt"
                    assert str(vector_folder) in found.file
                    assert "delete_collection()" in str(found)
        assert await store.count("well") == 20
        await store.upsert_points("well", [Point(99, [1.0, 0.0])])
        await store.collection_info("hurt")
        assert await store.delete_collection("hurt")
        assert await store.ensure_collection_exists("hurt", 2)
        await store.upsert_points("hurt", [Point(1, [1.0, 0.0])])
        assert await store.count("hurt") == 1
        assert store.statistics().engine_pid == pid


async def test_damaged_collection_is_described_and_left_out_of_a_reindex(
    vector_folder: Path,
) -> None:
    """Its definition is known, its status red; what a reindex left is made anew."""
    damage(await two_collections(vector_folder), "wal/*", "overwritten")
    async with QdrantStore(FAST, folder=vector_folder) as store:
        with pytest.raises(CollectionDamaged, match="wal"):
            await store.count("hurt")
        info = await store.collection_info("hurt")
        assert (info.status, info.points) == ("red", 0)
        assert info.vectors[""]["size"] == 2
        with pytest.raises(CollectionDamaged):
            await store.reindex("hurt", CollectionConfig(size=2, distance="Dot"))
        new = CollectionConfig(size=2, distance="Euclid")
        target = (await store.reindex("well", new)).target
        await store.set_aliases({"well": None})
        await store.exchange("hurt", target, retired="old")
        await store.delete_collection(target)
        assert "old" in await store.list_collections()


async def test_damaged_target_of_a_reindex_is_made_anew(vector_folder: Path) -> None:
    """What an interrupted reindex left, and a disk destroyed, does not stop it."""
    new = CollectionConfig(size=2, distance="Euclid")
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        await store.upsert_points("a", [Point(i, [1.0, i]) for i in range(20)])

        def stop(_done: int, _total: int | None) -> None:
            raise KeyError

        with pytest.raises(KeyError):
            await store.reindex("a", new, progress=stop)
        [target] = [n for n in await store.list_collections() if n != "a"]
    manifest = orjson.loads((vector_folder / "qdrant" / "catalogue.json").read_bytes())
    entry = manifest["collections"][target]
    files = vector_folder / "qdrant" / "shards" / str(entry["folder"])
    damage(files, "wal/*", "overwritten")
    async with QdrantStore(FAST, folder=vector_folder) as store:
        assert (await store.reindex("a", new)).copied == 20
        assert await store.count("a") == 20


@pytest.mark.parametrize("text", ["{", "[]", '{"format": 1}'])
async def test_damaged_manifest_is_named(vector_folder: Path, text: str) -> None:
    """The engine does not start, and says which file to restore."""
    await two_collections(vector_folder)
    (vector_folder / "qdrant" / "catalogue.json").write_text(text)
    async with QdrantStore(FAST, folder=vector_folder) as store:
        with pytest.raises(EmbeddedFailed, match=r"catalogue\.json.*restore"):
            await store.list_collections()


def test_full_disk_is_named_and_still_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writes stop before the disk is full; reads and deletions go on."""
    engine = process.Engine(tmp_path)
    engine.open()
    spec = {
        "vectors": {"": {"size": 2, "distance": "Dot"}},
        "sparse_vectors": {},
        "payload_indexes": {},
    }
    engine.write({"op": "create", "c": "a", "spec": spec}, memoryview(b""))
    upsert: dict[str, Any] = {
        "op": "upsert",
        "c": "a",
        "ids": [1],
        "payloads": [{}],
        "dense": [{"name": "", "size": 2, "rows": None}],
        "sparse": [],
    }
    raw = memoryview(b"\0\0\x80\x3f" * 2)
    engine.write(upsert, raw)
    disk = SimpleNamespace(f_bavail=3000, f_frsize=4096)
    monkeypatch.setattr(os, "statvfs", lambda _folder: disk)
    with pytest.raises(Exception, match="11 MB are left") as caught:
        engine.write(upsert, raw)
    assert process.refusal(caught.value)["err"] == "full"
    answer, _ = engine.read({"op": "count", "c": "a"})
    assert answer == 1
    engine.write({"op": "delete", "c": "a", "ids": [1]}, memoryview(b""))
    assert engine.write({"op": "drop", "c": "a"}, memoryview(b""))
    engine.close()


async def test_file_that_ends_the_process_is_given_up(vector_folder: Path) -> None:
    """The engine does not die of it again and again; the others go on."""
    files = await two_collections(vector_folder)
    for file in files.rglob("mutable_id_tracker.mappings"):
        data = bytearray(file.read_bytes())
        data[12] ^= 0xFF  # an offset now asks for more memory than there is
        file.write_bytes(data)
    async with QdrantStore(FAST, folder=vector_folder) as store:
        for _ in range(3):
            with pytest.raises((CollectionDamaged, VectorStoreUnavailable)):
                await store.count("hurt")
        with pytest.raises(CollectionDamaged) as caught:
            await store.count("hurt")
        assert caught.value.file == str(files / "opening")
        restarts = store.statistics().restarts
        assert restarts <= 3
        assert (await store.collection_info("hurt")).status == "red"
        assert await store.count("well") == 20
        assert await store.delete_collection("hurt")
        await store.ensure_collection_exists("hurt", 2)
        assert await store.count("hurt") == 0
        assert store.statistics().restarts == restarts


async def test_kills_while_a_collection_is_opened_are_no_damage(
    vector_folder: Path,
) -> None:
    """An end by SIGKILL counts a tenth of one that the files may have caused."""
    note = await two_collections(vector_folder) / "opening"
    async with QdrantStore(FAST, folder=vector_folder) as store:

        async def end_by(number: int) -> None:
            assert await store.count("hurt") == 20
            pid = store.statistics().engine_pid
            assert pid is not None
            note.write_text(30 * "x")
            os.kill(pid, number)
            await until(lambda: store.statistics().engine_pid is None)

        await end_by(signal.SIGKILL)
        await until(lambda: note.stat().st_size == 21)
        await end_by(signal.SIGUSR1)
        with pytest.raises(CollectionDamaged, match="remove this one"):
            await store.count("hurt")
        note.unlink()
        assert await store.count("hurt") == 20


@pytest.mark.parametrize(
    ("pattern", "how"),
    [("payload_storage/page_*", "emptied"), ("mutable_id_tracker.versions", "folder")],
)
async def test_damage_met_by_a_write_is_named(
    vector_folder: Path, pattern: str, how: str
) -> None:
    """What cannot be written because of a damaged file is no outage to wait out."""
    files = await two_collections(vector_folder)
    for file in files.rglob(pattern):
        file.unlink()
        file.mkdir() if how == "folder" else file.touch()
    config = QdrantConfig(durability="fsync")
    async with QdrantStore(config, folder=vector_folder) as store:
        for _ in range(3):
            with pytest.raises(CollectionDamaged):
                await store.upsert_points("hurt", [Point(99, [1.0, 2.0], {"n": 1})])
                await store.upsert_points("hurt", [Point(98, [1.0, 2.0], {"n": 1})])
        await store.upsert_points("well", [Point(99, [1.0, 2.0])])
        assert await store.count("well") == 21
