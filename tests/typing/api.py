"""What type checkers must see of the public interface; checked, never run.

``mypy tests/typing/api.py`` and ``pyright tests/typing`` read it: a line that
loses its type, or accepts what it must refuse, fails the build.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import assert_type
from uuid import UUID

from fm_storage.postgres import Executor, Pool, Transaction
from fm_storage.repositories import (
    Change,
    ErrorEntry,
    ErrorEntryRepository,
    Filter,
    Order,
    Page,
    Repository,
    Severity,
    asc,
    desc,
    where,
)
from tests.support.repository_models import Invoice, Note, Product

__all__: list[str] = []


async def repositories_know_their_model(pool: Pool, transaction: Transaction) -> None:
    """Whatever kind of model: dataclass, pydantic, msgspec."""
    invoices = Repository(pool, Invoice, table="billing.invoice", version="version")
    assert_type(invoices, Repository[Invoice])
    assert_type(Repository(pool, Product, key="sku"), Repository[Product])
    assert_type(Repository(pool, Note), Repository[Note])
    bound = invoices.bind(transaction)
    assert_type(bound, Repository[Invoice])

    made = await invoices.create_many([])
    assert_type(made, list[Invoice])
    one = await invoices.get_by_id("id")
    assert_type(one, Invoice)
    assert_type(await invoices.create(one), Invoice)
    assert_type(await invoices.create(one, vector=[0.5], payload={"n": 1}), Invoice)
    assert_type(await invoices.find_by_id(one.id), Invoice | None)
    assert_type(await invoices.get_or_create(one, on="number"), tuple[Invoice, bool])
    assert_type(await invoices.update(one), Invoice)
    assert_type(await invoices.update(one.id, {"paid": True}, version=1), Invoice)
    assert_type(await invoices.upsert(one), tuple[Invoice, bool])
    assert_type(await invoices.upsert_many([one]), list[tuple[Invoice, bool]])
    assert_type(await invoices.delete(one), bool)
    assert_type(await invoices.delete_many([one.id]), int)
    assert_type(await invoices.count(), int)
    assert_type(await invoices.exists(where("paid") == True), bool)  # noqa: E712 - a condition


async def rows_of_ones_own_sql_are_typed(executor: Executor, pool: Pool) -> None:
    """Records of the class that was named, from every executor."""
    assert_type(await executor.fetch_as(Invoice, "SELECT"), list[Invoice])
    assert_type(await pool.fetch_as(Note, "SELECT $1", 1, timeout=2), list[Note])
    assert_type(await pool.fetchrow_as(Invoice, "SELECT"), Invoice | None)
    async with pool.stream_as(Invoice, "SELECT", prefetch=5) as records:
        async for record in records:
            assert_type(record, Invoice)
    async with pool.transaction() as transaction:
        assert_type(await transaction.fetch_as(Invoice, "SELECT"), list[Invoice])


async def repositories_refuse_other_models(pool: Pool, note: Note) -> None:
    """A record of another class is an error before the program runs."""
    invoices = Repository(pool, Invoice)
    await invoices.create(note)  # type: ignore[arg-type]  # must be refused
    await invoices.upsert_many([note])  # type: ignore[list-item]  # must be refused
    await invoices.find_many("paid")  # type: ignore[arg-type]  # must be refused
    await invoices.find_many(limit="3")  # type: ignore[arg-type]  # must be refused


async def reads_are_typed(pool: Pool) -> None:
    """Lists, pages, streams and their records."""
    invoices = Repository(pool, Invoice)
    wanted = (where("total") > 3) & ~where("number").starts_with("A") | where(
        "meta"
    ).at("a", 0).is_null()
    assert_type(wanted, Filter)
    assert_type(desc("total", nulls="last"), Order)
    found = await invoices.find_many(wanted, order_by=("-total", asc("id")), limit=3)
    assert_type(found, list[Invoice])
    page = await invoices.page(wanted, order_by="total", size=10, total=True)
    assert_type(page, Page[Invoice])
    assert_type(page.items, list[Invoice])
    assert_type(page.next_cursor, str | None)
    assert_type(page.total, int | None)
    async with invoices.stream(wanted) as records:
        assert_type(records, AsyncIterator[Invoice])
        async for record in records:
            assert_type(record, Invoice)


def hooks_are_typed(invoices: Repository[Invoice]) -> None:
    """A hook gets the change of its model."""

    @invoices.before("create", "update")
    async def check(transaction: Transaction, change: Change[Invoice]) -> None:
        assert_type(change.records[0], Invoice)
        await invoices.bind(transaction).count()


async def the_catalogue_is_typed(executor: Executor) -> None:
    """The error catalogue's own questions."""
    errors = ErrorEntryRepository(executor)
    entry = await errors.get_by_id(UUID(int=1))
    assert_type(entry, ErrorEntry)
    assert_type(entry.severity, Severity)
    assert_type(errors.bind(executor), ErrorEntryRepository)
    assert_type(await errors.find_by_module("m", limit=3), list[ErrorEntry])
    assert_type(await errors.get_recent_errors(since=datetime.now()), list[ErrorEntry])
    assert_type(await errors.count_by_severity(), dict[Severity, int])
    assert_type(await errors.count_by_hour(), dict[datetime, int])
