"""What a killed process leaves, what a live one keeps, and whom nobody touches."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from time import monotonic

import pytest

from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager, SessionService
from tests.fix_process import Child
from tests.support.inside import cut_lease, forget_lease, lease_of
from tests.support.waiting import LONG, locks_held, until

FAST = SessionConfig(grace=0.3, reap_interval=0.05)

# A process with a session: says "ready" when its views exist, then does what it reads.
OWNER = """
import asyncio, sys, time
from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import SessionService

async def main(dsn, work):
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        service = SessionService(pool, SessionConfig(), application_name="victim")
        await service.open()
        session = await service.session()
        await session.create_view("SELECT 1 AS n")
        await session.create_view("SELECT 2 AS n", materialized=True, name="named")
        if work == "keep":
            await session.toggle_auto_cleanup(False)
        if work == "block":
            print("ready", flush=True)
            time.sleep(3)
        elif work == "create":
            print("ready", flush=True)
            await session.create_view("SELECT pg_sleep(30)::text", materialized=True)
        else:
            print("ready", flush=True)
        print(sys.stdin.readline(), flush=True)
        for view in session.get_session_views():
            await pool.fetch(f"SELECT * FROM {view}")
        print("alive", flush=True)

asyncio.run(main(*sys.argv[1:]))
"""

LEFT = """
SELECT (SELECT count(*) FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE n.nspname = 'filtermate_temp'),
       (SELECT count(*) FROM fm_storage.session_objects),
       (SELECT count(*) FROM fm_storage.session_owners),
       (SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database =
        (SELECT oid FROM pg_database WHERE datname = current_database()))
