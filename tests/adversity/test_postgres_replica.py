"""Reading from a streaming replica: near, late, frozen, killed, promoted, another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import pytest

from fm_storage import (
    ConfigurationInvalid,
    ConnectionFailed,
    ErrorEntry,
    ErrorManager,
    PostgresConfig,
    QueryFailed,
    QueryTimeout,
    SerializationFailed,
    StorageConfig,
    StorageManager,
)
from fm_storage.errors import StorageError
from fm_storage.postgres import Pool, Sql, Transaction
from fm_storage.postgres.pool.replica import ReadPool
from tests.fix_cluster import TestCluster
from tests.support.waiting import until

pytestmark = [pytest.mark.timeout(120), pytest.mark.slow]
PORT = "SELECT current_setting('port')::int"


@asynccontextmanager
async def pools(
    cluster: TestCluster, dsn: str, **settings: object
) -> AsyncIterator[tuple[Pool, ReadPool]]:
    """Open a pool on *cluster*, and one for reading at *dsn*."""
    config = PostgresConfig(dsn=cluster.tcp_dsn, read_dsn=dsn, **settings)
    async with Pool(config) as pool, ReadPool(pool) as reads:
        yield pool, reads


async def replayed(pool: Pool, standby: TestCluster) -> None:
    """Wait until the standby has what was committed so far."""
    position = await pool.position()
    async with Pool(PostgresConfig(dsn=standby.tcp_dsn)) as there:
        has = Sql("SELECT pg_last_wal_replay_lsn() >= $1::text::pg_lsn")
        async with asyncio.timeout(20):
            while not await there.fetchval(has, position):
                await asyncio.sleep(0.02)


async def test_reads_come_from_the_replica_and_refuse_to_write(cluster: TestCluster):
    """Every verb that reads; a write is 25006, and replaces no connection."""
    standby = await cluster.standby()
    async with pools(cluster, standby.tcp_dsn, max_size=2) as (pool, reads):
        await pool.execute("CREATE TABLE t AS SELECT 7 AS n")
        await replayed(pool, standby)
        assert await pool.fetchval(PORT) == cluster.port
        assert await reads.fetchval(PORT) == standby.port
        assert [row["n"] for row in await reads.fetch("SELECT n FROM t")] == [7]
        async with reads.acquire() as connection:
            assert await connection.fetchval(PORT) == standby.port
        async with reads.transaction(isolation="repeatable_read") as tx:
            assert await tx.fetchval(PORT) == standby.port
        async with reads.stream("SELECT n FROM t") as rows:
            assert [row["n"] async for row in rows] == [7]

        async def body(tx):
            return await tx.fetchval(PORT)

        assert await reads.run_in_transaction(body) == standby.port
        for write in ("INSERT INTO t VALUES (8)", "CREATE TABLE u ()"):
            with pytest.raises(QueryFailed) as caught:
                await reads.execute(write)
            assert caught.value.sqlstate == "25006"
        with pytest.raises(ConfigurationInvalid, match="repeatable_read"):
            async with reads.transaction(isolation="serializable"):
                pass
        found = reads.statistics()
        assert (found.generation, found.fallbacks) == (0, 0)
        await until(lambda: reads.statistics().lag == 0.0)
        async with reads.listen("news") as news:
            await pool.execute("NOTIFY news, 'x'")
            assert (await anext(aiter(news))).payload == "x"


async def test_one_reads_ones_own_writes_on_request(cluster: TestCluster):
    """``after`` waits for a replica that is near, and leaves one that is late."""
    standby = await cluster.standby()
    async with pools(cluster, standby.tcp_dsn, read_wait=5) as (pool, reads):
        await pool.execute("CREATE TABLE t (n int)")
        for n in range(20):
            if n == 10:  # an asynchronous commit has a position, too
                await pool.execute("ALTER ROLE postgres SET synchronous_commit = off")
                await pool.drain()
            await pool.execute("INSERT INTO t VALUES ($1)", n)
            after = reads.after(await pool.position())
            assert await after.fetchval("SELECT max(n) FROM t") == n
        assert reads.statistics().fallbacks == 0
        after = reads.after(pool.position())  # awaited by the reads, and by all
        given_up = asyncio.create_task(after.fetchval(PORT))
        await asyncio.sleep(0)
        given_up.cancel()
        assert (
            await asyncio.gather(*(after.fetchval(PORT) for _ in range(5)))
            == [standby.port] * 5
        )

    await standby.restart(recovery_min_apply_delay="1h")
    async with pools(cluster, standby.tcp_dsn, read_wait=0.3) as (pool, reads):
        await pool.execute("INSERT INTO t VALUES (100)")
        view = reads.after(await pool.position())
        assert await reads.fetchval("SELECT max(n) FROM t") == 19
        started = time.monotonic()
        assert await view.fetchval("SELECT max(n) FROM t") == 100
        assert 0.25 < time.monotonic() - started < 3
        async with view.transaction() as tx, view.acquire() as held:
            assert await tx.fetchval("SELECT max(n) FROM t") == 100
            assert await held.fetchval("SELECT max(n) FROM t") == 100
            with pytest.raises(QueryFailed):
                await held.execute("INSERT INTO t VALUES (101)")
        async with view.stream("SELECT max(n) AS n FROM t") as rows:
            assert [row["n"] async for row in rows] == [100]
        for wrong in ("yesterday", 5, None):
            for one in (pool, reads):
                with pytest.raises(ConfigurationInvalid, match="position"):
                    one.after(wrong)
        # What the primary answered cannot have written either.
        with pytest.raises(QueryFailed) as caught:
            await view.execute("INSERT INTO t VALUES (101)")
        assert caught.value.sqlstate == "25006"
        await pool.execute("INSERT INTO t VALUES (102)")
        await until(lambda: (reads.statistics().lag or 0) > 1, within=20)
        status, detail = await reads.health()
        assert (status, "s behind" in detail) == ("ok", True)

    async with pools(cluster, standby.tcp_dsn, read_max_lag=0.5) as (pool, reads):
        await until(lambda: not reads.is_used, within=20)
        assert await reads.fetchval("SELECT max(n) FROM t") == 102
        status, detail = await reads.health()
        assert status == "degraded"
        assert "read_max_lag" in detail


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_a_replica_that_goes_away_costs_no_error(cluster: TestCluster, how: str):
    """Reads go on at the primary, and come back when the replica does."""
    standby = await cluster.standby()
    async with pools(
        cluster, standby.tcp_dsn, check_timeout=0.5, max_size=4, acquire_timeout=20
    ) as (pool, reads):
        await pool.execute("CREATE TABLE t AS SELECT 1 AS n")
        await replayed(pool, standby)
        failed: list[Exception] = []
        answered = {cluster.port: 0, standby.port: 0}
        longest, ended = 0.0, False

        async def read() -> None:
            nonlocal longest
            while not ended:
                started = time.monotonic()
                try:
                    answered[await reads.fetchval(PORT)] += 1
                except StorageError as exc:
                    failed.append(exc)
                longest = max(longest, time.monotonic() - started)
                await asyncio.sleep(0.005)

        async with asyncio.TaskGroup() as group:
            for _ in range(6):
                group.create_task(read())
            await asyncio.sleep(0.5)
            if how == "kill":
                await standby.kill()
            else:
                standby.freeze()
            await until(lambda: not reads.is_used, within=20)
            assert (await reads.health())[0] == "degraded"
            await asyncio.sleep(0.5)
            before = answered[standby.port]
            assert answered[cluster.port] > 20
            if how == "kill":
                await standby.start()
            else:
                standby.thaw()
            await until(lambda: answered[standby.port] > before + 20, within=40)
            ended = True
        assert failed == []
        assert longest < 12
        assert reads.statistics().fallbacks >= answered[cluster.port]


async def test_a_manager_opens_without_its_replica(cluster: TestCluster):
    """And finds it later."""
    standby = await cluster.standby()
    await standby.stop()
    async with pools(cluster, standby.tcp_dsn) as (_, reads):
        assert await reads.fetchval(PORT) == cluster.port
        await standby.start()
        await until(lambda: reads.is_used, within=40)
        assert await reads.fetchval(PORT) == standby.port


async def test_opening_and_closing_are_bounded_beside_a_frozen_replica(
    cluster: TestCluster,
):
    """A few seconds each; a read that was cancelled leaves no connection taken."""
    standby = await cluster.standby()
    async with pools(cluster, standby.tcp_dsn, read_wait=30) as (pool, reads):
        assert await reads.fetchval(PORT) == standby.port
        ahead = reads.after("FFFFFFFF/0")  # never there
        waiting = [asyncio.create_task(ahead.fetchval(PORT)) for _ in range(5)]
        await until(lambda: reads.statistics().busy == 5)
        for one in waiting:
            one.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)
        await until(lambda: reads.statistics().busy == 0)
        assert await reads.fetchval(PORT) == standby.port
        standby.freeze()
        started = time.monotonic()
    assert time.monotonic() - started < 5
    started = time.monotonic()
    async with pools(cluster, standby.tcp_dsn, command_timeout=60) as (pool, reads):
        assert time.monotonic() - started < 6
        started = time.monotonic()
        assert await reads.fetchval(PORT) == cluster.port
        assert await reads.after(await pool.position()).fetchval(PORT) == cluster.port
        assert time.monotonic() - started < 2
    standby.thaw()


async def test_files_are_written_by_the_replica(cluster: TestCluster, tmp_path):
    """COPY TO is a read; COPY FROM and executemany() are not."""
    standby = await cluster.standby()
    async with pools(cluster, standby.tcp_dsn, read_wait=10) as (pool, reads):
        await pool.execute("CREATE TABLE t AS SELECT generate_series(1, 50) AS n")
        view = reads.after(await pool.position())
        target = tmp_path / "out.csv"
        assert await view.copy_to(target, query=PORT + ", n FROM t") == 50
        assert str(standby.port) in target.read_text()
        for write in (
            view.copy_from("t", target, columns=["n"]),
            view.copy_records("t", columns=["n"], records=[(1,)]),
            view.executemany("INSERT INTO t VALUES ($1)", [(1,)]),
        ):
            with pytest.raises(QueryFailed) as caught:
                await write
            assert caught.value.sqlstate == "25006"
        assert await pool.fetchval("SELECT count(*) FROM t") == 50


async def test_a_promoted_replica_is_left_for_another_one(cluster: TestCluster):
    """Of two hosts the one that is a standby answers, also after a promotion."""
    standby = await cluster.standby()
    dsn = (
        f"postgresql://postgres@127.0.0.1:{cluster.port},127.0.0.1:{standby.port}"
        "/postgres"
    )
    async with pools(cluster, dsn, target_session_attrs=None) as (pool, reads):
        assert await reads.fetchval(PORT) == standby.port
        await until(lambda: reads.statistics().lag == 0.0)
        await standby.promote()
        async with asyncio.timeout(20):
            while reads.statistics().generation == 0:
                assert await reads.fetchval("SELECT 1") == 1
                await asyncio.sleep(0.1)
        await pool.execute("CREATE TABLE t AS SELECT 1 AS n")
        await cluster.stop("immediate")
        assert await reads.fetchval(PORT) == standby.port


async def test_a_conflict_with_recovery_is_no_error(cluster: TestCluster):
    """The read is made again, and then by the primary; a transaction is repeated."""
    standby = await cluster.standby()
    await standby.restart(max_standby_streaming_delay="100ms")
    async with pools(cluster, standby.tcp_dsn) as (pool, reads):
        await pool.execute("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n")
        await replayed(pool, standby)
        ended = False

        async def churn() -> None:
            while not ended:
                await pool.execute(Sql("UPDATE t SET n = n + 1"))
                await pool.execute(Sql("VACUUM t"))

        slow = Sql("SELECT count(*), pg_sleep(0.8) FROM (SELECT n FROM t LIMIT 5) AS t")
        async with asyncio.TaskGroup() as group:
            group.create_task(churn())
            counts = await asyncio.gather(*(reads.fetchval(slow) for _ in range(4)))

            async def body(tx):
                await tx.fetchval("SELECT count(*) FROM t")
                await asyncio.sleep(0.8)
                return await tx.fetchval("SELECT count(*) FROM t")

            counts.append(await reads.run_in_transaction(body))
            # Only the caller can repeat a block; one that is idle is disconnected.
            with pytest.raises((SerializationFailed, ConnectionFailed)) as caught:
                for _ in range(10):
                    async with reads.transaction(isolation="repeatable_read") as tx:
                        await body(tx)
            assert caught.value.retryable
            ended = True
        assert counts == [5, 5, 5, 5, 1000]
        assert reads.statistics().fallbacks > 0


async def test_a_slow_read_is_not_run_again(cluster: TestCluster):
    """What the server cancelled for its time would burden the primary, too."""
    standby = await cluster.standby()
    limit = {"statement_timeout": "400"}
    async with pools(cluster, standby.tcp_dsn, server_settings=limit) as (_, reads):
        for call in (reads.fetch, reads.fetchrow, reads.fetchval, reads.execute):
            began = time.monotonic()
            with pytest.raises(QueryTimeout, match="postgres-reads"):
                await call("SELECT pg_sleep(5)")
            assert time.monotonic() - began < 0.8
        assert reads.statistics().fallbacks == 0


async def test_a_replica_behind_a_pooler(cluster: TestCluster, pgbouncer):
    """In transaction mode, for it and for the primary: reads, positions, a kill."""
    standby = await cluster.standby()
    through = pgbouncer(standby.tcp_dsn)
    config = PostgresConfig(
        dsn=pgbouncer(cluster.tcp_dsn), read_dsn=through, read_wait=10
    )
    async with Pool(config) as pool, ReadPool(pool) as reads:
        assert pool.transaction_pooler
        assert reads.transaction_pooler
        await pool.execute("CREATE TABLE t AS SELECT 7 AS n")
        view = reads.after(await pool.position())
        assert [row["n"] for row in await view.fetch("SELECT n FROM t")] == [7]
        assert await view.fetchval(PORT) == standby.port
        async with view.transaction() as tx:
            assert await tx.fetchval(PORT) == standby.port
        with pytest.raises(QueryFailed) as caught:
            await reads.execute("INSERT INTO t VALUES (8)")
        assert caught.value.sqlstate == "25006"
        await standby.kill()
        assert await reads.fetchval(PORT) == cluster.port
        async with reads.acquire() as connection:
            assert await connection.fetchval(PORT) == cluster.port


async def test_another_database_system_is_refused(cluster: TestCluster, empty_dsn: str):
    """The primary itself is fine; a stranger is not, nor another database."""
    async with pools(cluster, cluster.tcp_dsn) as (pool, reads):
        await pool.execute("CREATE TABLE t (n int)")
        assert await reads.fetchval(PORT) == cluster.port
        with pytest.raises(QueryFailed):
            await reads.execute("INSERT INTO t VALUES (1)")
        after = reads.after(await pool.position())
        assert await after.fetchval("SELECT count(*) FROM t") == 0
        assert (await reads.health()) == ("ok", "primary, 0.0 s behind")
        await pool.execute("CREATE DATABASE other")
    other = cluster.tcp_dsn.removesuffix("postgres") + "other"
    for dsn in (empty_dsn, other):
        with pytest.raises(ConfigurationInvalid, match=r"postgres\.read_dsn"):
            async with pools(cluster, dsn):
                pass


@dataclass(slots=True)
class Thing:
    """A row."""

    id: int
    name: str


async def test_a_repository_reads_from_the_replica(cluster: TestCluster):
    """Its reading verbs do; writing verbs and transactions are refused."""
    standby = await cluster.standby()
    config = StorageConfig(
        postgres=PostgresConfig(
            dsn=cluster.tcp_dsn, read_dsn=standby.tcp_dsn, read_wait=10
        ),
        qdrant=None,
    )
    async with StorageManager(config) as storage:
        assert storage.reads is not storage.pool
        await storage.pool.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
        things = storage.repository(Thing)
        await things.create(Thing(1, "a"))
        near = things.on_replica(after=await storage.position())
        assert await near.get_by_id(1) == Thing(1, "a")
        assert await near.find_many() == [Thing(1, "a")]
        assert (await near.page(total=True)).total == 1
        assert await near.count() == 1
        assert await near.exists()
        async with near.stream() as rows:
            assert [row async for row in rows] == [Thing(1, "a")]
        assert await things.on_replica(after=storage.position()).count() == 1
        assert await storage.error_entries.on_replica().count_by_module() == {}
        for write in (
            lambda: near.create(Thing(2, "b")),
            lambda: near.upsert(Thing(2, "b")),
            lambda: near.get_or_create(Thing(2, "b")),
            lambda: near.create_many([Thing(2, "b")]),
            lambda: near.upsert_many([]),
            lambda: near.update(1, {"name": "b"}),
            lambda: near.delete(1),
            lambda: near.erase(1),
            lambda: near.delete_many([]),
            lambda: near.update_where([], {"name": "b"}, everything=True),
            lambda: near.delete_where([], everything=True),
        ):
            with pytest.raises(ConfigurationInvalid, match="only reads"):
                await write()
        async with storage.transaction() as tx:
            for attempt in (
                things.on_replica,
                things.bind(tx).on_replica,
                tx.repository(Thing).on_replica,
                tx.error_entries.on_replica,
            ):
                with pytest.raises(ConfigurationInvalid, match="transaction"):
                    attempt()
            with pytest.raises(ConfigurationInvalid, match="only reads"):
                near.bind(tx)
        health = await storage.health()
        assert health["replica"].status == "ok"
        assert "standby" in health["replica"].detail
        assert await storage.reads.fetchval(PORT) == standby.port
        assert storage.statistics().reads.fallbacks == 0


async def test_the_catalogue_is_read_from_the_replica(cluster: TestCluster):
    """Groups, analyzer and report, also while the primary is away."""
    standby = await cluster.standby()
    config = StorageConfig(
        postgres=PostgresConfig(
            dsn=cluster.tcp_dsn, read_dsn=standby.tcp_dsn, acquire_timeout=1
        ),
        qdrant=None,
    )
    async with StorageManager(config) as storage:
        errors = ErrorManager(storage, reads=storage.reads)
        await errors.record("no such host db7", module="net")
        entry = ErrorEntry("disk is full", "disk", "E1")  # nobody has grouped it
        await storage.error_entries.create(entry)
        await errors.groups()
        await replayed(storage.pool, standby)
        before = storage.reads.statistics().acquired
        assert {group.module for group in await errors.groups()} == {"net", "disk"}
        assert (await errors.analyzer.totals()).errors == 2
        assert (await errors.report()).totals.groups == 2
        assert storage.reads.statistics().acquired > before + 5
        assert storage.reads.statistics().fallbacks == 0
        await cluster.kill()
        assert len(await errors.groups()) == 2
        assert await errors.analyzer.frequencies() == {"disk": 1, "net": 1}
        await cluster.start()
        await storage.pool.fetchval("SELECT 1", timeout=20)


async def test_types_are_known_to_both(cluster: TestCluster):
    """What is registered with the pool holds for the replica as well."""
    standby = await cluster.standby()
    async with pools(cluster, standby.tcp_dsn) as (pool, reads):
        assert await reads.fetchval("SELECT 1") == 1
        await pool.execute("CREATE TYPE mood AS ENUM ('low', 'high')")
        await replayed(pool, standby)
        await pool.register_type("mood", encoder=str.lower, decoder=str.upper)
        for one in (pool, reads):
            assert await one.fetchval("SELECT $1::mood", "High") == "HIGH"


async def test_without_a_replica_reads_is_the_pool(storage: StorageManager):
    """And everything above means the same."""
    assert storage.reads is storage.pool
    await storage.pool.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    things = storage.repository(Thing)
    await things.create(Thing(1, "a"))
    near = things.on_replica(after=storage.position())
    assert await near.find_many() == [Thing(1, "a")]
    with pytest.raises(ConfigurationInvalid, match="only reads"):
        await near.delete(1)
    assert (await storage.health())["replica"].status == "off"


@pytest.mark.parametrize("where", ["pool", "transaction"])
async def test_a_stream_ended_by_a_conflict_with_recovery_says_so(
    cluster: TestCluster, where: str
):
    """Between two fetches, where the driver drops what the server says: 40001."""
    standby = await cluster.standby()
    await standby.restart(max_standby_streaming_delay="0")
    config = PostgresConfig(dsn=standby.tcp_dsn, max_size=1)
    async with (
        Pool(PostgresConfig(dsn=cluster.tcp_dsn)) as pool,
        Pool(config) as there,
    ):
        await pool.execute("CREATE TABLE t AS SELECT generate_series(1, 5000) AS n")
        await replayed(pool, standby)
        with pytest.raises(SerializationFailed) as caught:
            async with AsyncExitStack() as stack:
                on: Pool | Transaction = there
                if where == "transaction":
                    block = there.transaction(isolation="repeatable_read")
                    on = await stack.enter_async_context(block)
                opened = on.stream("SELECT n FROM t", prefetch=10)
                async for row in await stack.enter_async_context(opened):
                    if row["n"] == 1:
                        await pool.execute("DELETE FROM t")
                        await pool.execute("VACUUM t")
                        await until(lambda: has_ended_one(standby))
        assert caught.value.sqlstate == "40001"
        assert caught.value.retryable
    async with Pool(config) as there:
        assert await there.fetchval("SELECT count(*) FROM t") == 0


async def has_ended_one(standby: TestCluster) -> bool:
    """Whether the standby has ended a connection for a conflict."""
    async with Pool(PostgresConfig(dsn=standby.tcp_dsn)) as look:
        found = await look.fetchval(
            "SELECT confl_snapshot FROM pg_stat_database_conflicts "
            "WHERE datname = current_database()"
        )
    return bool(found)
