"""``fm-storage vectors``: what a person types and reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fm_storage.cli import cli
from fm_storage.config import (
    CollectionConfig,
    QdrantConfig,
    SparseVectorConfig,
    StorageConfig,
)
from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.vectors import LexicalVectorizer, Point, QdrantStore, SparseVector
from fm_storage.vectors.transfer.jsonl import export_points, import_points

Command = Callable[..., Result]

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def command(vector_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Give ``command(*arguments)``, on a store of its own."""
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", f"embedded:{vector_folder}")
    monkeypatch.setenv("FM_STORAGE_QDRANT__DURABILITY", "process")

    def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
        return CliRunner().invoke(cli, ["vectors", *arguments], input=stdin)

    return invoke


def lines(count: int) -> bytes:
    """Return an export of *count* points."""
    head = {
        "fm_storage": 1,
        "collection": "docs",
        "vectors": {"": {"size": 2, "distance": "Dot"}},
        "sparse_vectors": {},
        "payload_indexes": {"n": "integer"},
    }
    points: Sequence[object] = [
        {"id": i, "vector": [1.0, i], "payload": {"n": i}} for i in range(count)
    ]
    return b"\n".join(json.dumps(line).encode() for line in [head, *points])


@pytest.mark.slow
def test_import_list_info_search_export(command: Command, tmp_path: Path) -> None:
    """The whole round: what was imported is listed, found and exported again."""
    file = tmp_path / "docs.jsonl"
    file.write_bytes(lines(30))
    done = command("import", str(file))
    assert done.exit_code == 0, done.output
    assert "30 points imported" in done.output
    assert "docs" in command("list").stdout
    (listed,) = json.loads(command("list", "--json").stdout)
    assert (listed["name"], listed["points"]) == ("docs", 30)
    shown = command("info", "docs").stdout
    assert "2 × Dot" in shown
    assert "index n" in shown
    assert json.loads(command("info", "docs", "--json").stdout)["total"] == 30
    found = json.loads(
        command(
            *("search", "docs", "[0, 1]", "--limit", "2", "--json"),
            *("--filter", '{"n": {"lt": 20}}'),
        ).stdout
    )
    assert [hit["id"] for hit in found] == [19, 18]
    assert "19" in command("search", "docs", "[0, 1]", "--filter", '{"n": 19}').stdout
    assert "29" in command("search", "docs", "id:3").stdout
    out = tmp_path / "again.jsonl"
    assert command("export", "docs", "-o", str(out)).exit_code == 0
    assert len(out.read_bytes().splitlines()) == 31
    part = command("export", "docs", "--filter", '{"n": [1, 2]}')
    assert len(part.stdout_bytes.splitlines()) == 3
    again = command("import", "-", "--collection", "copy", stdin=out.read_bytes())
    assert again.exit_code == 0, again.output
    (copy, docs) = json.loads(command("list", "--json").stdout)
    assert copy["points"] == docs["points"] == 30


def test_mistakes_are_reported(command: Command, tmp_path: Path) -> None:
    """A wrong filter, a missing collection and a damaged file say what is wrong."""
    assert command("list").stdout.strip() == "no collections"
    assert command("search", "x", "[1]", "--filter", "{").exit_code == 2
    assert command("info", "missing").exit_code != 0
    bad = tmp_path / "bad.jsonl"
    bad.write_bytes(b"nothing\n")
    assert command("import", str(bad)).exit_code != 0


@pytest.mark.slow
def test_mistakes_name_what_to_type(command: Command, tmp_path: Path) -> None:
    """At the command line a message names commands and options, not calls."""
    file = tmp_path / "docs.jsonl"
    file.write_bytes(lines(3))
    assert command("import", str(file)).exit_code == 0
    for arguments, said in (
        (("info", "missing"), "fm-storage vectors list"),
        (("search", "docs", "some words"), "holds no vectors of words"),
        (("search", "docs", "id:77"), "no point 77"),
        (("search", "docs", "id:some name"), "no point 'some name'"),
        (("search", "docs", "[1, 2]", "--using", "x"), "leave --using out"),
        (("search", "docs", "[1, 2]", "--limit", "0"), "--limit"),
    ):
        done = command(*arguments)
        assert done.exit_code != 0
        assert said in done.output, done.output
        assert "()" not in done.output
    other = tmp_path / "other.jsonl"
    other.write_bytes(lines(1).replace(b'"Dot"', b'"Cosine"'))
    refused = command("import", str(other))
    assert "--collection" in refused.output
    assert "Cosine" in refused.output


