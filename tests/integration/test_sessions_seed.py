"""The seed's three scenarios, on a real server, and its methods one by one."""

from __future__ import annotations

import pytest

from fm_storage.config import SessionConfig
from fm_storage.errors import InvalidName
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager, SessionInfo


async def test_register_and_cleanup_views(pool: Pool):
    """A registered view is tracked, dropped, and counted."""
    manager = PostgresSessionManager(pool)
    assert await manager.ensure_schema_exists()
    await pool.execute("CREATE VIEW filtermate_temp.test_view AS SELECT 1 AS one")

    await manager.register_temp_view("test_view")
    assert "filtermate_temp.test_view" in manager.get_session_views()

    assert await manager.cleanup_session_views() == 1
    assert manager.get_session_views() == []
    assert (
        await pool.fetchval("SELECT to_regclass('filtermate_temp.test_view')") is None
    )
    await manager.aclose()


async def test_skip_when_unavailable():
    """Without PostgreSQL every operation answers 0, False or []."""
    manager = PostgresSessionManager(None)

    assert manager.is_available is False
    assert await manager.cleanup_session_views() == 0
    assert await manager.cleanup_on_close() == 0
    assert await manager.cleanup_schema_if_empty() is False
    assert await manager.ensure_schema_exists() is False
    await manager.register_temp_view("test_view")
    await manager.unregister_temp_view("test_view")
    assert manager.get_session_views() == []
    view = await manager.create_view("SELECT 1", materialized=True)
    assert not view
    assert await manager.refresh_view(view) is False
    assert await manager.drop_view(view) is False
    assert await manager.info() == SessionInfo(session=str(manager.id))
    await manager.toggle_auto_cleanup(False)
    async with manager:
        pass


async def test_toggle_auto_cleanup(pool: Pool):
    """The switch changes whether closing drops the views."""
    manager = PostgresSessionManager(pool)

    await manager.toggle_auto_cleanup(False)
    assert manager._auto_cleanup_enabled is False
    view = await manager.create_view("SELECT 1 AS one")
    assert await manager.cleanup_on_close() == 0
    assert await pool.fetchval(f"SELECT one FROM {view}") == 1

    await manager.toggle_auto_cleanup(True)
    assert manager._auto_cleanup_enabled is True
    assert await manager.cleanup_on_close() == 1
    assert await pool.fetchval("SELECT to_regnamespace('filtermate_temp')") is None


async def test_register_refuses_what_is_no_view(pool: Pool):
    """Only a view that exists can be registered; a user's table never is."""
    async with PostgresSessionManager(pool) as session:
        await session.ensure_schema_exists()
        await pool.execute("CREATE TABLE filtermate_temp.precious (n int)")
        for name in ("absent", "precious"):
            with pytest.raises(InvalidName):
                await session.register_temp_view(name)
    assert await pool.fetchval("SELECT to_regclass('filtermate_temp.precious')")


async def test_an_unregistered_view_stays(pool: Pool):
    """What is unregistered is nobody's any more: closing leaves it, mark removed."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 2 AS two", name="stays")
        await session.unregister_temp_view(view)
        assert session.get_session_views() == []
    assert await pool.fetchval(f"SELECT two FROM {view}") == 2
    assert (
        await pool.fetchval(f"SELECT obj_description({view.oid}, 'pg_class')") is None
    )
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_objects") == 0


async def test_the_seeds_names_are_true(pool: Pool):
    """The class has the defaults, a session what holds for it."""
    default = SessionConfig()
    assert default.schema_name == PostgresSessionManager.FILTERMATE_SCHEMA
    assert default.prefix == PostgresSessionManager.VIEW_PREFIX
    config = SessionConfig(prefix="mine_")
    async with PostgresSessionManager(pool, schema="other", config=config) as session:
        view = await session.create_view("SELECT 1 AS n")
        assert view.schema == session.schema == session.FILTERMATE_SCHEMA == "other"
        assert view.name.startswith(session.VIEW_PREFIX)
        assert session.VIEW_PREFIX == "mine_"
