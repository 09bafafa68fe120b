"""The manager in the hosts people use: uvicorn, bare loops, a desktop's thread.

Each is a real process that creates a temporary view and is then asked to end.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import monotonic

import httpx
import pytest

from fm_storage.config import SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import SessionService
from tests.fix_process import Child
from tests.fix_proxy import free_port
from tests.support.waiting import locks_held

# Python processes that import everything: slow to start on a busy machine.
pytestmark = pytest.mark.timeout(120)

Starter = Callable[..., Awaitable[Child]]

ROWS = "SELECT count(*) FROM fm_storage.session_objects"
OWNERS = "SELECT count(*) FROM fm_storage.session_owners"

APP = """
import os, sys
from fastapi import FastAPI
from fm_storage import StorageConfig, StorageManager

storage = StorageManager(
    StorageConfig(postgres={"dsn": os.environ["DSN"]}, qdrant=None))
app = FastAPI(lifespan=storage.lifespan)

@app.get("/view")
async def view():
    session = await storage.session()
    storage.hooks.register(print, "hook", flush=True)
    return str(await session.create_view("SELECT 1 AS n"))
"""

SERVE = """
import sys, uvicorn
if __name__ == "__main__":
    folder, port, workers = sys.argv[1:]
    uvicorn.run("hosted:app", app_dir=folder, port=int(port), workers=int(workers),
                log_level="error")
"""

# The port is the first argument.
AIOHTTP = """
import os, sys
from aiohttp import web
from fm_storage import StorageConfig, StorageManager

storage = StorageManager(
    StorageConfig(postgres={"dsn": os.environ["DSN"]}, qdrant=None))

async def view(request):
    session = await storage.session()
    storage.hooks.register(print, "hook", flush=True)
    return web.Response(text=str(await session.create_view("SELECT 1 AS n")))

app = web.Application()
app.router.add_get("/view", view)
app.cleanup_ctx.append(storage.cleanup_ctx)
if __name__ == "__main__":
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), print=None)
"""

# An application without a lifespan of its own, by asgi().
BARE_ASGI = """
import os
from fm_storage import StorageConfig, StorageManager

storage = StorageManager(
    StorageConfig(postgres={"dsn": os.environ["DSN"]}, qdrant=None))

async def answer(scope, receive, send):
    assert scope["type"] == "http"
    session = await storage.session()
    storage.hooks.register(print, "hook", flush=True)
    body = str(await session.create_view("SELECT 1 AS n")).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})

app = storage.asgi(answer)
"""

HYPERCORN = (
    BARE_ASGI
    + """
import asyncio, sys
from hypercorn.asyncio import serve
from hypercorn.config import Config
if __name__ == "__main__":
    config = Config()
    config.bind = ["127.0.0.1:" + sys.argv[1]]
    config.loglevel = "ERROR"
    asyncio.run(serve(app, config))
"""
)

UVICORN = (
    BARE_ASGI
    + """
import sys, uvicorn
if __name__ == "__main__":
    uvicorn.run(app, port=int(sys.argv[1]), log_level="error")
"""
)

# A loop that is neither closed nor asked to close its generators.
BARE = """
import asyncio, os, sys
from fm_storage import StorageConfig, StorageManager

async def main():
    storage = await StorageManager(
        StorageConfig(postgres={"dsn": os.environ["DSN"]}, qdrant=None))
    session = await storage.session()
    await session.create_view("SELECT 1 AS n")
    storage.hooks.register(print, "hook", flush=True)
    if sys.argv[1] == "handle":
        storage.hooks.handle_signals()
    print("ready", flush=True)
    if sys.argv[1] != "return":
        await asyncio.sleep(60)

if sys.argv[2] == "run":
    asyncio.run(main())
else:
    asyncio.new_event_loop().run_until_complete(main())
"""

# The how-to for a desktop plug-in: no loop of its own, a thread with one.
PLUGIN = """
import contextlib, os, sys
from anyio.from_thread import start_blocking_portal
from fm_storage import StorageConfig, StorageManager

class Plugin:
    def load(self):
        config = StorageConfig(postgres={"dsn": os.environ["DSN"]}, qdrant=None)
        with contextlib.ExitStack() as stack:
            self.portal = stack.enter_context(start_blocking_portal())
            self.storage = stack.enter_context(
                self.portal.wrap_async_context_manager(StorageManager(config)))
            self.session = stack.enter_context(
                self.portal.wrap_async_context_manager(self.storage.session()))
            self._stack = stack.pop_all()

    def unload(self):
        self._stack.close()

