"""Wrong settings: which key, which variable, what is accepted, and no secret."""

from __future__ import annotations

import logging
import pickle
import re
from pathlib import Path
from typing import Any

import pytest

from fm_storage.config import (
    MigrationsConfig,
    OutboxConfig,
    PostgresConfig,
    QdrantConfig,
    StorageConfig,
)
from fm_storage.config.addresses import parameters_of
from fm_storage.errors import ConfigurationInvalid
from fm_storage.manager import IntegratedManager
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool

pytestmark = pytest.mark.usefixtures("no_variables")

SECRET = "s3cr:e@t/"


@pytest.mark.parametrize(
    ("values", "key", "said"),
    [
        ({"postgres": {"max_szie": 3}}, "postgres.max_szie", "did you mean 'max_size'"),
        ({"postgers": {}}, "postgers", "did you mean 'postgres'"),
        ({"postgres": {"on_connect": 5}}, "postgres.on_connect", "give a function"),
        ({"postgres": {"password": 5}}, "postgres.password", "text or a function"),
        *(
            ({"postgres": {"ssl": given}}, "postgres.ssl", "disable, allow, prefer")
            for given in (5, "on", "true", "", [], {}, object())
        ),
        *(
            ({"postgres": {name: given}}, f"postgres.{name}", "holds a NUL")
            for name, given in (
                ("application_name", "a\0"),
                ("password", "\0"),
                ("server_settings", {"search_path": "a\0b"}),
                ("server_settings", {"\0": "a"}),
            )
        ),
        ({"migrations": {"sources": ["a\0"]}}, "migrations.sources", "holds a NUL"),
        ({"qdrant": {"zzz": 1}}, "qdrant.zzz", "unknown setting; remove it"),
        ({"postgres": {"dsn": "mysql://h/d"}}, "postgres.dsn", "must start with"),
        ({"postgres": {"max_size": "x"}}, "postgres.max_size", "number, 1 or more"),
        (
            {"postgres": {"min_size": 5, "max_size": 2}},
            "postgres",
            "lower min_size or raise max_size",
        ),
        ({"qdrant": {"url": "ftp://x"}}, "qdrant.url", "must start with http"),
        ({"qdrant": {"url": "http://"}}, "qdrant.url", "has no host"),
        ({"qdrant": {"url": "http://u:p@h"}}, "qdrant.url", "holds credentials"),
        (
            {"qdrant": {"collections": {"a": {"size": 0}}}},
            "qdrant.collections.a.size",
            "0 is not accepted; give a whole number from 1 to 65535",
        ),
        (
            {"qdrant": {"collections": {"a": {}}}},
            "qdrant.collections.a",
            "give size, vectors or sparse_vectors",
        ),
        (
            {
                "qdrant": {
                    "collections": {"a": {"size": 1, "vectors": {"v": {"size": 1}}}}
                }
            },
            "qdrant.collections.a",
            "exclude each other",
        ),
        ({"migrations": {"dsn": "sqlite:"}}, "migrations.dsn", "must start with"),
        ({"session": {"dsn": "db.example"}}, "session.dsn", "must start with postg"),
        ({"outbox": {"batch_size": 0}}, "outbox.batch_size", "from 1 to 10000"),
        (
            {"postgres": {"acquire_timeout": float("nan")}},
            "postgres.acquire_timeout",
            "nan is no finite number; give a number above 0",
        ),
        (
            {"qdrant": {"durability": "fast"}},
            "qdrant.durability",
            "'fast' is not accepted; give 'fsync' or 'process'",
        ),
        ({"outbox": {"drain": "x"}}, "outbox.drain", "give true or false"),
        (
            {"qdrant": {"ca_file": 3}},
            "qdrant.ca_file",
            "3 is not accepted; give a path",
        ),
        (
            {"session": {"schema_name": ""}},
            "session.schema_name",
            "text that is not em",
        ),
        (
            {"session": {"prefix": "x" * 99}},
            "session.prefix",
            f"'{'x' * 59}… is not accepted; give text of 24 characters at most",
        ),
        ({"migrations": {"sources": [1]}}, "migrations.sources.0", "1 is not accepted"),
        (
            {"migrations": {"sources": 1}},
            "migrations.sources",
            'give a list, such as ["',
        ),
        (
            {"qdrant": {"collections": {"a": {"vectors": {"v": {}}}}}},
            "qdrant.collections.a.vectors.v.size",
            "is missing; set it",
        ),
        (
            {
                "qdrant": {
                    "collections": {"a": {"size": 1, "payload_indexes": {"b": 3}}}
                }
            },
            "qdrant.collections.a.payload_indexes.b",
            "3 is not accepted; give text or an object",
        ),
        (
            {"qdrant": {"collections": {"a": 3}}},
            "qdrant.collections.a",
            "give its settings by name (size, distance, vectors, sparse_vectors, …)",
        ),
        (
            {"qdrant": "x"},
            "qdrant",
            "(url, api_key, prefer_grpc, grpc_port, …), or none",
        ),
        ({"outbox": 5}, "outbox", "give its settings by name (drain, batch_size, "),
        ({"postgres": {"password": 5}}, "postgres.password", "the value is not accep"),
        *(
            ({"postgres": {"dsn": dsn}, "qdrant": None}, "postgres.dsn", said)
            for dsn, said in (
                (
                    "postgresql://u:p@h:99999/db",
                    "port 99999, which is not from 1 to 65535",
                ),
                ("postgresql://h:abc/db", "a port that is no number; write host:5432"),
                ("postgresql://h:0/db", "port 0, which is not from 1 to 65535"),
                (
                    "postgres://a:5432,b:54321x?connect_timeout=1",
                    "a port that is no number",
                ),
                ("postgresql://[::1]:70000/db", "has port 70000, which"),
                ("postgresql:///db?host=/tmp&port=5432,x", "a port that is no number"),
            )
        ),
        (
            {"migrations": {"dsn": "postgresql://h:0/d"}},
            "migrations.dsn",
            "has port 0, ",
        ),
        ({"qdrant": {"url": "http://h:70000"}}, "qdrant.url", "write http://host:6333"),
        ({"qdrant": {"url": "http://h:x/"}}, "qdrant.url", "write http://host:6333"),
    ],
)
def test_a_wrong_value_names_key_and_remedy(
    values: dict[str, Any], key: str, said: str
):
    """The first problem's dotted key, what is wrong and what to do."""
    with pytest.raises(ConfigurationInvalid) as caught:
        StorageConfig(**values)

    assert caught.value.key == key
    assert said in caught.value.problems[0][1]


