"""PostGIS's types, on an installed server that has them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pytest

from fm_storage.errors import InvalidRecord, QueryFailed
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository, where
from fm_storage.repositories.rows.batches import COPY_ABOVE

pytestmark = [pytest.mark.usefixtures("postgis"), pytest.mark.timeout(90)]
POINT = "geometry(Point,4326)"


@dataclass(slots=True)
class Place:
    """Geometry as text, as bytes, and as whichever is at hand."""

    id: int
    text: Annotated[str, Column(type=POINT)]
    binary: Annotated[bytes, Column(type=POINT)]
    either: Annotated[str | bytes | None, Column(type=POINT)] = None
    area: Annotated[str | None, Column(type="geography")] = None


TABLE = f"""
CREATE TABLE place (id int PRIMARY KEY, text {POINT}, "binary" {POINT},
  either {POINT}, area geography)
"""


async def test_text_and_bytes_alike_by_every_way_of_writing(postgis: Pool):
    """EWKT, hexadecimal text and EWKB in one row, one by one and in bulk."""
    await postgis.execute(TABLE)
    places = Repository(postgis, Place)
    ewkt = "SRID=4326;POINT(1 2)"
    row = await postgis.fetchrow(
        "SELECT ST_AsEWKB($1::geometry) AS b, $1::geometry::text AS h", ewkt
    )
    assert row is not None
    ewkb, hexadecimal = row["b"], row["h"]

    def given(n: int) -> Place:
        return Place(n, ewkt, ewkb, [ewkt, ewkb, hexadecimal, None][n % 4], ewkt)

    await places.create(given(0))
    await places.create(given(1))
    await places.create_many([given(2), given(3)])
    await places.upsert(given(3))
    await places.upsert_many([given(3), given(4), given(5)])
    await places.create_many([given(n) for n in range(10, 11 + COPY_ABOVE)])
    await places.update(1, {"binary": ewkb, "either": bytearray(ewkb)})
    for place in await places.find_many(where("id") < 12, order_by="id"):
        assert (place.text, place.binary) == (hexadecimal, ewkb)
        assert place.either == (None if place.id in {3, 11} else hexadecimal)
    many = COPY_ABOVE + 7
    for condition in (
        where("text") == ewkt,
        where("text").in_([ewkb]),
        where("binary") == ewkb,
        where("binary") == hexadecimal,
    ):
        assert await places.count(condition) == many
    typed = await postgis.fetch_as(Place, "SELECT * FROM place WHERE id = 1")
    assert typed == [await places.get_by_id(1)]

    with pytest.raises(QueryFailed, match="SRID"):
        await places.create(Place(9000, "SRID=3857;POINT(1 2)", ewkb))
    with pytest.raises(QueryFailed) as caught:
        await places.create_many(
            [given(9001), Place(9002, "LINESTRING(0 0)", ewkb), given(9003)]
        )
    assert caught.value.index == 1
    with pytest.raises(InvalidRecord, match="binary"):
        await places.create(Place(9000, ewkt, 5))


async def test_composite_results(postgis: Pool):
    """ST_Dump(): its fields always; whole, once its types are registered."""
    dump = "SELECT {} FROM ST_Dump('MULTIPOINT(1 2, 3 4)'::geometry) AS d"
    with pytest.raises(QueryFailed, match="register_type"):
        await postgis.fetch(dump.format("d"))
    rows = await postgis.fetch(dump.format("(d).path, ST_AsText((d).geom) AS t"))
    assert [tuple(row) for row in rows] == [([1], "POINT(1 2)"), ([2], "POINT(3 4)")]

    await register(postgis, bytes)
    rows = await postgis.fetch(dump.format("d"))
    assert [row["d"]["path"] for row in rows] == [[1], [2]]
    parts = await postgis.fetchval(dump.format("array_agg(d)"))
    points = [
        await postgis.fetchval("SELECT ST_AsText($1::geometry)", one["geom"])
        for one in parts
    ]
    assert points == ["POINT(1 2)", "POINT(3 4)"]


async def test_a_registered_class_goes_in_and_comes_out(postgis: Pool):
    """What a codec takes and gives is the model's, beside text and bytes."""

    @dataclass(frozen=True)
    class Shape:
        ewkb: bytes

    @dataclass(slots=True)
    class Site:
        id: int
        at: Annotated[Any, Column(type=POINT)]

    await postgis.execute(f"CREATE TABLE site (id int PRIMARY KEY, at {POINT})")
    ewkb = await postgis.fetchval("SELECT ST_AsEWKB('SRID=4326;POINT(1 2)'::geometry)")
    await register(postgis, Shape)
    sites = Repository(postgis, Site)
    await sites.create(Site(1, Shape(ewkb)))
    await sites.create_many([Site(2, Shape(ewkb)), Site(3, ewkb), Site(4, ewkb.hex())])
    await sites.upsert(Site(4, Shape(ewkb)))
    found = await sites.find_many(where("at") == Shape(ewkb))
    assert [one.at for one in found] == [Shape(ewkb)] * 4


async def register(pool: Pool, shape: Callable[[bytes], Any]) -> None:
    """Exchange geometry as *shape*."""

    def encode(value: Any) -> bytes:
        return bytes.fromhex(value) if isinstance(value, str) else value.ewkb

    await pool.register_type(
        "geometry",
        encoder=lambda value: value if isinstance(value, bytes) else encode(value),
        decoder=shape,
        format="binary",
    )
