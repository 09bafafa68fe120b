"""COPY of files: CSV, text and binary, both ways, all or nothing."""

from __future__ import annotations

import asyncio
import io
import os
import time

import pytest

from fm_storage.config import PostgresConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidRecord,
    QueryFailed,
)
from fm_storage.postgres import CopyProgress, Executor, Pool
from tests.support.waiting import until

ROWS = [(1, "plain"), (2, 'with "quotes", comma\nand line'), (3, None), (4, "Zoë")]


@pytest.fixture
async def pool(empty_dsn):
    """Give a pool on a database with a table of four rows."""
    async with Pool(PostgresConfig(dsn=empty_dsn, max_size=2)) as opened:
        await opened.execute('CREATE TABLE "T t" (id int PRIMARY KEY, "na me" text)')
        await opened.executemany('INSERT INTO "T t" VALUES ($1, $2)', ROWS)
        await opened.execute('CREATE TABLE u (LIKE "T t")')
        assert isinstance(opened, Executor)
        yield opened


async def rows_of(pool):
    """Return what is in the empty table."""
    return [tuple(row) for row in await pool.fetch("SELECT * FROM u ORDER BY 1")]


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"delimiter": ";", "null": "\\N"},
        {"delimiter": "'", "header": False, "null": "N\\A"},
        {"format": "text"},
        {"format": "binary"},
    ],
)
async def test_a_table_goes_into_a_file_and_back(pool, tmp_path, how):
    """Whatever the format and its marks: the same rows."""
    path = tmp_path / "t.csv"
    assert await pool.copy_to(path, table="T t", **how) == 4
    assert await pool.copy_from("u", str(path), **how) == 4
    assert await rows_of(pool) == ROWS
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]


async def test_columns_and_queries_choose(pool, tmp_path):
    """Some columns in another order; a query with values, quoted by the server."""
    path = tmp_path / "t.csv"
    assert await pool.copy_to(path, table="T t", columns=["na me", "id"]) == 4
    assert path.read_text().splitlines()[0] == "na me,id"
    assert await pool.copy_from("u", path, columns=["na me", "id"]) == 4
    assert await rows_of(pool) == ROWS
    asked = 'SELECT id FROM "T t" WHERE "na me" = $1 OR id > $2'
    hostile = "'; DROP TABLE u; --"
    done = await pool.copy_to(path, query=asked, args=(hostile, 2), header=False)
    assert (done, path.read_text()) == (2, "3\n4\n")
    asked = "SELECT '$1', $$ $2 $$, $1::text, $2::int -- $2\n"
    assert await pool.copy_to(path, query=asked, args=("it's", None)) == 1
    assert path.read_text().splitlines()[-1] == "$1, $2 ,it's,"
    assert await pool.copy_to(path, query="TABLE u", schema=None) == 4
    assert await pool.copy_to(path, table="u", schema="public") == 4
    with pytest.raises(ConfigurationInvalid, match="either"):
        await pool.copy_to(path)
    with pytest.raises(ConfigurationInvalid, match="csv, text or binary"):
        await pool.copy_to(path, table="u", format="xml")
    with pytest.raises(InvalidName):
        await pool.copy_from("a\0b", path)


async def test_open_files_and_streams_of_bytes_serve_too(pool):
    """What is handed in is not closed; a source may be asynchronous."""
    written = io.BytesIO()
    async with pool.transaction() as tx:
        assert await tx.copy_to(written, table="T t") == 4
    written.seek(0)
    assert await pool.copy_from("u", written) == 4
    assert not written.closed

    async def blocks():
        for number in range(5, 8):
            await asyncio.sleep(0)
            yield f"{number},x\n".encode()

    assert await pool.copy_from("u", blocks(), header=False) == 3
    assert len(await rows_of(pool)) == 7


