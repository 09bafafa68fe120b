"""Fixtures for projects that use fm_storage; pytest loads them by itself.

No Docker is needed: without ``--fm-storage-dsn`` the embedded server runs, one for
all workers of pytest-xdist. Each database is a copy of a template that was migrated
once in the run. pytest-asyncio, of the extra ``fm-storage[pytest]``, runs what is
asynchronous.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from urllib.parse import urlsplit, urlunsplit

import pytest

if TYPE_CHECKING:
    from anyio.from_thread import BlockingPortal

    from fm_storage.manager import StorageManager, StorageTransaction
    from fm_storage.postgres import Pool
    from fm_storage.testing.cluster import PostgresCluster
    from fm_storage.testing.faults import Faults
    from fm_storage.testing.proxy import TcpProxy
    from fm_storage.testing.server import QdrantTestServer
    from fm_storage.vectors import QdrantStore

F = TypeVar("F", bound=Callable[..., Any])


def _async_fixture(function: F) -> F:
    """Make a fixture that pytest-asyncio runs, or anyio's plug-in without it."""
    try:
        from pytest_asyncio import fixture
    except ImportError:
        return cast("F", pytest.fixture(function))
    return cast("F", fixture(function))


_RUN = "FM_STORAGE_TEST_RUN"
_THROW_AWAY = ("fsync", "full_page_writes", "synchronous_commit", "autovacuum")
_COPIES_FILES = """SELECT current_setting('server_version_num')::int >= 150000
    AND ($1 OR NOT current_setting('fsync')::bool)"""
