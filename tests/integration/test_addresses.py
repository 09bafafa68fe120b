"""One meaning of an address: pool, migrations, commands, lease, listener, libpq.

Each form is used by everything that connects, and all must arrive at the same
database, as the same role, with the same search path as psycopg does.
"""

from __future__ import annotations

import asyncio
import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qs, quote, urlsplit

import psycopg
import pytest

from fm_storage.cli import main
from fm_storage.config import PostgresConfig, StorageConfig
from fm_storage.errors import PermissionDenied
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from fm_storage.sessions import SessionService
from tests.fix_migrations import MigrationFolder
from tests.fix_postgres import TestServer, database_of

PASSWORD = "p#w/ä?@:[%"
RAW = "a#b?c[d]e"
ESCAPED = "a:b\\c:*"
WHO = "SELECT current_database()::text, current_user::text, current_setting('{}')"
USER = "{user}:{enc}@"
PLAIN = f"postgresql://{USER}{{host}}:{{port}}/{{db}}"
APART = "postgresql://{user}@{host}:{port}/{db}"


@dataclass(frozen=True)
class Form:
    """A way to say where the server is.

    Attributes:
        dsn: The address, with ``{placeholders}``.
        environ: Variables of libpq.
        files: Path below the home folder → text.
        settings: Variables of ours, beside the address.
        libpq: The same for psycopg, where it must be said in another way.
    """

    dsn: str
    environ: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    settings: dict[str, str] = field(default_factory=dict)
    libpq: str = ""


