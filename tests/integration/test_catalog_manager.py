"""The error manager on real engines: what is recorded is kept, grouped and found."""

# Raising and catching is what is tested here.

from __future__ import annotations

import asyncio
import random
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from fm_storage.catalog import ErrorManager, Recorded
from fm_storage.catalog.query.groups import hex_of, number_of
from fm_storage.catalog.record.row import Prepared, prepare
from fm_storage.catalog.record.store import CatalogStore
from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, StorageClosed
from fm_storage.manager import StorageManager
from fm_storage.repositories import ErrorEntry, Severity
from tests.support.inside import recorder_of

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


class PaymentRefused(Exception):
    """An error of the application."""


def raised(error: BaseException) -> BaseException:
    """Return *error* with a traceback."""
    try:
        raise error
    except BaseException as exc:
        return exc


@pytest.fixture
async def errors(storage):
    """Give an error manager on fresh engines."""
    async with ErrorManager(storage) as manager:
        yield manager


async def test_an_exception_is_stored_with_trace_code_and_module(errors, storage):
    """The row holds what a person needs, and durable means committed."""
    recorded = await errors.record(
        raised(PaymentRefused("card 12 refused")), context={"user": 7}
    )
    assert recorded.durable
    assert recorded.repairs == ()
    stored = await storage.error_entries.get_by_id(recorded.id)
    assert stored == recorded.entry
    assert stored.message == "card 12 refused"
    assert stored.error_code.endswith("PaymentRefused")
    assert stored.module == __name__
    assert stored.severity is Severity.ERROR
    assert "in raised" in (stored.stack_trace or "")
    assert stored.manager_context == {"user": 7}


async def test_chain_group_and_notes_are_kept(errors):
    """What Python prints is in the trace, and a program finds it in the context."""
    try:
        try:
            raise KeyError("sku")
        except KeyError as cause:
            raise PaymentRefused("no price") from cause
    except PaymentRefused as exc:
        exc.add_note("while closing the cart")
        chained = (await errors.record(exc, module="shop")).entry
    assert "direct cause" in chained.stack_trace
    assert chained.manager_context["caused_by"] == ["KeyError"]
    assert chained.manager_context["notes"] == ["while closing the cart"]
    assert "while closing the cart" in chained.stack_trace

    group = ExceptionGroup(
        "two", [ValueError("a"), ExceptionGroup("in", [OSError("b")])]
    )
    grouped = (await errors.record(raised(group), module="shop")).entry
    assert grouped.manager_context["exceptions"] == ["ValueError: a", "OSError: b"]
    assert "Exception Group Traceback" in grouped.stack_trace


async def test_messages_and_entries_are_taken_too(errors, storage):
    """A message gets a stable code; an entry keeps its id, however often it comes."""
    first = await errors.record("disk 7 is full", module="disk", severity="warning")
    second = await errors.record("disk 9 is full", module="disk")
    assert first.entry.error_code == second.entry.error_code
    assert first.entry.severity is Severity.WARNING
    entry = ErrorEntry(
        "made", "app", "E1", id=uuid4(), timestamp=datetime(2024, 1, 2, tzinfo=UTC)
    )
    for _ in range(2):
        assert (await errors.catalog(entry)).durable
    assert await storage.error_entries.get_by_id(entry.id) == entry
    assert await storage.error_entries.count() == 3