@pytest.mark.parametrize(
    "dsn",
    [
        "postgresql://",
        "postgresql:///db?host=/var/run",
        "postgresql://u:p:5@w@h/db",
        "postgresql://u@h:/db",
        "postgresql://h1:1,h2,h3:65535/db?sslmode=require",
        "postgresql://[::1]:5432,[fe80::1%25eth0]/db",
        "postgresql://%2Ftmp%2Fsockets:5432/db",
        "postgresql://u:p@/db?host=h1,h2&port=1,2",
    ],
)
def test_every_form_of_an_address_is_taken(dsn: str):
    """As libpq reads them: several hosts, no host, sockets, IPv6."""
    assert PostgresConfig(dsn=dsn).dsn == dsn


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("a#b", "a#b"),
        ("a?b", "a?b"),
        ("[a]", "[a]"),
        ("a:b c", "a:b c"),
        ("ä€", "ä€"),
        ("a%40b", "a@b"),
        ("a+b", "a+b"),
    ],
)
def test_a_password_is_read_as_libpq_reads_it(raw: str, read: str):
    """Raw where libpq takes it raw, decoded where it is encoded."""
    found = parameters_of(f"postgresql://us#er:{raw}@h:1,[::1]:2,k/d#b?name=a#")
    assert found["password"] == read
    assert found["user"] == "us#er"
    assert found["dbname"] == "d#b"
    assert found["name"] == "a#"
    assert (found["host"], found["port"]) == ("h,[::1],k", "1,2,5432")


