"""A lease that is lost: regained in time, or lost for good; poolers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from time import monotonic

import pytest

from fm_storage.config import MigrationsConfig, PostgresConfig, SessionConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    ConnectionFailed,
    PermissionDenied,
    SchemaOutOfDate,
    SessionLost,
    StorageClosed,
)
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager, SessionService, TempView
from fm_storage.sessions.lease import Lease
from tests.fix_cluster import TestCluster
from tests.fix_postgres import TestServer
from tests.fix_proxy import TcpProxy
from tests.support.inside import cut_lease, lease_of, owner_of
from tests.support.waiting import LONG, locks_held, until

QUIET = SessionConfig(reap_interval=0)
FAST = SessionConfig(grace=0.3, reap_interval=0.05)

END_LEASES = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND application_name LIKE '%/lease'"
)


async def wait_for_lease(service: SessionService, state: str) -> None:
    """Wait until the lease is in *state*."""
    await until(lambda: service.statistics().lease == state)


async def regained(pool: Pool, times: int) -> None:
    """Wait until the only lease was taken so often."""

    async def often() -> bool:
        return await leases(pool) >= times

    await until(often)


async def leases(pool: Pool) -> int:
    """Return how often the only lease was taken."""
    found: int = await pool.fetchval("SELECT leases FROM fm_storage.session_owners")
    return found


@dataclass(frozen=True, slots=True)
class Proxied:
    """A session whose lease, alone, goes through a proxy."""

    pool: Pool
    proxy: TcpProxy
    service: SessionService
    session: PostgresSessionManager
    view: TempView
    lease: Lease


@pytest.fixture
def asks_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every lease taken from now on ask soon whether its line is alive."""
    monkeypatch.setattr("fm_storage.sessions.lease._PING_EVERY", 0.05)
    monkeypatch.setattr("fm_storage.sessions.lease._PING_TIMEOUT", 0.5)


@pytest.fixture
async def proxied(
    server: TestServer, dsn: str, tcp_proxy: Callable[[str], TcpProxy]
) -> AsyncIterator[Proxied]:
    """Give a session with a view, and its lease's line in the test's hand."""
    through = server.over_tcp(dsn)
    proxy = tcp_proxy(through)
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        config = SessionConfig(reap_interval=0, dsn=proxy.dsn(through))
        service = SessionService(pool, config)
        await service.open()
        async with service.session() as session:
            view = await session.create_view("SELECT 1 AS n", materialized=True)
            yield Proxied(pool, proxy, service, session, view, lease_of(service))
            proxy.heal()
        await service.aclose()


async def test_a_terminated_lease_is_regained(pool: Pool):
    """Its backend terminated, a session goes on; a reaper finds nothing to do."""
    service, reaper = SessionService(pool, QUIET), SessionService(pool, FAST)
    await service.open()
    await reaper.open()
    async with service.session() as session:
        view = await session.create_view("SELECT 1 AS n", materialized=True)
        for number in range(2, 5):
            # The one before it may not have left the server's list yet.
            assert await pool.fetchval(END_LEASES) >= 1
            await regained(pool, number)
        await wait_for_lease(service, "held")
        assert (await service.health())[0] == "ok"
        await asyncio.sleep(0.6)
        await session.refresh_view(view)
        second = await session.create_view("SELECT 2 AS n")
        assert await pool.fetchval(f"SELECT n FROM {second}") == 2
        assert reaper.statistics().reaped == 0
    await reaper.aclose()
    await service.aclose()
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0


