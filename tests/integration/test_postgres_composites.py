"""Composite types as instances of a class, on every connection."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import NamedTuple

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import ConfigurationInvalid, InvalidName, InvalidRecord
from fm_storage.postgres import Pool


class Point(NamedTuple):
    """A point of the plane."""

    x: int
    y: int


@dataclass(frozen=True)
class Place:
    """A named point; its fields in another order than the type's."""

    at: Point | None
    name: str
    floor: int = 0


@dataclass
class Wrapped:
    """One field only."""

    value: int


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool on a database with types in each other."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=3)) as opened:
        await opened.execute(
            "CREATE TYPE point2 AS (x int, y int);"
            "CREATE SCHEMA shop;"
            "CREATE TYPE shop.place AS (name text, at point2, floor int);"
            "CREATE TYPE wrapped AS (value int);"
            "CREATE TABLE places (id int, place shop.place, path point2[])"
        )
        yield opened


async def test_instances_go_in_and_come_out(pool):
    """Nested, in arrays, with NULLs; plain tuples are taken as well."""
    await pool.register_composite("point2", Point)
    await pool.register_composite("place", Place, schema="shop")
    await pool.register_composite("wrapped", Wrapped)
    home = Place(Point(1, 2), "home", 3)
    nowhere = Place(None, "nowhere")
    path = [Point(0, 0), Point(1, 2)]
    await pool.execute("INSERT INTO places VALUES (1, $1, $2)", home, path)
    await pool.execute("INSERT INTO places VALUES (2, $1, NULL)", nowhere)
    plain = ("plain", (5, 6), 0)
    await pool.execute("INSERT INTO places VALUES (3, $1, NULL)", plain)
    rows = await pool.fetch("SELECT place, path FROM places ORDER BY id")
    assert [row["place"] for row in rows] == [
        home,
        nowhere,
        Place(Point(5, 6), "plain"),
    ]
    assert rows[0]["path"] == path
    assert isinstance(rows[0]["path"][0], Point)
    assert await pool.fetchval("SELECT $1::wrapped", Wrapped(7)) == Wrapped(7)
    async with pool.stream("SELECT place FROM places WHERE id = 1") as streamed:
        assert [row[0] async for row in streamed] == [home]


async def test_every_connection_knows_the_type(pool):
    """Those that are made later, after a drain, and those outside the pool."""
    async with pool.acquire() as before:
        await pool.register_composite("point2", Point)
        assert await before.fetchval("SELECT 1") == 1
    await pool.drain()

    async def ask():
        async with pool.acquire() as connection:
            await both.wait()
            return await connection.fetchval("SELECT $1::point2", Point(1, 2))

    both = asyncio.Barrier(3)
    assert await asyncio.gather(*(ask() for _ in range(3))) == [Point(1, 2)] * 3
    own = await pool.connect("own")
    assert await own.fetchval("SELECT ROW(3, 4)::point2") == Point(3, 4)
    await own.aclose()


async def test_what_does_not_fit_is_refused_when_it_is_registered(pool, caplog):
    """No such type, other fields, no such class; a dropped type hinders nobody."""
    with pytest.raises(InvalidName, match=r"shop\.point2"):
        await pool.register_composite("point2", Point, schema="shop")
    with pytest.raises(ConfigurationInvalid, match=r"x, y, but type public\.wrapped"):
        await pool.register_composite("wrapped", Point)
    with pytest.raises(ConfigurationInvalid, match="neither a dataclass"):
        await pool.register_composite("point2", int)
    await pool.execute("CREATE TYPE noted AS (value jsonb)")
    with pytest.raises(ConfigurationInvalid, match="json in a column of its own"):
        await pool.register_composite("noted", Wrapped)
    await pool.register_composite("wrapped", Wrapped)
    with pytest.raises(InvalidRecord):
        await pool.fetchval("SELECT $1::wrapped", 7)
    await pool.execute("DROP TYPE wrapped")
    await pool.drain()
    assert await pool.fetchval("SELECT 1") == 1
    await pool.execute("CREATE TYPE wrapped AS ENUM ('a')")
    assert await pool.fetchval("SELECT 'a'::wrapped") == "a"
    assert "type public.wrapped: it is scalar by now" in caplog.text
