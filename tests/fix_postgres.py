"""The PostgreSQL server under test, and a fresh database for every test.

One server for the run; the plug-in copies a migrated database for each test, which
may do what it likes to it.
"""

from __future__ import annotations

import atexit
import functools
import itertools
import secrets
import shutil
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from psycopg import sql

from fm_storage.config import PostgresConfig
from fm_storage.postgres.embedded.cluster import Cluster
from fm_storage.postgres.embedded.programs import (
    Server,
    ServiceUser,
    installed_server,
    service_account,
)
from tests.fix_proxy import free_port
from tests.support import containers, servers

if TYPE_CHECKING:
    from fm_storage.postgres import Pool

__all__ = [
    "TestServer",
    "dsn",
    "empty_dsn",
    "fm_storage_server_dsn",
    "pgvector",
    "pool",
    "postgis",
    "run_aside",
    "server",
]

T = TypeVar("T")

# Nothing of it survives the run, so nothing needs to reach the disk.
THROW_AWAY = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "off",
    "autovacuum": "off",
    "max_connections": "300",
    "max_prepared_transactions": "10",
    "shared_buffers": "128MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "timezone": "UTC",
}


@dataclass
class TestServer:
    """The server under test.

    Attributes:
        dsn: Of a superuser, on the database ``postgres``.
        kind: ``embedded``, ``container`` or ``given``.
        tcp_dsn: The same over TCP, with a password.
    """

    __test__ = False
    dsn: str
    kind: str
    tcp_dsn: str
    _names: Iterator[int] = field(default_factory=itertools.count)
    _prefix: str = field(default_factory=lambda: f"fm_test_{secrets.token_hex(3)}")

    _connection: psycopg.Connection | None = None

    def execute(self, statement: sql.Composed | sql.SQL) -> None:
        """Run one statement as superuser, outside a transaction."""
        if self._connection is None:
            self._connection = psycopg.connect(self.dsn, autocommit=True)
        self._connection.execute(statement)

    def close(self) -> None:
        """Close the connection that makes and drops databases."""
        if self._connection is not None:
            self._connection.close()

    @functools.cached_property
    def may_copy_files(self) -> bool:
        """Whether the server is ours, syncs nothing, and knows the option."""
        with psycopg.connect(self.dsn) as connection:
            return self.kind != "given" and connection.info.server_version >= 150000

    def create_database(self) -> str:
        """Make an empty database and return its DSN."""
        name = f"{self._prefix}_{next(self._names)}"
        self.execute(
            # Two checkpoints cost nothing where nothing is synced, and the copy
            # need not pass through the log.
            sql.SQL("CREATE DATABASE {} TEMPLATE template0{}").format(
                sql.Identifier(name),
                sql.SQL(" STRATEGY FILE_COPY" if self.may_copy_files else ""),
            )
        )
        return self.on(name)

    def drop_database(self, dsn: str) -> None:
        """Drop a database that create_database() made, and end its connections."""
        self.execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(
                sql.Identifier(database_of(dsn))
            )
        )

    def on(self, database: str, *, tcp: bool = False) -> str:
        """Return the DSN of a database of this server."""
        parts = urlsplit(self.tcp_dsn if tcp else self.dsn)
        return urlunsplit(parts._replace(path=f"/{database}"))

    def over_tcp(self, dsn: str) -> str:
        """Return the TCP form of the DSN of a database of this server."""
        return self.on(database_of(dsn), tcp=True)


def database_of(dsn: str) -> str:
    """Return the database that a DSN names."""
    return urlsplit(dsn).path.removeprefix("/")


def run_aside(job: Callable[[], T]) -> T:
    """Run *job* in a thread of its own, free of the test's event loop."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        try:
            outcome.append(job())
        except BaseException as exc:
            failure.append(exc)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


def test_account() -> ServiceUser:
    """Return the account that the tests' own servers run as."""
    return ServiceUser.current() or service_account()


test_account.__test__ = False  # type: ignore[attr-defined]  # a helper, by its name


def make_base(prefix: str, parent: Path | None = None) -> Path:
    """Make a short-named folder that belongs to the servers' account."""
    base = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    test_account().owns(base)
    return base