async def test_a_lease_lost_for_too_long_is_said_at_once(dsn: str, pool: Pool):
    """Cut off for longer than the grace: SessionLost, never 'does not exist'."""
    reaper = SessionService(pool, FAST)
    await reaper.open()
    async with Pool(PostgresConfig(dsn=dsn)) as other:
        service = SessionService(other, QUIET)
        await service.open()
        session = await service.session()
        view = await session.create_view("SELECT 1 AS n", materialized=True)
        lease = lease_of(service)
        regain = lease.try_again

        async def cut_off() -> bool | None:
            return None

        lease.try_again = cut_off
        assert await pool.fetchval(END_LEASES) == 1
        await wait_for_lease(service, "lost")
        assert (await service.health())[0] == "degraded"
        await until(lambda: reaper.statistics().reaped)
        # Not known here yet: the registry tells, in the same transaction.
        with pytest.raises(SessionLost):
            await session.create_view("SELECT 2")
        with pytest.raises(SessionLost):
            await session.refresh_view(view)
        lease.try_again = regain
        await wait_for_lease(service, "gone")
        assert session.is_lost
        assert (await service.health())[0] == "degraded"
        for attempt in (
            session.create_view("SELECT 2"),
            session.refresh_view(view),
            session.drop_view("unknown"),
        ):
            began = monotonic()
            with pytest.raises(SessionLost, match="open a new session"):
                await attempt
            assert monotonic() - began < 5  # without asking the server
        assert await session.cleanup_session_views() == 0
        await session.aclose()
        # A new session gets a new owner.
        async with service.session() as fresh:
            again = await fresh.create_view("SELECT 3 AS n")
            assert await pool.fetchval(f"SELECT n FROM {again}") == 3
        await service.aclose()
    await reaper.aclose()
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0


async def test_a_cut_network_is_survived(
    server: TestServer, dsn: str, tcp_proxy: Callable[[str], TcpProxy], pool: Pool
):
    """Every connection reset at once: the lease is regained, the views stay."""
    through = server.over_tcp(dsn)
    proxy = tcp_proxy(through)
    reaper = SessionService(pool, FAST)
    await reaper.open()
    async with Pool(PostgresConfig(dsn=proxy.dsn(through))) as other:
        service = SessionService(other, QUIET)
        await service.open()
        async with service.session() as session:
            view = await session.create_view("SELECT 1 AS n", materialized=True)
            proxy.cut()
            await regained(pool, 2)
            await asyncio.sleep(0.6)
            await session.refresh_view(view)
        assert session.last_cleanup.dropped == (str(view),)
        await service.aclose()
    await reaper.aclose()


async def test_a_backend_that_does_not_know_of_its_end_is_ended(proxied: Proxied):
    """The old backend still holds the lock: its successor ends it and takes over."""
    lease = proxied.lease
    assert lease._connection is not None
    backend = lease.backend
    proxied.proxy.black_hole()  # the server sees nothing of what follows
    lease.dsn = None  # the next connection finds another way
    lease._connection.raw.terminate()
    await wait_for_lease(proxied.service, "lost")
    await wait_for_lease(proxied.service, "held")
    assert lease.backend != backend
    await proxied.session.refresh_view(proxied.view)


async def test_a_line_that_dies_without_a_word_is_noticed(
    asks_often: None, proxied: Proxied
):
    """No reset comes: the lease asks now and then, and is taken again elsewhere."""
    del asks_often  # stands before the session, whose lease asks from the start
    proxy = proxied.proxy
    asked = proxy.forwarded
    await until(lambda: proxy.forwarded > asked)
    assert await leases(proxied.pool) == 1  # asking loses nothing
    proxied.lease.dsn = None  # the next connection finds another way
    proxy.black_hole()
    await regained(proxied.pool, 2)
    await wait_for_lease(proxied.service, "held")
    await proxied.session.refresh_view(proxied.view)


async def test_a_lock_that_another_owner_has_is_no_lease(pool: Pool):
    """A collision of keys is reported, retryable, and leaves no row and no session."""
    service = SessionService(pool, QUIET)
    await service.open()
    lease = Lease(owner_of(service).source, dsn=None, application_name="x")
    async with pool.acquire() as holder:
        await holder.execute("SELECT pg_advisory_lock($1)", lease.key)
        with pytest.raises(ConnectionFailed, match="taken by another owner"):
            await lease.open()
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0
    await lease.aclose()
    await service.aclose()


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_a_restarted_server_keeps_live_sessions(cluster: TestCluster):
    """After a restart owners have the long grace, and regain their leases."""
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    async with (
        Pool(PostgresConfig(dsn=cluster.dsn)) as pool,
        Pool(PostgresConfig(dsn=cluster.dsn)) as other,
    ):
        service, reaper = SessionService(other, QUIET), SessionService(pool, FAST)
        await service.open()
        await reaper.open()
        async with service.session() as session:
            view = await session.create_view("SELECT 1 AS n", materialized=True)
            await cluster.restart("immediate")
            await wait_for_lease(service, "held")
            await asyncio.sleep(0.6)
            assert await leases(pool) >= 2
            await session.refresh_view(view)
            assert await pool.fetchval(f"SELECT n FROM {view}") == 1
        assert session.last_cleanup.dropped == (str(view),)
        await reaper.aclose()
        await service.aclose()


