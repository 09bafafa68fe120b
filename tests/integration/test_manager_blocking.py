"""The manager without an event loop: every method a plain function."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import fm_storage
from fm_storage import ErrorEntry
from fm_storage.config import StorageConfig
from fm_storage.errors import (
    DuplicateRecord,
    ForkedProcess,
    QueryFailed,
    StorageClosed,
    StorageError,
)


@pytest.fixture
def storage(dsn: str, tmp_path: Path) -> Iterator[Any]:
    """Give a manager to be used without await."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    with fm_storage.blocking(config) as opened:
        yield opened


def test_methods_take_arguments_and_keywords(storage: Any):
    """Rows and dataclasses come back as they are, errors as they were."""
    assert storage.pool.fetchval("SELECT $1::int", 7, timeout=5.0) == 7
    assert storage.pool.fetchrow("SELECT 1 AS a, 'b' AS b")["b"] == "b"
    assert storage.health(timeout=5.0).ok
    assert storage.statistics().pool.size >= 1
    with pytest.raises(QueryFailed):
        storage.pool.fetchval("SELECT 1 / 0")


def test_blocks_and_iterations_are_plain_ones(storage: Any):
    """Transactions commit or roll back, sessions end, cursors are followed."""
    entry = ErrorEntry(message="m", module="a", error_code="E1")
    with storage.transaction(isolation="serializable") as tx:
        made = tx.error_entries.create(entry)
        with pytest.raises(DuplicateRecord), tx.savepoint() as inner:
            inner.error_entries.create(made)
    assert storage.error_entries.get_by_id(made.id).message == "m"
    with pytest.raises(ZeroDivisionError), storage.transaction() as tx:
        tx.error_entries.delete(made.id)
        raise ZeroDivisionError
    assert storage.error_entries.find_by_id(made.id) is not None
    with storage.session() as session:
        view = session.create_view("SELECT 3 AS n")
        assert storage.pool.fetchval(f"SELECT n FROM {view}") == 3
    with storage.pool.stream("SELECT generate_series(1, 5)", prefetch=2) as rows:
        assert [row[0] for row in rows] == [1, 2, 3, 4, 5]


def test_threads_share_it(storage: Any):
    """Each call is run by the one event loop."""
    with ThreadPoolExecutor(4) as threads:
        asked = [
            threads.submit(storage.pool.fetchval, "SELECT $1::int", number)
            for number in range(20)
        ]
        assert [one.result(10) for one in asked] == list(range(20))


def test_it_ends_with_its_block(dsn: str, tmp_path: Path):
    """Whatever ended the block; later use is refused."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    with pytest.raises(KeyboardInterrupt), fm_storage.blocking(config) as storage:
        pool = storage.pool
        raise KeyboardInterrupt
    with pytest.raises(StorageClosed, match="its block has ended"):
        pool.fetchval("SELECT 1")


def test_where_it_could_only_wait_for_ever_it_refuses(storage: Any):
    """On its own loop's thread, and in a forked child."""
    with pytest.raises(StorageError, match="would wait for itself"):
        storage.run_in_transaction(lambda _: storage.pool.fetchval("SELECT 1"))
    assert storage.run_in_transaction(lambda tx: tx.fetchval("SELECT 1")) == 1
    read, write = os.pipe()
    if (child := os.fork()) == 0:
        try:
            storage.pool.fetchval("SELECT 1")
        except ForkedProcess:
            os.write(write, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(write)
    answer = os.read(read, 100)
    os.close(read)
    assert answer == b"refused"


def test_what_has_no_items_says_how_it_is_used(storage: Any):
    """A stream of rows is a block around its iterator."""
    with storage.pool.acquire() as connection:
        with pytest.raises(TypeError, match=r"enter it: with … as rows"):
            list(connection.stream("SELECT 1"))
        with connection.stream("SELECT generate_series(1, 3)") as rows:
            assert [row[0] for row in rows] == [1, 2, 3]
