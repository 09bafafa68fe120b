"""Where an error came from, and errors that are only counted."""

from __future__ import annotations

import asyncio
import json
import logging
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner
from opentelemetry.sdk.trace import TracerProvider

from fm_storage.catalog import ErrorManager, Origin
from fm_storage.catalog.record.row import Prepared, prepare
from fm_storage.cli import cli
from fm_storage.errors import ConfigurationInvalid
from fm_storage.manager import StorageManager
from tests.support.inside import recorder_of

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

RELEASE = {"release": "shop 1.4.2", "environment": "staging"}


@pytest.fixture
def tracer():
    """Give a tracer of an application; it is not the global one."""
    return TracerProvider().get_tracer("app")


@pytest.fixture
def configured(storage_config):
    """Give a function that adds settings of the catalogue."""

    def with_settings(**catalog):
        given = {**storage_config.catalog.model_dump(), **catalog}
        made = type(storage_config.catalog)(**given)
        return storage_config.model_copy(update={"catalog": made})

    return with_settings


def ids_of(span):
    """Return the ids of a span as they are written."""
    context = span.get_span_context()
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


async def test_the_active_span_the_release_and_the_environment_are_kept(
    configured, tracer
):
    """One by one, in a batch, and by the handler's thread; nothing where no span is."""
    async with (
        StorageManager(configured(**RELEASE)) as storage,
        ErrorManager(storage) as errors,
    ):
        logger = logging.getLogger("test.origins")
        logger.propagate = False
        handler = errors.handler()
        logger.addHandler(handler)

        async def work(n):
            with tracer.start_as_current_span(f"request {n}") as span:
                return ids_of(span), await errors.record(f"refused {n}")

        try:
            with tracer.start_as_current_span("logging") as span:
                logged = ids_of(span)
                logger.error("from the handler")
        finally:
            logger.removeHandler(handler)
        alone = await work("alone")
        made = [alone, *await asyncio.gather(*map(work, range(20)))]
        bare = await errors.record("outside of all spans")
        assert await errors.flush()
        found = await errors.origins([done.id for _, done in made])
        for ids, done in made:
            assert done.origin == found[done.id] == Origin(*ids, *RELEASE.values())
        assert bare.origin == Origin(None, None, *RELEASE.values())
        key = await storage.pool.fetchval(
            "SELECT id FROM project_errors WHERE message = 'from the handler'"
        )
        found = await errors.origins([key, bare.id])
        assert found[key][:2] == logged
        assert found[bare.id] == bare.origin
        # The side table follows its errors, however they are deleted.
        await storage.pool.execute("DELETE FROM project_errors WHERE id = $1", key)
        assert await errors.origins([key]) == {}
        await storage.pool.execute("TRUNCATE project_errors")
        count = "SELECT count(*) FROM fm_storage.error_origins"
        assert await storage.pool.fetchval(count) == 0


@pytest.mark.lengthy
async def test_without_a_span_and_settings_nothing_is_written(storage):
    """Such errors have no row in the side table, and cost none."""
    async with ErrorManager(storage) as errors:
        done = await errors.record("plain")
        await asyncio.gather(*(errors.record(f"plain {n}") for n in range(5)))
        assert done.origin is None
        assert await errors.origins([done.id]) == {}
    count = "SELECT count(*) FROM fm_storage.error_origins"
    assert await storage.pool.fetchval(count) == 0


@pytest.mark.lengthy
async def test_the_spool_keeps_where_errors_came_from(configured):
    """What is replayed by a later release is still of the one that recorded it."""
    async with (
        StorageManager(configured(**RELEASE)) as storage,
        ErrorManager(storage) as errors,
    ):
        old = Origin("a" * 32, "b" * 16, "0.9", None)
        row = prepare("spooled", module="m", origin=old)
        before = prepare("of an older format", module="m")
        lines = json.loads(before.to_json())[:-1]
        assert Prepared.from_json(json.dumps(lines).encode()) == before
        assert Prepared.from_json(row.to_json()) == row
        recorder = recorder_of(errors)
        await asyncio.to_thread(recorder.spool.append, [row, before])
        recorder.wake_replay()
        assert await errors.flush(30)
        assert await errors.origins([row.id, before.id]) == {row.id: old}
        assert await storage.error_entries.count() == 2


