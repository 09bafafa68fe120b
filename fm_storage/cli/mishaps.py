"""Tasks that really fail, for the demonstration.

Nothing here raises an error by hand: a port refuses, a parser stumbles, a server
rejects a statement, and the traceback is the one that an application would see.
"""

from __future__ import annotations

import asyncio
import csv
import json
import socket
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm_storage.manager import StorageManager


@dataclass(frozen=True, slots=True)
class Mishap:
    """Work that fails: the part of a shop it belongs to, and how often it is tried.

    *logged* work belongs to a service that only writes a log.
    """

    module: str
    title: str
    work: Callable[[StorageManager, int], Awaitable[object]]
    severity: str = "ERROR"
    times: int = 3
    logged: bool = False


def _closed_port() -> int:
    """Return a port of this machine on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
    return port


async def _charge_card(storage: StorageManager, turn: int) -> object:
    del storage, turn
    return await asyncio.open_connection("127.0.0.1", _closed_port())


async def _monthly_report(storage: StorageManager, turn: int) -> object:
    statements = (
        "SELECT month, sum(total) FORM invoices GROUP BY month",
        "SELECT month, sum(total) FROM invoices GROUP BY month",
        "SELECT date_trunc('month', 'yesterdayish'::timestamptz)",
    )
    return await storage.pool.fetch(statements[turn % len(statements)])


async def _register_twice(storage: StorageManager, turn: int) -> object:
    async with storage.transaction() as tx:
        await tx.execute(
            "CREATE TEMPORARY TABLE customer (id int, email text,"
            " CONSTRAINT customer_email_key UNIQUE (email)) ON COMMIT DROP"
        )
        insert = "INSERT INTO customer VALUES ($1, $2)"
        await tx.execute(insert, turn, f"ada{turn}@example.org")
        return await tx.execute(insert, turn + 1, f"ada{turn}@example.org")


async def _price_list(storage: StorageManager, turn: int) -> object:
    del storage
    name = ("prices.csv", "prices-2026.csv", "supplier/prices.csv")[turn % 3]
    return (Path(tempfile.gettempdir()) / "no-such-shop" / name).read_text("utf-8")


async def _webhook(storage: StorageManager, turn: int) -> object:
    del storage
    bodies = (
        '{"order": 4711, "total": 12,50}',
        '{"order": 4712, "total": "9.99"',
        "<html>502 Bad Gateway</html>",
    )
    return json.loads(bodies[turn % 3])


async def _slow_supplier(storage: StorageManager, turn: int) -> object:
    del storage
    stuck = asyncio.Event()
    async with asyncio.timeout(0.002 + turn / 1000):
        return await stuck.wait()


async def _average_basket(storage: StorageManager, turn: int) -> object:
    del storage
    baskets: list[Decimal] = []
    return sum(baskets, Decimal(turn)) / len(baskets)


async def _shipping_label(storage: StorageManager, turn: int) -> object:
    del storage
    address: dict[str, Any] = {"name": "Ada", "street": f"{turn} Analytical Row"}
    try:
        return address["postcode"]
    except KeyError as exc:
        order = 4711 + turn
        raise LookupError(f"order {order} cannot be shipped without postcode") from exc


async def _import_customers(storage: StorageManager, turn: int) -> object:
    del storage
    raw = ("id;name\n1;Zo\xeb\n".encode("latin-1"), b"\xff\xfei\x00d\x00")[turn % 2]
    return list(csv.reader(raw.decode("utf-8").splitlines(), delimiter=";"))


async def _similar_products(storage: StorageManager, turn: int) -> object:
    await storage.qdrant.ensure_collection_exists("demo_products", 8)
    return await storage.qdrant.search("demo_products", [0.1] * (turn + 3), limit=3)


async def _nightly_jobs(storage: StorageManager, turn: int) -> object:
    async with asyncio.TaskGroup() as jobs:
        jobs.create_task(_charge_card(storage, turn))
        jobs.create_task(_price_list(storage, turn))
    return None


async def _convert_image(storage: StorageManager, turn: int) -> object:
    del storage
    command = [sys.executable, "-I", "-c", f"raise SystemExit({turn + 3})"]
    return await asyncio.to_thread(subprocess.run, command, check=True)


MISHAPS = (
    Mishap("billing", "a payment server that refuses", _charge_card, "CRITICAL", 9),
    Mishap("reporting", "SQL that PostgreSQL rejects", _monthly_report),
    Mishap("accounts", "a customer who registers twice", _register_twice, "WARNING", 5),
    Mishap("catalogue", "a price list that is not there", _price_list),
    Mishap("webhooks", "a body that is not JSON", _webhook, times=4, logged=True),
    Mishap("suppliers", "a supplier who does not answer", _slow_supplier, "WARNING", 6),
    Mishap(
        "reporting", "an average over no baskets", _average_basket, times=7, logged=True
    ),
    Mishap("shipping", "an address without postcode", _shipping_label, logged=True),
    Mishap("accounts", "a file in another encoding", _import_customers),
    Mishap("search", "a vector of the wrong size", _similar_products),
    Mishap("scheduler", "two jobs that fail together", _nightly_jobs, "CRITICAL", 2),
    Mishap("images", "a program that exits with an error", _convert_image, logged=True),
)
