"""Errors that came in without a group: all are grouped by the time anyone asks."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query import grouping
from fm_storage.catalog.query.grouping import group_ungrouped
from fm_storage.catalog.query.groups import fetch_groups
from fm_storage.config import PostgresConfig
from fm_storage.postgres import Pool
from fm_storage.repositories import ErrorEntry, Severity

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

NOW = datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)


@pytest.fixture
async def errors(storage):
    """Give an error manager over real engines."""
    async with ErrorManager(storage) as manager:
        yield manager


def entry(number, **changes):
    """Return an error as an application makes it."""
    plain = ErrorEntry(
        message=f"order {number} refused",
        module="shop",
        error_code="E42",
        timestamp=NOW + timedelta(seconds=number),
    )
    return replace(plain, **changes)


async def ungrouped(storage):
    """Return how many errors have no group."""
    return await storage.pool.fetchval(
        "SELECT count(*) FROM project_errors WHERE id NOT IN "
        "(SELECT error_id FROM fm_storage.error_fingerprints)"
    )


async def insert(storage, severity, key):
    """Insert an error as another program would, with SQL of its own."""
    await storage.pool.execute(
        "INSERT INTO project_errors (id, timestamp, message, module, error_code, "
        "severity) VALUES ($1, $2, 'order 903 refused', 'shop', 'E42', $3)",
        key,
        NOW,
        severity,
    )


@pytest.mark.lengthy
async def test_what_a_repository_creates_is_in_the_same_group_as_what_is_recorded(
    errors, storage
):
    """One group: recorded, created, created in bulk, inserted by hand."""
    await errors.catalog(entry(1))
    await storage.error_entries.create(entry(2))
    await storage.error_entries.create_many([entry(n) for n in range(3, 903)])
    await insert(storage, "CRITICAL", uuid4())
    assert await ungrouped(storage) == 902
    totals = await errors.analyzer.totals()
    assert (totals.errors, totals.groups) == (903, 1)
    [group] = await errors.groups()
    assert (group.count, group.severity) == (903, Severity.CRITICAL)
    assert group.template == "order <n> refused"
    assert await ungrouped(storage) == 0
    assert await group_ungrouped(storage.pool) == 0


async def test_between_whole_comparisons_new_ids_are_found_at_once(
    errors, storage, monkeypatch
):
    """What is created now is in the next answer; an old id within a minute."""
    assert await errors.groups() == []
    await storage.error_entries.create(entry(1))
    assert (await errors.groups())[0].count == 1
    await insert(storage, "odd", UUID(int=1))
    assert (await errors.groups(order="last_seen"))[0].count == 1
    monkeypatch.setattr(grouping, "WHOLE_EVERY", 0.0)
    assert await group_ungrouped(storage.pool) == 1
    rank = await storage.pool.fetchval(
        "SELECT severity FROM fm_storage.error_fingerprints WHERE error_id = $1",
        UUID(int=1),
    )
    assert rank == 40


@pytest.mark.lengthy
async def test_recording_leaves_nothing_to_be_grouped(errors, storage):
    """One by one and from a log: the group is stored with the error."""
    await errors.record("order 1 refused", module="shop")
    line = "2024-01-02 03:04:05 ERROR [shop] order 2 refused\n"
    await errors.ingest([line], source="s")
    assert await ungrouped(storage) == 0


async def test_who_may_not_write_is_answered_all_the_same(storage, dsn):
    """Through a connection that only reads, groups are those that are there."""
    async with ErrorManager(storage) as errors:
        await errors.catalog(entry(1))
        await storage.error_entries.create(entry(2))
    async with Pool(
        PostgresConfig(dsn=dsn, server_settings={"default_transaction_read_only": "on"})
    ) as reader:
        [group] = await fetch_groups(reader)
    assert group.count == 1


async def test_an_error_that_is_changed_changes_its_group(errors, storage):
    """Time and severity follow at once, a changed text is grouped anew."""
    recorded = (await errors.catalog(entry(1))).entry
    await errors.catalog(entry(2))
    repository = storage.error_entries
    later = recorded.timestamp + timedelta(days=1)
    worse = await repository.update(
        replace(recorded, severity=Severity.CRITICAL, timestamp=later)
    )
    assert await ungrouped(storage) == 0
    [group] = await errors.groups()
    assert (group.severity, group.last_seen, group.count) == ("CRITICAL", later, 2)
    assert group.example.id == recorded.id
    await repository.update(replace(worse, message="disk full"))
    assert await ungrouped(storage) == 1
    found = {group.template: group for group in await errors.groups()}
    assert found.keys() == {"disk full", "order <n> refused"}
    assert found["disk full"].severity == "CRITICAL"


@pytest.mark.lengthy
async def test_a_change_that_concerns_no_group_touches_none(errors, storage):
    """A note in the context leaves the group's row as it was."""
    recorded = (await errors.catalog(entry(1))).entry
    row = "SELECT ctid::text, xmin::text FROM fm_storage.error_fingerprints"
    before = await storage.pool.fetchrow(row)
    await storage.error_entries.update(
        replace(recorded, manager_context={"note": "seen"})
    )
    assert await storage.pool.fetchrow(row) == before


async def test_several_readers_share_the_work(errors, storage):
    """Each error is grouped once, no matter how many ask at once."""
    await storage.error_entries.create_many([entry(n) for n in range(1200)])
    done = await asyncio.gather(*(group_ungrouped(storage.pool) for _ in range(4)))
    assert sum(done) == 1200
    [group] = await errors.groups()
    assert group.count == 1200


async def test_what_was_never_grouped_is_purged_and_followed_too(errors, storage):
    """Purging deletes it by its age, tail shows it when it looks next."""
    await storage.error_entries.create(entry(1))
    assert await errors.purge(NOW + timedelta(days=1)) == 1
    assert await storage.error_entries.count() == 0
    async with errors.tail() as entries:
        made = await storage.error_entries.create(entry(2, timestamp=datetime.now(UTC)))
        assert (await asyncio.wait_for(anext(entries), 60)).id == made.id