@pytest.mark.lengthy
def test_the_command_shows_where_an_error_came_from(configured, tracer, dsn):
    """In the text of one, and in the JSON of one and of the list."""

    async def record():
        async with (
            StorageManager(configured(**RELEASE)) as storage,
            ErrorManager(storage) as errors,
        ):
            with tracer.start_as_current_span("request") as span:
                return ids_of(span), (await errors.record("refused")).id

    def run(*words):
        env = {"FM_STORAGE_POSTGRES__DSN": dsn, "FM_STORAGE_QDRANT": "none"}
        result = CliRunner(env=env).invoke(cli, ["errors", *words])
        assert result.exit_code == 0, result.output
        return result.stdout

    ids, key = asyncio.run(record())
    text = run("show", str(key))
    assert all(one in text for one in (*ids, *RELEASE.values()))
    (listed,) = json.loads(run("list", "--json"))
    shown = json.loads(run("show", str(key), "--json"))
    for one in (listed, shown):
        assert (one["trace_id"], one["span_id"]) == ids
        assert (one["release"], one["environment"]) == tuple(RELEASE.values())


@pytest.mark.lengthy
async def test_beyond_the_limit_errors_are_only_counted(configured):
    """The first of a group and minute are stored; the others say that they are not."""
    async with StorageManager(configured(group_limit=5)) as storage:
        seen = []
        async with ErrorManager(storage) as errors:
            errors.after_record(seen.append)
            done = [await errors.record(f"refused order {n}") for n in range(30)]
            other = await errors.record("another kind entirely")
            stored = [one for one in done if not one.counted]
            assert 5 <= len(stored) <= 10  # a minute may have ended meanwhile
            assert all(one.durable for one in (*stored, other))
            assert not any(one.durable for one in done if one.counted)
            assert [one.counted for one in seen] == [o.counted for o in (*done, other)]
            (count,) = (await errors.counted()).values()
            assert count == 30 - len(stored)
            (group,) = [g for g in await errors.groups() if g.count > 1]
            assert await errors.counted() == {group.fingerprint: count}
            assert (group.count, group.counted) == (30, count)
            later = datetime.now(UTC) + timedelta(minutes=2)
            assert [g.counted for g in await errors.groups(until=later)] == [count, 0]
            page = (await errors.report()).to_html()
            assert "30×" in page
            assert "only counted" in page
            await errors.record("refused order 31")
        async with ErrorManager(storage) as errors:  # another writer of the same minute
            done = [await errors.record(f"refused order {n}") for n in range(20)]
            more = sum(one.counted for one in done)
            total = (await errors.counted())[group.fingerprint]
            assert count + more <= total <= count + more + 1
            assert await storage.error_entries.count() >= 11


@pytest.mark.lengthy
async def test_the_handler_keeps_to_the_limit_as_well(configured):
    """A burst of one line is some rows and a number."""
    async with (
        StorageManager(configured(group_limit=10)) as storage,
        ErrorManager(storage) as errors,
    ):
        logger = logging.getLogger("test.limited")
        logger.propagate = False
        handler = errors.handler()
        logger.addHandler(handler)
        try:
            for n in range(500):
                logger.error("order %d refused", n)
        finally:
            logger.removeHandler(handler)
        assert await errors.flush(30)
        stored = await storage.error_entries.count()
        assert 10 <= stored <= 20
        assert list((await errors.counted()).values()) == [500 - stored]


@pytest.mark.slow
async def test_counts_wait_while_postgres_is_away(configured, dsn, tcp_proxy):
    """They are written by the next attempt, and only once."""
    proxy = tcp_proxy(dsn)
    config = configured(group_limit=1)
    address = config.postgres.model_copy(
        update={"dsn": proxy.dsn(dsn), "connect_timeout": 2.0}
    )
    config = config.model_copy(update={"postgres": address})
    async with (
        StorageManager(config) as storage,
        ErrorManager(storage, timeout=1) as errors,
    ):
        await errors.record("refused order 1")
        proxy.refuse()
        done = [await errors.record(f"refused order {n}") for n in range(2, 12)]
        counted = sum(one.counted for one in done)
        assert counted >= 9
        proxy.accept()
        async with asyncio.timeout(30):
            while sum((await errors.counted()).values()) != counted:
                await asyncio.sleep(0.05)


def test_a_release_that_cannot_be_written_is_refused(configured):
    """A control character would keep every error out."""
    with pytest.raises(ConfigurationInvalid, match="release"):
        configured(release="1.0\0")
