"""The inside of objects, for tests that break one part or look at it.

Private attributes are reached here and nowhere else, one function each, so that a
change of the inside is followed in one place.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from fm_storage.catalog import ErrorManager
    from fm_storage.catalog.record.recorder import Recorder
    from fm_storage.outbox import Outbox
    from fm_storage.outbox.delivery.drainer import Drainer
    from fm_storage.outbox.delivery.queue import Queue
    from fm_storage.outbox.outbox import StoreSide
    from fm_storage.postgres import Pool
    from fm_storage.sessions import PostgresSessionManager, SessionService
    from fm_storage.sessions.lease import Lease
    from fm_storage.sessions.owner import Owner
    from fm_storage.sessions.views import ViewSet
    from fm_storage.vectors import QdrantStore
    from fm_storage.vectors.store.call import Calls

__all__ = [
    "calls_of",
    "cut_lease",
    "drainer_of",
    "forget_lease",
    "lease_of",
    "owner_of",
    "pool_of",
    "queue_of",
    "recorder_of",
    "side_of",
    "views_of",
]

T = TypeVar("T")


def recorder_of(errors: ErrorManager) -> Recorder:
    """Return what stores the entries: its spool, its replay, its store."""
    return errors._recorder


def calls_of(store: QdrantStore) -> Calls:
    """Return what carries a store's calls to its engine."""
    return store._calls


def pool_of(outbox: Outbox) -> Pool:
    """Return the pool of an outbox."""
    return outbox._pool


def queue_of(outbox: Outbox) -> Queue:
    """Return the queue from which an outbox takes its batches."""
    return outbox._queue


def side_of(outbox: Outbox) -> StoreSide:
    """Return what an outbox has for its vector store: delivery, checks, rebuilder."""
    return _there(outbox._side)


def drainer_of(outbox: Outbox) -> Drainer:
    """Return the running drainer of an outbox that has one."""
    return _there(outbox._drainer)


def owner_of(service: SessionService) -> Owner:
    """Return what a service owns: its lease, and what it could not drop."""
    return service._owner


def views_of(session: PostgresSessionManager) -> ViewSet:
    """Return the views of a session."""
    return session._views


def lease_of(service: SessionService) -> Lease:
    """Return the lease of a service that has one."""
    return _there(owner_of(service).lease)


async def forget_lease(service: SessionService) -> Lease:
    """Let a service stop watching its lease: once lost, it is not taken again."""
    lease = lease_of(service)
    watcher = _there(lease._watcher)
    watcher.cancel()
    await asyncio.wait({watcher})
    return lease


async def cut_lease(service: SessionService) -> None:
    """Let a service lose its lease for good, as a killed process does."""
    lease = await forget_lease(service)
    await _there(lease._connection).aclose()


def _there(value: T | None) -> T:
    assert value is not None
    return value
