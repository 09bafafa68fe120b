"""Collections as Parquet files."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from fm_storage.cli import cli
from fm_storage.config import CollectionConfig, SparseVectorConfig, VectorConfig
from fm_storage.errors import (
    CollectionMismatch,
    CollectionNotFound,
    ConfigurationInvalid,
    InvalidRecord,
)
from fm_storage.vectors import Point, QdrantStore, SparseVector
from fm_storage.vectors.transfer.jsonl import export_points, import_points
from fm_storage.vectors.transfer.parquet import export_parquet, import_parquet

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)

A_UUID = "0b6ccd2f-6b9c-4c4c-9d4b-4a52c1a6b111"


def files_in(folder: Path) -> list[str]:
    """Return the names of the files in a folder."""
    return [path.name for path in folder.iterdir() if path.is_file()]


async def contents(store: QdrantStore, name: str) -> list[tuple[Any, Any, Any]]:
    """Return everything that a collection holds."""
    return [
        (point.id, point.vector, point.payload)
        async for point in store.iter_points(name, with_vectors=True)
    ]


@pytest.mark.slow
async def test_unnamed_vectors_go_out_and_in(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """Ids of every kind, vectors to the bit and payloads survive, with progress."""
    await qdrant.ensure_collection_exists(
        "a", 3, "Dot", payload_indexes={"n": "integer"}
    )
    points = [
        Point(i, [0.1 * i, 1 / 3, -i], {"n": i, "deep": {"list": [1, None, "ü"]}})
        for i in range(2500)
    ]
    points += [Point("text id", [1, 2, 3]), Point(A_UUID, [1, 2, 3], {"x": None})]
    await qdrant.upsert_points("a", points)
    said: list[tuple[int, int | None]] = []
    file = tmp_path / "a.parquet"
    done = await export_parquet(
        qdrant, "a", file, progress=lambda *progress: said.append(progress)
    )
    assert done == 2502
    assert said == [(1000, 2502), (2000, 2502), (2502, 2502)]
    assert files_in(tmp_path) == ["a.parquet"]
    assert await import_parquet(qdrant, file, collection="b") == 2502
    assert await contents(qdrant, "b") == await contents(qdrant, "a")
    before, after = [await qdrant.collection_info(name) for name in ("a", "b")]
    assert after.vectors == before.vectors
    assert after.payload_indexes == {"n": "integer"}
    assert await export_parquet(qdrant, "a", file, filter={"n": [3, 4]}) == 2


async def test_columns_are_what_other_tools_expect(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """Numbers are numbers, vectors have a fixed size, payloads are JSON."""
    await qdrant.ensure_collection_exists("a", 2, "Dot")
    await qdrant.upsert_points("a", [Point(7, [1, 2], {"k": "v"}), Point("x", [3, 4])])
    file = tmp_path / "a.parquet"
    await export_parquet(qdrant, "a", file)
    rows = sorted(pq.read_table(file).to_pylist(), key=lambda row: row["id"])
    assert rows == [
        {"id": "7", "number": 7, "vector": [1.0, 2.0], "payload": '{"k":"v"}'},
        {"id": "x", "number": None, "vector": [3.0, 4.0], "payload": "{}"},
    ]
    assert str(pq.read_schema(file).field("vector").type).startswith("fixed_size_list")


async def test_named_and_sparse_vectors_go_out_and_in(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """A point may lack some of its vectors; what it has comes back."""
    spec = CollectionConfig(
        vectors={"d": VectorConfig(size=2, distance="Dot")},
        sparse_vectors={"s": SparseVectorConfig(modifier="idf")},
    )
    await qdrant.ensure_collection_exists("a", spec)
    await qdrant.upsert_points(
        "a",
        [
            Point(1, {"d": [1, 2], "s": SparseVector([5, 9], [0.5, 1.5])}),
            Point(2, {"d": [3, 4]}),
            Point(3, {"s": SparseVector([2**32 - 1], [0.25])}),
        ],
    )
    file = tmp_path / "a.parquet"
    assert await export_parquet(qdrant, "a", file) == 3
    assert await import_parquet(qdrant, file, collection="b") == 3
    assert await contents(qdrant, "b") == await contents(qdrant, "a")


async def test_failed_export_leaves_no_file(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """A collection that is not there, or that goes meanwhile, leaves nothing."""
    with pytest.raises(CollectionNotFound):
        await export_parquet(qdrant, "missing", tmp_path / "a.parquet")
    await qdrant.ensure_collection_exists("a", 2)
    await qdrant.upsert_points("a", [Point(i, [1, 2]) for i in range(1500)])

    def stop(*_: object) -> None:
        message = "enough"
        raise RuntimeError(message)

    with pytest.raises(RuntimeError, match="enough"):
        await export_parquet(qdrant, "a", tmp_path / "a.parquet", progress=stop)
    assert files_in(tmp_path) == []


@pytest.mark.slow
async def test_damaged_file_is_refused(qdrant: QdrantStore, tmp_path: Path) -> None:
    """What is no export of ours, or torn, is reported; a differing collection too."""
    file = tmp_path / "a.parquet"
    file.write_bytes(b"no such thing")
    with pytest.raises(InvalidRecord, match="no Parquet file"):
        await import_parquet(qdrant, file)
    await qdrant.ensure_collection_exists("a", 64)
    await qdrant.upsert_points("a", [Point(i, [0.5 + i] * 64) for i in range(3000)])
    await export_parquet(qdrant, "a", file)
    whole = file.read_bytes()
    # The pages of the last thousand rows are overwritten, the end stays.
    torn = tmp_path / "torn.parquet"
    torn.write_bytes(whole[:4] + b"\xff" * (len(whole) // 2) + whole[len(whole) // 2 :])
    with pytest.raises(InvalidRecord, match=r"damaged|no Parquet file"):
        await import_parquet(qdrant, torn, collection="b")
    bare = tmp_path / "bare.parquet"
    pq.write_table(pq.read_table(file).replace_schema_metadata(None), bare)
    with pytest.raises(InvalidRecord, match="no head"):
        await import_parquet(qdrant, bare)
    await qdrant.ensure_collection_exists("other", 5)
    with pytest.raises(CollectionMismatch):
        await import_parquet(qdrant, file, collection="other")


async def test_our_own_keys_are_not_exported(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """The payload in a file is the application's alone."""
    await qdrant.ensure_collection_exists("a", 2)
    points = [Point("x", [1.0, 0.0], {"n": 1, "_ver": 5})]
    await qdrant.upsert_points("a", points, newer_by="_ver")
    await export_parquet(qdrant, "a", tmp_path / "a.parquet")
    [row] = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert (row["id"], json.loads(row["payload"])) == ("x", {"n": 1})


