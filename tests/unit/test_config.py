"""Settings: sources, their order, what is refused and how it is said."""

from __future__ import annotations

import pickle
import re
import ssl
from pathlib import Path
from typing import Any

import pytest

from fm_storage.config import (
    CollectionConfig,
    ConfigManager,
    EnvironmentConfigManager,
    MappingConfigManager,
    PostgresConfig,
    QdrantConfig,
    StorageConfig,
    TomlConfigManager,
    mask_dsn,
)
from fm_storage.errors import ConfigurationInvalid
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool

SECRET = "s3cr:e@t/"
SERVER = "postgresql://app@db.example:5432/shop"


pytestmark = pytest.mark.usefixtures("no_variables")


def test_nothing_said_means_both_engines_embedded():
    """Without settings both engines are ours, under ./.fm_storage."""
    config = StorageConfig()

    assert config.postgres is not None
    assert config.postgres.embedded
    assert config.qdrant is not None
    assert config.qdrant.embedded
    assert config.embedded_folder(config.postgres.dsn) == Path(".fm_storage")


def test_embedded_path_names_the_folder(tmp_path: Path):
    """``embedded:PATH`` wins over the data folder."""
    config = StorageConfig(data_dir=tmp_path)

    assert config.embedded_folder("embedded:") == tmp_path
    assert config.embedded_folder("embedded:/srv/pg") == Path("/srv/pg")


def test_environment_is_read(monkeypatch: pytest.MonkeyPatch):
    """FM_STORAGE_SECTION__KEY sets section.key, and ``none`` switches a part off."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", SERVER)
    monkeypatch.setenv("FM_STORAGE_POSTGRES__MAX_SIZE", "4")
    monkeypatch.setenv("FM_STORAGE_QDRANT", "none")
    monkeypatch.setenv("FM_STORAGE_DATA_DIR", "/srv/data")

    config = StorageConfig()

    assert config.postgres is not None
    assert (config.postgres.dsn, config.postgres.max_size) == (SERVER, 4)
    assert config.qdrant is None
    assert config.data_dir == Path("/srv/data")


def test_keywords_win_over_the_environment(monkeypatch: pytest.MonkeyPatch):
    """A keyword is stronger than a variable of the same name."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", "postgresql://other/db")
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", "http://vectors:6333")

    config = StorageConfig(postgres=PostgresConfig(dsn=SERVER), qdrant=None)

    assert config.postgres is not None
    assert config.postgres.dsn == SERVER
    assert config.qdrant is None


def test_env_file_is_read_only_when_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A ``.env`` lying about changes nothing; a named one counts."""
    (tmp_path / ".env").write_text("FM_STORAGE_POSTGRES__MAX_SIZE=3\n")
    monkeypatch.chdir(tmp_path)

    unnamed, named = StorageConfig(), StorageConfig.from_env(env_file=".env")

    assert unnamed.postgres is not None
    assert unnamed.postgres.max_size == 10
    assert named.postgres is not None
    assert named.postgres.max_size == 3
    assert StorageConfig.from_env() == unnamed


def test_a_missing_env_file_is_named():
    """Naming a file that is not there is a mistake, not silence."""
    with pytest.raises(ConfigurationInvalid, match="'nowhere' is not a file"):
        StorageConfig.from_env(env_file="nowhere")


@pytest.mark.parametrize("table", ["", "tool.fm_storage."])
def test_toml_is_read_and_the_environment_wins(
    table: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Sections stand at the top or under tool.fm_storage; variables override."""
    path = tmp_path / "settings.toml"
    path.write_text(
        f'[{table}postgres]\ndsn = "{SERVER}"\nmax_size = 2\n'
        f'[{table}qdrant]\nurl = "http://vectors:6333"\n'
        f"[{table}qdrant.collections.notes]\nsize = 8\n"
    )
    monkeypatch.setenv("FM_STORAGE_POSTGRES__MAX_SIZE", "7")
    monkeypatch.setenv("FM_STORAGE_TEST_POSTGRES_IMAGE", "ignored")

    config = StorageConfig.from_toml(path)

    assert config.postgres is not None
    assert (config.postgres.dsn, config.postgres.max_size) == (SERVER, 7)
    assert config.qdrant is not None
    assert config.qdrant.collections == {"notes": CollectionConfig(size=8)}
    assert TomlConfigManager(path).get("unknown", 5) == 5


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "cannot be read"), ("postgres = [", "is not TOML")],
)
def test_a_bad_toml_file_is_named(content: str | None, said: str, tmp_path: Path):
    """The message names the file and what is wrong with it."""
    path = tmp_path / "settings.toml"
    if content is not None:
        path.write_text(content)

    with pytest.raises(ConfigurationInvalid, match=said) as caught:
        StorageConfig.from_toml(path)

    assert "settings.toml" in caught.value.key


