"""The pool beside asyncpg's and psycopg's: cost, fairness, outages, bounds.

``python tests/bench/bench_postgres.py`` starts embedded servers of its own and
prints, on asyncio's loop: one fetch by id (interleaved blocks, ratios within a
cycle); 40 tasks on 4 connections (longest wait by median wait); ten workers
through an outage of a second (errors, time until the first success); a frozen
server and a network that swallows all bytes (how far calls overrun a deadline);
1,500 random cancellations (connections lost, most at once). ``--check`` ends with
status 1 when a bar is broken; ``--only fetch`` runs one part.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import shutil
import statistics
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import asyncpg
import psycopg_pool

sys.path.insert(0, str(Path(__file__).parents[2]))

from fm_storage.config import PostgresConfig
from fm_storage.errors import StorageError
from fm_storage.postgres import Pool, Sql
from fm_storage.postgres.connect.codecs import install_codecs
from fm_storage.postgres.embedded.cluster import Cluster
from fm_storage.postgres.embedded.programs import installed_server
from tests.bench.harness import Bar, Peer, Table, arguments, finish, measure
from tests.fix_cluster import TestCluster
from tests.fix_postgres import make_base, test_account
from tests.fix_proxy import TcpProxy, target_of
from tests.support.cancelling import cancel_at_random

BY_ID = "SELECT id, moment, message, data FROM bench WHERE id = $1"
BY_ID_PSYCOPG = BY_ID.replace("$1", "%s")
ROWS = 1000
Act = Callable[[], Awaitable[object]]


@contextlib.asynccontextmanager
async def started() -> AsyncIterator[TestCluster]:
    """Run a throw-away cluster."""
    base = make_base("fm-bench-")
    cluster = Cluster(
        installed_server(), base / "data", log=base / "log", user=test_account()
    )
    cluster.initialise({"autovacuum": "off", "max_connections": "100"}, sync=False)
    made = TestCluster(base)
    await made.start()
    try:
        yield made
    finally:
        await made.aclose()
        shutil.rmtree(base, ignore_errors=True)


async def fetch_by_id(cluster: TestCluster, options: argparse.Namespace) -> list[Table]:
    """One row by primary key: the driver on one connection is 1.00."""
    pool = Pool(PostgresConfig(dsn=cluster.dsn, max_size=1))
    await pool.open()
    await pool.execute(
        "CREATE TABLE bench (id uuid PRIMARY KEY, moment timestamptz DEFAULT now(), "
        "message text, data jsonb)"
    )
    ids = [uuid.uuid4() for _ in range(ROWS)]
    await pool.copy_records(
        "bench",
        columns=["id", "message", "data"],
        records=[(key, "m" * 200, {"a": 1, "b": [1, 2, 3]}) for key in ids],
    )
    raw = await asyncpg.connect(cluster.dsn)
    install_codecs(raw)
    theirs = await asyncpg.create_pool(
        cluster.dsn, min_size=1, max_size=1, init=_with_codecs
    )
    psycopg = psycopg_pool.AsyncConnectionPool(
        cluster.dsn, min_size=1, max_size=1, open=False
    )
    await psycopg.open(wait=True)
    keys = itertools.cycle(ids)
    ours = Sql(BY_ID)

    async def by_raw() -> None:
        assert await raw.fetchrow(BY_ID, next(keys))

    async def by_pool() -> None:
        assert await pool.fetchrow(BY_ID, next(keys))

    async def by_sql() -> None:
        assert await pool.fetchrow(ours, next(keys))

    async def by_acquire() -> None:
        async with pool.acquire() as connection:
            assert await connection.fetchrow(BY_ID, next(keys))

    async def by_theirs() -> None:
        async with theirs.acquire() as connection:
            assert await connection.fetchrow(BY_ID, next(keys))

    async def by_psycopg() -> None:
        async with psycopg.connection() as connection:
            cursor = await connection.execute(BY_ID_PSYCOPG, (next(keys),))
            assert await cursor.fetchone()

    peers = {
        "asyncpg, one held connection": Peer(by_raw),
        "fm_storage pool.fetchrow()": Peer(by_pool),
        "fm_storage pool.fetchrow(Sql)": Peer(by_sql),
        "fm_storage pool.acquire()": Peer(by_acquire),
        "asyncpg pool.acquire()": Peer(by_theirs),
        "psycopg_pool connection()": Peer(by_psycopg),
    }
    first = await measure(
        "fetch one row by id",
        peers,
        baseline="asyncpg, one held connection",
        cycles=options.cycles,
        bars=[Bar("fm_storage pool.fetchrow()", wall=1.15, cpu=1.25)],
    )
    two = ("asyncpg pool.acquire()", "fm_storage pool.fetchrow()")
    second = await measure(
        "fetch one row by id, pool against pool",
        {name: peers[name] for name in two},
        baseline=two[0],
        cycles=options.cycles,
        bars=[Bar(two[1], wall=0.55)],
    )
    await psycopg.close()
    await theirs.close()
    await raw.close()
    await pool.aclose()
    return [first, second]


async def _with_codecs(connection: Any) -> None:
    install_codecs(getattr(connection, "_con", connection))


def say(text: str) -> None:
    """Print a line."""
    sys.stdout.write(text + "\n")


def verdict(title: str, rows: dict[str, str], broken: list[str]) -> Table:
    """Make a table of words, so that every part is printed and judged alike."""
    say(title)
    for name, said in rows.items():
        say(f"  {name:22}  {said}")
    for said in broken:
        say(f"  BROKEN {said}")
    return Table(title, "", 1, 1, {}, broken)


@contextlib.asynccontextmanager
async def three_pools(
    dsn: str, size: int, timeout: float
) -> AsyncIterator[dict[str, Callable[[str], Awaitable[object]]]]:
    """Give each library's way to run one statement on a pooled connection."""
    ours = Pool(
        PostgresConfig(
            dsn=dsn, max_size=size, acquire_timeout=timeout, command_timeout=timeout
        )
    )
    await ours.open()
    theirs = await asyncpg.create_pool(
        dsn, min_size=size, max_size=size, command_timeout=timeout
    )
    psycopg = psycopg_pool.AsyncConnectionPool(
        dsn,
        min_size=size,
        max_size=size,
        timeout=timeout,
        check=psycopg_pool.AsyncConnectionPool.check_connection,
        open=False,
    )
    await psycopg.open(wait=True)

    async def by_theirs(sql: str) -> object:
        async with theirs.acquire(timeout=timeout) as connection:
            return await connection.fetchval(sql)

    async def by_psycopg(sql: str) -> object:
        async with psycopg.connection() as connection:
            cursor = await connection.execute(sql.encode())
            return await cursor.fetchone()

    yield {
        "fm_storage": ours.fetchval,
        "psycopg_pool": by_psycopg,
        "asyncpg": by_theirs,
    }
    await ours.aclose(1.0)
    theirs.terminate()
    with contextlib.suppress(Exception):
        await psycopg.close(1.0)