@pytest.mark.parametrize(
    ("dsn", "remedy"),
    [
        ("postgresql://u:a@b@h/d", "write %40 for @"),
        ("postgresql://u:a/b@h/d", "%2F for /"),
        ("postgresql://u:1/b@h/d", "%2F for /"),
        ("postgresql://u:a@b/c@h/d", "%2F for /"),
        ("postgresql://u:100%@h/d", "write %25 for %"),
        ("postgresql://u:p@[::1/d", "a bracket that is not closed"),
        ("postgresql://h/d?sslmode", "?name=value"),
    ],
)
async def test_an_address_that_libpq_cannot_read_is_refused(dsn: str, remedy: str):
    """By pool and migrations alike, and the message says how to write it."""
    with pytest.raises(ConfigurationInvalid, match=re.escape(remedy)):
        Pool(PostgresConfig(dsn=dsn))
    with pytest.raises(ConfigurationInvalid, match=re.escape(remedy)):
        await Migrator(dsn).status()


@pytest.mark.parametrize(
    ("parameter", "remedy"),
    [
        ("ssl=true", "write sslmode=require"),
        ("pgbouncer=true", "a pooler is recognised"),
        ("schema=shop", "write search_path="),
        ("connection_limit=5", "set postgres.max_size"),
        ("prepared_statement_cache_size=0", "set postgres.statement_cache_size"),
        ("requiressl=1", "write sslmode=require"),
    ],
)
def test_a_parameter_of_another_driver_is_refused(parameter: str, remedy: str):
    """With what to write instead."""
    with pytest.raises(ConfigurationInvalid, match=remedy) as it:
        PostgresConfig(dsn=f"postgresql://h/d?{parameter}")
    assert parameter.partition("=")[0] in str(it.value)


def test_white_space_around_an_address_is_named():
    """A secret is often a file, and ends with a line break."""
    with pytest.raises(ConfigurationInvalid, match="last line break") as it:
        PostgresConfig(dsn="postgresql://u:hush@h/d\n")
    assert "hush" not in str(it.value)


def test_a_wrong_target_is_answered_with_the_right_ones(
    monkeypatch: pytest.MonkeyPatch,
):
    """In the address, or in libpq's variable."""
    for query in ("?target_session_attrs=nowhere", ""):
        with pytest.raises(ConfigurationInvalid, match=r"=nowhere; .*read-write"):
            Pool(PostgresConfig(dsn=f"postgresql://u@h/d{query}"))
        monkeypatch.setenv("PGTARGETSESSIONATTRS", "nowhere")


@pytest.mark.parametrize(
    "why", [KeyError("getpwuid(): uid not found: 5"), OSError("No username set in the")]
)
async def test_an_account_without_a_name_needs_a_user(
    why: Exception, monkeypatch: pytest.MonkeyPatch
):
    """As a container's numeric one; both of Python's errors."""

    def nobody() -> str:
        raise why

    monkeypatch.setattr("getpass.getuser", nobody)
    monkeypatch.delenv("PGUSER", raising=False)
    pool = Pool(PostgresConfig(dsn="postgresql://127.0.0.1:1/d"))
    with pytest.raises(ConfigurationInvalid, match="names no user"):
        await pool.open()


@pytest.mark.parametrize("scheme", ["postgresql+asyncpg", "postgres+psycopg"])
def test_an_address_of_sqlalchemy_is_understood(scheme: str):
    """The driver's name says nothing to us."""
    config = PostgresConfig(dsn=f"{scheme}://u@h/d")
    assert parameters_of(config.dsn) == {"user": "u", "host": "h", "dbname": "d"}


