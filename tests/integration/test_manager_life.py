"""The manager's life: opening, closing, misuse; on real engines."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from fm_storage import (
    ConfigurationInvalid,
    ConnectionFailed,
    ErrorEntry,
    ForkedProcess,
    IntegratedManager,
    MappingConfigManager,
    PermissionDenied,
    QueryFailed,
    SchemaOutOfDate,
    ServerTooOld,
    StorageClosed,
    StorageConfig,
    StorageManager,
    WrongLoop,
)
from tests.fix_proxy import TcpProxy


async def test_the_block_opens_and_closes(storage_config: StorageConfig):
    """Inside the block every part works; after it the manager says so."""
    async with StorageManager(storage_config) as storage:
        assert await storage.pool.fetchval("SELECT 1") == 1
        assert await storage.qdrant.list_collections() is not None
        assert await storage.error_entries.count() == 0
        health = await storage.health()
        assert health.ok, health
        assert health["postgres"].latency is not None

    with pytest.raises(StorageClosed, match="storage manager: it is closed"):
        _ = storage.pool
    await storage.aclose()


async def test_awaiting_is_the_same_without_the_block(storage_config: StorageConfig):
    """``await StorageManager(…)`` opens; ``aclose()`` closes, twice is fine."""
    storage = await StorageManager(storage_config)
    try:
        assert await storage.pool.fetchval("SELECT 2") == 2
    finally:
        await storage.aclose()
        await storage.aclose()

    with pytest.raises(StorageClosed, match="opened once"):
        await storage


async def test_use_before_opening_is_refused(storage_config: StorageConfig):
    """A manager that was never opened names the remedy."""
    storage = StorageManager(storage_config)

    with pytest.raises(StorageClosed, match="not open yet; use it inside 'async with'"):
        _ = storage.pool
    await storage.aclose()


async def test_two_managers_in_one_process(storage_config: StorageConfig):
    """Several managers on one database and one vector folder work together."""
    async with (
        StorageManager(storage_config) as one,
        StorageManager(storage_config) as two,
    ):
        await one.qdrant.ensure_collection_exists("shared", 2)
        assert "shared" in await two.qdrant.list_collections()
        assert await two.pool.fetchval("SELECT 1") == 1

    async with StorageManager(storage_config) as three:
        assert "shared" in await three.qdrant.list_collections()


async def test_parts_that_are_off_say_so(storage_config: StorageConfig):
    """A part that is switched off is named together with the remedy."""
    config = storage_config.model_copy(update={"qdrant": None})

    async with StorageManager(config) as storage:
        assert await storage.pool.fetchval("SELECT 1") == 1
        with pytest.raises(ConfigurationInvalid, match="qdrant: is switched off"):
            _ = storage.qdrant
        health = await storage.health()
        assert health["qdrant"].status == "off"
        assert health.ok
        assert storage.statistics().qdrant is None
        text: Any = "5"
        with pytest.raises(ConfigurationInvalid, match="timeout: is a str; give"):
            await storage.health(timeout=text)


async def test_without_postgres_only_vectors_open(storage_config: StorageConfig):
    """``postgres=None`` leaves the vector store alone."""
    config = storage_config.model_copy(update={"postgres": None})

    async with StorageManager(config) as storage:
        await storage.qdrant.ensure_collection_exists("alone", 2)
        for part in ("pool", "sessions", "error_entries", "outbox"):
            with pytest.raises(ConfigurationInvalid, match="postgres: is switched off"):
                getattr(storage, part)


async def test_another_loop_is_refused(storage: StorageManager):
    """A second event loop gets WrongLoop, not a hang."""
    caught: list[BaseException] = []

    def other() -> None:
        async def use() -> None:
            await storage.pool.fetchval("SELECT 1")

        try:
            asyncio.run(use())
        except WrongLoop as exc:
            caught.append(exc)

    thread = threading.Thread(target=other)
    thread.start()
    await asyncio.to_thread(thread.join)

    assert "another event loop" in str(caught[0])
    assert await storage.pool.fetchval("SELECT 1") == 1


async def test_a_forked_child_is_refused_and_the_parent_unharmed(
    storage: StorageManager,
):
    """The child gets ForkedProcess; the parent's connections live on."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:  # no test machinery may run in the child
        said = b"no error"
        try:
            _ = storage.pool
        except ForkedProcess as exc:
            said = str(exc).encode()
        finally:
            os.write(writer, said)
            os._exit(0)
    os.close(writer)
    await asyncio.to_thread(os.waitpid, child, 0)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()

    assert b"open a new one in the child" in said
    assert await storage.pool.fetchval("SELECT 1") == 1