async def test_progress_is_reported_as_it_goes_on(pool, tmp_path):
    """Bytes done of bytes there are; the last time at the end."""
    path = tmp_path / "big.csv"
    seen: list[CopyProgress] = []
    query = "SELECT g, repeat('x', 200) FROM generate_series(1, 20000) g"
    assert await pool.copy_to(path, query=query, progress=seen.append) == 20_000
    size = path.stat().st_size
    assert (seen[-1].done, seen[-1].total) == (size, None)
    seen.clear()
    assert await pool.copy_from("u", path, progress=seen.append) == 20_000
    assert (seen[-1].done, seen[-1].total) == (size, size)
    assert [each.done for each in seen] == sorted(each.done for each in seen)
    assert seen[0].done < size
    assert seen[-1].elapsed >= seen[0].elapsed >= 0


async def test_a_line_that_does_not_fit_is_named_and_nothing_is_written(pool, tmp_path):
    """InvalidRecord with line and column, without the value; the pool is whole."""
    path = tmp_path / "t.csv"
    path.write_text("id,name\n1,a\ns3cret,b\n")
    with pytest.raises(InvalidRecord, match="line 3, column id") as caught:
        await pool.copy_from("u", path)
    assert (caught.value.index, caught.value.field) == (3, "id")
    assert caught.value.sqlstate == "22P02"
    assert "s3cret" not in str(caught.value)
    path.write_text("id,name\n1,a,too many\n")
    with pytest.raises(InvalidRecord, match="line 2"):
        await pool.copy_from("u", path)
    with pytest.raises(QueryFailed):
        await pool.copy_from("nowhere", path)
    with pytest.raises(FileNotFoundError):
        await pool.copy_from("u", tmp_path / "missing.csv")
    assert await rows_of(pool) == []
    assert pool.statistics().busy == 0


async def test_a_copy_that_is_cancelled_while_it_opens_its_file_leaves_none(
    pool, tmp_path
):
    """The file is opened in a thread, which goes on."""
    await pool.fetchval("SELECT 1")
    for turns in range(1, 12):
        task = asyncio.create_task(pool.copy_to(tmp_path / "t.csv", query="SELECT 1"))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert not list(tmp_path.glob(".t.csv.*.part"))


async def test_a_file_is_replaced_only_by_a_whole_one(pool, tmp_path):
    """Failed or cancelled, what was there before is there still, and no rest."""
    path = tmp_path / "t.csv"
    path.write_text("before")
    with pytest.raises(QueryFailed):
        await pool.copy_to(
            path, query="SELECT 1 / (3 - g) FROM generate_series(1, 5) g"
        )
    slow = "SELECT g, pg_sleep(0.01) FROM generate_series(1, 100000) g"
    task = asyncio.create_task(pool.copy_to(path, query=slow))
    await until(lambda: list(tmp_path.glob(".t.csv.*.part")))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert path.read_text() == "before"
    assert [each.name for each in tmp_path.iterdir()] == ["t.csv"]
    with pytest.raises(FileNotFoundError):
        await pool.copy_to(tmp_path / "no" / "folder", table="u")
    with pytest.raises(IsADirectoryError):
        await pool.copy_to(tmp_path, table="u")
    assert await pool.fetchval("SELECT 1", timeout=10) == 1


async def test_a_pipe_is_written_to_and_stays_one(pool, tmp_path):
    """A device or a pipe is never replaced by a file."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = asyncio.create_task(asyncio.to_thread(pipe.read_bytes))
    assert await pool.copy_to(pipe, query="SELECT 1 AS a", header=False) == 1
    assert await reader == b"1\n"
    assert pipe.is_fifo()


async def test_a_full_disk_is_reported_as_one(pool):
    """What the file system says is not taken for the connection's end."""
    with (
        open("/dev/full", "wb", buffering=0) as full,  # noqa: PTH123, ASYNC230 - a device, opened at once
        pytest.raises(OSError, match="No space left"),
    ):
        await pool.copy_to(full, table="T t")
    assert await pool.fetchval("SELECT 1", timeout=10) == 1