async def fairness(cluster: TestCluster, _options: argparse.Namespace) -> list[Table]:
    """40 tasks on 4 connections, 25 statements of 10 ms each."""
    rows, broken = {}, []
    async with three_pools(cluster.dsn, 4, 30.0) as pools:
        for name, run in pools.items():
            waits: list[float] = []

            async def ask(
                run: Callable[[str], Awaitable[object]] = run,
                waits: list[float] = waits,
            ) -> None:
                for _ in range(25):
                    began = time.perf_counter()
                    await run("SELECT 1 FROM pg_sleep(0.01)")
                    waits.append(time.perf_counter() - began)

            await asyncio.gather(*(ask() for _ in range(40)))
            steady = waits[40:]
            p50, most = statistics.median(steady), max(steady)
            rows[name] = (
                f"p50 {p50 * 1e3:6.1f} ms   max {most * 1e3:6.1f} ms   "
                f"max/p50 {most / p50:.2f}"
            )
            if name == "fm_storage" and most > 1.5 * p50:
                broken.append(f"max wait {most / p50:.2f} x p50, above 1.5")
    return [verdict("40 tasks on 4 connections", rows, broken)]


async def outage(cluster: TestCluster, _options: argparse.Namespace) -> list[Table]:
    """Stop the server at once under ten workers, start it a second later."""
    rows, broken = {}, []
    for name in ("fm_storage", "psycopg_pool", "asyncpg"):
        async with three_pools(cluster.tcp_dsn, 5, 10.0) as pools:
            run, stop = pools[name], asyncio.Event()
            errors: list[BaseException] = []
            good: list[float] = []

            async def work(
                run: Callable[[str], Awaitable[object]] = run,
                stop: asyncio.Event = stop,
                errors: list[BaseException] = errors,
                good: list[float] = good,
            ) -> None:
                while not stop.is_set():
                    try:
                        await run("SELECT 1 FROM pg_sleep(0.005)")
                        good.append(time.monotonic())
                    except Exception as exc:
                        errors.append(exc)
                        await asyncio.sleep(0.01)

            workers = [asyncio.create_task(work()) for _ in range(10)]
            await asyncio.sleep(0.5)
            await cluster.stop("immediate")
            await asyncio.sleep(1.0)
            await cluster.start()
            up = time.monotonic()
            await asyncio.sleep(3.0)
            stop.set()
            await asyncio.wait(workers, timeout=15)
            after = min((at for at in good if at >= up), default=float("inf")) - up
            rows[name] = f"{len(errors):5} errors   first success {after:.2f} s after"
            if name == "fm_storage" and (errors or after > 0.3):
                broken.append(rows[name])
    return [verdict("outage of 1 s, ten workers", rows, broken)]


