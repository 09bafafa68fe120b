"""Groups above fingerprints: siblings merge, names stay, upgrades change nothing."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query import merging
from fm_storage.catalog.record.fingerprint import VERSION
from fm_storage.catalog.record.frames import own_code
from fm_storage.catalog.record.row import prepare
from fm_storage.config import StorageConfig
from fm_storage.errors import InvalidRecord, RecordNotFound
from fm_storage.manager import StorageManager
from tests.support.inside import recorder_of

pytestmark = pytest.mark.timeout(120)

NOW = datetime.now(UTC)
NAMES = ("CartService", "MailService", "StockService", "AuditService")


@pytest.fixture
async def errors(storage):
    """Give an error manager over real engines."""
    async with ErrorManager(storage) as manager:
        yield manager


async def started(errors, *names, module="shop"):
    """Record that services failed to start, each a second after the one before."""
    for number, name in enumerate(names):
        await errors.record(
            f"failed to start {name} within 30 s",
            module=module,
            timestamp=NOW - timedelta(minutes=5) + timedelta(seconds=number),
        )


async def in_view(storage):
    """Return how many errors each group has, by the view."""
    rows = await storage.pool.fetch(
        "SELECT group_id, count(*) FROM fm_storage.error_groups GROUP BY 1"
    )
    return {row[0]: row[1] for row in rows}


async def age(storage, factor=3):
    """Make all fingerprints those of an older release, which made others."""
    async with storage.pool.transaction() as tx:
        await tx.execute("DELETE FROM fm_storage.group_merges")
        await tx.execute("DELETE FROM fm_storage.group_members")
        for table in ("fingerprints", "error_fingerprints"):
            await tx.execute(
                f"UPDATE fm_storage.{table} SET fingerprint = fingerprint / {factor}"
            )


async def test_siblings_are_one_group_with_the_name_of_the_oldest(errors, storage):
    """As they arrive, in any module; the list and the view say the same."""
    await started(errors, NAMES[0])
    [first] = await errors.groups()
    await started(errors, *NAMES[1:], module="other")
    [group] = await errors.groups()
    assert (group.fingerprint, group.count) == (first.fingerprint, 4)
    assert group.template == "failed to start <*> within <n>"
    assert set(group.modules) == {"shop", "other"}
    assert await in_view(storage) == {group.group_id: 4}
    assert [one.count for one in await errors.groups(module="other")] == [3]
    assert (await errors.analyzer.totals()).groups == 1
    [pattern] = await errors.analyzer.patterns()
    assert (pattern.fingerprint, pattern.count) == (group.fingerprint, 4)
    assert await errors.analyzer.count_new(NOW - timedelta(minutes=4)) == 0


async def test_two_events_that_differ_in_a_word_stay_two(errors):
    """Opened and closed are no names; nor are methods of a request."""
    for word in ("opened", "closed", "GET", "PUT", "POST"):
        await errors.record(f"the request {word} the file 7 for reading", module="m")
    assert len(await errors.groups()) == 5


async def test_the_same_message_of_two_modules_is_one_group(errors):
    """A module does not split a message."""
    for module in ("web", "worker"):
        await errors.record("disk 7 is full", module=module)
    [group] = await errors.groups()
    assert (group.count, sorted(group.modules)) == (2, ["web", "worker"])


async def test_a_merge_of_two_groups_is_recorded_and_keeps_the_older_name(
    errors, storage
):
    """Two are too few; the third shows that the place varies."""
    await started(errors, *NAMES[:2])
    older, younger = await errors.groups(order="last_seen")
    if older.first_seen > younger.first_seen:
        older, younger = younger, older
    await started(errors, NAMES[2])
    [group] = await errors.groups()
    assert group.fingerprint == older.fingerprint
    [merge] = await storage.pool.fetch("SELECT * FROM fm_storage.group_merges")
    assert (merge["kept"], merge["merged"]) == (older.group_id, younger.group_id)
    assert merge["members"] == [younger.group_id]


@pytest.mark.lengthy
async def test_what_is_split_off_stays_apart_with_the_same_state(errors, storage):
    """Also when more siblings arrive; the merge is marked as undone."""
    await started(errors, *NAMES[:2])
    await errors.groups()
    await started(errors, NAMES[2])
    [group] = await errors.groups()
    await errors.resolve(group)
    members = await errors.group_members(group)
    assert [one.template.split()[3] for one in members] == list(NAMES[:3])
    with pytest.raises(InvalidRecord, match="not all"):
        await errors.split_group(group, members)
    with pytest.raises(InvalidRecord, match="0 of the 1 given"):
        await errors.split_group(group, ["0123456789abcdef"])
    with pytest.raises(RecordNotFound):
        await errors.split_group("0123456789abcdef", members[:1])
    made = await errors.split_group(group, [members[1]])
    assert (made.fingerprint, made.count) == (members[1].fingerprint, 1)
    assert made.state == "resolved"
    await started(errors, NAMES[3])
    counts = {one.fingerprint: one.count for one in await errors.groups()}
    assert counts == {group.fingerprint: 3, made.fingerprint: 1}
    assert await in_view(storage) == {group.group_id: 3, made.group_id: 1}
    assert await storage.pool.fetchval(
        "SELECT count(split_at) FROM fm_storage.group_merges"
    )
    # The oldest may be split off, too: it keeps the name.
    oldest = await errors.split_group(group, [members[0]])
    assert (oldest.fingerprint, oldest.count) == (group.fingerprint, 1)


@pytest.mark.lengthy
async def test_processes_that_merge_at_once_agree(errors, storage):
    """Under one lock: however many ask, one group is found and no deadlock."""
    for number in range(40):
        name = f"{'abcdefghij'[number % 10]}{'Xyz' * (number // 10 + 1)}Service"
        await errors.record(f"failed to start {name} again", module=f"m{number % 3}")
    async with ErrorManager(storage) as other:
        found = await asyncio.gather(
            *(manager.groups() for manager in (errors, other) * 4)
        )
    assert len({groups[0].fingerprint for groups in found}) == 1
    assert all(sum(one.count for one in groups) == 40 for groups in found)


@pytest.mark.lengthy
async def test_an_upgrade_renames_no_group_and_makes_none_new(errors, storage):
    """Errors with older fingerprints are moved; later ones join their groups."""
    await errors.record("order 7 refused", module="shop", timestamp=NOW)
    try:
        raise KeyError("tulip")
    except KeyError as exc:
        await errors.record(exc, module="shop", timestamp=NOW)
    await age(storage)
    await errors.record("order 8 refused", module="shop")
    groups = {one.template: one for one in await errors.groups()}
    assert {one.count for one in groups.values()} == {1, 2}
    old = await storage.pool.fetch("SELECT fingerprint FROM fm_storage.fingerprints")
    assert len(old) == 4
    before = {row[0] for row in old} - {
        row[0]
        for row in await storage.pool.fetch(
            "SELECT DISTINCT fingerprint FROM fm_storage.error_fingerprints"
        )
    }
    # All errors bear today's fingerprints, and the groups their old names.
    assert {one.group_id for one in groups.values()} == before
    assert await errors.analyzer.count_new(NOW + timedelta(microseconds=1)) == 0
    # What an older process still records is in the same group.
    await storage.pool.execute(
        "UPDATE fm_storage.error_fingerprints SET fingerprint = $1 "
        "WHERE fingerprint <> $1 AND error_id = (SELECT id FROM project_errors "
        "WHERE message = 'order 8 refused')",
        groups["order <n> refused"].group_id,
    )
    again = {one.template: one.count for one in await errors.groups()}
    assert again == {one.template: one.count for one in groups.values()}


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.lengthy
async def test_a_spool_of_an_older_release_joins_the_groups_of_today(
    errors, storage, known
):
    """Whether its fingerprints were seen before the upgrade or not."""
    old = prepare("order 8 refused", module="shop", timestamp=NOW)
    old = old._replace(fingerprint=old.fingerprint // 3)
    await errors.record("order 7 refused", module="shop", timestamp=NOW)
    if known:
        await age(storage)
    [before] = await errors.groups()
    recorder = recorder_of(errors)
    await asyncio.to_thread(recorder.spool.append, [old])
    recorder.wake_replay()
    assert await errors.flush(30)
    [group] = await errors.groups()
    assert (group.count, group.fingerprint) == (2, before.fingerprint)
    await errors.record("order 9 refused", module="shop")
    [group] = await errors.groups()
    assert (group.count, group.fingerprint) == (3, before.fingerprint)
    assert await errors.analyzer.count_new(NOW + timedelta(microseconds=1)) == 0


@pytest.mark.lengthy
async def test_an_upgrade_goes_on_where_its_budget_ended(errors, storage, monkeypatch):
    """In batches: no question waits for the whole, and each is answered truly."""
    for number in range(60):
        await errors.record(f"order {number} refused", module="shop")
    await age(storage)
    monkeypatch.setattr(merging, "_BATCH", 7)
    monkeypatch.setattr(merging, "BUDGET", 0.0)
    for _ in range(30):
        [group] = await errors.groups()
        assert group.count == 60
    left = f"SELECT count(*) FROM fm_storage.group_members WHERE version < {VERSION}"
    assert await storage.pool.fetchval(left) == 0
    kinds = "SELECT count(DISTINCT fingerprint) FROM fm_storage.error_fingerprints"
    assert await storage.pool.fetchval(kinds) == 1


@pytest.mark.slow
async def test_the_setting_names_code_of_ones_own(dsn, tmp_path):
    """In this process, and in the one that reads large logs."""
    trace = (
        "Traceback (most recent call last):\n"
        '  File "/srv/shop/views.py", line 1, in {}\n    x()\n'
        '  File "/venv/lib/python3.12/site-packages/acme/core.py", line 1, in run\n'
        "    y()\nValueError: no money\n"
    )
    log = tmp_path / "shop.log"
    line = "2026-01-02 03:04:05,000 ERROR shop - failed\n"
    log.write_text("".join(line + trace.format(f"f{at}") for at in range(2)) * 12_000)
    config = StorageConfig(
        postgres={"dsn": dsn},
        qdrant=None,
        data_dir=tmp_path,
        catalog={"own_code": ["acme"]},
    )
    try:
        async with StorageManager(config) as storage, ErrorManager(storage) as errors:
            await errors.ingest(log)
            [group] = await errors.groups()
            assert group.count == 24_000
    finally:
        own_code([])
