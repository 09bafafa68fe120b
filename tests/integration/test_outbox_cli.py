"""``fm-storage outbox …`` as a person and as a program sees it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from fm_storage.cli import cli
from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore

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
    (held,) = outbox.json("quarantine", "list", "things")
    assert (held["collection"], held["id"]) == ("things", 6)
    assert "1 will be tried again" in outbox("quarantine", "retry", "--id", "6").output
    assert outbox("drain").exit_code == 1
    assert outbox("quarantine", "discard", "things").exit_code == 1  # asks, no answer
    assert outbox.json("quarantine", "discard", "--yes") == {"count": 1}
    assert outbox("drain").exit_code == 0
    assert "nothing is set aside" in outbox("quarantine", "list").output
    assert outbox.json("verify")["agrees"] is True


def test_differences_are_named_and_mended(outbox: Commands):
    """Verify names what differs and ends with 1; repair mends it."""

    async def damage(queue: Outbox, store: QdrantStore) -> None:
        await _fill(queue, store)
        await queue.drain(timeout=15)
        await store.delete_points("things", [2])

    outbox.prepare(damage)
    compared = outbox("verify", "things")
    assert compared.exit_code == 1
    assert "1 missing" in compared.output
    repaired = outbox("repair")
    assert "1 points queued anew" in repaired.output
    assert outbox("verify").exit_code == 0
    assert outbox.json("repair")["enqueued"] == 0


def test_collections_are_rebuilt_by_name_or_all(outbox: Commands):
    """Rebuild needs to be told what."""

    async def fill(queue: Outbox, store: QdrantStore) -> None:
        await _fill(queue, store)
        await queue.drain(timeout=15)

    outbox.prepare(fill)
    assert outbox("rebuild").exit_code == 2
    assert "things: 5 points, now things__" in outbox("rebuild", "things").output
    (report,) = outbox.json("rebuild", "--all")
    assert report["copied"] == 5  # the sixth is refused by any such collection
    assert "database's now" in outbox("rebuild", "--adopt").output
