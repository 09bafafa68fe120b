"""The service of a process: its statistics, its cost, its lists, its commands."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import pytest

from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.errors import DuplicateRecord, PermissionDenied, WrongLoop
from fm_storage.postgres import Pool
from fm_storage.sessions import (
    CleanupReport,
    PostgresSessionManager,
    Refusal,
    SessionService,
)
from tests.fix_postgres import run_aside
from tests.support.inside import cut_lease

QUIET = SessionConfig(reap_interval=0)


async def test_a_session_without_views_costs_three_round_trips(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
):
    """Open and close with no view: ≤ 3 statements or parses beyond the pool."""
    service = SessionService(pool, QUIET)
    await service.open()
    trips: list[str] = []
    made: list[object] = []
    connect = pool.connect

    async def spied(purpose: str, **options):
        connection = await connect(purpose, **options)
        connection.raw.add_query_logger(lambda record: trips.append(record.query))
        made.append(connection)
        return connection

    monkeypatch.setattr(pool, "connect", spied)
    before = pool.statistics().acquired
    async with service.session():
        pass
    await service.aclose()
    assert pool.statistics().acquired == before
    assert len(made) == 1
    # The first statement is parsed and then run (2), the last is one message.
    assert len(trips) == 2, trips
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0


async def test_further_sessions_cost_nothing(pool: Pool):
    """All sessions of a process share one lease; without views they ask nothing."""
    service = SessionService(pool, QUIET)
    await service.open()
    async with service.session(), service.session():
        assert service.statistics().sessions == 2
        held = """
            SELECT count(*) FROM pg_locks JOIN pg_database ON database = oid
            WHERE locktype = 'advisory' AND granted AND datname = current_database()
        """
        assert await pool.fetchval(held) == 1
    assert service.statistics().sessions == 0
    await service.open()
    await service.aclose()
    await service.aclose()


async def test_statistics_and_lists_tell_whose_views_there_are(pool: Pool):
    """Own, other, with size, rows, age, role, host; counts that add up."""
    mine, other = SessionService(pool, QUIET), SessionService(pool, QUIET)
    await mine.open()
    await other.open()
    async with mine.session() as session, other.session() as foreign:
        await session.create_view(
            "SELECT generate_series(1, 500) AS n", materialized=True
        )
        await session.create_view("SELECT 1 AS n")
        async with mine.session() as second:
            await second.create_view("SELECT 1 AS n")
            assert len((await mine.list()).own) == 3
            info = await session.info()
            assert (len(info.own), len(info.other)) == (2, 1)
        await foreign.create_view("SELECT 1 AS n")
        info = await mine.list()
        assert (len(info.own), len(info.other)) == (2, 1)
        first = info.own[0]
        assert (first.kind, first.rows) == ("materialized view", 500)
        assert first.size is not None
        assert first.size >= 8192
        assert info.size == first.size
        assert (first.role, first.exists, first.refused) == ("postgres", True, None)
        assert 0 <= first.age < 60
        assert info.own[1].size is None
        # A view that is locked at this moment is listed all the same.
        async with pool.transaction() as tx:
            await tx.execute(f"DROP MATERIALIZED VIEW {first}")
            busy = await mine.list()
            assert [view.size for view in busy.own] == [None, None]
            await tx.execute(f"CREATE MATERIALIZED VIEW {first} AS SELECT 1 AS n")
    numbers = mine.statistics()
    assert (numbers.created, numbers.dropped, numbers.refused) == (3, 2, 0)
    assert numbers.lease == "held"
    await mine.aclose()
    await other.aclose()
    await pool.execute(f"DROP MATERIALIZED VIEW {first}")


async def test_a_view_of_the_same_name_made_by_hand_is_left_alone(pool: Pool):
    """Dropped and made again by a user, a name is no longer the session's."""
    async with PostgresSessionManager(pool, config=QUIET) as session:
        view = await session.create_view("SELECT 1 AS n")
        await pool.execute(f"DROP VIEW {view}; CREATE VIEW {view} AS SELECT 2 AS n")
        assert await session.cleanup_session_views() == 0
        assert session.last_cleanup.already_gone == (str(view),)
    assert await pool.fetchval(f"SELECT n FROM {view}") == 2


async def test_a_renamed_view_is_found_by_its_oid(pool: Pool):
    """What a user renamed or commented is still dropped by its own session."""
    async with PostgresSessionManager(pool, config=QUIET) as session:
        one = await session.create_view("SELECT 1 AS n")
        two = await session.create_view("SELECT 2 AS n")
        await pool.execute(f"ALTER VIEW {one} RENAME TO other_name")
        await pool.execute(f"COMMENT ON VIEW {two} IS 'a favourite'")
        assert await session.cleanup_session_views() == 2


async def test_registering_what_is_somebody_elses_is_refused(pool: Pool):
    """A view of another role, or of another session, cannot be registered."""
    await pool.execute("CREATE ROLE fm_owner; CREATE SCHEMA filtermate_temp")
    try:
        await pool.execute(
            "CREATE VIEW filtermate_temp.theirs AS SELECT 1;"
            "ALTER VIEW filtermate_temp.theirs OWNER TO fm_owner"
        )
        async with (
            PostgresSessionManager(pool, config=QUIET) as one,
            PostgresSessionManager(pool, config=QUIET) as two,
        ):
            with pytest.raises(PermissionDenied):
                await one.register_temp_view("theirs")
            view = await one.create_view("SELECT 1")
            with pytest.raises(DuplicateRecord):
                await two.register_temp_view(view)
            await one.register_temp_view(view)
            assert two.get_session_views() == []
    finally:
        await pool.execute("DROP OWNED BY fm_owner; DROP ROLE fm_owner")


