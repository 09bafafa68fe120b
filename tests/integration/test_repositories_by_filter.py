"""Changes and deletions by filter, and rows that are locked while they are read."""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass
from typing import Any

import pytest

from fm_storage.errors import ConfigurationInvalid, InvalidName, InvalidRecord
from fm_storage.repositories import Column, Repository, where
from fm_storage.vector_state import decode_vectors


@dataclass(slots=True)
class Job:
    """What the tests change."""

    id: int
    state: str = "new"
    tries: int = 0
    version: int = 1
    gone: dt.datetime | None = None


TABLE = """CREATE TABLE job (id int PRIMARY KEY, state text NOT NULL,
  tries int CHECK (tries < 10), version int NOT NULL, gone timestamptz)"""


@pytest.fixture
async def jobs(pool):
    """Give five jobs, one of them deleted softly."""
    await pool.execute(TABLE)
    columns = {name: Column(type="int4") for name in ("id", "tries", "version")}
    found = Repository(
        pool, Job, columns=columns, version="version", deleted="gone", collection="jobs"
    )
    await found.create_many([Job(n) for n in range(5)], vectors=[[1.0]] * 5)
    await found.delete(4)
    return found


async def states(pool):
    """Return what the points of the jobs should be."""
    rows = await pool.fetch(
        "SELECT point_id, op, vectors FROM fm_storage.vector_state ORDER BY point_id"
    )
    return {
        point: (op, vectors and decode_vectors(vectors)) for point, op, vectors in rows
    }


async def test_update_where_changes_the_living_rows_that_match(jobs):
    """It tells how many; versions rise; points keep their vectors."""
    before = await states(jobs.executor)
    assert await jobs.update_where(where("id") >= 2, {"state": "old", "tries": 1}) == 2
    assert (
        await jobs.update_where([where("id") == 0, where("tries") == 5], {"tries": 2})
        == 0
    )
    rows = await jobs.with_deleted().find_many(order_by="id")
    assert [(row.state, row.version) for row in rows] == [
        ("new", 1),
        ("new", 1),
        ("old", 2),
        ("old", 2),
        ("new", 2),  # its deletion raised the version
    ]
    assert await states(jobs.executor) == before


async def test_delete_where_deletes_rows_and_their_points(jobs):
    """Softly where that was declared, and again by restore()."""
    assert await jobs.delete_where(where("id") < 2) == 2
    assert await jobs.delete_where(where("id") < 2) == 0
    assert {point: op for point, (op, _) in (await states(jobs.executor)).items()} == {
        "0": "d",
        "1": "d",
        "2": "u",
        "3": "u",
        "4": "d",
    }
    assert (await jobs.restore(1)).gone is None
    assert (await states(jobs.executor))["1"][0] == "u"
    plain = Repository(jobs.executor, Job, columns={"gone": Column()})
    assert await plain.delete_where([where("id") < 2, where("state") == "new"]) == 2
    assert await plain.count() == 3


async def test_no_filter_must_be_asked_for(jobs):
    """Every row is meant only when that is said."""
    for call in (
        lambda: jobs.update_where([], {"tries": 1}),
        lambda: jobs.delete_where(()),
    ):
        with pytest.raises(InvalidRecord, match="everything=True"):
            await call()
    assert await jobs.count(where("tries") == 0) == 4
    assert await jobs.update_where([], {"tries": 1}, everything=True) == 4
    assert await jobs.delete_where([], everything=True) == 4
    assert await jobs.count() == 0


async def test_wrong_values_and_fields_are_refused(jobs):
    """Nothing is sent, or all of it undone."""
    for values, error in (
        ({"id": 5}, InvalidName),
        ({"version": 5}, InvalidName),
        ({"nothing": 5}, InvalidName),
        ({"tries": "x"}, InvalidRecord),
        ({"state": None}, InvalidRecord),
    ):
        with pytest.raises(error):
            await jobs.update_where(where("id") == 1, values)
    with pytest.raises(InvalidRecord):
        await jobs.update_where("id = 1", {"tries": 1})
    assert await jobs.get_by_id(1) == Job(1)


async def test_hooks_see_the_keys_and_the_stored_records(jobs):
    """Before, with values they may change; after, as stored; an error undoes."""
    seen: list[Any] = []

    @jobs.before("update", "delete")
    async def before(_transaction, change):
        seen.append((change.operation, sorted(change.keys)))
        if change.values:
            change.values["tries"] += 1

    @jobs.after("update", "delete")
    async def after(_transaction, change):
        seen.append([(one.id, one.tries) for one in change.records])
        if change.operation == "delete":
            raise RuntimeError("no")

    assert await jobs.update_where(where("id") <= 1, {"tries": 3}) == 2
    with pytest.raises(RuntimeError):
        await jobs.delete_where(where("id") == 0)
    assert await jobs.update_where(where("id") > 100, {"tries": 3}) == 0
    seen[1].sort()
    assert seen == [
        ("update", [0, 1]),
        [(0, 4), (1, 4)],
        ("delete", [0]),
        [],
        ("update", []),
    ]
    assert await jobs.count() == 4


async def test_rows_are_locked_until_the_transaction_ends(jobs):
    """Another transaction skips them; outside one a lock is refused."""
    pool = jobs.executor
    async with pool.transaction() as one, pool.transaction() as other:
        mine = await jobs.bind(one).find_many(
            order_by="id", limit=2, for_update=True, skip_locked=True
        )
        theirs = await jobs.bind(other).find_many(
            order_by="id", limit=9, for_update=True, skip_locked=True
        )
        assert [job.id for job in mine] == [0, 1]
        assert [job.id for job in theirs] == [2, 3]
        assert (await jobs.bind(one).get_by_id(0, for_update=True)).id == 0
        assert await jobs.bind(one).find_by_id(77, for_update=True) is None
        await other.execute("SET LOCAL lock_timeout = '50ms'")
        with pytest.raises(Exception, match="55P03"):
            async with other.savepoint() as savepoint:
                await jobs.bind(savepoint).get_by_id(0, for_update=True)
    for call in (
        lambda: jobs.find_many(for_update=True),
        lambda: jobs.find_many(skip_locked=True),
        lambda: jobs.get_by_id(1, for_update=True),
    ):
        with pytest.raises(ConfigurationInvalid):
            await call()
