"""Health of a storage manager, part by part."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

from fm_storage.postgres.pool.replica import ReadPool

if TYPE_CHECKING:
    from fm_storage.manager.parts import Parts
    from fm_storage.migrate import MigrationStatus
    from fm_storage.postgres import Pool
    from fm_storage.vectors import QdrantStore

Status: TypeAlias = Literal["ok", "degraded", "down", "off"]

PARTS = ("postgres", "replica", "migrations", "qdrant", "outbox", "sessions")

Ask: TypeAlias = "Callable[[], Awaitable[tuple[str, str]]]"


@dataclass(frozen=True, slots=True)
class PartHealth:
    """One part: how it is, and how quickly it answered.

    Attributes:
        name: ``postgres``, ``replica``, ``migrations``, ``qdrant``, ``outbox`` or
            ``sessions``.
        status: ``ok``; ``degraded`` (works, but behind or impaired); ``down``
            (does not answer); ``off`` (switched off by the settings).
        latency: Seconds the part took to answer, None if it was not asked.
        detail: What is wrong, or what the part is.
    """

    name: str
    status: Status
    latency: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Health:
    """All parts at one moment."""

    parts: tuple[PartHealth, ...]

    @property
    def status(self) -> Status:
        """The worst of the parts; a part that is off counts for nothing."""
        found = {part.status for part in self.parts}
        for status in ("down", "degraded"):
            if status in found:
                return status
        return "ok"

    @property
    def ok(self) -> bool:
        """Whether every part that is on works as it should."""
        return self.status == "ok"

    def __getitem__(self, name: str) -> PartHealth:
        """Return the part called *name*."""
        for part in self.parts:
            if part.name == name:
                return part
        raise KeyError(name)


async def probe(
    name: str,
    ask: Ask,
    *,
    timeout: float,
) -> PartHealth:
    """Ask one part, never for longer than *timeout* seconds; never raises.

    Cancellation goes through to the caller.
    """
    begin = time.perf_counter()
    status: Status
    try:
        async with asyncio.timeout(timeout):
            found, detail = await ask()
            status = cast("Status", found)
    except TimeoutError as exc:
        status, detail = "down", str(exc) or f"no answer within {timeout:g} s"
    except Exception as exc:  # whatever is wrong is the answer
        status, detail = "down", str(exc) or type(exc).__name__
    return PartHealth(name, status, time.perf_counter() - begin, detail)


async def check_parts(parts: Parts, *, timeout: float) -> Health:
    """Ask every part at once, each for *timeout* seconds at most."""
    pool, qdrant = parts.pool, parts.qdrant
    asked: dict[str, Ask | None] = dict.fromkeys(PARTS)
    if pool is not None:
        asked["postgres"] = partial(_ask_postgres, pool, parts)
        asked["migrations"] = partial(_ask_migrations, pool, parts)
    if isinstance(parts.reads, ReadPool):
        asked["replica"] = parts.reads.health
    if qdrant is not None:
        # A little less than the part has, so that it can say what is wrong.
        asked["qdrant"] = partial(_ask_qdrant, qdrant, 0.9 * timeout)
    if parts.outbox is not None:
        asked["outbox"] = parts.outbox.health
    if parts.sessions is not None:
        asked["sessions"] = parts.sessions.health

    async def one(name: str, ask: Ask | None) -> PartHealth:
        if ask is None:
            return PartHealth(name, "off", detail="switched off")
        return await probe(name, ask, timeout=timeout)

    return Health(tuple(await asyncio.gather(*(one(*each) for each in asked.items()))))


async def _ask_postgres(pool: Pool, parts: Parts) -> tuple[str, str]:
    await pool.fetchval("SELECT 1")
    major, minor = divmod(pool.server_version, 10_000)
    kind = "embedded PostgreSQL" if parts.embedded else "PostgreSQL"
    pooled = " behind a transaction pooler" if pool.transaction_pooler else ""
    return "ok", f"{kind} {major}.{minor}{pooled}"


async def _ask_migrations(pool: Pool, parts: Parts) -> tuple[str, str]:
    found = await parts.migrator().status(executor=pool)
    if problem := unsettled(found):
        return "degraded", problem
    return "ok", f"{sum(one.applied for one in found)} applied"


def unsettled(found: Iterable[MigrationStatus]) -> str:
    """Name what is pending or drifted; those of another release or source are fine."""
    return ", ".join(
        f"{one.id} is {one.state}"
        for one in found
        if one.state == "pending" or one.state.drifted
    )


async def _ask_qdrant(store: QdrantStore, timeout: float) -> tuple[str, str]:
    return "ok", await store.ready(timeout=timeout)
