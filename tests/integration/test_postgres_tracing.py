"""Spans follow the conventions, last as long as the call, and hold no values."""

from __future__ import annotations

import asyncio
import datetime as dt

import asyncpg
import pytest
from opentelemetry import metrics as otel
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fm_storage.config import PostgresConfig
from fm_storage.errors import PoolTimeout, QueryFailed, QueryTimeout
from fm_storage.postgres import Pool, Sql
from fm_storage.postgres.pool.replica import ReadPool
from fm_storage.postgres.telemetry import metrics, tracing
from fm_storage.postgres.telemetry.text import described
from fm_storage.sessions import SessionService
from tests.support.waiting import sleeping_on_server, until


@pytest.fixture
def spans(monkeypatch):
    """Give the exporter of a provider that is installed for this test only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()
    monkeypatch.undo()
    tracing.switch_on()


async def test_each_statement_has_a_span(empty_dsn, spans):
    """Name, kind, system, operation and text; no parameters; errors by SQLSTATE."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        await pool.fetchval("SELECT $1::text", "s3cret")
        with pytest.raises(QueryFailed):
            await pool.execute(Sql("SELECT 1 / 0"))
        async with pool.transaction() as tx:
            await tx.fetchval("SELECT 3")
            with pytest.raises(QueryFailed):
                async with tx.savepoint() as inner:
                    await inner.execute("SELECT 1 / 0")
    got = {
        span.attributes["db.query.text"]: span for span in spans.get_finished_spans()
    }
    assert {"BEGIN", "SELECT 3", "COMMIT", "SELECT 1 / 0"} <= got.keys()
    one = got["SELECT $1::text"]
    assert one.kind is trace.SpanKind.CLIENT
    assert one.attributes["db.system.name"] == "postgresql"
    assert one.attributes["db.operation.name"] == "SELECT"
    assert one.attributes["db.namespace"] in empty_dsn
    assert one.name == f"SELECT {one.attributes['db.namespace']}"
    failed = got["SELECT 1 / 0"]
    assert failed.status.status_code is trace.StatusCode.ERROR
    assert failed.attributes["db.response.status_code"] == "22012"
    assert "s3cret" not in "".join(span.to_json() for span in got.values())


async def test_a_value_of_a_view_is_in_no_span_and_no_log(dsn, spans, caplog):
    """Strings, numbers and dates: a view takes no parameters, so they are literals."""
    config = PostgresConfig(dsn=dsn, slow_query=0.0001)
    values = ("jane.doe@example.org", 47110815, dt.date(1999, 12, 31), "it's\\ 'q'")
    async with Pool(config) as pool:
        service = SessionService(pool)
        await service.open()
        async with service.session() as session:
            view = await session.create_view(
                "SELECT 1 AS a WHERE 'x' <> $1 AND 1 <> $2 AND now() > $3 AND $4 <> ''",
                *values,
            )
            logged = caplog.text
            await pool.fetch(f"SELECT * FROM {view} WHERE 'jane.doe' <> 'x'")
        await service.aclose()
    text = logged + "".join(span.to_json() for span in spans.get_finished_spans())
    assert "CREATE" in logged
    for value in ("jane.doe", "47110815", "1999-12-31", "'q'"):
        assert value not in text
    # A query that somebody wrote is recognised in the log by its own text.
    assert "WHERE 'jane.doe' <> 'x'" in caplog.text


async def test_the_names_of_spans_are_few(empty_dsn, spans):
    """The server's commands, whatever stands before and after them."""
    given = {
        "BEGIN;": "BEGIN",
        "COMMIT ; ": "COMMIT",
        "/* a */ select 1": "SELECT",
        "WITH a AS (SELECT 1 FROM (VALUES (1)) b) SELECT * FROM a": "SELECT",
        "WITH a AS (SELECT 1) VALUES (2)": "VALUES",
        "(SELECT 1)": "SELECT",
    }
    assert described(" -- nothing") == ("EMPTY", " -- nothing")
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        async with pool.acquire() as connection:
            for sql in given:
                await connection.execute(Sql(sql))
        for sql in ("SELEC 1", "SELECT 'unended"):
            with pytest.raises(QueryFailed):
                await pool.execute(Sql(sql))
    seen = [s.attributes["db.operation.name"] for s in spans.get_finished_spans()]
    assert seen[: len(given)] == list(given.values())
    assert seen[len(given) :] == ["OTHER", "SELECT"]


async def test_a_span_ends_with_the_call(empty_dsn, spans):
    """Also when it is cut short."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        with pytest.raises(QueryTimeout):
            await pool.fetchval("SELECT pg_sleep(25)", timeout=0.05)
        await until(lambda: not pool.statistics().resetting)
        task = asyncio.create_task(pool.fetchval("SELECT pg_sleep(26)"))
        watcher = await asyncpg.connect(empty_dsn)  # leaves no spans
        await sleeping_on_server(watcher)
        await watcher.close()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    lasted = [
        (span.end_time - span.start_time) / 1e9 for span in spans.get_finished_spans()
    ]
    assert len(lasted) == 2
    assert max(lasted) < 15


async def test_without_a_provider_there_are_none(empty_dsn):
    """The default provider counts as none, so a statement costs nothing more."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        assert tracing.state.active is False