def test_an_application_s_own_variable_is_named(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """DATABASE_URL is not taken, and not passed over in silence either."""
    monkeypatch.setenv("DATABASE_URL", f"postgresql+asyncpg://u:{SECRET}@h/d")
    StorageConfig()
    assert "set FM_STORAGE_POSTGRES__DSN" in caplog.text
    assert SECRET not in caplog.text
    caplog.clear()
    StorageConfig(postgres=None)
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", "embedded:")
    StorageConfig()
    assert not caplog.text


@pytest.mark.parametrize(
    ("variable", "remedy"),
    [
        ("FM_STORAGE_QDRANT__URL", "FM_STORAGE_QDRANT=none"),
        ("FM_STORAGE_POSTGRES__DSN", "FM_STORAGE_POSTGRES=none"),
    ],
)
@pytest.mark.parametrize("word", ["none", "None", "off"])
def test_to_do_without_a_part_is_said_of_the_part(
    variable: str, remedy: str, word: str, monkeypatch: pytest.MonkeyPatch
):
    """An address cannot say it; the message names the variable that can."""
    monkeypatch.setenv(variable, word)
    with pytest.raises(ConfigurationInvalid, match=remedy):
        StorageConfig()


@pytest.mark.parametrize("manager", [None, object(), 5])
def test_what_is_no_config_manager_is_refused(manager: Any):
    """Named, with what it has to have."""
    for make in (StorageConfig.from_config_manager, IntegratedManager):
        with pytest.raises(ConfigurationInvalid, match=r"get\(key, default\)") as it:
            make(manager)
        assert it.value.key == "config_manager"


def test_all_wrong_values_are_reported_at_once():
    """Nobody mends settings one run at a time."""
    with pytest.raises(ConfigurationInvalid) as caught:
        StorageConfig(postgres={"max_size": 0, "dns": "x"}, outbox={"lease": -1})

    assert {key for key, _ in caught.value.problems} == {
        "postgres.max_size",
        "postgres.dns",
        "outbox.lease",
    }


def test_no_secret_is_printed(caplog: pytest.LogCaptureFixture):
    """repr, str, pickled-and-back, and every error stay silent about secrets."""
    caplog.set_level(logging.DEBUG)
    config = StorageConfig(
        postgres=PostgresConfig(
            dsn=f"postgresql://app:{SECRET}@h/db",
            read_dsn=f"postgresql://app:{SECRET}@h2/db",
            password="pa55word",
        ),
        qdrant=QdrantConfig(
            url="https://q", api_key="k3y", headers={"authorization": "t0ken"}
        ),
        migrations=MigrationsConfig(dsn=f"postgresql://ddl:{SECRET}@h/db"),
    )
    copy = pickle.loads(pickle.dumps(config))
    said = [repr(config), str(config), repr(copy)]
    assert config.postgres is not None
    said += [config.postgres.safe_dsn, repr(MigrationsConfig())]
    for values in (
        {"postgres": {"dsn": f"mysql://u:{SECRET}@h/d"}},
        {"postgres": {"password": 5}},
        {"qdrant": {"api_key": ["k3y"]}},
        {"qdrant": {"headers": "t0ken"}},
        {"qdrant": {"headers": {"authorization": ["t0ken"]}}},
        {"qdrant": {"url": ["k3y"]}},
        {"postgres": {"dsn": [SECRET]}},
        {"postgres": {"read_dsn": [SECRET]}},
        {"postgres": {"read_dsn": f"mysql://u:{SECRET}@h/d"}},
        {"postgres": {"dsn": "postgresql://app:pa55word"}},
        {"postgres": {"dsn": "postgresql://app:t0ken/h:5432?x=1"}},
        {"postgres": f"postgresql://app:{SECRET}@h/db"},
        {"migrations": {"dsn": f"x://u:{SECRET}@h/d"}},
    ):
        with pytest.raises(ConfigurationInvalid) as caught:
            StorageConfig(**values)
        said += [str(caught.value), repr(caught.value), repr(caught.value.__cause__)]

    for text in said:
        for secret in (SECRET, "pa55word", "k3y", "t0ken"):
            assert secret not in text


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        (
            "FM_STORAGE_QDRANT__COLLECTIONS",
            '{"a": {"size": 3,x}}',
            (
                "qdrant.collections: is no JSON (Expecting property name enclosed in "
                "double quotes at character 18, near ' {\"size\": 3,x}}'); give an "
                'object, such as {"name": …} (in FM_STORAGE_QDRANT__COLLECTIONS)'
            ),
        ),
        (
            "FM_STORAGE_QDRANT__COLLECTIONS__A",
            "{size=3}",
            (
                "qdrant.collections.a: is no JSON (Expecting property name enclosed "
                "in double quotes at character 2); give its settings by name (size, "
                "distance, vectors, sparse_vectors, …) "
                "(in FM_STORAGE_QDRANT__COLLECTIONS__A)"
            ),
        ),
        (
            "fm_storage_migrations__sources",
            "folder",
            (
                "migrations.sources: is no JSON (Expecting value at character 1, near "
                "'folder'); give a list, such as [\"…\"] "
                "(in fm_storage_migrations__sources)"
            ),
        ),
        (
            "FM_STORAGE_QDRANT__HEADERS",
            "Bearer s3cret",
            (
                "qdrant.headers: is no JSON (Expecting value at character 1); give an "
                'object, such as {"name": …} (in FM_STORAGE_QDRANT__HEADERS)'
            ),
        ),
        (
            "FM_STORAGE_QDRANT",
            '{"api_key": s3cret}',
            (
                "qdrant: is no JSON (Expecting value at character 13); give its "
                "settings by name (url, api_key, prefer_grpc, grpc_port, …), or none "
                "to do without it (in FM_STORAGE_QDRANT)"
            ),
        ),
    ],
)
def test_broken_json_is_reported_with_its_variable_and_its_place(
    name: str, value: str, said: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """From the environment and from a .env file; an excerpt unless it is a secret."""
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationInvalid) as caught:
        StorageConfig()
    assert str(caught.value) == said

    monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(f"{name}='{value}'\n")
    with pytest.raises(ConfigurationInvalid) as caught:
        StorageConfig.from_env(env_file=tmp_path / ".env")
    assert str(caught.value).upper() == said.upper()  # such a file's names have no case


