"""Shutdown hooks in their real hosts: processes with signals and exit codes.

Every host × every way out: hooks run last in first out, all tried, within the
total deadline, with the exit code a shell expects.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable

import pytest

from fm_storage.postgres import Pool
from tests.fix_process import Child
from tests.support.waiting import LONG

# h4 hangs and swallows cancellation, h3 is fine, h2 fails, h1 is fine.
HOST = """
import asyncio, sys, threading
import anyio
from fm_storage.hooks import ShutdownHooks

host, way = sys.argv[1:]
hooks = ShutdownHooks(timeout=0.6, total_timeout=3)

async def hook(number):
    print("hook", number, flush=True)
    await asyncio.sleep(0.02)

async def fails():
    print("hook 2", flush=True)
    raise RuntimeError("boom")

async def hangs():
    print("hook 4", flush=True)
    while True:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            pass

async def main():
    hooks.register(hook, 1)
    hooks.register(fails)
    hooks.register(hook, 3)
    if way != "clean":
        hooks.register(hangs)
    if way in ("term", "term-in-hooks"):
        hooks.handle_signals()
    print("ready", flush=True)
    if way == "raise":
        raise ValueError("as planned")
    if way in ("term", "int"):
        await asyncio.sleep(60)

if host == "asyncio":
    asyncio.run(main())
elif host == "uvloop":
    import uvloop
    uvloop.run(main())
elif host == "anyio":
    anyio.run(main)
elif host == "runner":
    with asyncio.Runner() as runner:
        runner.run(main())
elif host == "loop":
    asyncio.new_event_loop().run_until_complete(main())
elif host == "closing":
    loop = asyncio.new_event_loop()
    loop.run_until_complete(hooks.closing(main()))
    loop.close()
elif host == "block":
    async def block():
        async with hooks:
            await main()
    asyncio.run(block())
"""

HOSTS = ["asyncio", "uvloop", "anyio", "runner", "loop", "closing", "block"]
CODES = {
    "return": 0,
    "raise": 1,
    "int": 130,
    "term": 143,
    "int-in-hooks": 130,
    "term-in-hooks": 143,
}
IN_ORDER = ["hook 4", "hook 3", "hook 2", "hook 1"]

Starter = Callable[..., Awaitable[Child]]


def shell_code(code: int) -> int:
    """Return the exit code as a shell shows it."""
    return 128 - code if code < 0 else code


async def lines(process: Child) -> list[str]:
    """Return what it still prints, to its end."""
    found = []
    while line := await process.line():
        found.append(line)
    return found


# The rest of the matrix is in tests/torture.
SHORT = [
    (host, way)
    for host in HOSTS
    for way in CODES
    if host == "asyncio"
    or (host, way) in {("uvloop", "term"), ("anyio", "term")}
    or way == "return"
]


@pytest.mark.parametrize(("host", "way"), SHORT)
async def test_hooks_run_in_every_host_whatever_ends_it(
    child: Starter, host: str, way: str
):
    """LIFO, all tried, within the total deadline, and the right exit code."""
    await check(child, host, way)


async def check(child: Starter, host: str, way: str) -> None:
    """Run one cell of the matrix."""
    process = await child(HOST, host, way)
    assert await process.line() == "ready"
    began = time.monotonic()
    seen = []
    if way in {"int", "term"}:
        await asyncio.sleep(0.1)
        process.signal(signal.SIGINT if way == "int" else signal.SIGTERM)
    if way.endswith("-in-hooks"):
        seen.append(await process.line())
        process.signal(signal.SIGINT if way.startswith("int") else signal.SIGTERM)
    seen += await lines(process)
    code = shell_code(await process.wait())
    assert time.monotonic() - began < LONG  # the hanging hook's minute is not waited
    assert seen == IN_ORDER, await process.errors()
    # Only an explicit close raises what hooks raised.
    expected = 1 if (host, way) == ("block", "return") else CODES[way]
    assert code == expected, await process.errors()


FORGOTTEN = """
import asyncio, sys
import uvloop
from fm_storage import StorageManager

async def main():
    storage = await StorageManager()
    session = await storage.session()
    print(await session.create_view("SELECT 1 AS one"), flush=True)

(uvloop if sys.argv[1] == "uvloop" else asyncio).run(main())
"""


@pytest.mark.parametrize("host", ["asyncio", "uvloop"])
async def test_the_loops_end_closes_a_manager_without_a_warning(
    child: Starter, pool: Pool, dsn: str, host: str
):
    """Nobody closed it: in development mode, too, nothing is said and no view stays."""
    process = await child(
        FORGOTTEN,
        host,
        FM_STORAGE_POSTGRES__DSN=dsn,
        FM_STORAGE_QDRANT="none",
        PYTHONDEVMODE="1",
        PYTHONWARNINGS="error::ResourceWarning",
    )
    view = await process.line()
    assert await process.wait() == 0
    said = await process.errors()
    # On a busy machine the development mode tells of tasks that took long.
    assert "Warning" not in said
    assert "Traceback" not in said
    assert await pool.fetchval("SELECT to_regclass($1)", view) is None


@pytest.mark.parametrize("way", ["int-in-hooks", "term-in-hooks"])
async def test_a_second_signal_leaves_at_once(child: Starter, way: str):
    """A user who cannot wait need not: the second signal during hooks ends it."""
    number = signal.SIGINT if way.startswith("int") else signal.SIGTERM
    code = HOST.replace("timeout=0.6, total_timeout=3", "timeout=30, total_timeout=60")
    process = await child(code, "asyncio", way)
    assert [await process.line(), await process.line()] == ["ready", "hook 4"]
    process.signal(number)
    await asyncio.sleep(1.0)  # two that are pending at once would be one
    began = time.monotonic()
    process.signal(number)
    assert shell_code(await process.wait()) == 128 + number
    assert time.monotonic() - began < LONG  # the hook's own deadline is 30 s


async def test_sigterm_without_consent_is_the_systems(child: Starter):
    """Without handle_signals() SIGTERM kills as ever; nothing was taken over."""
    process = await child(
        HOST.replace("hooks.handle_signals()", "pass"), "asyncio", "term"
    )
    assert await process.line() == "ready"
    process.signal(signal.SIGTERM)
    assert await process.wait() == -signal.SIGTERM
    assert await lines(process) == []


async def test_an_applications_own_handlers_stay(child: Starter):
    """A handler that the application set is neither replaced nor held back."""
    own = (
        "import signal\n"
        "signal.signal(signal.SIGTERM, lambda *_: (print('mine', flush=True),"
        " sys.exit(5)))\n"
    )
    process = await child(
        HOST.replace("host, way", own + "host, way"), "asyncio", "term"
    )
    assert await process.line() == "ready"
    process.signal(signal.SIGTERM)
    assert await lines(process) == ["mine", *IN_ORDER]
    assert await process.wait() == 5
