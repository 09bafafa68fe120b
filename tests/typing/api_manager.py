"""What type checkers see of the manager; checked by mypy and pyright, never run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import assert_type

from fm_storage import (
    ErrorEntry,
    ErrorEntryRepository,
    ErrorGroup,
    ErrorManager,
    GroupNotice,
    Health,
    IntegratedManager,
    MappingConfigManager,
    Page,
    Pool,
    PostgresSessionManager,
    QdrantStore,
    Recorded,
    Repository,
    ScoredPoint,
    SimilarEntry,
    StorageConfig,
    StorageManager,
    TempView,
    Transaction,
    WatcherStatus,
)


@dataclass(slots=True)
class Invoice:
    """A record of a user's own."""

    id: int
    total: float


async def _manager() -> None:
    storage = await StorageManager(StorageConfig())
    assert_type(storage, StorageManager)
    async with StorageManager() as opened:
        assert_type(opened, StorageManager)
    assert_type(storage.pool, Pool)
    assert_type(storage.reads, Pool)
    assert_type(storage.reads.after(storage.position()), Pool)
    assert_type(await storage.position(), str)
    assert_type(storage.qdrant, QdrantStore)
    assert_type(await storage.health(), Health)
    assert_type(await storage.migrate(), list[str])
    await storage.aclose()


async def _parts(storage: StorageManager) -> None:
    invoices = storage.repository(Invoice, table="billing.invoice")
    assert_type(invoices, Repository[Invoice])
    assert_type(await invoices.get_by_id(1), Invoice)
    assert_type(await invoices.find_by_id(1), Invoice | None)
    assert_type(await invoices.page(size=10), Page[Invoice])
    near = invoices.on_replica(after=await storage.position())
    assert_type(near, Repository[Invoice])
    assert_type(storage.error_entries.on_replica(), ErrorEntryRepository)
    async with storage.transaction(isolation="serializable") as tx:
        assert_type(tx, Transaction)
        assert_type(tx.repository(Invoice), Repository[Invoice])

    async def body(tx: Transaction) -> str:
        return await tx.execute("SELECT 1")

    assert_type(await storage.run_in_transaction(body), str)
    async with storage.session() as session:
        assert_type(session, PostgresSessionManager)
        assert_type(await session.create_view("SELECT 1"), TempView)
        assert_type(session.get_session_views(), list[str])
    assert_type(
        await storage.qdrant.search("notes", [0.1, 0.2], limit=3), list[ScoredPoint]
    )


async def _catalogue(storage: StorageManager) -> None:
    errors = ErrorManager(storage, reads=storage.reads)
    recorded = await errors.record(ValueError("no"), module="billing")
    assert_type(recorded, Recorded)
    assert_type(recorded.entry, ErrorEntry)
    assert_type(recorded.durable, bool)
    assert_type(await errors.find_similar(recorded.entry), list[SimilarEntry])
    [group] = await errors.groups()
    assert_type(await errors.resolve(group), ErrorGroup)
    assert_type(await errors.mute(group.fingerprint, timedelta(days=7)), ErrorGroup)
    assert_type(await errors.watchers(), list[WatcherStatus])

    async def page(notice: GroupNotice) -> None:
        assert_type(notice.key, str)
        assert_type(notice.group, ErrorGroup)

    errors.web(unguarded=True)
    await errors.watch(new=page, regressed=page)


async def _integrated() -> None:
    async with IntegratedManager(MappingConfigManager({})) as integrated:
        assert_type(integrated.errors, ErrorManager)
        assert_type(integrated.storage, StorageManager)
