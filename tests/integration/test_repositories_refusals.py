"""Every error of the tree that a repository's call can raise, provoked by one.

Here stands the whole list, beyond the tests of each part, held against the
tree, so that an error which nobody can provoke is found.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from decimal import Decimal
from typing import NoReturn
from uuid import UUID

import pytest

from fm_storage import errors
from fm_storage.config import CollectionConfig, PostgresConfig
from fm_storage.postgres import Pool
from fm_storage.repositories import Repository, where
from fm_storage.vector_state import Shapes
from tests.support.repository_models import TABLES, Invoice, Product

TEA = Product(sku="tea", price=3)
POT = Product(sku="pot", price=20)

ELSEWHERE = {
    "CollectionDamaged": "as CollectionMismatch",
    "CollectionMismatch": "a repository writes what a point shall be, and no more",
    "CollectionNotFound": "as above",
    "EmbeddedFailed": "raised before there is a pool",
    "MigrationFailed": "repositories apply none",
    "NotSynced": "nothing here waits for a point",
    "RateLimited": "as CollectionMismatch",
    "SchemaOutOfDate": "as MigrationFailed",
    "ServerTooOld": "raised before there is a connection",
    "SessionLost": "a session's temporary views",
    "StorageClosed": "a base; the pool raises PoolClosed",
    "StorageError": "a base",
    "VectorStoreUnavailable": "as CollectionMismatch",
}


@dataclass(slots=True)
class Shop:
    """Two connections at most, and repositories that use them."""

    pool: Pool
    products: Repository[Product]
    invoices: Repository[Invoice]

    @contextlib.asynccontextmanager
    async def within(self, *settings: str) -> AsyncIterator[Repository[Product]]:
        """Give the products inside a transaction that has these *settings*."""
        async with self.pool.transaction() as transaction:
            for setting in settings:
                await transaction.execute(f"SET LOCAL {setting}")
            yield self.products.bind(transaction)

    def pointed(self) -> Repository[Product]:
        """Return the products with points, whose vectors have two numbers."""
        shapes = Shapes({"shop": CollectionConfig(size=2)})
        return Repository(
            self.pool, Product, key="sku", collection="shop", shapes=shapes
        )


@pytest.fixture
async def shop(dsn: str) -> AsyncIterator[Shop]:
    """Give a shop with tea and a pot."""
    async with Pool(PostgresConfig(dsn=dsn, max_size=2)) as pool:
        await pool.execute(TABLES)
        products = Repository(pool, Product, key="sku")
        await products.create_many([TEA, POT])
        invoices = Repository(pool, Invoice, table="billing.invoice", version="version")
        yield Shop(pool, products, invoices)


def invoice(**values: object) -> Invoice:
    """Return an invoice that would do but for *values*."""
    return replace(Invoice("A-1", Decimal(1)), **values)


async def configuration_invalid(shop: Shop) -> None:
    """What was not declared."""
    shop.products.with_deleted()


async def connection_failed(shop: Shop) -> None:
    """The server ends the connection under a transaction."""
    async with shop.pool.transaction() as transaction:
        own = await transaction.fetchval("SELECT pg_backend_pid()")
        await shop.pool.execute("SELECT pg_terminate_backend($1, 10000)", own)
        await shop.products.bind(transaction).count()


async def connection_busy(shop: Shop) -> None:
    """Two tasks on one connection, of which the first waits."""
    async with shop.within() as locking:
        await locking.update("tea", {"price": 4})
        async with shop.pool.acquire() as connection:
            bound = shop.products.bind(connection)
            first = asyncio.create_task(bound.update("tea", {"price": 5}))
            await asyncio.sleep(0)
            try:
                await bound.count()
            finally:
                first.cancel()
                await asyncio.wait([first])


async def connection_released(shop: Shop) -> None:
    """A repository that outlived its transaction."""
    async with shop.within() as bound:
        await bound.count()
    await bound.count()


async def pool_closed(shop: Shop) -> None:
    """After the end."""
    await shop.pool.aclose()
    await shop.products.count()


async def pool_timeout(shop: Shop) -> None:
    """Every connection is held by the one who asks for another."""
    async with shop.pool.acquire(), shop.pool.acquire():
        await shop.products.count()


async def wrong_loop(shop: Shop) -> None:
    """From a thread with an event loop of its own."""

    def other() -> None:
        asyncio.run(shop.products.count())

    await asyncio.to_thread(other)


async def forked_process(shop: Shop) -> NoReturn:
    """In a child, which sends what it met."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no test machinery may run in the child
        sent = b""
        try:
            asyncio.run(shop.products.count())
        except errors.StorageError as exc:
            sent = pickle.dumps(exc)
        finally:
            os.write(writer, sent)
            os._exit(0)
    os.close(writer)
    await asyncio.to_thread(os.waitpid, child, 0)
    with os.fdopen(reader, "rb") as pipe:
        raise pickle.loads(pipe.read())


async def record_not_found(shop: Shop) -> None:
    """No such key."""
    await shop.products.get_by_id("cup")


async def stale_record(shop: Shop) -> None:
    """The version is not that any more."""
    made = await shop.invoices.create(invoice())
    await shop.invoices.update(made, {"paid": True})
    await shop.invoices.update(made, {"paid": False})