@functools.cache
def server_programs() -> Server:
    """Return the server's programs where the servers' account can run them."""
    found = installed_server()
    place = make_base("fm-bin-")
    usable = found.copy_for(test_account(), place)
    if usable is found:
        place.rmdir()
    else:
        place.chmod(0o755)
        atexit.register(shutil.rmtree, place, ignore_errors=True)
    return usable


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    """Give the PostgreSQL server under test: real, whichever way it was had."""
    choice = request.config.stash[servers.CHOICE]
    if choice.postgres == "given":
        given = request.config.getoption("--dsn")
        found: AbstractContextManager[TestServer] = nullcontext(
            TestServer(given, "given", given)
        )
    else:
        found = _in_container() if choice.postgres == "container" else _embedded()
    with found as running:
        yield running
        running.close()


@contextmanager
def _embedded() -> Iterator[TestServer]:
    # In memory where there is room: most of a copied database is never read.
    memory = Path("/dev/shm")  # noqa: S108 - a folder of its own is made there
    roomy = memory.is_dir() and shutil.disk_usage(memory).free > 2**31
    base = make_base("fm-pg-", memory if roomy else None)
    password = secrets.token_hex(8)
    try:
        cluster = Cluster(
            server_programs(),
            base / "data",
            log=base / "postgres.log",
            user=test_account(),
        )
        cluster.initialise(THROW_AWAY, database=None, sync=False)
        (base / "data" / "pg_hba.conf").write_text(
            "local all all trust\nhost all all all scram-sha-256\n", encoding="ascii"
        )
        port = start_on_free_port(cluster, base)
        running = TestServer(
            f"postgresql://postgres@/postgres?host={quote(str(base))}&port={port}",
            "embedded",
            f"postgresql://postgres:{password}@127.0.0.1:{port}/postgres",
        )
        running.execute(
            sql.SQL("ALTER ROLE postgres PASSWORD {}").format(sql.Literal(password))
        )
        try:
            yield running
        finally:
            cluster.stop("immediate")
    finally:
        shutil.rmtree(base, ignore_errors=True)


def start_on_free_port(cluster: Cluster, sockets: Path) -> int:
    """Start a cluster on 127.0.0.1 and a port that nobody uses."""
    port = free_port()
    cluster.start(sockets, {"listen_addresses": "127.0.0.1", "port": str(port)})
    return port


@contextmanager
def _in_container() -> Iterator[TestServer]:
    password = secrets.token_hex(8)
    options = [word for each in THROW_AWAY.items() for word in ("-c", "=".join(each))]
    with containers.started(
        servers.postgres_image(),
        5432,
        command=["postgres", *options],
        POSTGRES_PASSWORD=password,
    ) as (host, port):
        at = f"postgresql://postgres:{password}@{host}:{port}/postgres"
        _wait_until_up(at)
        yield TestServer(at, "container", at)


def _wait_until_up(dsn: str) -> None:
    deadline = time.monotonic() + 60
    while True:
        try:
            psycopg.connect(dsn, connect_timeout=5).close()
        except psycopg.OperationalError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)
        else:
            return


@pytest.fixture(scope="session")
def fm_storage_server_dsn(server: TestServer) -> str:
    """Let the plug-in's fixtures make their databases on the server under test."""
    return server.dsn


@pytest.fixture
def dsn(fm_storage_dsn: str) -> str:
    """Give the DSN of a fresh database with all migrations applied."""
    return fm_storage_dsn


@pytest.fixture
def empty_dsn(server: TestServer) -> Iterator[str]:
    """Give the DSN of a fresh database without any migration."""
    made = server.create_database()
    yield made
    server.drop_database(made)


@pytest.fixture
def pool(fm_storage_pool: Pool) -> Pool:
    """Give an open pool on a fresh, migrated database."""
    return fm_storage_pool


@pytest.fixture
async def postgis() -> AsyncIterator[Pool]:
    """Give a pool on an installed server with PostGIS."""
    from fm_storage.postgres import Pool
    from fm_storage.postgres.embedded.embedded import EmbeddedPostgres

    base = make_base("fm-gis-")
    try:
        server = EmbeddedPostgres(base / "pg", bin_dir=servers.find_postgis())
        async with server as dsn, Pool(PostgresConfig(dsn=dsn)) as opened:
            await opened.execute("CREATE EXTENSION postgis")
            yield opened
    finally:
        shutil.rmtree(base, ignore_errors=True)


@pytest.fixture
def pgvector() -> None:
    """Stand for a server that has the extension ``vector``."""
