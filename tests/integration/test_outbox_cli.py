"""``fm-storage outbox …`` as a person and as a program sees it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fm_storage.catalog import ErrorManager
from fm_storage.cli import cli
from fm_storage.config import (
    OutboxConfig,
    PostgresConfig,
    QdrantConfig,
    StorageConfig,
)
from fm_storage.manager import StorageManager
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import pool_of

pytestmark = pytest.mark.timeout(90)


class Commands:
    """The command line on one database and one vector folder."""

    def __init__(self, dsn: str, folder: Path) -> None:
        self._dsn, self._folder = dsn, folder

    def __call__(self, *arguments: str) -> Result:
        """Run ``fm-storage outbox ARGUMENTS``."""
        environment = {
            "FM_STORAGE_POSTGRES__DSN": self._dsn,
            "FM_STORAGE_QDRANT__URL": f"embedded:{self._folder}",
            "FM_STORAGE_QDRANT__DURABILITY": "process",
            "FM_STORAGE_OUTBOX__MAX_BACKOFF": "0.1",
        }
        return CliRunner().invoke(cli, ["outbox", *arguments], env=environment)

    def record(self) -> None:
        """Record an error, as an application without a drainer."""

        async def body() -> None:
            config = StorageConfig(
                postgres=PostgresConfig(dsn=self._dsn),
                qdrant=QdrantConfig(
                    url=f"embedded:{self._folder}", durability="process"
                ),
                outbox=OutboxConfig(drain=False),
                data_dir=self._folder,
            )
            async with StorageManager(config) as storage, ErrorManager(storage) as log:
                await log.record(ZeroDivisionError("division"), module="billing")

        asyncio.run(body())

    def json(self, *arguments: str) -> Any:
        """Run it with ``--json`` and return what it prints."""
        return json.loads(self(*arguments, "--json").stdout)

    def prepare(self, job: Callable[[Outbox, QdrantStore], Awaitable[None]]) -> None:
        """Do something with an outbox that does not drain, and its store."""

        async def body() -> None:
            async with (
                Pool(PostgresConfig(dsn=self._dsn)) as pool,
                QdrantStore(
                    QdrantConfig(durability="process"), folder=self._folder
                ) as store,
            ):
                await job(Outbox(pool, store, OutboxConfig(drain=False)), store)

        asyncio.run(body())


@pytest.fixture
def outbox(dsn: str, vector_folder: Path) -> Commands:
    """Give the command line on fresh stores."""
    return Commands(dsn, vector_folder)


async def _fill(outbox: Outbox, store: QdrantStore) -> None:
    await store.ensure_collection_exists("things", 2)
    points = [Point(n, [1.0, n], {"n": n}) for n in range(1, 6)]
    await outbox.upsert("things", [*points, Point(6, [1.0], {"[bold]": "\x1b[31m"})])


@pytest.mark.slow
def test_backlog_is_shown_delivered_and_compared(outbox: Commands):
    """status, drain, quarantine, verify: one after the other, on real stores."""
    assert "up to date" in outbox("status").output
    outbox.prepare(_fill)
    found = outbox.json("status")
    assert (found["pending"], found["drainer"]) == (6, "off")
    assert found["oldest_age"] > 0
    assert "6 pending" in outbox("status").output
    drained = outbox("drain")
    assert "5 delivered, 1 set aside, 0 left" in drained.output
    assert drained.exit_code == 1
    shown = outbox("quarantine", "list")
    assert "DimensionMismatch" in shown.output
    assert shown.exit_code == 1
    compared = outbox("verify")
    assert "not in agreement: 1 point is set aside" in compared.output
    assert "agree\n" not in compared.output
    assert compared.exit_code == 1
    assert outbox.json("verify")["agrees"] is False
    assert outbox("status").exit_code == 1
    assert outbox("repair").exit_code == 1
    (held,) = outbox.json("quarantine", "list", "things")
    assert (held["collection"], held["id"]) == ("things", 6)
    assert "1 will be tried again" in outbox("quarantine", "retry", "--id", "6").output
    assert outbox("drain").exit_code == 1
    assert outbox("quarantine", "discard", "things").exit_code == 2  # asks, no answer
    assert outbox.json("quarantine", "discard", "--yes") == {"count": 1}
    assert outbox("drain").exit_code == 0
    empty = outbox("quarantine", "list")
    assert "nothing is set aside" in empty.output
    assert empty.exit_code == 0
    assert outbox.json("verify")["agrees"] is True
    assert "both stores agree" in outbox("verify").output


@pytest.mark.slow
def test_differences_are_named_and_repaired(outbox: Commands):
    """Verify names what differs and ends with 1; repair mends it."""

    async def damage(queue: Outbox, store: QdrantStore) -> None:
        await _fill(queue, store)
        await queue.delete("things", [6])
        await queue.drain(timeout=15)
        await store.delete_points("things", [2])

    outbox.prepare(damage)
    compared = outbox("verify", "things")
    assert compared.exit_code == 1
    assert "1 missing" in compared.output
    assert "outbox repair" in compared.output
    repaired = outbox("repair")
    assert "1 points queued anew" in repaired.output
    assert outbox("verify").exit_code == 0
    assert outbox.json("repair")["enqueued"] == 0


@pytest.mark.slow
def test_collections_are_rebuilt_by_name_or_all(outbox: Commands):
    """Rebuild needs to know what."""

    async def fill(queue: Outbox, store: QdrantStore) -> None:
        await _fill(queue, store)
        await queue.drain(timeout=15)

    outbox.prepare(fill)
    assert outbox("rebuild").exit_code == 2
    assert "things: 5 points, now things__" in outbox("rebuild", "things").output
    (report,) = outbox.json("rebuild", "--all")
    assert report["copied"] == 5  # the sixth is refused by any such collection
    assert "database's now" in outbox("rebuild", "--adopt").output


@pytest.mark.lengthy
def test_missing_collection_is_named_with_its_remedy(outbox: Commands):
    """Drain and repair say what is in the way, at once, and status says it later."""

    async def fill(queue: Outbox, store: QdrantStore) -> None:
        await store.ensure_collection_exists("things", 2)
        await queue.upsert("things", [Point(1, [1.0, 2.0], {})])
        await queue.upsert("nowhere", [Point(1, [1.0, 2.0], {})])

    outbox.prepare(fill)
    begun = time.monotonic()
    drained = outbox("drain", "--timeout", "60")
    assert time.monotonic() - begun < 45  # it does not sit the timeout out
    assert drained.exit_code == 1
    assert "1 delivered, 0 set aside, 1 left" in drained.output
    said = "collection 'nowhere' does not exist in the vector store; define it"
    assert f"nowhere waits: {said}" in drained.output
    assert "(spec)" not in drained.output
    assert said in outbox.json("drain", "--timeout", "5")["blocked"]["nowhere"]
    assert said in outbox("repair", "--timeout", "5").output
    shown = outbox("status")
    assert said in shown.output
    assert shown.exit_code == 1


@pytest.mark.lengthy
def test_a_collection_that_was_never_written_is_a_slip_of_the_pen(outbox: Commands):
    """No command reports success about a name that means nothing."""
    outbox.prepare(_fill)
    for command in ("verify", "repair", "rebuild"):
        refused = outbox(command, "thing")
        assert refused.exit_code == 2
        assert "nothing was ever written to 'thing'" in refused.output
        assert "known: things" in refused.output


@pytest.mark.lengthy
def test_recorded_errors_are_delivered_from_the_command_line(outbox: Commands):
    """The catalogue's own vectorizer is there; another application's is not."""

    async def fill(queue: Outbox, store: QdrantStore) -> None:
        del store
        await queue.upsert("notes", [Unembedded(1)])

    outbox.prepare(fill)
    outbox.record()
    drained = outbox("drain", "--timeout", "30")
    assert "1 delivered, 0 set aside, 1 left" in drained.output
    assert "notes waits: points of 'notes' have no vectors yet" in drained.output


@pytest.mark.lengthy
def test_table_is_tracked_backfilled_and_untracked(outbox: Commands):
    """The script for a migration first; then the commands that do it."""

    async def table(made: Outbox, _: QdrantStore) -> None:
        pool = pool_of(made)
        await pool.execute("CREATE TABLE notes (id INT PRIMARY KEY, body TEXT)")
        await pool.execute(
            "INSERT INTO notes SELECT n, 'x' FROM generate_series(1, 9) n"
        )

    outbox.prepare(table)
    tracking = ("track", "notes", "docs", "--text", "body", "--payload", "id")
    script = outbox(*tracking, "--sql").output
    assert "CREATE OR REPLACE TRIGGER" in script
    assert "DROP TRIGGER" in script.split("-- Its rollback:")[1]
    assert outbox("backfill", "docs").exit_code == 1
    assert outbox.json(*tracking, "--sql")["up"] in script
    assert "is followed from now on" in outbox(*tracking).output
    assert "was followed already" in outbox(*tracking).output
    assert outbox.json(*tracking) == {"changed": False}
    assert "9 rows read" in outbox("backfill", "docs", "--batch-size", "4").output
    assert outbox.json("status")["pending"] == 9
    wrong = outbox("track", "notes", "d", "--text", "none")
    assert "no column 'none'" in str(wrong.exception)
    assert outbox.json("untrack", "docs") == {"changed": True}
    assert outbox("untrack", "docs").exit_code == 1
