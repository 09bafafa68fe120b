"""The one-liners for hosts, step by step: what a server is notified of, and when."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from fm_storage.hooks import ShutdownHooks


class Server:
    """The server's half of the lifespan protocol."""

    def __init__(self) -> None:
        self.inbox: asyncio.Queue[dict[str, str]] = asyncio.Queue()
        self.said: list[Any] = []

    async def send(self, message: Any) -> None:
        """Take what the application says."""
        self.said.append(message["type"].removeprefix("lifespan."))

    async def life(self, app: Any) -> None:
        """Start the application, and tell it to end."""
        for word in ("startup", "shutdown"):
            await self.inbox.put({"type": f"lifespan.{word}"})
        await app({"type": "lifespan"}, self.inbox.get, self.send)


async def without(scope: Any, receive: Any, send: Any) -> None:
    """Serve requests, and know no lifespan."""
    del receive
    assert scope["type"] == "http", scope
    await send({"type": "http.response.body"})


@pytest.mark.parametrize("ends", ["raises", "returns"])
async def test_an_application_without_a_lifespan_gets_ours(ends: str):
    """The hooks run before the server learns that all is over."""
    server, hooks = Server(), ShutdownHooks()
    hooks.register(lambda: server.said.append("hook"))

    async def returns(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await without(scope, receive, send)

    app = hooks.asgi(without if ends == "raises" else returns)
    await server.life(app)
    assert server.said == ["startup.complete", "hook", "shutdown.complete"]
    await app({"type": "http"}, None, server.send)
    assert server.said[-1] == "http.response.body"


async def test_an_applications_own_lifespan_runs_inside_ours():
    """Its own end comes first; the server is notified once."""
    server, hooks = Server(), ShutdownHooks()
    hooks.register(lambda: server.said.append("hook"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        del scope
        assert (await receive())["type"] == "lifespan.startup"
        await send({"type": "lifespan.startup.complete"})
        assert (await receive())["type"] == "lifespan.shutdown"
        server.said.append("theirs")
        await send({"type": "lifespan.shutdown.complete"})

    await server.life(hooks.asgi(app))
    assert server.said == ["startup.complete", "theirs", "hook", "shutdown.complete"]


async def test_a_start_that_fails_is_reported():
    """Theirs: the hooks still run. Ours: theirs is never asked."""
    server, hooks = Server(), ShutdownHooks()
    hooks.register(lambda: server.said.append("hook"))

    async def refuses(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    await server.life(hooks.asgi(refuses))
    assert server.said == ["startup.failed", "hook"]

    async def breaks(scope: Any, receive: Any, send: Any) -> None:
        del scope
        await receive()
        await send({"type": "lifespan.startup.complete"})
        raise KeyError

    hooks, server = ShutdownHooks(), Server()
    hooks.register(lambda: server.said.append("hook"))
    with pytest.raises(KeyError):
        await server.life(hooks.asgi(breaks))
    assert server.said == ["startup.complete", "hook"]


async def test_what_cannot_open_or_close_is_reported():
    """A manager's failure reaches the server by the protocol, and its log."""

    class Part(ShutdownHooks):
        def __init__(self, when: str) -> None:
            super().__init__()
            self.when = when

        def lifespan(self, app: object = None) -> Any:
            del app
            return self

        async def __aenter__(self) -> Any:
            if self.when == "opening":
                raise OSError("no server")
            return self

        async def __aexit__(self, *args: object) -> None:
            raise OSError("no end")

    for when, said in (
        ("opening", ["startup.failed"]),
        ("closing", ["startup.complete", "shutdown.failed"]),
    ):
        server = Server()
        with pytest.raises(OSError, match="no"):
            await server.life(Part(when).asgi(without))
        assert server.said == said


async def test_aiohttp_gets_a_generator():
    """``app.cleanup_ctx.append(hooks.cleanup_ctx)``: one step in, one step out."""
    seen: list[str] = []
    hooks = ShutdownHooks()
    hooks.register(seen.append, "hook")
    steps = aiter(hooks.cleanup_ctx(object()))
    await anext(steps)
    assert seen == []
    with pytest.raises(StopAsyncIteration):
        await anext(steps)
    assert seen == ["hook"]