async def test_a_copy_cancelled_in_the_middle_writes_nothing(pool):
    """The source never ends; the server rolls back, the connection is replaced."""
    begun = asyncio.Event()

    async def endless():
        while True:
            begun.set()
            await asyncio.sleep(0.001)
            yield b"1,x\n" * 1000

    task = asyncio.create_task(pool.copy_from("u", endless(), header=False))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await pool.fetchval("SELECT count(*) FROM u", timeout=10) == 0
    await until(lambda: not pool.statistics().resetting)


def wrong(_: object) -> None:
    """Fail as a progress callback."""
    raise LookupError


class Stuck(io.RawIOBase):
    """A file whose reader or writer is late."""

    def write(self, _: object) -> int:
        """Block for a while."""
        time.sleep(0.2)
        return 1


async def first_wrong_then(end):
    """Yield a line that the server refuses; *end* when it has done so."""
    yield b"not a number\n"
    await asyncio.sleep(0.1)
    await end()
    yield b"1\n"


async def no_record_behind_a_wrong_one():
    """Yield more than the driver keeps back, twice the same key; then no record."""
    for _ in range(2):
        yield 1, "x" * 600_000
    await asyncio.sleep(0.2)
    yield "no number", "x"


async def fail():
    """Fail as a source."""
    raise LookupError


COPIES = {
    "target fails": lambda on: on.copy_to(
        io.BytesIO(), query="SELECT 1", progress=wrong
    ),
    "large target fails": lambda on: on.copy_to(
        io.BytesIO(), query="SELECT generate_series(1, 300000)", progress=wrong
    ),
    "target is cancelled": lambda on: cancelled(on.copy_to(Stuck(), query="SELECT 1")),
    "target is late": lambda on: on.copy_to(Stuck(), query="SELECT 1", timeout=0.1),
    "source fails": lambda on: on.copy_from("u", first_wrong_then(fail), header=False),
    "source is cancelled": lambda on: cancelled(
        on.copy_from("u", first_wrong_then(asyncio.Event().wait), header=False)
    ),
    "source is late": lambda on: on.copy_from(
        "u", first_wrong_then(asyncio.Event().wait), header=False, timeout=0.15
    ),
    "records fail": lambda on: on.copy_records(
        "u", columns=["id", "na me"], records=no_record_behind_a_wrong_one()
    ),
}


async def cancelled(copy):
    """Cancel *copy* in its middle."""
    async with asyncio.timeout(0.15):
        await copy


@pytest.mark.parametrize("copy", COPIES.values(), ids=COPIES)
async def test_a_copy_that_fails_when_the_server_is_done_leaves_a_sound_connection(
    pool, copy
):
    """Nothing is left to wait for: what follows in the block runs at once."""
    async with pool.transaction() as transaction:
        pid = await transaction.fetchval("SELECT pg_backend_pid()")
        with pytest.raises((LookupError, TimeoutError, InvalidRecord)):
            async with transaction.savepoint() as inner:
                await copy(inner)
        async with asyncio.timeout(1):
            assert await transaction.fetchval("SELECT pg_backend_pid()") == pid
    async with pool.acquire() as held:
        pid = await held.fetchval("SELECT pg_backend_pid()")
        with pytest.raises((LookupError, TimeoutError, InvalidRecord)):
            await copy(held)
        async with asyncio.timeout(1):
            assert await held.fetchval("SELECT pg_backend_pid()") == pid


async def test_a_source_is_read_no_further_than_the_server_takes_it(pool):
    """An endless one, whose first line is wrong: the error comes at once."""

    async def endless():
        yield b"not a number\n"
        while True:
            await asyncio.sleep(0.01)
            yield b"1,x\n"

    with pytest.raises(InvalidRecord) as wrong_line:
        await pool.copy_from("u", endless(), header=False, timeout=5)
    assert wrong_line.value.index == 1
