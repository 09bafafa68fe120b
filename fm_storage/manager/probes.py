"""Probes of Kubernetes and load balancers, as an ASGI application."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from fm_storage.errors import StorageError
from fm_storage.manager.health import PartHealth, probe, unsettled

if TYPE_CHECKING:
    from fm_storage.hooks.hosts import Receive, Send
    from fm_storage.manager.parts import Parts
    from fm_storage.migrate import Migrator
    from fm_storage.postgres import Pool


async def ask_pool(pool: Pool) -> tuple[str, str]:
    """Ask the server through *pool* whether it answers."""
    await pool.fetchval("SELECT 1")
    return "ok", ""


async def ask_migrated(
    migrator: Migrator, executor: Pool | None = None
) -> tuple[str, str]:
    """Ask whether every migration is applied."""
    problem = unsettled(await migrator.status(executor=executor))
    return "down" if problem else "ok", problem


class Probes:
    """``GET /livez`` and ``GET /readyz``; mount it, or serve it on a port of its own.

    ``/livez`` answers 200 as long as the event loop does. ``/readyz`` answers 200
    when the pool answers and every migration is applied, else 503; before the manager
    has opened and once it closes it answers 503 as well, so that no new requests
    arrive. Both name the parts and their status, and nothing else.

    Args:
        parts: Returns the parts of an open manager; raises if it is not open.
        vectors: Whether the vector store must answer, too.
        timeout: Seconds that a part may take.
    """

    def __init__(
        self, parts: Callable[[], Parts], *, vectors: bool, timeout: float
    ) -> None:
        self._parts = parts
        self._vectors = vectors
        self._timeout = timeout

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Serve one request, or the lifespan of a server of its own."""
        if scope["type"] == "lifespan":
            for event in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{event}.complete"})
            return
        if scope["type"] != "http":
            return
        name = scope["path"].rstrip("/").rsplit("/", 1)[-1]
        if scope["method"] not in {"GET", "HEAD"}:
            status, found = 405, {}
        elif name == "livez":
            status, found = 200, {"loop": "ok"}
        elif name == "readyz":
            found = await self.ready()
            status = 200 if set(found.values()) <= {"ok", "off"} else 503
        else:
            status, found = 404, {}
        body = json.dumps({"status": status, "parts": found}).encode()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"cache-control", b"no-store"),
        ]
        start = {"type": "http.response.start", "status": status, "headers": headers}
        await send(start)
        await send(
            {
                "type": "http.response.body",
                "body": b"" if scope["method"] == "HEAD" else body,
            }
        )

    async def ready(self) -> dict[str, str]:
        """Return the status of every part that must work; never raises."""
        try:
            parts = self._parts()
        except StorageError:  # not open yet, closing, or another loop's
            return {"manager": "down"}
        asked: dict[str, Callable[[], Awaitable[tuple[str, str]]]] = {}
        pool, store = parts.pool, parts.qdrant
        if pool is not None:
            asked["postgres"] = lambda: ask_pool(pool)
            asked["migrations"] = lambda: ask_migrated(parts.migrator(), pool)
        if store is not None and self._vectors:

            async def ask_store() -> tuple[str, str]:
                return "ok", await store.ready(timeout=0.9 * self._timeout)

            asked["qdrant"] = ask_store
        found: list[PartHealth] = []
        for name, ask in asked.items():
            found.append(await probe(name, ask, timeout=self._timeout))
            if found[-1].status != "ok":  # what comes later needs it, or can wait
                break
        return {part.name: part.status for part in found}