_LOCK = 0x666D_7473  # "fmts"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option that says where the server is."""
    parser.getgroup("fm_storage").addoption(
        "--fm-storage-dsn",
        help="superuser DSN of a PostgreSQL server to test on; by default the "
        "embedded one is started",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Name the run; its workers inherit the name."""
    if not hasattr(config, "workerinput"):
        os.environ[_RUN] = secrets.token_hex(4)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Remove the server's folder once every worker has left it."""
    if not hasattr(config, "workerinput"):
        shutil.rmtree(_folder(), ignore_errors=True)


def _folder() -> Path:
    return Path(tempfile.gettempdir()) / f"fm-storage-{os.environ.get(_RUN, '')}"


class _Server:
    """The server, the template, and the databases copied from it."""

    def __init__(
        self, dsn: str, portal: BlockingPortal, migrations: tuple[str, ...]
    ) -> None:
        self._dsn = dsn
        self._portal = portal
        self._migrations = migrations
        self._template = f"fm_storage_{os.environ[_RUN]}"
        # Of this run: others may use the server, too. One to use it, one to make it.
        self._used, self._made = (
            f"({_LOCK + at}, hashtext('{self._template}'))" for at in range(2)
        )
        self._strategy = ""
        self._connection: Any = None

    async def open(self, *, ours: bool) -> None:
        from fm_storage.config import MigrationsConfig, PostgresConfig
        from fm_storage.migrate import Migrator
        from fm_storage.postgres.connect.connector import Connector

        # The driver's own, so that a test's spans and metrics hold nothing of it.
        connector = Connector(PostgresConfig(dsn=self._dsn))
        run = self._connection = await connector.connect("tests")
        # A server of the run's own outlives nothing: it need not sync.
        for setting in _THROW_AWAY if ours else ():
            await run.execute(f"ALTER SYSTEM SET {setting} = off")
        if ours:
            await run.execute("SELECT pg_reload_conf()")
        if await run.fetchval(_COPIES_FILES, ours):
            # Two checkpoints for a copy cost less than its way through the log.
            self._strategy = " STRATEGY FILE_COPY"
        # Held until this worker ends: the last one drops the template.
        await run.execute(f"SELECT pg_advisory_lock_shared{self._used}")
        await run.execute(f"SELECT pg_advisory_lock{self._made}")
        made = "SELECT 1 FROM pg_database WHERE datname = $1 AND datistemplate"
        if await run.fetchval(made, self._template) is None:
            await run.execute(f"DROP DATABASE IF EXISTS {self._template}")
            await run.execute(f"CREATE DATABASE {self._template}")
            config = MigrationsConfig(sources=self._migrations)
            await Migrator(self._at(self._template), config).apply()
            await run.execute(f"ALTER DATABASE {self._template} IS_TEMPLATE true")
        await run.execute(f"SELECT pg_advisory_unlock{self._made}")

    async def aclose(self) -> None:
        run = self._connection
        await run.execute(f"SELECT pg_advisory_unlock_shared{self._used}")
        if await run.fetchval(f"SELECT pg_try_advisory_lock{self._used}"):
            await run.execute(f"ALTER DATABASE {self._template} IS_TEMPLATE false")
            await run.execute(f"DROP DATABASE IF EXISTS {self._template}")
        await run.close()

    async def _run(self, statement: str) -> None:
        await self._connection.execute(statement)

    def _at(self, database: str) -> str:
        return urlunsplit(urlsplit(self._dsn)._replace(path=f"/{database}"))

    def create(self) -> tuple[str, str]:
        """Copy the template; return the copy's name and DSN."""
        name = f"fm_test_{secrets.token_hex(6)}"
        copy = f"CREATE DATABASE {name} TEMPLATE {self._template}{self._strategy}"
        self._portal.call(self._run, copy)
        return name, self._at(name)

    def drop(self, name: str) -> None:
        """Drop a copy, also while somebody is connected."""
        self._portal.call(self._run, f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")


@pytest.fixture(scope="session")
def fm_storage_migrations() -> tuple[str, ...]:
    """Your own migrations: override it to return folders, as ``migrations.sources``."""
    return ()


@pytest.fixture(scope="session")
def fm_storage_server_dsn(request: pytest.FixtureRequest) -> str | None:
    """A superuser's DSN: override it where you start a server; None is embedded."""
    given: str | None = request.config.getoption("--fm-storage-dsn")
    return given


@pytest.fixture(scope="session")
def fm_storage_server(
    fm_storage_server_dsn: str | None, fm_storage_migrations: tuple[str, ...]
) -> Iterator[Any]:
    """Give the server that the databases of this run are on."""
    from anyio.from_thread import start_blocking_portal

    from fm_storage.postgres.embedded.embedded import EmbeddedPostgres

    dsn = fm_storage_server_dsn
    with ExitStack() as stack:
        portal = stack.enter_context(start_blocking_portal())
        if dsn is None:
            embedded = portal.call(partial(EmbeddedPostgres, _folder()))
            dsn = stack.enter_context(portal.wrap_async_context_manager(embedded))
        server = _Server(dsn, portal, fm_storage_migrations)
        portal.call(partial(server.open, ours=fm_storage_server_dsn is None))
        yield server
        portal.call(server.aclose)


@pytest.fixture
def fm_storage_dsn(fm_storage_server: Any) -> Iterator[str]:
    """Give the DSN of a migrated database of the test's own."""
    name, dsn = fm_storage_server.create()
    yield dsn
    fm_storage_server.drop(name)


@_async_fixture
async def fm_storage_pool(fm_storage_dsn: str) -> AsyncIterator[Pool]:
    """Give an open pool on a migrated database of the test's own."""
    from fm_storage.config import PostgresConfig
    from fm_storage.postgres import Pool

    async with Pool(PostgresConfig(dsn=fm_storage_dsn)) as pool:
        yield pool


@_async_fixture
async def fm_storage_qdrant() -> AsyncIterator[QdrantTestServer]:
    """Give a server with Qdrant's interface, empty, of the test's own."""
    from fm_storage.testing.server import QdrantTestServer

    async with QdrantTestServer() as server:
        yield server


@pytest.fixture
def qdrant_faults(fm_storage_qdrant: QdrantTestServer) -> Faults:
    """Give the script of faults of the server behind ``qdrant_store``."""
    return fm_storage_qdrant.faults


@_async_fixture
async def qdrant_store(
    fm_storage_qdrant: QdrantTestServer,
) -> AsyncIterator[QdrantStore]:
    """Give an open vector store on a server of the test's own."""
    from fm_storage.config import QdrantConfig
    from fm_storage.vectors import QdrantStore

    async with QdrantStore(QdrantConfig(url=fm_storage_qdrant.url)) as store:
        yield store


@_async_fixture
async def fm_storage(
    fm_storage_dsn: str, fm_storage_qdrant: QdrantTestServer, tmp_path: Path
) -> AsyncIterator[StorageManager]:
    """Give an open manager with rows and vectors of the test's own."""
    async with _manager(fm_storage_dsn, fm_storage_qdrant.url, tmp_path) as storage:
        yield storage


@pytest.fixture(scope="session")
def fm_storage_shared_dsn(fm_storage_server: Any) -> Iterator[str]:
    """Give the DSN of one migrated database for all tests that roll back."""
    name, dsn = fm_storage_server.create()
    yield dsn
    fm_storage_server.drop(name)


@_async_fixture
async def fm_storage_transaction(
    fm_storage_shared_dsn: str, tmp_path: Path
) -> AsyncIterator[StorageTransaction]:
    """Give a transaction that is rolled back when the test ends: the fastest way.

    What is tested takes the transaction; its own transactions become savepoints.
    """
    async with _manager(fm_storage_shared_dsn, None, tmp_path) as storage:
        opened = storage.transaction()
        transaction = await opened.__aenter__()
        yield transaction
        with suppress(_Undone):
            await opened.__aexit__(_Undone, _Undone(), None)


class _Undone(Exception):
    """Leaves the block of a transaction, so that it rolls back."""


def _manager(dsn: str, url: str | None, folder: Path) -> StorageManager:
    from fm_storage.config import MappingConfigManager
    from fm_storage.manager import StorageManager

    values = {
        "postgres.dsn": dsn,
        "qdrant": None if url is None else {"url": url},
        "migrations.auto_apply": False,
        "data_dir": folder,
    }
    # Nothing of the environment: the tests of a project must not meet its settings.
    return StorageManager.from_config_manager(MappingConfigManager(values))


@pytest.fixture
def tcp_proxy() -> Iterator[Callable[[str], TcpProxy]]:
    """Give a maker of proxies: ``tcp_proxy(dsn)`` passes on to the server of *dsn*.

    ``proxy.dsn(dsn)`` is the address through it. A DSN with a Unix socket works
    too: the client sees TCP, and the server sees its socket.
    """
    from fm_storage.testing.proxy import TcpProxy, target_of

    made: list[TcpProxy] = []

    def make(dsn: str) -> TcpProxy:
        made.append(TcpProxy(target_of(dsn)))
        return made[-1]

    yield make
    for proxy in made:
        proxy.close()


@_async_fixture
async def postgres_cluster() -> AsyncIterator[PostgresCluster]:
    """Give a running PostgreSQL of the test's own, to stop, kill and freeze."""
    from fm_storage.testing.cluster import PostgresCluster

    async with PostgresCluster() as cluster:
        yield cluster
