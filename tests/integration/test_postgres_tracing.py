"""Spans follow the conventions, last as long as the call, and hold no values."""

from __future__ import annotations

import asyncio

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from fm_storage.config import PostgresConfig
from fm_storage.errors import QueryFailed, QueryTimeout
from fm_storage.postgres import Pool, Sql, tracing
from tests.waiting import until


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


async def test_a_span_ends_with_the_call(empty_dsn, spans):
    """Also when it is cut short."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        with pytest.raises(QueryTimeout):
            await pool.fetchval("SELECT pg_sleep(25)", timeout=0.05)
        await until(lambda: not pool.statistics().mending)
        task = asyncio.create_task(pool.fetchval("SELECT pg_sleep(26)"))
        await until(lambda: pool.statistics().busy)
        await asyncio.sleep(0.05)
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
        assert tracing.active is False