def test_a_wrong_value_is_reported_with_the_variable_that_holds_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Alone, inside a section's JSON, over TOML; not where a keyword is stronger."""
    name = "FM_STORAGE_POSTGRES__MAX_SIZE"
    (tmp_path / "s.toml").write_text('[postgres]\nmin_size = "x"\n')
    monkeypatch.setenv(name, "many")
    monkeypatch.setenv("FM_STORAGE_OUTBOX", '{"lease": "x"}')

    with pytest.raises(ConfigurationInvalid) as alone:
        StorageConfig()
    with pytest.raises(ConfigurationInvalid) as over_toml:
        StorageConfig.from_toml(tmp_path / "s.toml")
    with pytest.raises(ConfigurationInvalid) as keyword:
        StorageConfig(postgres={"max_size": "few"}, outbox=OutboxConfig())

    size = "is not accepted; give a whole number, 1 or more"
    lease = "'x' is not accepted; give a number above 0 (in FM_STORAGE_OUTBOX)"
    assert dict(alone.value.problems) == {
        "postgres.max_size": f"'many' {size} (in {name})",
        "outbox.lease": lease,
    }
    assert dict(over_toml.value.problems) == {
        "postgres.min_size": "'x' is not accepted; give a whole number, 0 or more",
        "postgres.max_size": f"'many' {size} (in {name})",
        "outbox.lease": lease,
    }
    assert dict(keyword.value.problems) == {"postgres.max_size": f"'few' {size}"}