async def test_whatever_an_error_holds_is_stored_and_the_repairs_are_named(
    errors, storage
):
    """NUL, surrogates, endless text, any value: kept as far as it can be."""

    class Hostile:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    class Unprintable(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    recorded = await errors.record(
        "nul \x00 surrogate \udcff",
        module="m" * 300,
        error_code="c" * 200,
        severity="dreadful",
        context={"x": Hostile(), "nan": float("nan"), "big": "y" * 200_000},
        timestamp=datetime(2024, 1, 2),
    )
    assert recorded.durable
    text = " ".join(recorded.repairs)
    for part in (
        "NUL",
        "surrogates",
        "module",
        "error_code",
        "severity",
        "timestamp",
        "context",
    ):
        assert part in text
    stored = await storage.error_entries.get_by_id(recorded.id)
    assert stored.manager_context["_repaired"] == list(recorded.repairs)
    assert stored.severity is Severity.ERROR
    assert (await errors.record(raised(Unprintable()), module="m")).durable


async def test_secrets_reach_neither_store(errors, storage):
    """Message, trace, context and the vectors' payload hold masks only."""
    secret = "hunter2"
    try:
        raise PaymentRefused(f"login failed for password={secret}")
    except PaymentRefused as exc:
        recorded = await errors.record(
            exc, module="m", context={"token": secret, "n": f"pwd={secret}"}
        )
    row = await storage.pool.fetchrow(
        "SELECT * FROM project_errors WHERE id = $1", recorded.id
    )
    assert secret not in str(dict(row))
    await storage.outbox.wait_synced(recorded.id)
    [state] = await storage.pool.fetch("SELECT payload FROM fm_storage.vector_state")
    assert secret not in str(state[0])


async def test_record_state_and_group_are_one_statement(errors, storage):
    """If any part is refused, none of it is there."""
    await storage.pool.execute(
        "ALTER TABLE fm_storage.vector_queue ADD CHECK (ver < 0) NOT VALID"
    )
    recorded = await errors.record("x", module="m")
    assert not recorded.durable
    for table in (
        "project_errors",
        "fm_storage.error_fingerprints",
        "fm_storage.vector_state",
    ):
        count = f"SELECT count(*) FROM {table}"
        assert await storage.pool.fetchval(count) == 0


async def test_groups_count_equal_errors(errors):
    """Numbers do not split a group; filters and order work."""
    begin = datetime(2024, 1, 1, tzinfo=UTC)
    for n in range(5):
        await errors.record(
            f"read {n} bytes", module="disk", timestamp=begin + timedelta(hours=n)
        )
    await errors.record(
        "boom", module="net", severity="CRITICAL", timestamp=begin + timedelta(days=1)
    )
    disk, net = await errors.groups()
    assert (disk.count, disk.template, disk.modules) == (5, "read <n> bytes", ("disk",))
    assert disk.first_seen == begin
    assert disk.last_seen == begin + timedelta(hours=4)
    assert disk.example.message == "read 4 bytes"
    assert net.severity is Severity.CRITICAL
    assert [g.module for g in await errors.groups(module="net")] == ["net"]
    assert [g.module for g in await errors.groups(severity="critical")] == ["net"]
    assert [g.module for g in await errors.groups(order="last_seen", limit=1)] == [
        "net"
    ]
    [some] = await errors.groups(
        since=begin + timedelta(hours=3), until=begin + timedelta(hours=9)
    )
    assert some.count == 2
    with pytest.raises(InvalidRecord, match="unknown"):
        await errors.groups(severity="odd")


@pytest.mark.lengthy
async def test_similar_errors_are_found_directly_after_record(errors):
    """Scenario 4.3: recorded, in both stores, and found by similarity at once."""
    refused = await errors.record("connection to 10.0.0.7:5432 refused", module="db")
    await errors.record("disk quota exceeded on /var/lib", module="disk")
    again = await errors.record("connection to 10.0.0.9:5432 refused", module="db")
    hits = await errors.find_similar(again.entry, limit=2)
    assert hits[0].entry.id == refused.id
    assert again.id not in {hit.entry.id for hit in hits}
    assert (await errors.find_similar("disk quota", limit=1))[0].entry.module == "disk"
    assert (await errors.find_similar(again, module="disk"))[0].entry.module == "disk"
    assert await errors.find_similar(again, severity="CRITICAL") == []
    assert (
        await errors.find_similar(again, since=datetime.now(UTC) + timedelta(days=1))
        == []
    )
    assert (await errors.find_similar(raised(OSError("quota")), limit=1)) != []


async def test_nothing_is_similar_in_an_empty_catalogue(errors):
    """No collection yet is no error."""
    assert await errors.find_similar("anything") == []
    assert await errors.groups() == []


async def test_hooks_see_and_change_what_is_recorded(errors):
    """Before, the entry may change; a broken hook is passed over."""
    seen: list[Recorded] = []

    @errors.before_record
    def add_host(entry):
        entry.manager_context = {"host": "a1"}

    @errors.before_record
    async def rename(entry):
        entry.module = "renamed"
        return entry

    @errors.before_record
    def broken(_entry):
        raise RuntimeError("hook")

    @errors.after_record
    async def note(recorded):
        seen.append(recorded)

    @errors.after_record
    def broken_too(_recorded):
        raise RuntimeError("hook")

    recorded = await errors.record("x", module="m")
    assert recorded.entry.module == "renamed"
    assert recorded.entry.manager_context == {"host": "a1"}
    assert seen == [recorded]
    mine = ErrorEntry(message="x", module="m", error_code="E")
    assert (await errors.record(mine)).entry.module == "renamed"
    assert (mine.module, mine.manager_context) == ("m", None)


async def test_without_vectors_everything_but_similarity_works(dsn, tmp_path):
    """``qdrant=None``: recorded, grouped; a similarity question says what to do."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        assert (await errors.record("x", module="m")).durable
        assert len(await errors.groups()) == 1
        with pytest.raises(ConfigurationInvalid, match="qdrant"):
            await errors.find_similar("x")
        with pytest.raises(InvalidRecord, match="older_than"):
            await errors.purge(datetime(2020, 1, 1))
        assert await errors.purge(timedelta(days=1)) == 0
        assert await errors.purge(datetime.now(UTC) + timedelta(days=1)) == 1


async def test_a_manager_is_used_between_open_and_close(storage):
    """Awaited, used, closed twice; then it says so."""
    errors = await ErrorManager(storage)
    await errors.record("x", module="m")
    await errors.aclose()
    await errors.aclose()
    with pytest.raises(StorageClosed, match="closed"):
        await errors.record("y", module="m")


async def test_purge_takes_rows_groups_and_vectors(errors, storage):
    """What is older goes from both stores, the rest stays."""
    old = datetime(2024, 1, 1, tzinfo=UTC)
    for n in range(7):
        await errors.record(f"old {'abcdefg'[n]}", module="m", timestamp=old)
    young = await errors.record("young", module="m")
    done: list[int] = []
    count = await errors.purge(
        old + timedelta(days=1), batch_size=3, progress=lambda n, _: done.append(n)
    )
    assert (count, done) == (7, [3, 6, 7])
    assert [hit.entry.id for hit in await errors.find_similar("old young")] == [
        young.id
    ]
    assert len(await errors.groups()) == 1
    assert (
        await storage.pool.fetchval(
            "SELECT count(*) FROM fm_storage.error_fingerprints"
        )
        == 1
    )


@pytest.mark.lengthy
async def test_rows_that_were_written_before_hold_up_no_others(errors, storage):
    """Of a batch one is known, one deleted: each is stored once, and the others too."""
    store, pool = recorder_of(errors).open(), storage.pool
    rows = [prepare(f"order {n} refused", module="shop") for n in range(5)]
    assert await store.write_many(pool, rows[:2]) == 2
    assert await store.write_many(pool, rows[1:3], fresh=False) == 1
    assert await store.write_many(pool, rows[:4]) == 1
    await pool.execute("DELETE FROM project_errors WHERE id = $1", rows[0].id)
    assert await store.write_many(pool, rows) == 2
    found = await pool.fetch(
        "SELECT e.id, s.op, q.ver = s.ver AS queued, f.fingerprint "
        "FROM project_errors AS e "
        "JOIN fm_storage.error_fingerprints AS f ON f.error_id = e.id "
        "JOIN fm_storage.vector_state AS s ON s.point_id = e.id::text "
        "JOIN fm_storage.vector_queue AS q USING (collection, point_id)"
    )
    assert {row["id"] for row in found} == {row.id for row in rows}
    assert {(row["op"], row["queued"]) for row in found} == {("u", True)}


@pytest.mark.parametrize("collection", ["some", None])
async def test_writers_with_common_rows_do_not_deadlock(storage, collection):
    """Both statements lock in one order: each row is new to one writer, none fails."""
    store, pool, chance = CatalogStore(collection), storage.pool, random.Random(7)
    for turn in range(12):
        rows = [prepare(f"order {turn} refused", module="shop") for _ in range(30)]

        async def some(rows: list[Prepared] = rows) -> int:
            given = chance.sample(rows, chance.randint(2, 30))
            return await store.write_many(pool, given, fresh=chance.random() < 0.6)

        added = sum(await asyncio.gather(*(some() for _ in range(6))))
        assert added + await store.write_many(pool, rows, fresh=False) == len(rows)


async def test_tail_shows_new_errors_of_other_managers(errors, storage):
    """Woken by LISTEN: what is recorded elsewhere appears, filtered."""
    # Inside the block it listens already, and looks back to its beginning.
    async with errors.tail(severity="ERROR") as entries, ErrorManager(storage) as other:
        await other.record("quiet", module="m", severity="INFO")
        recorded = await other.record("loud", module="m")
        assert (await asyncio.wait_for(anext(entries), 20)).id == recorded.id
        waiting = asyncio.ensure_future(anext(entries))
        second = await other.record("louder", module="m")
        assert (await asyncio.wait_for(waiting, 20)).id == second.id


@pytest.mark.lengthy
async def test_one_row_and_many_rows_store_the_same(errors, storage):
    """Both statements leave the same in every table, and say what was new."""
    store = recorder_of(errors).open()
    pool = storage.pool
    given: dict[str, Any] = {
        "module": "shop",
        "stack_trace": 'File "a.py", line 3, in f',
        "context": {"user": 7},
        "timestamp": datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC),
    }
    one, many = prepare("order 1 refused", **given), prepare("order 2 refused", **given)
    bare = CatalogStore(None)
    alone = prepare("order 3 refused", **given)
    assert [await store.write(pool, one), await store.write(pool, one)] == [True, False]
    assert [await bare.write(pool, alone), await bare.write(pool, alone)] == [
        True,
        False,
    ]
    assert await store.write_many(pool, [many]) == 1
    rows = await pool.fetch(
        "SELECT e.stack_trace, e.manager_context, f.fingerprint, f.timestamp, "
        "f.severity, g.template, s.op, s.payload FROM project_errors AS e "
        "JOIN fm_storage.error_fingerprints AS f ON f.error_id = e.id "
        "JOIN fm_storage.fingerprints AS g USING (fingerprint) "
        "LEFT JOIN fm_storage.vector_state AS s ON s.point_id = e.id::text "
        "ORDER BY e.message"
    )
    first, second, third = map(tuple, rows)
    assert first == second
    assert third == (*first[:6], None, None)


async def test_payload_and_json_stay_small_and_plain(errors, storage):
    """The vector store filters by four plain fields."""
    recorded = await errors.record(
        "x", module="m", timestamp=datetime(2024, 1, 2, tzinfo=UTC)
    )
    await storage.outbox.wait_synced(recorded.id)
    [collection] = await storage.qdrant.list_collections()
    [point] = await storage.qdrant.retrieve(collection, [recorded.id])
    kept = {key: value for key, value in point.payload.items() if key[0] != "_"}
    number = int(kept.pop("fingerprint"))
    assert number == number_of((await errors.groups())[0].fingerprint)
    assert kept == {"module": "m", "severity": 40, "at": 1704153600}


def test_a_fingerprint_is_read_back():
    """Sixteen hexadecimal digits stand for a signed number."""
    for number in (0, 1, -1, 2**63 - 1, -(2**63)):
        assert number_of(hex_of(number)) == number
    for wrong in ("", "12", "x" * 16):
        with pytest.raises(ValueError, match=r"."):
            number_of(wrong)
