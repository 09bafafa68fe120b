"""The bars of sessions at full size; the normal suite runs a short form of each."""

from __future__ import annotations

import asyncio
import random
import signal
from collections.abc import Awaitable, Callable
from time import monotonic

import pytest

from fm_storage.config import MigrationsConfig, PostgresConfig, SessionConfig
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager, SessionService
from fm_storage.sessions.registry import tag
from tests.adversity.test_sessions_cancel import storm
from tests.adversity.test_sessions_reaper import OWNER, left, wait_until_left
from tests.fix_cluster import TestCluster
from tests.fix_process import Child
from tests.properties.test_sessions_machine import run
from tests.support.inside import cut_lease, views_of

Starter = Callable[..., Awaitable[Child]]

# Creates, refreshes, drops and closes without end, several at a time.
BUSY = """
import asyncio, random, sys
from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import SessionService

async def work(service):
    while True:
        async with service.session() as session:
            views = []
            for _ in range(random.randint(1, 5)):
                views.append(await session.create_view(
                    "SELECT generate_series(1, 200) AS n", materialized=True,
                    indexes=("UNIQUE (n)",)))
                await session.refresh_view(random.choice(views))
            await session.drop_view(views.pop())

async def main(dsn):
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        service = SessionService(pool, SessionConfig(reap_interval=0))
        await service.open()
        print("ready", flush=True)
        await asyncio.gather(*(work(service) for _ in range(4)))

asyncio.run(main(sys.argv[1]))
"""


async def fill(pool: Pool, session: PostgresSessionManager, count: int) -> None:
    """Make *count* materialized views as create_view() does, only faster."""
    await session.ensure_schema_exists()
    _, lease = await views_of(session).ready()
    owner = lease.owner
    for first in range(0, count, 500):
        await pool.execute(
            f"""
            DO $do$
            DECLARE i int; o oid;
            BEGIN
              FOR i IN {first}..{min(first + 500, count) - 1} LOOP
                EXECUTE format('CREATE MATERIALIZED VIEW filtermate_temp.bulk_%s'
                  ' AS SELECT %s AS n', i, i);
                EXECUTE format('COMMENT ON MATERIALIZED VIEW filtermate_temp.bulk_%s'
                  ' IS %L', i, '{tag(owner, session.id)}');
                o := format('filtermate_temp.bulk_%s', i)::regclass;
                INSERT INTO fm_storage.session_objects
                  (owner_id, session_id, schema_name, name, kind, oid)
                VALUES ('{owner}', '{session.id}', 'filtermate_temp', 'bulk_' || i,
                  'materialized view', o);
              END LOOP;
            END $do$
            """
        )
    views_of(session).touched = True


@pytest.mark.timeout(300)
@pytest.mark.parametrize("how", ["close", "reap"])
async def test_twelve_thousand_views(cluster: TestCluster, how: str):
    """12,000 views closed, or reaped, in < 30 s at default lock settings, no 53200."""
    await Migrator(cluster.dsn, MigrationsConfig()).apply()
    async with Pool(PostgresConfig(dsn=cluster.dsn)) as pool:
        settings = SessionConfig(reap_interval=0, grace=0.1)
        service = SessionService(pool, settings)
        await service.open()
        session = await service.session()
        await fill(pool, session, 12_000)
        assert (await left(pool))[1] == 12_000
        began = monotonic()
        if how == "close":
            await session.aclose()
            done = session.last_cleanup
        else:
            await cut_lease(service)
            done = await SessionService(pool, settings).reap()
        took = monotonic() - began
        print(f"\n12,000 views, {how}: {took:.1f} s")
        assert len(done.dropped) == 12_000
        assert done.refused == ()
        assert took < 30
        await service.aclose()
        assert "out of shared memory" not in cluster.log


@pytest.mark.timeout(1800)
async def test_two_hundred_kills(dsn: str, pool: Pool, child: Starter):
    """SIGKILL at random instants: 0 objects, rows, locks 5 s after each volley."""
    await kills(dsn, pool, child, volleys=20, size=10)


async def kills(
    dsn: str, pool: Pool, child: Starter, *, volleys: int, size: int
) -> None:
    """Kill processes at random instants of create, refresh, drop, close."""
    reaper = SessionService(pool, SessionConfig())
    await reaper.open()
    slowest = 0.0
    for _ in range(volleys):
        victims = [await child(BUSY, dsn) for _ in range(size)]
        for victim in victims:
            assert await victim.line(60) == "ready"
        for victim in victims:
            await asyncio.sleep(random.uniform(0.05, 0.3))
            await victim.kill()
        slowest = max(slowest, await wait_until_left(pool, (0, 0, 0, 0), 5.0))
    print(f"\n{volleys * size} kills: all gone after {slowest:.1f} s at most")
    await reaper.aclose()


@pytest.mark.timeout(300)
async def test_blocked_owners_lose_nothing(dsn: str, pool: Pool, child: Starter):
    """20 owners blocked 5 s, one stopped 20 s, five reapers: not one view lost."""
    owners = []
    for number in range(20):
        code = OWNER.replace("named", f"named{number}").replace("sleep(3)", "sleep(5)")
        owners.append(await child(code, dsn, "block"))
    for owner in owners:
        assert await owner.line(60) == "ready"
    owners[0].signal(signal.SIGSTOP)
    services = [SessionService(pool, SessionConfig()) for _ in range(5)]
    for service in services:
        await service.open()
    await asyncio.sleep(20)
    assert (await left(pool))[:3] == (40, 40, 20)
    owners[0].signal(signal.SIGCONT)
    for owner in owners:
        await owner.say("go on")
        assert await owner.line() == "go on"
        await owner.line()
        assert await owner.line() == "alive"
    assert sum(service.statistics().reaped for service in services) == 0
    for service in services:
        await service.aclose()


@pytest.mark.timeout(1200)
async def test_a_thousand_cancelled_sessions(pool: Pool):
    """1,000 sessions cancelled in every way: 0 left when the block returns."""
    wall, cpu = await storm(pool, 1000)
    print(f"\nclean-up: {cpu / wall:.3f} s of CPU per second")


@pytest.mark.timeout(1800)
def test_sessions_follow_the_model_for_long(dsn: str):
    """The state machine of tests/properties, 150 runs of 40 steps."""
    run(dsn, examples=150, steps=40)