@pytest.mark.parametrize(
    "manager",
    [
        MappingConfigManager({"postgres.dsn": SERVER, "qdrant": None}),
        MappingConfigManager({"postgres": {"dsn": SERVER}, "qdrant": None}),
        EnvironmentConfigManager(
            {
                "FM_STORAGE_POSTGRES__DSN": SERVER,
                "FM_STORAGE_QDRANT": "off",
                "FM_STORAGE_OTHER__THING": "1",
                "PATH": "/bin",
            }
        ),
    ],
)
def test_a_config_manager_is_asked_for_dotted_keys(
    manager: ConfigManager, monkeypatch: pytest.MonkeyPatch
):
    """Everything comes from the manager; the environment is not read."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__MAX_SIZE", "77")

    config = StorageConfig.from_config_manager(manager)

    assert isinstance(manager, ConfigManager)
    assert config.postgres is not None
    assert (config.postgres.dsn, config.postgres.max_size) == (SERVER, 10)
    assert config.qdrant is None


def test_json_in_the_environment_defines_collections():
    """A variable may hold a JSON object; broken JSON is refused by key."""
    good = {"FM_STORAGE_QDRANT__COLLECTIONS": '{"notes": {"size": 8}}'}
    bad = {"FM_STORAGE_QDRANT__COLLECTIONS": '{"notes": '}

    config = StorageConfig.from_config_manager(EnvironmentConfigManager(good))

    assert config.qdrant is not None
    assert config.qdrant.collections["notes"].size == 8
    with pytest.raises(ConfigurationInvalid, match=r"qdrant\.collections: "):
        StorageConfig.from_config_manager(EnvironmentConfigManager(bad))


def test_a_server_without_qdrant_setting_is_refused():
    """Else every host would fill a vector store of its own."""
    with pytest.raises(ConfigurationInvalid, match=r"qdrant\.url: not set"):
        StorageConfig(postgres=PostgresConfig(dsn=SERVER))
    with pytest.raises(ConfigurationInvalid, match=r"qdrant\.url: not set"):
        StorageConfig(postgres={"dsn": SERVER}, qdrant=QdrantConfig(timeout=5))

    StorageConfig(postgres={"dsn": SERVER}, qdrant=None)
    StorageConfig(postgres={"dsn": SERVER}, qdrant=QdrantConfig(url="embedded:"))


@pytest.mark.parametrize(
    ("parts", "key"),
    [
        ({}, "postgres.dsn"),
        ({"postgres": {"dsn": SERVER}, "qdrant": {"url": "embedded:"}}, "qdrant.url"),
    ],
)
def test_embedded_engines_can_be_forbidden(
    parts: dict[str, Any], key: str, monkeypatch: pytest.MonkeyPatch
):
    """FM_STORAGE_EMBEDDED=never refuses them by key."""
    monkeypatch.setenv("FM_STORAGE_EMBEDDED", "never")

    with pytest.raises(ConfigurationInvalid, match="FM_STORAGE_EMBEDDED=never") as it:
        StorageConfig(**parts)

    assert it.value.key == key
    StorageConfig(postgres=None, qdrant=None)


@pytest.mark.parametrize(
    "dsn",
    [
        f"postgresql://app:{SECRET}@h/db",
        f"postgresql://h/db?user=u&password={SECRET}&sslmode=require",
        f"postgres://app:{SECRET}@h1:1,h2:2/db",
        f"postgresql://h/db?sslmode=prefer&pass%77ord={SECRET}&user=u",
        f"postgresql://h/db?a=1&PASSWORD=x&Y={SECRET}",
        f"postgresql://h/db?pwd={SECRET}",
        f"postgresql://h/db?scram_client_key={SECRET}&oauth_client_secret={SECRET}",
        f"http://h:6333/?api_key={SECRET}",
        f"host=h password={SECRET} dbname=d",
        f"host=h password='{SECRET}' dbname=d",
    ],
)
def test_passwords_are_masked(dsn: str):
    """Whatever the form of the DSN, the password does not show."""
    masked = mask_dsn(dsn)

    assert SECRET not in masked
    assert "***" in masked
    if dsn.startswith("http"):
        assert SECRET not in repr(QdrantConfig(url=dsn))


def test_the_files_of_an_address_are_shown():
    """They are what a message is about."""
    dsn = "postgresql://h/db?sslkey=a.key&passfile=b&keepalives=1&krbsrvname=c"
    assert mask_dsn(dsn) == dsn


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("FM_STORAGE_POSTGRES_DSN", "FM_STORAGE_POSTGRES__DSN"),
        ("FM_STORAGE_DATADIR", "FM_STORAGE_DATA_DIR"),
        ("fm_storage_qdrant_url", "FM_STORAGE_QDRANT__URL"),
        ("FM_STORAGE_SESION__GRACE", "FM_STORAGE_SESSION__GRACE"),
    ],
)
def test_a_misspelt_variable_is_refused_by_name(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """From the environment, beside a TOML file, in a .env file: what was meant."""
    monkeypatch.setenv(name, "x")
    (tmp_path / "s.toml").write_text("[postgres]\n")
    for read in (StorageConfig, lambda: StorageConfig.from_toml(tmp_path / "s.toml")):
        with pytest.raises(ConfigurationInvalid, match=f"did you mean {meant}") as it:
            read()
        assert it.value.key == name
    monkeypatch.delenv(name)
    (tmp_path / ".env").write_text(f"{name}=x\n")
    with pytest.raises(ConfigurationInvalid, match=f"did you mean {meant}"):
        StorageConfig.from_env(env_file=tmp_path / ".env")


def test_what_the_tests_themselves_read_is_nothing_to_tell(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """The name of an image is a setting of the tests, not one without effect."""
    monkeypatch.setenv("FM_STORAGE_TEST_POSTGRES_IMAGE", "postgres:18")
    monkeypatch.setenv("FM_STORAGE_SOMETHING_ELSE", "x")
    StorageConfig()
    assert "FM_STORAGE_TEST_POSTGRES_IMAGE" not in caplog.text
    assert "FM_STORAGE_SOMETHING_ELSE" in caplog.text


def test_a_variable_of_somebody_else_is_reported_and_no_hindrance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Kubernetes makes such names of a service's: logged, nothing more."""
    monkeypatch.setenv("FM_STORAGE_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("FM_STORAGE_PORT_5432_TCP", "tcp://10.0.0.1:5432")
    StorageConfig()
    assert "FM_STORAGE_SERVICE_HOST is no setting" in caplog.text
    assert "FM_STORAGE_PORT_5432_TCP is no setting" in caplog.text


@pytest.mark.parametrize(
    "service", ["postgres", "qdrant", "outbox", "session", "migrations", "data-dir"]
)
def test_a_service_of_kubernetes_stops_no_start(
    service: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Every pod of the namespace gets its variables; a person's slip stays one."""
    stem = f"FM_STORAGE_{service.upper().replace('-', '_')}"
    link = f"{stem}_PORT_5432_TCP"
    for name, value in {
        f"{stem}_SERVICE_HOST": "10.0.0.1",
        f"{stem}_SERVICE_PORT": "5432",
        f"{stem}_SERVICE_PORT_DSN": "5432",
        f"{stem}_PORT": "tcp://10.0.0.1:5432",
        link: "tcp://10.0.0.1:5432",
        f"{link}_PROTO": "tcp",
        f"{link}_PORT": "5432",
        f"{link}_ADDR": "10.0.0.1",
        f"{stem}_PORT_53_UDP": "udp://10.0.0.1:53",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("FM_STORAGE_POSTGRES__MAX_SIZE", "7")
    (tmp_path / "s.toml").write_text("[postgres]\n")
    for config in (StorageConfig(), StorageConfig.from_toml(tmp_path / "s.toml")):
        assert config.postgres is not None
        assert config.postgres.max_size == 7
    monkeypatch.setenv("FM_STORAGE_SESSION_GRACE", "5432")
    with pytest.raises(ConfigurationInvalid, match="did you mean FM_STORAGE_SESSION__"):
        StorageConfig()


@pytest.mark.parametrize(
    "demand",
    [
        "channel_binding=require",
        "gssencmode=require",
        "require_auth=scram-sha-256",
        "require_auth=!password",
        "sslcertmode=require",
        "requirepeer=postgres",
        "sslcrldir=/etc/crl",
    ],
)
@pytest.mark.parametrize("place", ["address", "service", "environment"])
def test_a_demand_of_security_is_never_dropped_in_silence(
    demand: str, place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Wherever libpq would find it; the message names it, where it is, the remedy."""
    name, _, value = demand.partition("=")
    dsn = f"{SERVER}?application_name=x"
    if place == "address":
        dsn += f"&{demand}"
    elif place == "service":
        (tmp_path / "services").write_text(f"[shop]\n{demand}\n")
        monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
        dsn += "&service=shop"
    else:
        monkeypatch.setenv(f"PG{name.upper().replace('_', '')}", value)
    with pytest.raises(ConfigurationInvalid, match=re.escape(demand)) as it:
        PostgresConfig(dsn=dsn)
    assert f"take {name} out" in str(it.value)
    assert ("shop" in str(it.value)) is (place == "service")
    PostgresConfig()  # embedded: a server of our own


@pytest.mark.parametrize(
    "wish",
    [
        "channel_binding=prefer",
        "channel_binding=disable",
        "gssencmode=prefer",
        "require_auth=",
        "sslmode=verify-full&channel_binding=require",
    ],
)
def test_a_wish_is_no_demand(wish: str, monkeypatch: pytest.MonkeyPatch):
    """The address is stronger than the environment, as for libpq."""
    monkeypatch.setenv("PGCHANNELBINDING", "prefer")
    PostgresConfig(dsn=f"{SERVER}?{wish}")


def test_tls_that_an_old_variable_demands_is_not_dropped(
    monkeypatch: pytest.MonkeyPatch,
):
    """What libpq still reads, and would obey."""
    monkeypatch.setenv("PGREQUIRESSL", "1")
    with pytest.raises(ConfigurationInvalid, match="write sslmode=require"):
        PostgresConfig(dsn=SERVER)
    monkeypatch.setenv("PGREQUIRESSL", "0")
    PostgresConfig(dsn=SERVER)


def test_a_certificate_is_never_verified_for_a_number_in_place_of_the_name():
    """The driver would compare it with hostaddr."""
    with pytest.raises(ConfigurationInvalid, match="hostaddr beside sslmode"):
        PostgresConfig(dsn=f"{SERVER}?hostaddr=127.0.0.1&sslmode=verify-full")
    PostgresConfig(dsn=f"{SERVER}?hostaddr=127.0.0.1&sslmode=require")


def test_an_address_states_the_name_and_the_patience_of_the_pool(
    monkeypatch: pytest.MonkeyPatch,
):
    """Before libpq's variables, after a setting of ours; 0 is no limit of libpq's."""

    def seen(query: str = "", **given: Any) -> tuple[str, float]:
        config = PostgresConfig(dsn=f"{SERVER}?{query}", **given)
        return config.application_name, config.connect_timeout

    assert seen() == ("fm_storage", 10)
    assert seen("application_name=shop&connect_timeout=3") == ("shop", 3)
    assert seen("connect_timeout=0") == ("fm_storage", 10)
    monkeypatch.setenv("PGAPPNAME", "x" * 70)
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "4")
    assert seen() == ("x" * 63, 4)
    assert seen("application_name=shop") == ("shop", 4)
    assert seen("application_name=shop", application_name="own")[0] == "own"
    assert PostgresConfig().application_name == "fm_storage"
    monkeypatch.setenv("PGCONNECT_TIMEOUT", "soon")
    with pytest.raises(
        ConfigurationInvalid, match=r"postgres\.connect_timeout: 'soon'"
    ):
        seen()


def unverified() -> ssl.SSLContext:
    """Return a context that encrypts and trusts anybody."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.mark.parametrize(
    ("tls", "passes"),
    [
        ("verify-full", True),
        (True, True),
        (ssl.create_default_context(), True),
        (unverified(), False),
        ("verify-ca", False),
        ("require", False),
        (False, False),
    ],
)
def test_a_verified_certificate_stands_for_channel_binding(
    tls: object, passes: bool, caplog: pytest.LogCaptureFixture
):
    """``postgres.ssl`` is stronger than the address; the pool says it once."""
    dsn = f"{SERVER}?channel_binding=require&sslmode=verify-full"
    if not passes:
        with pytest.raises(ConfigurationInvalid, match="channel_binding=require"):
            PostgresConfig(dsn=dsn, ssl=tls)
        return
    Pool(PostgresConfig(dsn=dsn, ssl=tls))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "channel binding itself is not used" in caplog.text


@pytest.mark.parametrize("given", [ssl.create_default_context(), True, "require"])
def test_migrations_need_no_other_way_for_tls(given: object):
    """They go over the pool's driver, whatever ``postgres.ssl`` is."""
    config = StorageConfig(postgres={"dsn": SERVER, "ssl": given}, qdrant=None)
    assert config.postgres is not None
    Migrator.for_server(config.postgres, config.migrations)


def test_settings_travel_between_processes():
    """Pickled under the name they are imported by, whichever file they are in."""
    config = StorageConfig(postgres={"dsn": SERVER, "max_size": 3}, qdrant=None)
    packed = pickle.dumps(config)
    assert b"fm_storage.config" in packed
    assert b"fm_storage.config.storage" not in packed
    assert pickle.loads(packed) == config


def test_settings_are_frozen():
    """A setting cannot be changed behind a manager's back."""
    config = StorageConfig()

    with pytest.raises(ValueError, match="frozen"):
        config.embedded = "never"


def test_the_embedded_server_can_be_an_installed_one(monkeypatch: pytest.MonkeyPatch):
    """From the environment; ``never`` and ``auto`` stay words."""
    assert StorageConfig().embedded_bin_dir is None
    monkeypatch.setenv("FM_STORAGE_EMBEDDED__BIN_DIR", "/usr/lib/postgresql/16/bin")
    assert StorageConfig().embedded_bin_dir == Path("/usr/lib/postgresql/16/bin")
    monkeypatch.delenv("FM_STORAGE_EMBEDDED__BIN_DIR")
    monkeypatch.setenv("FM_STORAGE_EMBEDDED", "sometimes")
    with pytest.raises(ConfigurationInvalid, match="'auto' or 'never' or its settings"):
        StorageConfig()
