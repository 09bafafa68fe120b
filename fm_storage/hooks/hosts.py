"""One-liners for the hosts of applications: aiohttp, and any ASGI server.

Each host has its own idea of a start and an end; here all are derived from one,
``lifespan()``. Nothing of a host is imported.
"""

from __future__ import annotations

import abc
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeAlias

STATE = "fm_storage"
"""Under this name an application's state holds what it is served with."""

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]


class Hosted(abc.ABC):
    """An object that is open for as long as the application that a host serves."""

    @abc.abstractmethod
    def lifespan(self, app: object = None) -> AbstractAsyncContextManager[None]:
        """Open for the block: ``FastAPI(lifespan=…)``, and Starlette's."""

    async def cleanup_ctx(self, app: object = None) -> AsyncIterator[None]:
        """Open for an aiohttp application: ``app.cleanup_ctx.append(…)``."""
        async with self.lifespan(app):
            yield

    def asgi(self, app: Application) -> Application:
        """Open for an ASGI application: ``app = storage.asgi(app)``.

        For applications without a lifespan of their own, under any server that speaks
        the lifespan protocol (hypercorn, uvicorn, granian). A lifespan that the
        application has runs inside ours.
        """

        async def wrapped(scope: Any, receive: Receive, send: Send) -> None:
            if isinstance(scope.get("state", {}), dict):
                scope.setdefault("state", {})[STATE] = self
            if scope["type"] == "lifespan":
                await _Lifespan(self.lifespan(app), receive, send).run(app, scope)
            else:
                await app(scope, receive, send)

        return wrapped


class _Lifespan:
    """One run of the lifespan protocol, with ours around the application's.

    See https://asgi.readthedocs.io/en/latest/specs/lifespan.html.
    """

    def __init__(
        self, ours: AbstractAsyncContextManager[None], receive: Receive, send: Send
    ) -> None:
        self._ours = ours
        self._receive = receive
        self._send = send
        self._replayed = False
        self._sent: set[str] = set()

    async def run(self, app: Application, scope: Any) -> None:
        """Open ours, let the application run, close ours, and answer the server."""
        self._startup = await self._receive()
        try:
            await self._ours.__aenter__()
        except Exception as exc:  # reported to the server, and passed on
            await self._answer(
                "lifespan.startup.failed", f"{type(exc).__name__}: {exc}"
            )
            raise
        failure: Exception | None = None
        try:
            await self._run_theirs(app, scope)
        finally:
            try:
                await self._ours.__aexit__(None, None, None)
            except Exception as exc:  # logged and raised below
                failure = exc
        if failure is not None:
            await self._answer("lifespan.shutdown.failed", str(failure))
            raise failure
        if "lifespan.startup.failed" not in self._sent:
            await self._answer("lifespan.shutdown.complete")

    async def _run_theirs(self, app: Application, scope: Any) -> None:
        try:
            await app(scope, self._replay, self._pass_on)
        except Exception:  # an application may raise anything at a lifespan
            if self._sent:
                raise
            # Before it answered: it has no lifespan, which is its right.
        if not self._sent:
            await self._answer("lifespan.startup.complete")
            await self._receive()

    async def _replay(self) -> Message:
        if not self._replayed:
            self._replayed = True
            return self._startup
        return await self._receive()

    async def _pass_on(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.shutdown.complete":
            return  # sent when ours has ended, too
        self._sent.add(kind)
        await self._send(message)

    async def _answer(self, kind: str, message: str | None = None) -> None:
        answer: Message = {"type": kind}
        if message is not None:
            answer["message"] = message
        await self._send(answer)