SERVICE = "[shop]\nhost={host}\nport={port}\nuser={user}\ndbname={db}\npassword={pw}\n"
PASSFILE = "{host}:{port}:*:t_raw:{raw}\n"
RAW_ROLE = "postgresql://t_raw@{host}:{port}/{db}"
ODD_PASSFILE = (
    "# of the shop\n\nother:*:*:*:x\n"
    "{host}:{port}:{db}:t\\:odd:a\\:b\\\\c\\:*\r\n*:*:*:*:y\n"
)
ODD_ROLE = "postgresql://t%3Aodd@{host}:{port}/{db}"
IN_QUERY = "user={user}&password={enc}"
FORMS = {
    "plain": Form(PLAIN),
    "postgres": Form(PLAIN.replace("postgresql", "postgres")),
    "asyncpg": Form(PLAIN.replace("://", "+asyncpg://"), libpq=PLAIN),
    "psycopg": Form(PLAIN.replace("://", "+psycopg://"), libpq=PLAIN),
    "raw password": Form("postgresql://t_raw:{raw}@{host}:{port}/{db}"),
    "encoded user": Form("postgresql://%74_addr:{enc}@{host}:{port}/{db}"),
    "encoded host": Form(f"postgresql://{USER}%31{{host_rest}}:{{port}}/{{db}}"),
    "encoded database": Form(f"postgresql://{USER}{{host}}:{{port}}/{{db_enc}}"),
    "password parameter": Form(APART + "?password={enc}"),
    "password setting": Form(
        APART, settings={"PASSWORD": "{pw}"}, libpq=APART + "?password={enc}"
    ),
    "PGPASSWORD": Form(APART, {"PGPASSWORD": "{pw}"}),
    "passfile": Form(RAW_ROLE + "?passfile={home}/pass", files={"pass": PASSFILE}),
    "PGPASSFILE": Form(RAW_ROLE, {"PGPASSFILE": "{home}/pass"}, {"pass": PASSFILE}),
    "~/.pgpass": Form(RAW_ROLE, files={".pgpass": PASSFILE}),
    "passfile, escapes": Form(ODD_ROLE, files={".pgpass": ODD_PASSFILE}),
    "passfile, localhost": Form(
        "postgresql://t_raw@localhost:{port}/{db}",
        files={".pgpass": "127.0.0.1:*:*:*:x\nlocalhost:*:*:*:{raw}\n"},
    ),
    "passfile, two hosts": Form(
        "postgresql://t_raw@127.0.0.1:1,{host}:{port}/{db}",
        files={".pgpass": "127.0.0.1:1:*:*:x\n*:*:*:*:{raw}\n"},
    ),
    "passfile, PGDATABASE and PGPORT": Form(
        "postgresql://t_raw@{host}",
        {"PGDATABASE": "{db}", "PGPORT": "{port}"},
        {".pgpass": "{host}:1:*:*:x\n*:{port}:other:*:x\n*:{port}:{db}:t_raw:{raw}"},
    ),
    "user parameter": Form(f"postgresql://{{host}}:{{port}}/{{db}}?{IN_QUERY}"),
    "PGUSER": Form(
        "postgresql://{host}:{port}/{db}", {"PGUSER": "{user}", "PGPASSWORD": "{pw}"}
    ),
    "host parameter": Form(f"postgresql://{USER}/{{db}}?host={{host}}&port={{port}}"),
    "all parameters": Form(
        f"postgresql://?host={{host}}&port={{port}}&dbname={{db}}&{IN_QUERY}"
    ),
    "PGHOST": Form(
        f"postgresql://{USER}/{{db}}", {"PGHOST": "{host}", "PGPORT": "{port}"}
    ),
    "PGPORT": Form(f"postgresql://{USER}{{host}}/{{db}}", {"PGPORT": "{port}"}),
    "port parameter": Form(f"postgresql://{USER}{{host}}/{{db}}?port={{port}}"),
    "host parameter over host": Form(PLAIN.replace("{host}", "x") + "?host={host}"),
    "host's number": Form(
        f"postgresql://{USER}none.invalid:{{port}}/{{db}}?hostaddr={{host}}"
    ),
    "PGHOSTADDR": Form(
        f"postgresql://{USER}none.invalid:{{port}}/{{db}}", {"PGHOSTADDR": "{host}"}
    ),
    "empty port": Form(f"postgresql://{USER}{{host}}:/{{db}}", {"PGPORT": "{port}"}),
    "dbname parameter": Form(f"postgresql://{USER}{{host}}:{{port}}?dbname={{db}}"),
    "PGDATABASE": Form(f"postgresql://{USER}{{host}}:{{port}}", {"PGDATABASE": "{db}"}),
    "PGDATABASE, slash": Form(
        f"postgresql://{USER}{{host}}:{{port}}/", {"PGDATABASE": "{db}"}
    ),
    "all variables": Form(
        "postgresql://",
        {
            "PGHOST": "{host}",
            "PGPORT": "{port}",
            "PGDATABASE": "{db}",
            "PGUSER": "{user}",
            "PGPASSWORD": "{pw}",
        },
    ),
    "service": Form(
        "postgresql:///?service=shop",
        {"PGSERVICEFILE": "{home}/services"},
        {"services": SERVICE},
    ),
    "service, no slash": Form(
        "postgresql://?service=shop",
        {"PGSERVICEFILE": "{home}/services"},
        {"services": SERVICE},
    ),
    "~/.pg_service.conf": Form(
        "postgresql://?service=shop", files={".pg_service.conf": SERVICE}
    ),
    "PGSERVICE": Form(
        "postgresql://", {"PGSERVICE": "shop"}, {".pg_service.conf": SERVICE}
    ),
    "service, own database": Form(
        "postgresql:///{db}?service=shop",
        files={".pg_service.conf": SERVICE.replace("{db}", "postgres")},
    ),
    "service, search path": Form(
        "postgresql://?service=shop",
        files={".pg_service.conf": SERVICE + "options=-csearch_path=app\n"},
    ),
    "search path": Form(
        PLAIN + "?search_path=app,public",
        libpq=PLAIN + "?options=-csearch_path%3Dapp,public",
    ),
    "options": Form(PLAIN + "?options=-csearch_path%3Dapp"),
    "options with a space": Form(PLAIN + "?options=-c%20search_path%3Dapp"),
    "PGOPTIONS": Form(PLAIN, {"PGOPTIONS": "-csearch_path=app"}),
    "server_settings": Form(
        PLAIN,
        settings={"SERVER_SETTINGS": '{{"search_path": "app"}}'},
        libpq=PLAIN + "?options=-csearch_path%3Dapp",
    ),
    "two hosts": Form(f"postgresql://{USER}127.0.0.1:1,{{host}}:{{port}}/{{db}}"),
    "two hosts, IPv6": Form(f"postgresql://{USER}[::1]:1,{{host}}:{{port}}/{{db}}"),
    "two host parameters": Form(
        f"postgresql://{USER}/{{db}}?host=127.0.0.1,{{host}}&port=1,{{port}}"
    ),
    "session attributes": Form(PLAIN + "?target_session_attrs=read-write"),
    "PGTARGETSESSIONATTRS": Form(PLAIN, {"PGTARGETSESSIONATTRS": "primary"}),
    "sslmode": Form(PLAIN + "?sslmode=prefer"),
    "PGSSLMODE": Form(PLAIN, {"PGSSLMODE": "disable"}),
    "libpq's own": Form(
        PLAIN + "?connect_timeout=5&keepalives=1&gssencmode=disable&"
        "channel_binding=prefer&fallback_application_name=x&client_encoding=auto&"
        "gssdelegation=0&application_name=fm_storage"
    ),
    "empty query": Form(PLAIN + "?"),
    # A server without a socket of its own is reached by its host, with a password.
    "socket parameter": Form(
        f"postgresql://{USER}/{{db}}?host={{socket}}&port={{port}}"
    ),
    "socket, encoded": Form(f"postgresql://{USER}{{socket}}:{{port}}/{{db}}"),
    "socket, PGHOST": Form(
        f"postgresql://{USER}/{{db}}", {"PGHOST": "{folder}", "PGPORT": "{port}"}
    ),
}