plugin = Plugin()
plugin.load()
try:
    view = plugin.portal.call(plugin.session.create_view, "SELECT 1 AS n")
    plugin.portal.call(plugin.storage.hooks.register, print, "hook")
    print("ready", flush=True)
    sys.stdin.readline()
finally:
    plugin.unload()
print("unloaded", flush=True)
"""


async def answering(client: httpx.AsyncClient, server: Child) -> None:
    """Ask for a first view as soon as somebody answers."""
    started = monotonic()
    while True:
        try:
            assert (await client.get("/view")).status_code == 200
        except httpx.ConnectError:
            assert monotonic() - started < 40, await server.errors()
            await asyncio.sleep(0.1)
        else:
            return


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize(
    "host", [AIOHTTP, HYPERCORN, UVICORN], ids=["aiohttp", "hypercorn", "uvicorn"]
)
async def test_other_hosts_leave_nothing(
    child: Starter, dsn: str, pool: Pool, host: str, number: signal.Signals
):
    """cleanup_ctx for aiohttp; asgi() for an application without a lifespan."""
    port = free_port()
    server = await child(host, port, DSN=dsn)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=40) as client:
        await answering(client, server)
    assert await pool.fetchval(ROWS) == 1
    server.signal(number)
    await server.wait(30)
    assert await server.line() == "hook", await server.errors()
    assert await pool.fetchval(ROWS) == await pool.fetchval(OWNERS) == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "number"),
    [(1, signal.SIGTERM), (1, signal.SIGINT), (2, signal.SIGTERM)],
)
async def test_uvicorn_leaves_nothing(
    child: Starter,
    dsn: str,
    pool: Pool,
    tmp_path: Path,
    *,
    workers: int,
    number: signal.Signals,
):
    """FastAPI under uvicorn, one worker or two: hooks run, no view is left."""
    (tmp_path / "hosted.py").write_text(APP)
    port = free_port()
    server = await child(SERVE, tmp_path, port, workers, DSN=dsn)
    base = f"http://127.0.0.1:{port}"
    async with httpx.AsyncClient(base_url=base, timeout=40) as client:
        await answering(client, server)
        for _ in range(5 * workers):
            await client.get("/view")
    assert await pool.fetchval(ROWS) == 5 * workers + 1
    server.signal(number)
    await server.wait(30)
    assert await server.line() == "hook"
    assert await pool.fetchval(ROWS) == await pool.fetchval(OWNERS) == 0


@pytest.mark.parametrize(
    ("host", "way", "code"),
    [
        ("run", "return", 0),
        ("run", "handle", 143),
        ("run", "kill", -15),
        ("bare", "handle", 143),
        ("bare", "interrupt", -2),
    ],
)
async def test_plain_loops_leave_nothing(
    child: Starter, dsn: str, pool: Pool, *, host: str, way: str, code: int
):
    """Returned, terminated with consent, interrupted: closed. Killed: reaped."""
    process = await child(BARE, way, host, DSN=dsn)
    assert await process.line() == "ready", await process.errors()
    if way != "return":  # it may have ended by now
        assert await pool.fetchval(ROWS) == 1
        process.signal(signal.SIGINT if way == "interrupt" else signal.SIGTERM)
    assert await process.wait() == code, await process.errors()
    if way == "kill":
        assert await pool.fetchval(ROWS) == 1
        await locks_held(pool, 0)  # the server sees a killed process late
        report = await SessionService(pool, SessionConfig(grace=0.2)).reap()
        assert len(report.dropped) == 1
    else:
        assert await process.line() == "hook"
    assert await pool.fetchval(ROWS) == await pool.fetchval(OWNERS) == 0


@pytest.mark.parametrize("way", ["unload", "interrupt"])
async def test_a_desktop_plug_in_leaves_nothing(
    child: Starter, dsn: str, pool: Pool, way: str
):
    """A thread with anyio's blocking portal: unloading closes everything."""
    process = await child(PLUGIN, DSN=dsn)
    assert await process.line() == "ready", await process.errors()
    assert await pool.fetchval(ROWS) == 1
    if way == "unload":
        await process.say()
    else:
        process.signal(signal.SIGINT)
    assert await process.line() == "hook"
    if way == "unload":
        assert await process.line() == "unloaded"
    assert await process.wait() == (0 if way == "unload" else -2)
    assert await pool.fetchval(ROWS) == await pool.fetchval(OWNERS) == 0