async def test_a_connection_in_another_role_may_not_create(pool: Pool):
    """After SET ROLE nobody could tell later whose the view is: refused at once."""
    await pool.execute("CREATE ROLE fm_acting; GRANT fm_storage_app TO fm_acting")
    try:
        async with (
            Pool(
                PostgresConfig(
                    dsn=pool.config.dsn, server_settings={"role": "fm_acting"}
                )
            ) as acting,
            PostgresSessionManager(pool, config=QUIET) as admin,
        ):
            await admin.ensure_schema_exists()
            async with PostgresSessionManager(acting, config=QUIET) as session:
                with pytest.raises(PermissionDenied, match="SET ROLE"):
                    await session.create_view("SELECT 1")
    finally:
        await pool.execute("DROP OWNED BY fm_acting; DROP ROLE fm_acting")


async def test_schemas_go_only_when_empty(pool: Pool):
    """RESTRICT sees what a look at tables does not: functions, types, others."""
    async with PostgresSessionManager(pool, config=QUIET) as session:
        assert not await session.cleanup_schema_if_empty()
        assert await session.ensure_schema_exists()
        await pool.execute("CREATE TYPE filtermate_temp.mood AS ENUM ('good')")
        assert not await session.cleanup_schema_if_empty()
        await pool.execute("DROP TYPE filtermate_temp.mood")
        async with pool.transaction() as tx:
            await tx.execute("CREATE VIEW filtermate_temp.uncommitted AS SELECT 1")
            assert not await session.cleanup_schema_if_empty()
        await pool.execute("DROP VIEW filtermate_temp.uncommitted")
        assert await session.cleanup_schema_if_empty()
        # It is made again when it is needed.
        view = await session.create_view("SELECT 1 AS n")
        assert await pool.fetchval(f"SELECT n FROM {view}") == 1
        await session.drop_view(view)
        assert await session.cleanup_schema_if_empty("filtermate_temp")
        await session.create_view("SELECT 1 AS n")


async def test_many_processes_may_make_the_schema_at_once(pool: Pool):
    """The race of CREATE SCHEMA IF NOT EXISTS cannot be seen from outside."""
    sessions = [PostgresSessionManager(pool, config=QUIET) for _ in range(12)]
    made = await asyncio.gather(*(each.ensure_schema_exists() for each in sessions))
    assert all(made)
    for each in sessions:
        await each.aclose()


async def test_another_loop_is_refused(pool: Pool):
    """A service belongs to the loop it was opened on."""
    service = SessionService(pool, QUIET)
    await service.open()

    def elsewhere() -> None:
        async def use() -> None:
            await service.session()

        with pytest.raises(WrongLoop):
            asyncio.run(use())

    run_aside(elsewhere)
    await service.aclose()


def test_reports_add_up():
    """Two reports are one report; only what will be retried is reported as such."""
    refusals = (Refusal("a", "2BP01", "x"), Refusal("b", "", "y", will_retry=False))
    both = CleanupReport(dropped=("v",), refused=refusals) + CleanupReport(
        already_gone=("w",), complete=False
    )
    assert both.dropped == ("v",)
    assert both.already_gone == ("w",)
    assert both.will_be_retried == refusals[:1]
    assert not both.complete


async def run_cli(dsn: str, *arguments: str) -> tuple[int, str]:
    """Run the command in a process; return its exit code and its output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage", "sessions", *arguments),
        env={**os.environ, "FM_STORAGE_POSTGRES__DSN": dsn, "FM_STORAGE_QDRANT": "off"},
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    return await process.wait(), out.decode()


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_the_command_line_lists_and_reaps(dsn: str, pool: Pool):
    """list, reap --dry-run, reap, reap --kept, as text and as JSON."""
    doomed = SessionService(pool, QUIET, application_name="[bold]hostile")
    await doomed.open()
    session = await doomed.session()
    view = await session.create_view(
        "SELECT 1 AS n", name="a\x1b[31m b", materialized=True
    )
    kept = await doomed.session(auto_cleanup=False)
    await kept.create_view("SELECT 2 AS n", name="kept_one")
    code, shown = await run_cli(dsn, "list")
    assert code == 0
    assert "2 live, 0 orphaned, 0 kept" in shown
    assert "[bold]hostile" in shown
    assert "\x1b" not in shown
    await cut_lease(doomed)
    code, shown = await run_cli(dsn, "reap", "--dry-run")
    assert (code, shown.splitlines()[-1]) == (0, "1 would be dropped, 0 refused")
    await pool.execute(f"CREATE VIEW public.dependent AS SELECT n FROM {view}")
    code, shown = await run_cli(dsn, "reap")
    assert code == 1
    assert "refused (2BP01)" in shown
    await pool.execute("DROP VIEW public.dependent")
    code, shown = await run_cli(dsn, "reap", "--json")
    assert code == 0
    assert len(json.loads(shown)["dropped"]) == 1
    (left,) = json.loads((await run_cli(dsn, "list", "--json"))[1])
    assert (left["name"], left["standing"]) == ("kept_one", "kept")
    code, shown = await run_cli(dsn, "reap", "--kept")
    assert "dropped filtermate_temp.kept_one" in shown
    assert await run_cli(dsn, "list") == (0, "no temporary views\n")