async def test_a_dead_owner_has_the_long_grace_after_a_restart(pool: Pool):
    """An owner of another incarnation of the server is not reaped in 2 s."""
    config = SessionConfig(grace=0.01, restart_grace=0.7, reap_interval=0.02)
    await pool.execute(
        "INSERT INTO fm_storage.session_owners"
        " (id, lock_key, incarnation, application_name, host, pid)"
        " VALUES (gen_random_uuid(), 5, 'another server', 'x', 'y', 1)"
    )
    service = SessionService(pool, config)
    await service.open()
    began = monotonic()
    while await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners"):
        await asyncio.sleep(0.02)
    assert monotonic() - began > 0.6
    await service.aclose()


async def test_behind_pgbouncer_the_lease_is_a_transaction(
    dsn: str, pgbouncer: Callable[..., str], pool: Pool
):
    """Transaction pooling: the lease holds, excludes, ends with its client."""
    through = pgbouncer(dsn)
    reaper = SessionService(pool, FAST)
    await reaper.open()
    async with Pool(PostgresConfig(dsn=through)) as pooled:
        assert pooled.transaction_pooler
        service = SessionService(pooled, FAST)
        await service.open()
        async with service.session() as session:
            view = await session.create_view(
                "SELECT $1::int AS n", 5, materialized=True
            )
            await locks_held(pool, 1)
            idle = (
                "SELECT count(*) FROM pg_stat_activity WHERE state = 'idle in"
                " transaction' AND backend_xid IS NULL AND backend_xmin IS NULL"
                " AND datname = current_database()"
            )

            async def one_is_open() -> bool:
                found: int = await pool.fetchval(idle)
                return found == 1  # a look of the reaper may be another for a moment

            await until(one_is_open)
            await asyncio.sleep(0.8)
            assert await pool.fetchval(f"SELECT n FROM {view}") == 5
            assert reaper.statistics().reaped == 0
            # Lost and regained here, too.
            assert await pool.fetchval(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                " WHERE state = 'idle in transaction'"
                " AND datname = current_database()"
            )
            await regained(pool, 2)
            await wait_for_lease(service, "held")
            await session.refresh_view(view)
        assert session.last_cleanup.dropped == (str(view),)
        await service.aclose()
        await locks_held(pool, 0)  # the pooler closes its side when it notices
    await reaper.aclose()
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0


async def test_a_direct_address_goes_round_the_pooler(
    dsn: str, pgbouncer: Callable[..., str], pool: Pool
):
    """With session.dsn the lease is an ordinary one on the server itself."""
    through = pgbouncer(dsn)
    async with Pool(PostgresConfig(dsn=through)) as pooled:
        service = SessionService(pooled, SessionConfig(dsn=dsn, reap_interval=0))
        await service.open()
        async with service.session() as session:
            view = await session.create_view("SELECT 1 AS n")
            lease = lease_of(service)
            assert not lease.pooled
            assert await pool.fetchval(f"SELECT n FROM {view}") == 1
        await service.aclose()


async def test_where_no_lease_can_be_held_sessions_are_refused(
    dsn: str, pgbouncer: Callable[..., str]
):
    """Statement pooling allows no open transaction: refused at once, with remedy."""
    through = pgbouncer(dsn, mode="statement")
    config = PostgresConfig(dsn=through, pooler="transaction")
    async with Pool(config) as pooled:
        service = SessionService(pooled, QUIET)
        await service.open()
        began = monotonic()
        with pytest.raises(ConfigurationInvalid) as caught:
            await service.session()
        assert monotonic() - began < LONG  # not the 60 s of a statement
        assert caught.value.key == "session.dsn"
        assert "server's own address" in str(caught.value)
        assert await pooled.fetchval("SELECT 1") == 1
        await service.aclose()