"""


async def left(pool: Pool) -> tuple[int, ...]:
    """Return relations, rows, owners and locks that are there."""
    row = await pool.fetchrow(LEFT)
    assert row is not None
    return tuple(row.values())


async def wait_until_left(
    pool: Pool, wanted: tuple[int, ...], timeout: float = LONG
) -> float:
    """Wait until only that much is left; return the seconds it took."""
    started = monotonic()
    while (found := await left(pool)) != wanted:
        assert monotonic() - started < timeout, f"{found} are left, not {wanted}"
        await asyncio.sleep(0.02)
    return monotonic() - started


@pytest.fixture
async def reaper(dsn: str) -> AsyncIterator[SessionService]:
    """Give a service of another pool that reaps with the usual graces."""
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        service = SessionService(pool, SessionConfig())
        await service.open()
        yield service
        await service.aclose()


@pytest.mark.parametrize("work", ["idle", "create"])
async def test_a_killed_process_leaves_nothing(
    dsn: str,
    pool: Pool,
    reaper: SessionService,
    child: Callable[..., Awaitable[Child]],
    work: str,
):
    """SIGKILL, idle or in the middle of a CREATE: all goes, after the grace.

    That it takes less than 5 s is a bar of the torture sweeps.
    """
    victim = await child(OWNER, dsn, work)
    assert await victim.line() == "ready"
    await asyncio.sleep(0.2)
    assert (await reaper.list()).other[0].application_name == "victim"
    await victim.kill()
    assert await wait_until_left(pool, (0, 0, 0, 0)) > 1.0
    await until(lambda: reaper.statistics().reaped == 2)  # counted after the commit


async def test_blocked_and_stopped_processes_keep_their_views(
    dsn: str, pool: Pool, child: Callable[..., Awaitable[Child]]
):
    """A blocked event loop and a SIGSTOPped process are alive to every reaper."""
    blocked = await child(OWNER, dsn, "block")
    stopped = await child(OWNER.replace("named", "named2"), dsn, "idle")
    assert await blocked.line() == await stopped.line() == "ready"
    stopped.signal(signal.SIGSTOP)
    services = [SessionService(pool, FAST) for _ in range(5)]
    for service in services:
        await service.open()
    await asyncio.sleep(2.0)
    assert (await left(pool))[:3] == (4, 4, 2)
    assert sum(service.statistics().reaped for service in services) == 0
    stopped.signal(signal.SIGCONT)
    for process in (blocked, stopped):
        await process.say("go on")
        assert await process.line() == "go on"
        await process.line()
        assert await process.line() == "alive"
        assert await process.wait() == 0
    for service in services:
        await service.aclose()


async def test_kept_views_wait_for_somebody_to_say_so(
    dsn: str, pool: Pool, child: Callable[..., Awaitable[Child]]
):
    """Views of a dead process that were kept go only with kept=True."""
    victim = await child(OWNER, dsn, "keep")
    assert await victim.line() == "ready"
    await victim.kill()
    await locks_held(pool, 0)
    service = SessionService(pool, FAST)
    assert (await service.reap()).dropped == ()
    info = await service.list()
    assert [view.name for view in info.kept][-1] == "named"
    dry = await service.reap(dry_run=True, kept=True)
    assert len(dry.dropped) == 2
    assert (await left(pool))[0] == 2
    assert (await service.reap(kept=True)).dropped == dry.dropped
    assert await left(pool) == (0, 0, 0, 0)


async def test_kept_views_of_a_live_process_can_be_reaped(pool: Pool):
    """A session that ended with its views kept gives them up on request only."""
    service = SessionService(pool, FAST)
    await service.open()
    async with service.session(auto_cleanup=False) as kept:
        view = await kept.create_view("SELECT 1 AS n")
    async with service.session(auto_cleanup=False) as busy:
        await busy.create_view("SELECT 1 AS n", name="in_use")
        assert [str(v) for v in (await service.list()).kept] == [str(view)]
        assert (await service.reap()).dropped == ()
        assert (await service.reap(kept=True)).dropped == (str(view),)
        assert await pool.fetchval("SELECT n FROM filtermate_temp.in_use") == 1
    await service.aclose()


async def test_an_orphans_name_can_be_used_again(
    dsn: str, pool: Pool, child: Callable[..., Awaitable[Child]]
):
    """A given name that a dead session still holds is waited for, not refused."""
    victim = await child(OWNER, dsn, "idle")
    assert await victim.line() == "ready"
    await victim.kill()
    await locks_held(pool, 0)
    async with PostgresSessionManager(pool, config=FAST) as session:
        view = await session.create_view("SELECT 3 AS n", name="named")
        assert await pool.fetchval(f"SELECT n FROM {view}") == 3


async def test_a_holder_that_dies_just_now_frees_its_name(
    dsn: str,
    pool: Pool,
    child: Callable[..., Awaitable[Child]],
    monkeypatch: pytest.MonkeyPatch,
):
    """The server sees a kill late: who seems to live is looked at once more."""
    # Later still on a busy machine than the second that is waited otherwise.
    monkeypatch.setattr("fm_storage.sessions.views._LOOK_AGAIN", LONG)
    victim = await child(OWNER, dsn, "idle")
    assert await victim.line() == "ready"
    async with PostgresSessionManager(pool, config=FAST) as session:
        creation = asyncio.ensure_future(
            session.create_view("SELECT 3 AS n", name="named")
        )
        await asyncio.sleep(0.2)
        assert not creation.done()
        await victim.kill()
        assert await pool.fetchval(f"SELECT n FROM {await creation}") == 3


async def test_a_creation_in_flight_is_no_ghost(pool: Pool, dsn: str):
    """While a CREATE of a lockless owner is under way, it is not reaped."""
    service = SessionService(pool, FAST)
    await service.open()
    async with Pool(PostgresConfig(dsn=dsn)) as other:
        doomed = SessionService(other, SessionConfig(reap_interval=0))
        await doomed.open()
        session = await doomed.session()
        await forget_lease(doomed)
        creation = asyncio.ensure_future(
            session.create_view("SELECT pg_sleep(1.2)::text", materialized=True)
        )
        await asyncio.sleep(0.2)
        await cut_lease(doomed)
        view = await creation
        assert await pool.fetchval("SELECT to_regclass($1)::text", str(view))
        await wait_until_left(pool, (0, 0, 0, 0))
    await service.aclose()


async def test_bystanders_are_untouched(dsn: str, pool: Pool):
    """Look-alikes, users' objects, other roles' objects, forged rows: all intact."""
    await pool.execute(
        """
        CREATE SCHEMA filtermate_temp;
        CREATE SCHEMA "filtermateXtemp";
        CREATE VIEW "filtermateXtemp".fm_view_1 AS SELECT 1;
        CREATE VIEW filtermate_temp.fm_view_0123456789abcdef AS SELECT 1;
        CREATE VIEW filtermate_temp."fmXview_1" AS SELECT 1;
        CREATE MATERIALIZED VIEW filtermate_temp.mv_abcd1234_users AS SELECT 1;
        CREATE TABLE filtermate_temp.precious (n int);
        CREATE FUNCTION filtermate_temp.f() RETURNS int LANGUAGE sql AS 'SELECT 1';
        CREATE ROLE fm_bystander;
        GRANT ALL ON SCHEMA filtermate_temp TO fm_bystander;
        CREATE VIEW filtermate_temp.theirs AS SELECT 1;
        ALTER VIEW filtermate_temp.theirs OWNER TO fm_bystander;
        CREATE MATERIALIZED VIEW filtermate_temp.adopted AS SELECT 1;
        """
    )
    relations = (
        "SELECT array_agg(c.oid::regclass::text ORDER BY 1) FROM pg_class c"
        " JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname LIKE 'filtermate%'"
    )
    before = await pool.fetchval(relations)
    try:
        async with Pool(PostgresConfig(dsn=dsn)) as other:
            doomed = SessionService(other, SessionConfig(reap_interval=0))
            await doomed.open()
            session = await doomed.session()
            await session.create_view("SELECT 1")
            await session.register_temp_view("adopted")
            lease = lease_of(doomed)
            # Forged: rows of a dead owner that name what is not its own.
            for name in ("precious", "theirs", "fm_view_0123456789abcdef"):
                await pool.execute(
                    "INSERT INTO fm_storage.session_objects"
                    " (owner_id, session_id, schema_name, name, kind, oid)"
                    " VALUES ($1, $2, 'filtermate_temp', $3::text, 'view',"
                    " to_regclass('filtermate_temp.' || $3::text))",
                    *(lease.owner, session.id, name),
                )
            await pool.execute(
                "COMMENT ON VIEW filtermate_temp.theirs IS"
                f" 'fm_storage:{lease.owner}/{session.id}'"
            )
            await cut_lease(doomed)
            await locks_held(pool, 0)
            service = SessionService(pool, FAST)
            report = await service.reap()
            assert len(report.dropped) == 1
            assert report.forgotten == ("filtermate_temp.adopted",)
            assert {r.view for r in report.refused} == {
                "filtermate_temp.theirs",
                "filtermate_temp.fm_view_0123456789abcdef",
            }
        assert await pool.fetchval(relations) == before
    finally:
        await pool.execute("DROP OWNED BY fm_bystander; DROP ROLE fm_bystander")


async def test_one_bad_of_many_keeps_no_other(pool: Pool):
    """99 of 100 are dropped; the refused one is reported, kept and retried."""
    service = SessionService(pool, FAST)
    await service.open()
    async with service.session() as session:
        views = [await session.create_view("SELECT 1 AS n") for _ in range(100)]
        bad = views[37]
        await pool.execute(f"CREATE VIEW public.dependent AS SELECT n FROM {bad}")
        assert await session.cleanup_session_views() == 99
        (refusal,) = session.last_cleanup.refused
        assert (refusal.view, refusal.sqlstate) == (str(bad), "2BP01")
        assert session.get_session_views() == [str(bad)]
        assert (await session.info()).own[0].refused == "2BP01"
    assert await pool.fetchval("SELECT n FROM public.dependent") == 1
    assert (await service.health())[0] == "degraded"
    await pool.execute("DROP VIEW public.dependent")
    await wait_until_left(pool, (0, 0, 1, 1))

    async def well() -> bool:
        return (await service.health())[0] == "ok"

    await until(well)  # known a moment after it was committed
    await service.aclose()
    assert await left(pool) == (0, 0, 0, 0)


async def test_an_open_reader_delays_only_its_own_view(pool: Pool):
    """A view in use is refused with 55P03 and goes when the reader has."""
    config = SessionConfig(grace=0.3, reap_interval=0.05, lock_timeout=0.1)
    service = SessionService(pool, config)
    await service.open()
    session = await service.session()
    views = [await session.create_view("SELECT 1 AS n") for _ in range(3)]
    async with pool.transaction() as reader:
        await reader.fetch(f"SELECT * FROM {views[1]}")
        await session.aclose()
        (refusal,) = session.last_cleanup.refused
        assert (refusal.view, refusal.sqlstate) == (str(views[1]), "55P03")
        assert len(session.last_cleanup.dropped) == 2
    await wait_until_left(pool, (0, 0, 1, 1))
    await service.aclose()