def test_vectors_switched_off_name_the_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a vector store the setting that gives one is reported."""
    file = tmp_path / "fm_storage.toml"
    file.write_text("[qdrant]\n")
    monkeypatch.setattr(
        "fm_storage.config.StorageConfig.from_toml",
        lambda _: StorageConfig(qdrant=None),
    )
    done = CliRunner().invoke(cli, ["--config", str(file), "vectors", "list"])
    assert isinstance(done.exception, ConfigurationInvalid)
    assert "FM_STORAGE_QDRANT__URL" in str(done.exception)


async def _lexical(folder: Path) -> None:
    vectorizer = LexicalVectorizer()
    static = LexicalVectorizer(size=64)
    async with QdrantStore(QdrantConfig(), folder=folder) as store:
        for name, made_by in (("lex", vectorizer), ("other", static)):
            await store.ensure_collection_exists(name, made_by.spec)
            texts = ["pool timeout in billing", "key error in render"]
            made = await made_by.embed(texts)
            await store.upsert_points(
                name,
                [
                    Point(i, {"dense": e.dense or [], "sparse": e.sparse or [1.0]})
                    for i, e in enumerate(made)
                ],
            )


@pytest.mark.slow
def test_words_are_searched_whoever_made_the_dense_part(
    command: Command, vector_folder: Path
) -> None:
    """Words find points; what is not indexed is explained; vectors are named."""
    asyncio.run(_lexical(vector_folder))
    for name in ("lex", "other"):
        found = json.loads(command("search", name, "timeout of pool", "--json").stdout)
        assert found[0]["id"] == 0
    assert command("search", "other", "!!", "--json").stdout.strip() == "[]"
    listed = command("list").stdout
    assert "compared one by one" in listed
    assert "one by one" in command("info", "lex").stdout
    shown = command("search", "lex", "[1, 2]").output
    assert "--using" in shown
    assert "dense or sparse" in shown
    assert json.loads(
        command("search", "lex", "id:0", "--using", "dense", "--json").stdout
    )


async def test_words_find_lexical_points(qdrant: QdrantStore) -> None:
    """A collection of the lexical vectorizer goes out and in with both vectors."""
    vectorizer = LexicalVectorizer()
    await qdrant.ensure_collection_exists("lex", vectorizer.spec)
    made = await vectorizer.embed(["pool timeout in billing", "key error in render"])
    await qdrant.upsert_points(
        "lex",
        [
            Point(f"e{i}", {"dense": e.dense or [], "sparse": e.sparse or [1.0]})
            for i, e in enumerate(made)
        ],
    )
    written: list[bytes] = []
    said: list[int] = []
    assert (
        await export_points(
            qdrant, "lex", written.append, progress=lambda done, _: said.append(done)
        )
        == 2
    )
    assert said == [2]
    assert await import_points(qdrant, written, collection="lex2") == 2
    (query,) = await vectorizer.embed(["timeout of the pool"])
    assert (await qdrant.search_hybrid("lex2", query, 1))[0].id == "e0"


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "line 2 is not JSON"),
        (b"[1]", "line 2 is no object"),
        (b'{"id": 1}', "line 2 has no 'vector'"),
    ],
)
async def test_damaged_line_is_reported_by_number(
    qdrant: QdrantStore, line: bytes, problem: str
) -> None:
    """The number of the line is in the message."""
    with pytest.raises(InvalidRecord, match=problem):
        await import_points(qdrant, [lines(0), b"", line][::2])


async def test_import_needs_a_head(qdrant: QdrantStore) -> None:
    """A file that is no export is refused at once."""
    for given in ([], [b'{"id": 1}']):
        with pytest.raises(InvalidRecord, match="no head"):
            await import_points(qdrant, given)


async def test_our_own_keys_are_not_exported(qdrant: QdrantStore) -> None:
    """The outbox's version is of this database, and means nothing in another."""
    await qdrant.ensure_collection_exists("a", 2)
    points = [Point("x", [1.0, 0.0], {"n": 1, "_ver": 5})]
    await qdrant.upsert_points("a", points, newer_by="_ver")
    written: list[bytes] = []
    await export_points(qdrant, "a", written.append)
    assert not any(b"_ver" in line or b"_fm_id" in line for line in written)


async def test_sparse_only_collection_goes_out_and_in(vector_folder: Path) -> None:
    """A collection without dense vectors survives the round."""
    config = QdrantConfig(durability="process")
    async with QdrantStore(config, folder=vector_folder) as store:
        spec = CollectionConfig(
            sparse_vectors={"s": SparseVectorConfig(modifier="idf")}
        )
        await store.ensure_collection_exists("a", spec)
        await store.upsert_points("a", [Point(1, {"s": SparseVector([3], [1.5])})])
        written: list[bytes] = []
        await export_points(store, "a", written.append)
        await import_points(store, written, collection="b")
        (point,) = await store.retrieve("b", [1], with_vectors=True)
        assert point.vector == {"s": SparseVector([3], [1.5])}