async def test_missing_extra_is_named(
    qdrant: QdrantStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without pyarrow the extra is named, and nothing was written."""
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigurationInvalid, match=r"fm-storage\[parquet\]"):
        await export_parquet(qdrant, "a", tmp_path / "a.parquet")


@pytest.mark.lengthy
def test_command_goes_by_the_name_of_the_file(
    vector_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``export -o x.parquet`` writes columns, ``import x.parquet`` reads them."""
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", f"embedded:{vector_folder}")

    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["vectors", *arguments])

    head = {
        "fm_storage": 1,
        "collection": "docs",
        "vectors": {"": {"size": 2, "distance": "Dot"}},
        "sparse_vectors": {},
        "payload_indexes": {},
    }
    rows = [head, *({"id": i, "vector": [1, i]} for i in range(5))]
    lines = tmp_path / "docs.jsonl"
    lines.write_text("\n".join(json.dumps(row) for row in rows))
    file = tmp_path / "docs.parquet"
    steps: list[Callable[[], Result]] = [
        lambda: invoke("import", str(lines)),
        lambda: invoke("export", "docs", "-o", str(file)),
        lambda: invoke("import", str(file), "--collection", "copy"),
    ]
    for step in steps:
        done = step()
        assert done.exit_code == 0, done.output
        assert "5 points" in done.output
    kept = lines.read_bytes()
    assert invoke("export", "missing", "-o", str(lines)).exit_code != 0
    assert lines.read_bytes() == kept  # a mistake does not empty the file


async def test_points_without_vectors_go_out_and_in(
    qdrant: QdrantStore, tmp_path: Path
) -> None:
    """Through either kind of file."""
    await qdrant.ensure_collection_exists("a", 2, "Dot")
    await qdrant.upsert_points("a", [Point(1, [1.0, 2.0]), Point(2, {}, {"n": 1})])
    file, lines = tmp_path / "a.parquet", list[bytes]()
    await export_parquet(qdrant, "a", file)
    await import_parquet(qdrant, file, collection="b")
    await export_points(qdrant, "a", lines.append)
    await import_points(qdrant, lines, collection="c")
    for name in ("a", "b", "c"):
        found = await contents(qdrant, name)
        assert found == [(1, [1.0, 2.0], {}), (2, None, {"n": 1})]
