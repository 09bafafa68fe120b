"""The pytest plug-in in a project of somebody else's, as pytest loads it."""

from __future__ import annotations

import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.postgres import Pool
from tests.fix_postgres import TestServer
from tests.support.pages import ROOT, examples

CONFTEST = """
import os

import pytest


@pytest.fixture(scope="session")
def fm_storage_migrations():
    return (os.path.join(os.path.dirname(__file__), "migrations"),)
"""
TESTS = """
import time

import pytest

from fm_storage import ErrorEntry, Point
from fm_storage.testing import Fault

ENTRY = ErrorEntry(message="m", module="a", error_code="E1")


@pytest.mark.parametrize("turn", range(4))
async def test_each_test_has_a_database_of_its_own(fm_storage_pool, turn):
    assert await fm_storage_pool.fetchval("SELECT count(*) FROM shop_item") == 0
    await fm_storage_pool.execute("INSERT INTO shop_item VALUES (1)")


def test_a_copy_takes_a_moment(fm_storage_server):
    taken = []
    for _ in range(3):
        begin = time.perf_counter()
        name, _ = fm_storage_server.create()
        taken.append(time.perf_counter() - begin)
        fm_storage_server.drop(name)
    print("copy", min(taken))


async def test_rows_and_vectors(fm_storage):
    await fm_storage.error_entries.create(ENTRY)
    await fm_storage.qdrant.ensure_collection_exists("docs", 2)
    await fm_storage.qdrant.upsert_points("docs", [Point(1, [0.1, 0.2])])
    assert await fm_storage.qdrant.count("docs") == 1


@pytest.mark.parametrize("turn", range(3))
async def test_what_is_done_is_undone(fm_storage_transaction, turn):
    tx = fm_storage_transaction
    assert await tx.fetchval("SELECT count(*) FROM project_errors") == 0
    await tx.error_entries.create(ENTRY)
    async with tx.savepoint() as inner:
        await inner.execute("INSERT INTO shop_item VALUES (1)")


async def test_faults(qdrant_store, qdrant_faults):
    await qdrant_store.ensure_collection_exists("docs", 2)
    qdrant_faults.add(Fault.answer(503))
    assert await qdrant_store.count("docs") == 0
    assert qdrant_store.statistics().retries == 1


async def test_a_line_that_is_cut(fm_storage_dsn, tcp_proxy):
    from fm_storage import Pool, PostgresConfig

    proxy = tcp_proxy(fm_storage_dsn)
    async with Pool(PostgresConfig(dsn=proxy.dsn(fm_storage_dsn))) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        proxy.cut()
        assert await pool.fetchval("SELECT 2") == 2


async def test_a_server_that_is_killed(postgres_cluster):
    from fm_storage import Pool, PostgresConfig

    async with Pool(PostgresConfig(dsn=postgres_cluster.dsn)) as pool:
        assert await pool.fetchval("SELECT 1") == 1
        await postgres_cluster.kill()
        assert not postgres_cluster.is_running
        await postgres_cluster.start()
        assert await pool.fetchval("SELECT 2", timeout=20) == 2
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Give a project with a migration and tests."""
    (tmp_path / "migrations").mkdir()
    (tmp_path / "migrations" / "0001_shop.sql").write_text(
        "CREATE TABLE shop_item (id int PRIMARY KEY);\n"
    )
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "test_shop.py").write_text(TESTS)
    first = examples(ROOT / "fm_storage/testing/README.md")[0]
    (tmp_path / "test_page.py").write_text(first.code)
    (tmp_path / "pytest.ini").write_text(
        "[pytest]\nasyncio_mode = auto\nasyncio_default_fixture_loop_scope = function\n"
    )
    return tmp_path


async def run(project: Path, *options: str) -> str:
    """Run the project's tests; return what pytest printed."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *options),
        cwd=project,
        env={**kept, "FM_STORAGE_POSTGRES__MAX_SIZE": "not ours"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    return out.decode()


def folders() -> set[Path]:
    """Return the folders of the plug-in's embedded servers."""
    return set(Path(tempfile.gettempdir()).glob("fm-storage-*"))


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_project_uses_the_fixtures_on_the_embedded_server(project: Path):
    """Two workers share one server; nothing of it stays."""
    before = folders()
    out = await run(project, "-n", "2")
    assert re.search(r"^14 passed", out, re.MULTILINE), out
    assert folders() <= before


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_a_project_uses_the_fixtures_on_a_given_server(
    project: Path, server: TestServer
):
    """Template and copies are gone afterwards."""
    databases = (
        "SELECT datname FROM pg_database WHERE datname ~ '^fm_storage_[0-9a-f]{8}$'"
    )
    async with Pool(PostgresConfig(dsn=server.dsn)) as pool:
        before = await pool.fetch(databases)  # of these tests themselves
        out = await run(project, "--fm-storage-dsn", server.dsn, "-rP")
        assert re.search(r"14 passed", out), out
        assert float(re.findall(r"copy ([\d.]+)", out)[0]) < 5.0  # 0.1 s when idle
        assert set(await pool.fetch(databases)) <= set(before)
