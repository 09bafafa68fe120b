"""Times at which nothing can have happened, and rows that cannot be stored."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta, timezone
from urllib.parse import urlsplit

import asyncpg
import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.errors import InvalidRecord
from fm_storage.manager import StorageManager
from fm_storage.repositories import ErrorEntry

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

EAST, WEST = timezone(timedelta(hours=14)), timezone(timedelta(hours=-12))
ODD = (
    datetime(1, 1, 1, tzinfo=UTC),
    datetime(1, 1, 1, tzinfo=EAST),
    datetime(9999, 12, 31, 23, 59, 59, tzinfo=WEST),
    datetime.max.replace(tzinfo=UTC),
    datetime.max,
)


@pytest.fixture
async def errors(storage):
    """Give a manager without vectors to wait for."""
    async with ErrorManager(storage) as manager:
        yield manager


async def ask_everything(errors):
    """Ask every question that has to do with time."""
    analyzer = errors.analyzer
    for question in (
        errors.report(),
        errors.groups(order="last_seen"),
        analyzer.timeline(),
        analyzer.timeline(bucket=timedelta(days=400)),
        analyzer.heat(),
        analyzer.patterns(),
        analyzer.frequencies("hour"),
        analyzer.frequencies("weekday"),
        analyzer.correlations(timedelta(hours=1)),
        analyzer.growing(timedelta(days=300)),
        analyzer.new_since(datetime.now(UTC) - timedelta(days=400)),
    ):
        await question
    (await errors.report()).to_html()


@pytest.mark.parametrize("at", ODD, ids=str)
@pytest.mark.lengthy
async def test_an_impossible_time_is_replaced_and_named(errors, at):
    """The error is kept as of now; the time that it came with is in its repairs."""
    recorded = await errors.record("boom", module="m", timestamp=at)
    assert recorded.durable
    assert datetime.now(UTC) - recorded.entry.timestamp < timedelta(minutes=5)
    assert at.isoformat() in recorded.repairs[0]
    [group] = await errors.groups()
    assert group.last_seen == recorded.entry.timestamp
    await ask_everything(errors)


@pytest.mark.lengthy
async def test_a_log_line_with_an_impossible_time_takes_that_of_the_one_before(errors):
    """Zero times of Go, years with offsets beyond the last: kept in order, marked."""
    report = await errors.ingest(
        [
            "2026-01-02T10:11:12Z ERROR shop - first\n",
            "0001-01-01T00:00:00+02:00 ERROR shop - zero\n",
            "9999-12-31T23:59:59-12:00 ERROR shop - last\n",
            "2026-01-02T10:11:13Z ERROR shop - then\n",
        ]
    )
    assert (report.entries, report.added, report.refused) == (4, 4, 0)
    found = {group.template: group for group in await errors.groups()}
    assert found["zero"].last_seen == datetime(2026, 1, 2, 10, 11, 12, tzinfo=UTC)
    context = found["zero"].example.manager_context or {}
    assert "0001-01-01T00:00:00+02:00" in context["_repaired"][0]
    await ask_everything(errors)


@pytest.mark.lengthy
async def test_infinite_times_stored_by_others_break_no_question(errors, storage):
    """A repository or plain SQL may store any time; groups have it with a zone."""
    await errors.record("now", module="m")
    await storage.pool.execute(
        "INSERT INTO project_errors (id, timestamp, message, module, error_code, "
        "severity) SELECT gen_random_uuid(), at, 'far ' || at, 'sql', 'X', 'ERROR' "
        "FROM unnest('{-infinity,infinity,0001-01-01 00:00:00 BC}'::timestamptz[]) at"
    )
    await storage.error_entries.create(
        ErrorEntry("early", "sql", "X", timestamp=datetime(1, 1, 2, tzinfo=UTC))
    )
    groups = await errors.groups(limit=50)
    assert {group.module for group in groups} == {"m", "sql"}
    assert all(group.last_seen.tzinfo is not None for group in groups)
    assert all(group.example.timestamp.tzinfo is not None for group in groups)
    await ask_everything(errors)
    assert (await errors.analyzer.totals()).errors == 1


async def test_a_span_longer_than_a_century_is_refused(errors):
    """Where the arithmetic of dates would overflow, the argument is named."""
    with pytest.raises(InvalidRecord, match="window is"):
        await errors.analyzer.growing(timedelta(days=900_000))
    with pytest.raises(InvalidRecord, match="window is"):
        await errors.report(window=1e12)


@pytest.mark.lengthy
async def test_a_row_that_cannot_be_stored_fails_alone_with_its_line(errors, storage):
    """Of a log, all other entries are stored; the report has line and reason."""
    await storage.pool.execute(
        "ALTER TABLE project_errors ADD CHECK (message NOT LIKE '%forbidden%')"
    )
    lines = [f"2026-01-02 10:11:12 ERROR [shop] item {n} failed\n" for n in range(300)]
    lines[7] = "2026-01-02 10:11:12 ERROR [shop] forbidden\n"
    lines[231] = "2026-01-02 10:11:12 ERROR [shop] forbidden too\n"
    report = await errors.ingest(lines, batch_size=100)
    assert (report.added, report.refused, report.duplicates) == (298, 2, 0)
    assert report.refusals[0].startswith("line 8: ")
    assert report.refusals[1].startswith("line 232: ")
    assert "2 refused by the database" in str(report)


@pytest.mark.lengthy
async def test_the_spool_never_sticks_on_one_entry(errors, storage):
    """What the database refuses is set aside, and the rest is brought in."""
    await storage.pool.execute(
        "ALTER TABLE project_errors ADD CHECK (message NOT LIKE '%forbidden%')"
    )
    refused = await errors.record("forbidden", module="m")
    assert not refused.durable
    async with asyncio.timeout(60):
        assert await errors.flush()
    kept = await errors.record("another", module="m")
    assert kept.durable
    assert await storage.error_entries.count() == 1


@pytest.mark.lengthy
async def test_a_database_in_latin1_takes_every_error(dsn, tmp_path):
    """What its encoding lacks is escaped, and the repair is named; é stays é."""
    parts = urlsplit(dsn)
    name = f"{parts.path[1:]}_latin1"
    connection = await asyncpg.connect(dsn)
    # Before PostgreSQL 15 there is no other provider of locales.
    modern = connection.get_server_version().major >= 15
    await connection.execute(
        f'CREATE DATABASE "{name}" ENCODING LATIN1 LC_COLLATE "C" LC_CTYPE "C" '
        "TEMPLATE template0" + " LOCALE_PROVIDER libc" * modern
    )
    try:
        config = StorageConfig(
            postgres={"dsn": parts._replace(path=f"/{name}").geturl()},
            qdrant=None,
            data_dir=tmp_path,
        )
        async with StorageManager(config) as storage, ErrorManager(storage) as errors:
            assert (await errors.record("plain é", module="m")).durable
            recorded = await errors.record(
                "漢 é", module="m", context={"key 漢": ["é", "漢"]}
            )
            assert recorded.durable
            report = await errors.ingest(["2026-01-02 10:11:12 ERROR [shop.m] 漢 2\n"])
            assert report.added == 1
            stored = {
                one.message: one for one in await storage.error_entries.find_many()
            }
            assert set(stored) == {"plain é", r"\u6f22 é", r"\u6f22 2"}
            context = stored[r"\u6f22 é"].manager_context or {}
            assert context[r"key \u6f22"] == ["é", r"\u6f22"]
            assert "LATIN1" in context["_repaired"][-1]
    finally:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.close()