async def query_failed(shop: Shop) -> None:
    """What has no class of its own: no constraint on the conflict's field."""
    await shop.products.upsert(TEA, on="price")


async def duplicate_record(shop: Shop) -> None:
    """The key is taken."""
    await shop.products.create(TEA)


async def foreign_key_violated(shop: Shop) -> None:
    """No such account."""
    await shop.invoices.create(invoice(account=UUID(int=1)))


async def check_violated(shop: Shop) -> None:
    """A total below zero."""
    await shop.invoices.create(invoice(total=Decimal(-1)))


async def not_null_violated(shop: Shop) -> None:
    """The table wants more than the model."""
    await shop.pool.execute(
        "UPDATE product SET label = ''; ALTER TABLE product ALTER label SET NOT NULL"
    )
    await shop.products.update("tea", {"label": None})


async def permission_denied(shop: Shop) -> None:
    """As one of the server's own roles, which may not read this table."""
    async with shop.within("ROLE pg_monitor") as bound:
        await bound.count()


async def serialization_failed(shop: Shop) -> None:
    """A lost update, under REPEATABLE READ."""
    async with shop.pool.transaction(isolation="repeatable_read") as transaction:
        bound = shop.products.bind(transaction)
        await bound.count()
        await shop.products.update("tea", {"price": 4})
        await bound.update("tea", {"price": 5})


async def deadlock_detected(shop: Shop) -> None:
    """Two transactions that lock two rows crosswise."""
    ready = asyncio.Barrier(2)

    async def change(first: str, second: str) -> None:
        async with shop.within("deadlock_timeout = '50ms'") as bound:
            await bound.update(first, {"price": 5})
            await ready.wait()
            await bound.update(second, {"price": 6})

    for outcome in await asyncio.gather(
        change("tea", "pot"), change("pot", "tea"), return_exceptions=True
    ):
        if outcome is not None:
            raise outcome


async def locked(shop: Shop, limit: str) -> None:
    """Wait for a row that another transaction has locked."""
    async with shop.within() as first, shop.within(f"{limit} = '50ms'") as second:
        await first.update("tea", {"price": 4})
        await second.update("tea", {"price": 5})


async def invalid_name(shop: Shop) -> None:
    """No such field."""
    await shop.products.find_many(where("colour") == "red")


async def invalid_cursor(shop: Shop) -> None:
    """What a client sent back changed."""
    await shop.products.page(cursor="changed")


async def invalid_record(shop: Shop) -> None:
    """What PostgreSQL cannot store."""
    await shop.products.create(TEA.model_copy(update={"sku": "\0"}))


async def invalid_vector(shop: Shop) -> None:
    """No number."""
    await shop.pointed().upsert(TEA, vector=[1.0, float("nan")])


async def dimension_mismatch(shop: Shop) -> None:
    """One number too many."""
    await shop.pointed().upsert(TEA, vector=[1.0, 2.0, 3.0])


RECIPES: dict[type[errors.StorageError], Callable[[Shop], Awaitable[None]]] = {
    errors.CheckViolated: check_violated,
    errors.ConfigurationInvalid: configuration_invalid,
    errors.ConnectionBusy: connection_busy,
    errors.ConnectionFailed: connection_failed,
    errors.ConnectionReleased: connection_released,
    errors.DeadlockDetected: deadlock_detected,
    errors.DimensionMismatch: dimension_mismatch,
    errors.DuplicateRecord: duplicate_record,
    errors.ForeignKeyViolated: foreign_key_violated,
    errors.ForkedProcess: forked_process,
    errors.InvalidCursor: invalid_cursor,
    errors.InvalidName: invalid_name,
    errors.InvalidRecord: invalid_record,
    errors.InvalidVector: invalid_vector,
    errors.LockTimeout: lambda shop: locked(shop, "lock_timeout"),
    errors.NotNullViolated: not_null_violated,
    errors.PermissionDenied: permission_denied,
    errors.PoolClosed: pool_closed,
    errors.PoolTimeout: pool_timeout,
    errors.QueryFailed: query_failed,
    errors.QueryTimeout: lambda shop: locked(shop, "statement_timeout"),
    errors.RecordNotFound: record_not_found,
    errors.SerializationFailed: serialization_failed,
    errors.StaleRecord: stale_record,
    errors.WrongLoop: wrong_loop,
}


def test_every_error_of_the_tree_is_here_or_cannot_come_from_a_repository():
    """A new error wants a recipe, or the reason why it has none."""
    here = {kind.__name__ for kind in RECIPES}
    assert not here & ELSEWHERE.keys()
    assert here | ELSEWHERE.keys() == set(errors.__all__)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("kind", RECIPES, ids=lambda kind: kind.__name__)
async def test_each_error_is_raised_as_itself_and_changes_nothing(shop, kind):
    """Exactly that class, its message with an owner; no row came or went."""
    with pytest.raises(kind) as caught:
        await RECIPES[kind](shop)

    assert type(caught.value) is kind
    assert ": " in str(caught.value)
    if kind is not errors.PoolClosed:
        assert {one.sku for one in await shop.products.find_many()} == {"tea", "pot"}
