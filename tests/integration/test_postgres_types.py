"""Types that the driver does not know, and connections prepared by the application."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConfigurationInvalid, InvalidName, InvalidRecord
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where


def to_vector(value: Any) -> str:
    """Return numbers as pgvector reads them."""
    return f"[{','.join(map(str, np.asarray(value, float).tolist()))}]"


def from_vector(text: str) -> list[float]:
    """Return the numbers that pgvector writes."""
    return [float(number) for number in text.strip("[]").split(",")]


def to_hstore(value: dict[str, str]) -> str:
    """Return pairs as hstore reads them."""
    return ",".join(f'"{key}"=>"{one}"' for key, one in value.items())


def from_hstore(text: str) -> dict[str, str]:
    """Return the pairs that hstore writes."""
    pairs = (pair.split("=>") for pair in text.split(", ") if pair)
    return {key.strip('"'): one.strip('"') for key, one in pairs}


@dataclass(slots=True)
class Item:
    """Types of extensions beside the usual ones."""

    id: int
    embedding: Annotated[Any, Column(type="vector(3)")]
    tags: Annotated[Any, Column(type="hstore")]
    path: Annotated[str, Column(type="ltree")]
    name: Annotated[str, Column(type="citext")] = "x"


def item(number: int) -> Item:
    """Return an item."""
    return Item(number, [1.0, 2.0, float(number)], {"a": str(number)}, "top.of.tree")


@pytest.mark.usefixtures("pgvector")
@pytest.mark.lengthy
async def test_registered_types_are_exchanged_by_every_way_of_writing(pool):
    """One by one, in batches of every size and in filters; numpy arrays too."""
    await pool.execute(
        "CREATE EXTENSION vector; CREATE EXTENSION hstore; CREATE EXTENSION ltree; "
        "CREATE EXTENSION citext; CREATE TABLE item (id int PRIMARY KEY, "
        "embedding vector(3), tags hstore, path ltree, name citext)"
    )
    await pool.register_type("vector", encoder=to_vector, decoder=from_vector)
    await pool.register_type("hstore", encoder=to_hstore, decoder=from_hstore)
    items = Repository(pool, Item)
    await items.create(item(1))
    await items.create(dataclasses.replace(item(2), embedding=np.array([1, 2, 2.0])))
    await items.create_many([item(3), item(4)])
    await items.upsert_many([item(4), item(5)])
    await items.create_many([item(n) for n in range(10, 5011)])
    await items.update(5, {"tags": {"a": "5"}})
    found = await items.find_many(where("id") <= 10, order_by="id")
    assert found == [item(n) for n in (1, 2, 3, 4, 5, 10)]
    assert await items.count(where("embedding") == [1.0, 2.0, 3.0]) == 1
    assert await items.count(where("tags").in_([{"a": "1"}, {"a": "2"}])) == 2
    assert await items.count(where("name") == "X") == 5006
    near = await pool.fetchval(
        "SELECT id FROM item ORDER BY embedding <-> $1 LIMIT 1", [1, 2, 4.9]
    )
    assert near == 5


@dataclass(slots=True)
class Vectors:
    """Each type of pgvector."""

    id: int
    half: Annotated[list[float], Column(type="halfvec(3)")]
    sparse: Annotated[dict[int, float], Column(type="sparsevec(5)")]
    whole: Annotated[list[float] | None, Column(type="vector")] = None
    bits: Annotated[str, Column(type="varchar(3)")] = "101"


@dataclass(slots=True)
class Texts:
    """The same as text: nothing needs to be registered."""

    id: int
    half: Annotated[str, Column(type="halfvec(3)")]
    sparse: Annotated[str, Column(type="sparsevec(5)")]


def to_sparse(value: dict[int, float]) -> str:
    """Return numbers by place as pgvector reads them."""
    return f"{{{','.join(f'{at}:{one}' for at, one in value.items())}}}/5"


def from_sparse(text: str) -> dict[int, float]:
    """Return the numbers by place that pgvector writes."""
    pairs = (pair.split(":") for pair in text[1 : text.index("}")].split(","))
    return {int(at): float(one) for at, one in pairs}


@pytest.mark.usefixtures("pgvector")
@pytest.mark.lengthy
async def test_half_and_sparse_vectors_by_every_way_of_writing(pool):
    """As text at once; as numbers by functions."""
    await pool.execute(
        "CREATE EXTENSION vector; CREATE TABLE vectors (id int PRIMARY KEY, "
        "half halfvec(3), sparse sparsevec(5), whole vector, bits varchar(3))"
    )

    async def written(rows: Repository[Any], of: Any) -> list[Any]:
        await rows.create(of(1))
        await rows.create_many([of(2), of(3)])
        await rows.upsert(of(3))
        await rows.upsert_many([of(3), of(4)])
        await rows.create_many([of(n) for n in range(10, 5011)])
        await rows.update(4, {"half": of(4).half})
        assert await rows.count(where("half") == of(4).half) == 1
        assert await rows.count(where("sparse").in_([of(4).sparse, of(2).sparse])) == 2
        found = await rows.find_many(where("id") <= 10, order_by="id")
        assert found == [of(n) for n in (1, 2, 3, 4, 10)]
        assert await rows.delete_where([], everything=True) == 5005
        return found

    await written(
        Repository(pool, Texts, table="vectors"),
        lambda n: Texts(n, f"[0.5,{n // 2000},{n % 2000}]", f"{{1:{n}}}/5"),
    )
    for name in ("vector", "halfvec"):
        await pool.register_type(name, encoder=to_vector, decoder=from_vector)
    await pool.register_type("sparsevec", encoder=to_sparse, decoder=from_sparse)

    def numbers(n: int) -> Vectors:
        half = [0.5, float(n // 2000), float(n % 2000)]
        return Vectors(n, half, {1: float(n)}, [float(n)], "110")

    await written(Repository(pool, Vectors), numbers)


async def test_a_type_that_is_not_there_is_refused(pool):
    """The name is in the message; nothing is registered."""
    with pytest.raises(InvalidName, match=r"public\.nothing"):
        await pool.register_type("nothing", encoder=str, decoder=str)
    assert await pool.fetchval("SELECT 1") == 1


async def test_on_connect_prepares_each_connection_and_again_after_a_reset(dsn):
    """What it sets is there for every borrower, whatever the last one did."""
    seen = []

    async def prepare(raw):
        seen.append(raw)
        await raw.execute("SET my.tenant = 'blue'")

    async with Pool(PostgresConfig(dsn=dsn, max_size=1, on_connect=prepare)) as pool:
        for n in range(3):
            async with pool.acquire() as connection:
                assert await connection.fetchval("SHOW my.tenant") == "blue"
                await connection.execute(f"SET my.tenant = 'red{n}'")
        assert len(set(seen)) == 1
        assert len(seen) >= 3


async def test_on_connect_that_is_not_async_is_refused(dsn):
    """With what to do about it, at the first connection."""

    def prepare(_connection):
        return None

    with pytest.raises(ConfigurationInvalid, match="make it an async function"):
        async with Pool(PostgresConfig(dsn=dsn, on_connect=prepare)):
            pass


async def test_on_connect_that_leaves_a_transaction_open_is_refused(dsn):
    """The first borrower's write would be acknowledged, and undone with it."""

    async def prepare(connection):
        await connection.execute("BEGIN")

    with pytest.raises(ConfigurationInvalid, match="left a transaction open"):
        async with Pool(PostgresConfig(dsn=dsn, on_connect=prepare)) as pool:
            await pool.execute("CREATE TABLE kept ()")
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        assert await pool.fetchval("SELECT to_regclass('kept')") is None


async def test_on_connect_that_fails_is_named(dsn):
    """A mistake of the application's is no lost connection."""

    async def prepare(raw):
        await raw.execute("SET my.tenant = 'blue'")
        raise KeyError("tenant")

    with pytest.raises(ConfigurationInvalid, match=r"on_connect.*KeyError"):
        async with Pool(PostgresConfig(dsn=dsn, on_connect=prepare)) as pool:
            await pool.fetchval("SELECT 1")


@pytest.mark.usefixtures("pgvector")
async def test_arrays_of_vectors_are_read_as_lists_and_sent_as_texts(pool):
    """The driver takes a list of lists for one array; what to do instead is named."""
    await pool.execute("CREATE EXTENSION vector")
    await pool.register_type("vector", encoder=to_vector, decoder=from_vector)

    with pytest.raises(InvalidRecord, match=r"texts: \$1::text\[\]::a_type\[\]"):
        await pool.fetchval("SELECT $1::vector[]", [[1.0, 2.0], [3.0, 4.0]])

    sent = "SELECT $1::text[]::vector[]"
    assert await pool.fetchval(sent, ["[1,2]", "[3,4]"]) == [[1.0, 2.0], [3.0, 4.0]]