async def test_hooks_run_before_the_parts_close(storage_config: StorageConfig):
    """A hook may still use the pool; failures come out together."""
    seen: list[Any] = []

    async def last_words(word: str) -> None:
        seen.append((word, await storage.pool.fetchval("SELECT 1")))

    storage = await StorageManager(storage_config)
    storage.hooks.register(last_words, "first registered")
    storage.hooks.register(last_words, "last registered")

    @storage.hooks.on_close(timeout=1)
    async def fails() -> None:
        raise ValueError("no")

    @storage.hooks.on_close()
    async def closes_the_manager_too() -> None:
        await storage.aclose()

    with pytest.raises(ExceptionGroup) as caught:
        await storage.aclose()

    assert seen == [("last registered", 1), ("first registered", 1)]
    assert caught.group_contains(ValueError, match="no")
    await storage.aclose()


async def test_a_cancelled_close_closes_everything(storage_config: StorageConfig):
    """The cancellation is raised, after the end."""
    storage = await StorageManager(storage_config)
    pool = storage.pool
    begun, cancelled = asyncio.Event(), asyncio.Event()

    async def hook() -> None:
        begun.set()
        await cancelled.wait()

    storage.hooks.register(hook)
    closing = asyncio.create_task(storage.aclose())
    await begun.wait()
    closing.cancel()
    cancelled.set()
    with pytest.raises(asyncio.CancelledError):
        await closing

    with pytest.raises(StorageClosed):
        await pool.fetchval("SELECT 1")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("postgresql://nobody:s3cret@127.0.0.1:1/none", ConnectionFailed),
        ("database", QueryFailed),
    ],
)
async def test_opening_fails_with_a_typed_error(
    change: str, error: type[Exception], storage_config: StorageConfig
):
    """Unreachable server, missing database: named, without the password."""
    assert storage_config.postgres is not None
    dsn = change
    if change == "database":
        dsn = storage_config.postgres.dsn.replace("/fm_", "/no_such_", 1)
        assert dsn != storage_config.postgres.dsn
    config = storage_config.model_copy(
        update={"postgres": storage_config.postgres.model_copy(update={"dsn": dsn})}
    )

    storage = StorageManager(config)
    with pytest.raises((error, ConnectionFailed)) as caught:
        await storage

    assert "s3cret" not in str(caught.value)
    with pytest.raises(StorageClosed, match="closed"):
        _ = storage.pool


async def test_a_failing_start_closes_what_was_open(
    storage_config: StorageConfig, tmp_path: Path
):
    """The vector store cannot open: the pool that was open is closed again."""
    blocked = tmp_path / "blocked"
    blocked.write_text("a file where a folder should be")
    assert storage_config.qdrant is not None
    config = storage_config.model_copy(
        update={
            "qdrant": storage_config.qdrant.model_copy(
                update={
                    "url": f"embedded:{blocked}",
                    "collections": {"notes": {"size": 2}},
                }
            )
        }
    )
    storage = StorageManager(config)

    with pytest.raises(Exception) as caught:  # noqa: PT011 - any typed error will do
        await storage

    assert not isinstance(caught.value, AssertionError)
    assert storage._parts.pool is not None
    with pytest.raises(StorageClosed):
        await storage._parts.pool.fetchval("SELECT 1")


async def test_missing_migrations_are_named(empty_dsn: str):
    """With auto_apply off, an empty database is refused by migration name."""
    config = StorageConfig(
        postgres={"dsn": empty_dsn}, qdrant=None, migrations={"auto_apply": False}
    )

    with pytest.raises(SchemaOutOfDate, match="0001_create_project_errors"):
        await StorageManager(config)


