"""Concurrent writes share statements: each caller's own answer stays true."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time

import asyncpg
import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.errors import QueryFailed, StorageError
from fm_storage.manager import StorageManager
from fm_storage.vector_state import Unembedded

pytestmark = pytest.mark.timeout(120)

_KILL = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity "
    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
)
_REFUSE = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NEW.message LIKE 'bad%' THEN RAISE EXCEPTION 'not this one'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER refuse BEFORE INSERT ON project_errors
  FOR EACH ROW EXECUTE FUNCTION refuse()"""
_NOTE = """
CREATE TABLE noted (point text, setting text);
CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO noted VALUES (NEW.point_id, current_setting('synchronous_commit'));
  RETURN NEW;
END $$;
CREATE TRIGGER note AFTER INSERT ON fm_storage.vector_state
  FOR EACH ROW EXECUTE FUNCTION note()"""


@pytest.fixture
async def parts(dsn, tcp_proxy, vector_folder, tmp_path):
    """Give a storage behind a proxy, the proxy, and a connection past it."""
    proxy = tcp_proxy(dsn)
    config = StorageConfig(
        postgres={"dsn": proxy.dsn(dsn), "connect_timeout": 2},
        qdrant={"url": f"embedded:{vector_folder}", "durability": "process"},
        outbox={"drain": False},
        data_dir=tmp_path / "data",
    )
    async with StorageManager(config) as storage:
        admin = await asyncpg.connect(dsn)
        yield storage, proxy, admin
        await admin.close()


async def statements(admin: asyncpg.Connection) -> int:
    """Return how many rows' transactions there are among the errors."""
    count: int = await admin.fetchval(
        "SELECT count(DISTINCT xmin::text) FROM project_errors"
    )
    return count


async def test_records_of_a_moment_share_their_commits(parts):
    """A hundred tasks, a few transactions; each is answered with its own entry."""
    storage, _, admin = parts
    async with ErrorManager(storage) as errors:
        done = await asyncio.gather(*(errors.record(f"no {n}") for n in range(100)))
    assert all(one.durable for one in done)
    assert [one.entry.message for one in done] == [f"no {n}" for n in range(100)]
    assert await admin.fetchval("SELECT count(*) FROM project_errors") == 100
    assert await statements(admin) <= 8
    assert await storage.outbox.pending() == 100


async def test_one_refused_error_fails_alone(parts):
    """A trigger refuses two of forty: they are set aside, the others are durable."""
    storage, _, admin = parts
    await admin.execute(_REFUSE)
    async with ErrorManager(storage) as errors:
        names = [f"{'bad' if n in (7, 23) else 'good'} {n}" for n in range(40)]
        done = await asyncio.gather(*map(errors.record, names))
        assert [one.durable for one in done] == [n not in (7, 23) for n in range(40)]
        assert (await errors.record("good after")).durable
        assert await errors.flush(30)
    assert await admin.fetchval("SELECT count(*) FROM project_errors") == 39


async def test_an_answer_lost_after_the_commit_doubles_nothing(parts):
    """The outcome of a whole batch is unknown: it is repeated by id."""
    storage, proxy, admin = parts
    async with ErrorManager(storage, timeout=2) as errors:
        await errors.record("warm")
        for _ in range(4):
            proxy.lose_next_answer()
            done = await asyncio.gather(*(errors.record(f"{n}") for n in range(30)))
            there = {r[0] for r in await admin.fetch("SELECT id FROM project_errors")}
            assert {one.id for one in done if one.durable} <= there
            assert await errors.flush(30)
    assert await admin.fetchval("SELECT count(*) FROM project_errors") == 121
    assert await storage.outbox.pending() == 121


