"""Unlogged tables of a session: written by everyone, gone with it."""

from __future__ import annotations

import pytest

from fm_storage.config import SessionConfig
from fm_storage.errors import (
    InvalidRecord,
    QueryFailed,
    QueryTimeout,
    SchemaOutOfDate,
)
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from fm_storage.sessions import CreateProgress, PostgresSessionManager, SessionService
from tests.support.inside import cut_lease, lease_of
from tests.support.waiting import locks_held

FAST = SessionConfig(grace=0.05, reap_interval=0)


async def test_a_table_is_written_by_everyone_and_goes_with_the_session(pool: Pool):
    """Filled from a query with values, indexed, unlogged; listed with size and rows."""
    seen: list[CreateProgress] = []
    async with PostgresSessionManager(pool) as session:
        table = await session.create_table(
            "SELECT g AS id, $1::text AS word FROM generate_series(1, 300) g",
            "it's",
            name="work",
            indexes=("UNIQUE (id)",),
            progress=seen.append,
        )
        assert (str(table), table.kind) == ("filtermate_temp.work", "table")
        await pool.execute(f"INSERT INTO {table} VALUES (0, 'more')")
        await pool.execute(f"DELETE FROM {table} WHERE id > 100")
        assert await pool.fetchval(f"SELECT count(*) FROM {table}") == 101
        assert await pool.fetchval(f"SELECT max(word) FROM {table}") == "more"
        persistence = "SELECT relpersistence::text FROM pg_class WHERE oid = $1"
        assert await pool.fetchval(persistence, table.oid) == "u"
        view = await session.create_view(f"SELECT id FROM {table}")
        (own, _) = (await session.info()).own
        assert (own.kind, own.name) == ("table", "work")
        assert own.rows
        assert own.size
        with pytest.raises(QueryFailed):
            await session.refresh_view(table)
        assert session.get_session_views() == [str(table), str(view)]
    assert session.last_cleanup.dropped == (str(view), str(table))
    assert await pool.fetchval("SELECT to_regclass('filtermate_temp.work')") is None
    assert seen[-1].stage == "done"
    empty = PostgresSessionManager(None)
    assert not await empty.create_table("SELECT 1")


async def test_a_table_of_a_dead_session_is_reaped(pool: Pool):
    """By oid, kind, owner and mark, like a view; a stranger's table is left alone."""
    async with Pool(pool.config) as other:
        doomed = SessionService(other, FAST)
        await doomed.open()
        session = await doomed.session()
        table = await session.create_table("SELECT 1 AS n", with_data=False)
        await pool.execute("CREATE TABLE filtermate_temp.precious (n int)")
        lease = lease_of(doomed)
        await pool.execute(
            "INSERT INTO fm_storage.session_objects"
            " (owner_id, session_id, schema_name, name, kind, oid)"
            " VALUES ($1, $2, 'filtermate_temp', 'precious', 'table',"
            " 'filtermate_temp.precious'::regclass)",
            *(lease.owner, session.id),
        )
        await cut_lease(doomed)
        await locks_held(pool, 0)
        report = await SessionService(pool, FAST).reap()
    assert report.dropped == (str(table),)
    assert [each.view for each in report.refused] == ["filtermate_temp.precious"]
    assert await pool.fetchval("SELECT count(*) FROM filtermate_temp.precious") == 0


async def test_what_cannot_be_made_is_refused_as_with_views(pool: Pool):
    """Errors, timeouts and cancellations leave no table."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(QueryFailed):
            await session.create_table("SELECT 1 / 0 AS n")
        with pytest.raises(InvalidRecord):
            await session.create_table("SELECT 1; SELECT 2")
        with pytest.raises(QueryTimeout):
            await session.create_table("SELECT pg_sleep(20)::text", timeout=0.1)
        await session.cleanup_session_views()
        table = await session.create_table("SELECT 1 AS n")
        assert await session.drop_view(table)
    there = "SELECT count(*) FROM pg_tables WHERE schemaname = 'filtermate_temp'"
    assert await pool.fetchval(there) == 0


async def test_a_registry_without_tables_is_named(empty_dsn: str, pool: Pool):
    """A database of an earlier release: the missing migration, not a constraint."""
    await Migrator(empty_dsn).apply(to="0007")
    config = pool.config.model_copy(update={"dsn": empty_dsn})
    async with Pool(config) as old, PostgresSessionManager(old) as session:
        with pytest.raises(SchemaOutOfDate, match="0008_allow_session_tables"):
            await session.create_table("SELECT 1 AS n")
        assert await session.create_view("SELECT 1 AS n")