async def test_transactions_carry_repository_and_outbox(storage: StorageManager):
    """What is done inside is undone together."""
    entry = ErrorEntry(message="m", module="a", error_code="E1")

    async def fails() -> None:
        async with storage.transaction(isolation="repeatable_read") as tx:
            await tx.error_entries.create(entry)
            assert await tx.error_entries.count() == 1
            _ = 1 / 0

    with pytest.raises(ZeroDivisionError):
        await fails()
    assert await storage.error_entries.count() == 0

    async def body(tx: Any) -> int:
        await tx.error_entries.create(entry)
        return int(await tx.error_entries.count())

    assert await storage.run_in_transaction(body) == 1
    assert await storage.error_entries.count() == 1


async def test_migrate_has_nothing_to_do_twice(storage: StorageManager):
    """The schema was applied at the start."""
    assert await storage.migrate() == []


@pytest.mark.lengthy
async def test_integrated_manager_opens_in_order(storage_config: StorageConfig):
    """ConfigManager → StorageManager → ErrorManager, closed in reverse."""
    assert storage_config.postgres is not None
    assert storage_config.qdrant is not None
    manager = MappingConfigManager(
        {
            "postgres.dsn": storage_config.postgres.dsn,
            "qdrant.url": storage_config.qdrant.url,
            "data_dir": str(storage_config.data_dir),
        }
    )

    async with IntegratedManager(manager) as integrated:
        recorded = await integrated.errors.record("it broke", module="m")
        assert recorded.durable
        storage = integrated.storage
        assert await storage.error_entries.count() == 1

    with pytest.raises(StorageClosed):
        _ = storage.pool


@pytest.mark.lengthy
async def test_a_failed_start_is_catalogued_by_the_next(empty_dsn: str, tmp_path: Path):
    """No schema, no catalogue: the failure waits on disk."""
    values = {
        "postgres.dsn": empty_dsn,
        "qdrant": None,
        "data_dir": str(tmp_path),
        "migrations.auto_apply": False,
    }
    with pytest.raises(SchemaOutOfDate):
        await IntegratedManager(MappingConfigManager(values))
    values["migrations.auto_apply"] = True

    async with IntegratedManager(MappingConfigManager(values)) as integrated:
        entries = integrated.storage.error_entries
        async with asyncio.timeout(10):
            while not (found := await entries.get_recent_errors(limit=5)):
                await asyncio.sleep(0.02)

    assert found[0].severity == "CRITICAL"
    assert found[0].module == "fm_storage.start"
    assert "0001_create_project_errors" in found[0].message


async def test_a_refused_login_is_permission_denied(storage_config: StorageConfig):
    """A refused login is distinguished from a server that does not answer."""
    assert storage_config.postgres is not None
    dsn = storage_config.postgres.dsn
    user = urlsplit(dsn).username or "postgres"
    refused = dsn.replace(f"://{user}", "://fm_nobody:s3cret", 1)
    config = StorageConfig(postgres={"dsn": refused}, qdrant=None)

    with pytest.raises(PermissionDenied) as caught:
        await StorageManager(config)

    assert "s3cret" not in str(caught.value)
    assert "check user and password" in str(caught.value)


async def test_a_server_too_old_is_named(
    storage_config: StorageConfig, tcp_proxy: Callable[[str], TcpProxy]
):
    """A real conversation in which the server says it is version 13."""
    assert storage_config.postgres is not None
    proxy = tcp_proxy(storage_config.postgres.dsn)
    proxy.rewrite = partial(re.compile(rb"(server_version\x00)\d\d").sub, rb"\g<1>13")
    config = StorageConfig(
        postgres={"dsn": proxy.dsn(storage_config.postgres.dsn)}, qdrant=None
    )

    with pytest.raises(ServerTooOld, match="is older than 14; upgrade") as caught:
        await StorageManager(config)

    assert caught.value.version.startswith("13.")
    assert caught.value.retryable is False


def test_a_dsn_is_no_configuration():
    """The commonest first mistake names what to give instead."""
    with pytest.raises(ConfigurationInvalid, match="is a str; give a StorageConfig"):
        StorageManager("postgresql://h/db")