@pytest.fixture(scope="module")
def roles(server: TestServer) -> None:
    """Make the roles of the addresses."""
    with psycopg.connect(server.dsn, autocommit=True) as connection:
        for role, password in (
            ("t_addr", PASSWORD),
            ("t_raw", RAW),
            ("t:odd", ESCAPED),
        ):
            connection.execute(f'DROP ROLE IF EXISTS "{role}"')
            text = f"CREATE ROLE \"{role}\" SUPERUSER LOGIN PASSWORD '{password}'"
            connection.execute(text)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Give a home folder without files, in an environment without variables."""
    for name in [name for name in os.environ if name.startswith(("PG", "FM_STORAGE_"))]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.chdir(folder)
    return folder


async def _seen_by_the_pool(config: StorageConfig, query: str) -> tuple[str, ...]:
    assert config.postgres is not None
    async with Pool(config.postgres) as pool:
        row = await pool.fetchrow(query)
        assert row is not None
        return tuple(row)


async def _seen_by_lease_and_listener(config: StorageConfig) -> set[tuple[str, ...]]:
    """Return where the connections are that belong to no pool."""
    assert config.postgres is not None
    service_of = config.session.model_copy(update={"reap_interval": 0})
    async with Pool(config.postgres) as pool, pool.listen("t_addr"):
        service = SessionService(pool, service_of)
        await service.open()
        async with service.session():
            found = await pool.fetch(
                "SELECT split_part(application_name, '/', 2), datname::text,"
                " usename::text FROM pg_stat_activity WHERE application_name"
                " IN ('fm_storage/lease', 'fm_storage/listen') AND datname ="
                " current_database()"
            )
        await service.aclose()
    return {tuple(row) for row in found}


@pytest.mark.usefixtures("roles")
@pytest.mark.parametrize("name", FORMS)
def test_everything_reads_an_address_as_libpq_does(
    name: str,
    *,
    server: TestServer,
    dsn: str,
    home: Path,
    migrations: MigrationFolder,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    """The same database, role and search path for each that connects."""
    form = FORMS[name]
    tcp, local = urlsplit(server.tcp_dsn), urlsplit(server.dsn)
    host = str(tcp.hostname)
    socket = parse_qs(local.query).get("host", [host])[0]
    db = database_of(dsn)
    words = {
        "user": "t_addr",
        "pw": PASSWORD,
        "enc": quote(PASSWORD, safe=""),
        "db": db,
        "host": host,
        "host_rest": host[1:],
        "port": str(tcp.port),
        "raw": RAW,
        "db_enc": f"%{ord(db[0]):x}{db[1:]}",
        "home": str(home),
        "folder": socket,
        "socket": quote(socket, safe=""),
    }
    for file, text in form.files.items():
        (home / file).write_text(text.format(**words), encoding="utf-8")
        (home / file).chmod(0o600)
    for variable, text in form.environ.items():
        monkeypatch.setenv(variable, text.format(**words))
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", form.dsn.format(**words))
    monkeypatch.setenv("FM_STORAGE_QDRANT", "none")
    for setting, text in form.settings.items():
        monkeypatch.setenv(f"FM_STORAGE_POSTGRES__{setting}", text.format(**words))
    roles = {"t_raw": "t_raw", "t%3Aodd": "t:odd"}
    role = next((r for name, r in roles.items() if name in form.dsn), "t_addr")

    with psycopg.connect((form.libpq or form.dsn).format(**words)) as connection:
        connection.execute("CREATE SCHEMA app")
        row = connection.execute(WHO.format("search_path")).fetchone()
        assert row is not None
        meant = (row[0], row[1], row[2].replace(" ", ""))
    assert meant[:2] == (db, role)

    config = StorageConfig.from_env()
    seen = asyncio.run(_seen_by_the_pool(config, WHO.format("search_path")))
    assert (*seen[:2], seen[2].replace(" ", "")) == meant
    apart = asyncio.run(_seen_by_lease_and_listener(config))
    assert apart == {("lease", *meant[:2]), ("listen", *meant[:2])}

    migrations.write("0001_seen", f"CREATE TABLE seen AS {WHO.format('search_path')}")
    assert config.postgres is not None
    migrator = Migrator.for_server(config.postgres, migrations.config())
    asyncio.run(migrator.apply())
    migrations.write("0002_seen", f"INSERT INTO seen {WHO.format('search_path')}")
    with pytest.raises(SystemExit) as ended:
        main(["migrate", "--json", "--source", str(migrations.path)])
    out, err = capsys.readouterr()
    assert (ended.value.code, len(json.loads(out))) == (0, 1), err
    with psycopg.connect((form.libpq or form.dsn).format(**words)) as connection:
        rows = connection.execute("SELECT * FROM seen").fetchall()
    assert [(one[0], one[1], one[2].replace(" ", "")) for one in rows] == [meant] * 2


def test_variables_of_libpq_set_what_they_set_there(
    dsn: str, home: Path, monkeypatch: pytest.MonkeyPatch
):
    """Time zone and style of dates, too; what the address says is stronger."""
    assert home.exists()
    monkeypatch.setenv("PGTZ", "Asia/Tokyo")
    monkeypatch.setenv("PGDATESTYLE", "German")
    query = "SELECT current_setting('TimeZone'), current_setting('DateStyle')"
    for address in (dsn, f"{dsn}{'&' if '?' in dsn else '?'}timezone=UTC"):
        with psycopg.connect(dsn) as connection:
            meant = connection.execute(query).fetchone()
        seen = asyncio.run(
            _seen_by_the_pool(
                StorageConfig(postgres={"dsn": address}, qdrant=None), query
            )
        )
        assert meant == ("Asia/Tokyo", "German, DMY")
        assert seen == ("UTC" if "timezone" in address else meant[0], meant[1])


def test_a_password_file_that_others_may_read_is_not_used(
    server: TestServer,
    dsn: str,
    roles: None,
    home: Path,
    caplog: pytest.LogCaptureFixture,
):
    """As with libpq; the log says why, and how to change it."""
    del roles
    tcp = urlsplit(server.over_tcp(dsn))
    address = f"postgresql://t_raw@{tcp.hostname}:{tcp.port}{tcp.path}"
    (home / ".pgpass").write_text(f"*:*:*:*:{RAW}\n", encoding="utf-8")
    (home / ".pgpass").chmod(0o644)
    config = StorageConfig(postgres={"dsn": address}, qdrant=None)
    with pytest.raises(PermissionDenied):
        asyncio.run(_seen_by_the_pool(config, "SELECT 1::text"))
    assert "chmod 600" in caplog.text
    assert RAW not in caplog.text
    (home / ".pgpass").chmod(0o600)
    assert asyncio.run(_seen_by_the_pool(config, "SELECT 'in'")) == ("in",)

    async def elsewhere() -> object:
        """Connect by the address that a session has of its own."""
        other = PostgresConfig(dsn="postgresql://other@127.0.0.1:1/other")
        async with Pool(other, dsn=address) as pool:
            return await pool.fetchval("SELECT 'in'")

    text = f"*:*:other:*:x\n*:*:*:t_raw:{RAW}\n"
    (home / ".pgpass").write_text(text, encoding="utf-8")
    assert asyncio.run(elsewhere()) == "in"