async def test_a_storm_of_cancellations_and_kills_loses_nothing(parts):
    """What was answered is there exactly once, whatever happened to other calls."""
    storage, proxy, admin = parts
    answered: dict[object, str] = {}
    chance = random.Random(11)
    stop = time.monotonic() + 4

    async def work(errors, name):
        n = 0
        while time.monotonic() < stop:
            n += 1
            message = f"{name} number {n}"
            with contextlib.suppress(TimeoutError):
                limit = chance.choice((0.0005, 0.003, 0.01, 5.0))
                async with asyncio.timeout(limit):
                    done = await errors.record(message)
                assert done.entry.message == message
                answered[done.id] = message

    async def trouble():
        while time.monotonic() < stop:
            await asyncio.sleep(0.25)
            chance.choice((proxy.cut, proxy.lose_next_answer, lambda: None))()
            await admin.fetchval(_KILL)

    async with ErrorManager(storage, timeout=2) as errors:
        async with asyncio.TaskGroup() as group:
            group.create_task(trouble())
            for name in range(30):
                group.create_task(work(errors, f"w{name}"))
        deadline = time.monotonic() + 60
        while not await errors.flush(10) and time.monotonic() < deadline:
            pass
    rows = await admin.fetch("SELECT id, message FROM project_errors")
    stored = {row["id"]: row["message"] for row in rows}
    assert len(answered) > 100
    assert answered.items() <= stored.items()
    state = await admin.fetchval(
        "SELECT count(*) FROM fm_storage.vector_state WHERE op = 'u'"
    )
    assert state == len(stored)


async def test_points_keep_the_order_of_their_task(parts):
    """Cancelled or not, the last call of a task is what the state says."""
    storage, _, admin = parts
    chance = random.Random(5)

    async def work(name):
        for n in range(40):
            points = [Unembedded(f"{name}", {"n": n})]
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(chance.choice((0.0003, 0.002, 9.0))):
                    if chance.random() < 0.2:
                        await storage.outbox.delete("c", [f"{name}"])
                    else:
                        await storage.outbox.upsert("c", points)
        assert await storage.outbox.upsert("c", [Unembedded(name, {"n": "end"})]) == 1

    await asyncio.gather(*(work(f"w{n}") for n in range(25)))
    rows = await admin.fetch(
        "SELECT s.op, s.payload->>'n' AS n, s.ver = q.ver AS queued "
        "FROM fm_storage.vector_state AS s "
        "JOIN fm_storage.vector_queue AS q USING (collection, point_id)"
    )
    assert [tuple(row) for row in rows] == [("u", "end", True)] * 25


async def test_a_refused_point_fails_alone(parts):
    """PostgreSQL has no NUL in jsonb; the points beside it are written."""
    storage, _, _ = parts
    upsert = storage.outbox.upsert
    texts = ["a\0b" if n == 9 else "plain" for n in range(30)]
    done = await asyncio.gather(
        *(upsert("c", [Unembedded(n, {"t": text})]) for n, text in enumerate(texts)),
        return_exceptions=True,
    )
    assert [one for one in done if isinstance(one, int)] == [1] * 29
    assert isinstance(done[9], StorageError)
    assert await storage.outbox.pending("c") == 29


async def test_a_batch_is_as_durable_as_its_strictest_member(parts):
    """One that wants durability brings it to those that travel with it."""
    storage, _, admin = parts
    await admin.execute(_NOTE)
    name = await admin.fetchval("SELECT current_database()")
    await admin.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    with contextlib.suppress(StorageError):
        await admin.fetchval(_KILL)  # the pool connects anew, with the new default
    await storage.pool.fetchval("SELECT 1")
    upsert = storage.outbox.upsert

    async def noted(*durable: bool) -> list[str]:
        await admin.execute("TRUNCATE noted, fm_storage.vector_state")
        await admin.execute("TRUNCATE fm_storage.vector_queue")
        wanted = enumerate(durable)
        await asyncio.gather(
            *(upsert("c", [Unembedded(n)], durable=one) for n, one in wanted)
        )
        rows = await admin.fetch("SELECT setting FROM noted ORDER BY point")
        return [row[0] for row in rows]

    assert await noted(False, False, False) == ["off"] * 3
    assert await noted(False, False, True) == ["off", "on", "on"]


async def test_a_lost_answer_is_said_to_all_whose_points_it_was(parts):
    """A repeat could undo what another process wrote meanwhile: the callers decide."""
    storage, proxy, admin = parts
    upsert = storage.outbox.upsert
    await upsert("c", [Unembedded(0)])
    proxy.lose_next_answer()
    done = await asyncio.gather(
        *(upsert("c", [Unembedded(n)]) for n in range(1, 20)), return_exceptions=True
    )
    failed = [one for one in done if one != 1]
    assert failed
    assert all(isinstance(one, StorageError) for one in failed)
    assert not any(isinstance(one, QueryFailed) for one in failed)
    count = await admin.fetchval("SELECT count(*) FROM fm_storage.vector_state")
    assert count >= 20 - len(failed)