async def test_a_database_without_the_registry_says_so(empty_dsn: str):
    """Migrations missing: named, before anything is made; the reaper keeps quiet."""
    async with Pool(PostgresConfig(dsn=empty_dsn)) as pool:
        service = SessionService(pool, FAST)
        await service.open()
        await asyncio.sleep(0.1)
        with pytest.raises(SchemaOutOfDate, match="0002_create_session_registry"):
            await service.session()
        with pytest.raises(SchemaOutOfDate):
            await service.reap()
        with pytest.raises(SchemaOutOfDate):
            await service.list()
        await service.aclose()
        with pytest.raises(StorageClosed):
            await service.session()


async def test_a_plain_role_needs_no_rights_beyond_its_group(
    server: TestServer, dsn: str, pool: Pool
):
    """A member of fm_storage_app has sessions; schemas it may not make are reported."""
    await pool.execute(
        """
        CREATE ROLE fm_plain LOGIN PASSWORD 'plain' IN ROLE fm_storage_app;
        CREATE ROLE fm_other LOGIN PASSWORD 'plain' IN ROLE fm_storage_app;
        """
    )
    try:
        there = server.over_tcp(dsn)
        plain = "fm_plain:plain@" + there.split("@", 1)[1]
        other = "fm_other:plain@" + there.split("@", 1)[1]
        async with (
            Pool(PostgresConfig(dsn=f"postgresql://{plain}")) as own,
            Pool(PostgresConfig(dsn=f"postgresql://{other}")) as foreign,
        ):
            async with PostgresSessionManager(own, config=QUIET) as session:
                assert await session.ensure_schema_exists() is False
                with pytest.raises(PermissionDenied):
                    await session.create_view("SELECT 1")
            async with PostgresSessionManager(pool, config=QUIET) as admin:
                await admin.ensure_schema_exists()
            service = SessionService(own, QUIET)
            await service.open()
            session = await service.session()
            view = await session.create_view("SELECT 1 AS n", materialized=True)
            with pytest.raises(PermissionDenied):
                # Nobody may write rows in another's name.
                await foreign.execute(
                    "INSERT INTO fm_storage.session_owners (id, lock_key,"
                    " incarnation, application_name, host, pid, created_by)"
                    " VALUES (gen_random_uuid(), 1, '', '', '', 1, 'postgres')"
                )
            await cut_lease(service)
            await locks_held(pool, 0)
            # Another role's reaper may not drop it, and says so.
            report = await SessionService(foreign, FAST).reap()
            (refusal,) = report.refused
            assert (refusal.view, refusal.sqlstate) == (str(view), "42501")
            report = await SessionService(own, FAST).reap()
            assert report.dropped == (str(view),)
            assert not await session.cleanup_schema_if_empty()
            await service.aclose()
    finally:
        await pool.execute(
            """
            DROP OWNED BY fm_plain, fm_other; DROP ROLE fm_plain; DROP ROLE fm_other;
            """
        )


async def test_a_session_that_lost_nothing_goes_on(dsn: str, pool: Pool):
    """Reaped without ever having had a view, a session takes a new owner."""
    reaper = SessionService(pool, FAST)
    async with Pool(PostgresConfig(dsn=dsn)) as other:
        service = SessionService(other, QUIET)
        await service.open()
        session = await service.session()
        await pool.execute("UPDATE fm_storage.session_owners SET condemned_at = now()")
        assert await pool.fetchval(END_LEASES) == 1
        await wait_for_lease(service, "gone")
        await reaper.reap()
        view = await session.create_view("SELECT 1 AS n")
        assert await pool.fetchval(f"SELECT n FROM {view}") == 1
        await session.aclose()
        await service.aclose()
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0
