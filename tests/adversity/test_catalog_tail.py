"""Following errors while the server restarts: everything is shown, and once."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query import tail
from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid, QueryFailed
from fm_storage.manager import StorageManager
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(240)


def settings(cluster, folder):
    """Return the configuration of one process on a server that may be mistreated."""
    return StorageConfig(
        postgres={"dsn": cluster.dsn, "max_size": 4, "acquire_timeout": 2.0},
        qdrant=None,
        data_dir=folder,
    )


async def follow(entries, shown, wanted):
    """Note what is shown until nothing is missing that *wanted* holds at the end."""
    async for entry in entries:
        shown.append(entry.id)
        if wanted.done() and wanted.result() <= set(shown):
            return


async def test_a_restart_of_the_server_loses_nothing_and_doubles_nothing(
    cluster, tmp_path
):
    """What is recorded before, while it is away, and after: all of it, exactly once.

    Recorder and follower are two managers with spools of their own, as in two
    processes; the server is killed once and stopped once.
    """
    async with (
        StorageManager(settings(cluster, tmp_path / "a")) as writing,
        StorageManager(settings(cluster, tmp_path / "b")) as reading,
        ErrorManager(writing, timeout=0.5) as errors,
        ErrorManager(reading) as watcher,
        watcher.tail() as entries,
    ):
        shown: list[object] = []
        wanted = asyncio.get_running_loop().create_future()
        following = asyncio.create_task(follow(entries, shown, wanted))
        given: set[object] = set()
        spooled = 0
        enough = asyncio.Event()
        stop = asyncio.Event()

        async def work():
            nonlocal spooled
            n = 0
            while not stop.is_set():
                recorded = await errors.record(f"error {n}", module="m")
                given.add(recorded.id)
                spooled += not recorded.durable
                n += 1
                if spooled >= 3:
                    enough.set()
                await asyncio.sleep(0.01)

        working = asyncio.create_task(work())
        for away in (cluster.kill, cluster.stop):
            enough.clear()
            spooled = 0
            await away()
            await asyncio.wait_for(enough.wait(), 60)
            await cluster.start()
            assert await errors.flush(60)
        stop.set()
        await working
        last = await errors.record("the last", module="m")
        given.add(last.id)
        assert await errors.flush(60)
        wanted.set_result(given)
        # One more, so that the follower looks at what it has.
        extra = await errors.record("one more", module="m")
        await asyncio.wait_for(following, 90)
        assert len(shown) == len(set(shown))
        assert set(shown) - {extra.id} == given


async def test_a_flood_is_followed_to_its_end(cluster, tmp_path):
    """More errors at once than a look fetches: none is left out, none comes twice."""
    config = settings(cluster, tmp_path)
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        async with errors.tail() as entries:
            drafts = await asyncio.gather(
                *(errors.record(f"error {n}", module=f"m{n % 3}") for n in range(1500))
            )
            found = [await asyncio.wait_for(anext(entries), 60) for _ in range(1500)]
        assert {entry.id for entry in found} == {one.id for one in drafts}
        async with errors.tail(module="m1", severity="CRITICAL") as entries:
            await errors.record("no", module="m1")
            await errors.record("no", module="m2", severity="CRITICAL")
            yes = await errors.record("yes", module="m1", severity="CRITICAL")
            assert (await asyncio.wait_for(anext(entries), 60)).id == yes.id


@pytest.fixture
def hasty(monkeypatch):
    """Let a follower look twenty times a second, and go back a moment only."""
    monkeypatch.setattr(tail, "BACKSTOP", 0.05)
    monkeypatch.setattr(tail, "OVERLAP", timedelta(seconds=0.05))


@pytest.fixture
def lines(dsn, tcp_proxy, tmp_path):
    """Give a line that can be cut, and a storage that follows through it."""
    proxy = tcp_proxy(dsn)
    config = StorageConfig(
        postgres={"dsn": proxy.dsn(dsn), "connect_timeout": 2, "acquire_timeout": 0.3},
        qdrant=None,
        data_dir=tmp_path / "reader",
    )
    return proxy, config


@pytest.mark.usefixtures("hasty")
async def test_what_is_replayed_after_an_outage_is_shown_with_its_old_time(
    lines, storage, caplog
):
    """It happened while the line was down, was stored later, and is not passed over."""
    caplog.set_level(logging.INFO, "fm_storage.catalog")
    proxy, config = lines
    async with (
        StorageManager(config) as reading,
        ErrorManager(reading) as watcher,
        ErrorManager(storage) as errors,
        watcher.tail() as entries,
    ):
        before = await errors.record("before", module="m")
        assert (await asyncio.wait_for(anext(entries), 60)).id == before.id
        looking = asyncio.ensure_future(anext(entries))
        proxy.refuse()
        await until(lambda: "following waits" in caplog.text)
        happened = datetime.now(UTC)
        await asyncio.sleep(0.3)
        proxy.accept()
        after = await errors.record("after", module="m")
        assert (await asyncio.wait_for(looking, 60)).id == after.id
        replayed = await errors.record("replayed", module="m", timestamp=happened)
        assert (await asyncio.wait_for(anext(entries), 60)).id == replayed.id


@pytest.mark.usefixtures("hasty")
async def test_what_waiting_does_not_mend_ends_the_following(storage):
    """A table that is gone is an error, not a reason to wait for ever."""
    async with ErrorManager(storage) as errors, errors.tail() as entries:
        await storage.pool.execute("DROP TABLE fm_storage.error_fingerprints CASCADE")
        with pytest.raises(QueryFailed):
            await asyncio.wait_for(anext(entries), 60)


@pytest.mark.usefixtures("hasty")
async def test_through_a_pooler_new_errors_are_found_by_looking(storage, monkeypatch):
    """Where LISTEN hears nothing, a look now and then finds them."""

    def deaf(channel):
        raise ConfigurationInvalid("postgres.dsn", f"no {channel} through a pooler")

    monkeypatch.setattr(storage.pool, "listen", deaf)
    async with ErrorManager(storage) as errors, errors.tail() as entries:
        recorded = await errors.record("heard", module="m")
        assert (await asyncio.wait_for(anext(entries), 60)).id == recorded.id