async def bounds(cluster: TestCluster, _options: argparse.Namespace) -> list[Table]:
    """How far calls overrun a deadline of 0.5 s; when the pool is whole again."""
    rows, broken = {}, []
    proxy = TcpProxy(target_of(cluster.tcp_dsn))
    cases: dict[str, tuple[str, Callable[[], object], Callable[[], object]]] = {
        "frozen server": (cluster.tcp_dsn, cluster.freeze, cluster.thaw),
        "black hole": (proxy.dsn(cluster.tcp_dsn), proxy.black_hole, proxy.heal),
    }
    for name, (dsn, begin, end) in cases.items():
        pool = Pool(PostgresConfig(dsn=dsn, max_size=4))
        await pool.open()
        over: list[float] = []

        async def timed(act: Act, over: list[float] = over) -> None:
            began = time.monotonic()
            with contextlib.suppress(StorageError):
                await act()
            over.append(time.monotonic() - began - 0.5)

        async def borrow(pool: Pool = pool) -> None:
            async with pool.acquire(timeout=0.5):
                pass

        async with pool.acquire() as held:
            begin()
            await timed(lambda held=held: held.fetchval("SELECT 1", timeout=0.5))
        await asyncio.sleep(1.1)  # idle connections are checked from here on
        for _ in range(4):
            await timed(borrow)
            await timed(lambda pool=pool: pool.fetchval("SELECT 1", timeout=0.5))
        end()
        began = time.monotonic()
        while True:
            with contextlib.suppress(StorageError):
                await asyncio.gather(
                    *(pool.fetchval("SELECT 1", timeout=0.5) for _ in range(4))
                )
                break
        whole = time.monotonic() - began
        begin()
        await timed(lambda pool=pool: pool.aclose(0.5))
        end()
        rows[name] = f"overrun at most {max(over):.2f} s   whole {whole:.2f} s after"
        if max(over) > 0.5 or whole > 2.0:
            broken.append(f"{name}: {rows[name]}")
    proxy.close()
    return [verdict("deadlines of 0.5 s in bad weather", rows, broken)]


async def cancellations(
    cluster: TestCluster, _options: argparse.Namespace
) -> list[Table]:
    """1,500 calls of every kind cancelled at random instants."""
    broken = []
    began = time.monotonic()
    try:
        await cancel_at_random(cluster.dsn, 1500)
        said = f"none lost, never above max_size ({time.monotonic() - began:.1f} s)"
    except AssertionError as exc:
        said = f"leaked: {exc}"
        broken.append(said)
    return [verdict("1,500 random cancellations", {"fm_storage": said}, broken)]


PARTS = {
    "fetch": fetch_by_id,
    "fairness": fairness,
    "outage": outage,
    "bounds": bounds,
    "cancellations": cancellations,
}


async def main() -> int:
    """Run the chosen parts and print their figures."""
    options = arguments(__doc__ or "").parse_args()
    # asyncpg's own pool leaves failed reconnections behind as unretrieved tasks.
    asyncio.get_running_loop().set_exception_handler(lambda _loop, _context: None)
    tables: list[Table] = []
    for name, part in PARTS.items():
        if options.only not in name:
            continue
        async with started() as cluster:
            for table in await part(cluster, options):
                tables.append(table)
                if table.rows:
                    say(table.text())
    return finish(tables, options)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