@pytest.fixture
def meter(monkeypatch):
    """Give a reader of what a meter provider of this test collects."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr(otel, "get_meter_provider", lambda: provider)
    yield lambda: collected(reader)
    provider.shutdown()
    monkeypatch.undo()
    tracing.switch_on()


def collected(reader):
    """Return the points of all metrics, by name."""
    found = {}
    data = reader.get_metrics_data()
    for resource in [] if data is None else data.resource_metrics:
        for scope in resource.scope_metrics:
            assert scope.scope.name == "fm_storage"
            for metric in scope.metrics:
                found[metric.name] = metric
    return found


def values(metric):
    """Return the values by the attributes that distinguish the points."""
    return {
        tuple(sorted(point.attributes.items())): point.value
        for point in metric.data.data_points
    }


async def test_a_pool_is_measured_by_the_conventions(empty_dsn, meter):
    """Sizes, waiting, timeouts as they are at collection; gone after closing."""
    config = PostgresConfig(dsn=empty_dsn, max_size=3, min_size=1)
    name = "db.client.connection.pool.name"
    state = "db.client.connection.state"
    async with Pool(config, name="shop") as pool, Pool(config, name="shop") as other:
        await other.fetchval("SELECT 1")
        async with pool.acquire(), pool.acquire(), pool.acquire():
            late = asyncio.create_task(pool.fetchval("SELECT 1", timeout=0.01))
            await until(late.done)  # awaited by a holder, it would be a deadlock
            assert isinstance(late.exception(), PoolTimeout)
            waiting = asyncio.create_task(pool.fetchval("SELECT 1"))
            await until(lambda: pool.statistics().waiting)
            seen = meter()
        await waiting
        own = ((name, "shop"),)
        # Pools of one name are one to an observer.
        assert values(seen["db.client.connection.count"]) == {
            (*own, (state, "used")): 3,
            (*own, (state, "idle")): 1,
        }
        assert values(seen["db.client.connection.max"]) == {own: 6}
        assert values(seen["db.client.connection.idle.max"]) == {own: 6}
        assert values(seen["db.client.connection.idle.min"]) == {own: 2}
        assert values(seen["db.client.connection.pending_requests"]) == {own: 1}
        assert values(seen["db.client.connection.timeouts"]) == {own: 1}
        assert values(seen["fm_storage.pool.acquired"]) == {own: 4}
        assert seen["db.client.connection.count"].unit == "{connection}"
        seen = meter()
        for metric in ("wait_time", "create_time"):
            (point,) = seen[f"db.client.connection.{metric}"].data.data_points
            assert point.attributes == {name: "shop"}
            assert seen[f"db.client.connection.{metric}"].unit == "s"
            assert point.count >= 2
            assert 0 < point.sum < 60
    assert "db.client.connection.count" not in meter()


async def test_the_lag_of_a_replica_is_measured(empty_dsn, meter):
    """The worst of the pools with one name, and how often the primary answered."""
    config = PostgresConfig(dsn=empty_dsn, read_dsn=empty_dsn)
    async with Pool(config, name="shop") as pool, ReadPool(pool) as reads:
        await until(lambda: reads.statistics().lag == 0.0)
        # Nothing is there yet, so the primary answers.
        assert await reads.after("FFFFFFFF/0").fetchval("SELECT 1", timeout=0.2) == 1
        seen = meter()
        own = (("db.client.connection.pool.name", "shop-reads"),)
        assert values(seen["fm_storage.pool.lag"]) == {own: 0.0}
        assert seen["fm_storage.pool.lag"].unit == "s"
        assert values(seen["fm_storage.pool.fallbacks"])[own] == 1
    assert "fm_storage.pool.lag" not in meter()


async def test_statements_are_timed_by_the_conventions(empty_dsn, meter):
    """Duration by operation and outcome; no text, no parameters; spans not needed."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        await pool.fetchval("SELECT $1::text", "s3cret")
        async with pool.acquire() as connection:
            await connection.fetchval("SELECT 2")
            with pytest.raises(QueryFailed):
                await connection.execute("SELECT 1 / 0")
    metric = meter()["db.client.operation.duration"]
    counted = {
        (point.attributes["db.operation.name"], point.attributes.get("error.type")): (
            point.count
        )
        for point in metric.data.data_points
    }
    assert counted == {("SELECT", None): 2, ("SELECT", "22012"): 1}
    assert metric.unit == "s"
    assert "s3cret" not in metric.to_json()
    assert "db.query.text" not in metric.to_json()


async def test_without_a_meter_nothing_is_measured(empty_dsn):
    """The default provider counts as none."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        assert metrics.state.active is False
