"""Rows of a tracked table are points, no matter who writes them."""

from __future__ import annotations

import asyncio
import datetime as dt
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from fm_storage import ErrorManager, StorageConfig, StorageManager
from fm_storage.config import OutboxConfig, PostgresConfig
from fm_storage.errors import ConfigurationInvalid, LockTimeout
from fm_storage.outbox import Outbox, Unembedded
from fm_storage.outbox.agreement.tracking import Tracker
from fm_storage.outbox.delivery.queue import Queue
from fm_storage.outbox.notify import CHANNEL
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.repositories import Repository
from fm_storage.vectors import LexicalVectorizer, Point, QdrantStore
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(120)  # a busy machine is slow, not wrong

QUIET = OutboxConfig(drain=False, max_backoff=0.02)
WAITS = (
    "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    " AND datname = current_database()"
)


@pytest.fixture
async def outbox(pool: Pool, qdrant: QdrantStore) -> Outbox:
    """Give an outbox beside a table of articles."""
    await pool.execute(
        "CREATE TABLE articles (id BIGINT PRIMARY KEY, title TEXT, body TEXT, "
        "year INT, seen INT NOT NULL DEFAULT 0)"
    )
    return Outbox(pool, qdrant, QUIET)


async def followed(outbox: Outbox, **options: Any) -> bool:
    """Track the articles."""
    given = {"text": ["title", "body"], "payload": ["year", "title"], **options}
    vectorizer = LexicalVectorizer()
    return await outbox.track("articles", "docs", vectorizer=vectorizer, **given)


async def delivered(outbox: Outbox, qdrant: QdrantStore) -> dict[Any, dict[str, Any]]:
    """Deliver, see that both stores agree, and give the payloads by id."""
    report = await outbox.drain(timeout=30)
    assert (report.quarantined, report.remaining) == (0, 0), report
    found = await outbox.verify()
    assert found.agrees, found
    listed = [point async for point in qdrant.iter_points("docs")]
    return {
        one.id: {k: v for k, v in one.payload.items() if k[0] != "_"} for one in listed
    }


INSERT = "INSERT INTO articles (id, title, body, year) VALUES ($1, $2, $3, $4)"


@pytest.mark.slow
async def test_plain_sql_reaches_the_vector_store(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """INSERT, UPDATE, a changed key, DELETE, COPY, TRUNCATE; in the same commit."""
    await followed(outbox)
    await pool.execute(INSERT, 1, "one", "first", 2001)
    await pool.execute(INSERT, -2, "two", None, 2002)
    await pool.execute(INSERT, 3, None, None, 2003)  # no text, no point
    assert await delivered(outbox, qdrant) == {
        1: {"title": "one", "year": 2001},
        "-2": {"title": "two", "year": 2002},
    }
    await pool.execute("UPDATE articles SET year = 1999, id = 7 WHERE id = 1")
    await pool.execute("UPDATE articles SET title = NULL WHERE id = -2")
    await pool.execute("UPDATE articles SET title = 'three' WHERE id = 3")
    assert await delivered(outbox, qdrant) == {
        7: {"title": "one", "year": 1999},
        3: {"title": "three", "year": 2003},
    }
    await pool.execute("DELETE FROM articles WHERE id = 7")
    records = [(n, f"t {n}", "text", n, 0) for n in range(100, 1300)]
    columns = ["id", "title", "body", "year", "seen"]
    await pool.copy_records("articles", columns=columns, records=records)
    assert len(await delivered(outbox, qdrant)) == 1201
    async with pool.transaction() as tx:
        await tx.execute("TRUNCATE articles")
        await tx.execute(INSERT, 100, "again", None, 1)
        await tx.execute(INSERT, 5000, "new", None, 2)
    await asyncio.sleep(2.1)  # between two looks
    await outbox.drain(timeout=30)
    assert set(await delivered(outbox, qdrant)) == {100, 5000}


async def test_rolled_back_and_unrelated_changes_are_none(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """A column that is neither text nor payload wakes nobody."""
    await followed(outbox)
    await pool.execute(INSERT, 1, "one", "first", 2001)
    await delivered(outbox, qdrant)
    await pool.execute("UPDATE articles SET seen = seen + 1")
    await pool.execute("UPDATE articles SET title = title")
    assert await outbox.pending() == 0
    with pytest.raises(ZeroDivisionError):
        async with pool.transaction() as tx:
            await tx.execute("DELETE FROM articles")
            raise ZeroDivisionError
    assert await outbox.pending() == 0
    await pool.execute(
        INSERT + " ON CONFLICT (id) DO UPDATE SET body = 'b'", 1, "x", "y", 1
    )
    assert await outbox.pending() == 1
    assert await outbox.untrack("docs")
    await pool.execute("DELETE FROM articles")
    assert await outbox.pending() == 1
    assert not await outbox.untrack("docs")


async def test_many_rows_are_changed_in_one_statement_after_a_single_one(
    pool: Pool, outbox: Outbox
):
    """A session keeps the plans of its triggers: none may loop over rows times rows."""
    await followed(outbox)
    async with pool.acquire() as writer:
        await writer.execute(
            "INSERT INTO articles SELECT n, 'title ' || n, 'text', n "
            "FROM generate_series(1, 12000) AS n"
        )
        await writer.execute("UPDATE articles SET title = 'one' WHERE id = 1")
        began = time.monotonic()
        await writer.execute("UPDATE articles SET title = title || '!'")
        assert time.monotonic() - began < 10  # a second; 25 of them by a nested loop
    assert await outbox.pending() == 12000


@pytest.mark.lengthy
async def test_statement_is_announced_while_a_drainer_waits(tmp_path: Path):
    """Once each; no NOTIFY, which all writers queue for, where nobody waits for it."""
    heard = asyncio.Queue[str]()
    async with AsyncExitStack() as stack:
        dsn = await stack.enter_async_context(EmbeddedPostgres(tmp_path / "postgres"))
        config = StorageConfig(
            postgres={"dsn": dsn},
            qdrant={"url": "embedded:"},
            data_dir=tmp_path,
            outbox={"drain": False},
        )
        storage = await stack.enter_async_context(StorageManager(config))
        await storage.pool.execute("CREATE TABLE articles (id INT PRIMARY KEY, t TEXT)")
        await storage.outbox.track("articles", "docs", text="t", payload=["t"])
        foreign = await asyncpg.connect(dsn)
        me = foreign.get_server_pid()

        def hear(_: object, sender: int, *__: object) -> None:
            if sender == me:  # the manager's own tasks notify, too
                heard.put_nowait("heard")

        await foreign.add_listener(CHANNEL, hear)
        queue = Queue(storage.pool, lease=120, grace=5)
        for waiting in (False, True, False):
            await queue.announce(waiting=waiting)
            for sql in (
                "INSERT INTO articles VALUES (1, 'a'), (2, 'b')",
                "UPDATE articles SET t = 'd'",
                "DELETE FROM articles",
            ):
                await foreign.execute(sql)
                if waiting:
                    async with asyncio.timeout(20):
                        await heard.get()
            await foreign.execute("SELECT 1")
            assert heard.empty()
        await foreign.close()


async def test_writer_may_prepare_its_transaction(pool: Pool, outbox: Outbox):
    """Where two-phase commit is on, no notification forbids it."""
    await followed(outbox)
    async with pool.acquire() as writer:
        await writer.execute("BEGIN")
        await writer.execute(INSERT, 1, "one", "first", 2001)
        await writer.execute("PREPARE TRANSACTION 'of another'")
        assert await outbox.pending() == 0
        await writer.execute("COMMIT PREPARED 'of another'")
    assert await outbox.pending() == 1


@pytest.mark.slow
async def test_rows_from_before_are_backfilled_and_newer_ones_left_alone(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """In batches; what the triggers wrote meanwhile is newer than any batch."""
    await pool.execute(
        "INSERT INTO articles SELECT n, 'title ' || n, 'body', n "
        "FROM generate_series(1, 2500) AS n"
    )
    assert await followed(outbox) is True
    assert await followed(outbox) is False
    assert await outbox.pending() == 0
    await pool.execute("UPDATE articles SET title = 'newer' WHERE id = 7")
    await pool.execute("DELETE FROM articles WHERE id = 8")
    steps: list[tuple[int, int | None]] = []
    read = await outbox.backfill(
        "docs", batch_size=1000, progress=lambda done, of: steps.append((done, of))
    )
    assert read == 2499
    assert [done for done, _ in steps] == [1000, 2000, 2499]
    found = await delivered(outbox, qdrant)
    assert len(found) == 2499
    assert found[7]["title"] == "newer"
    assert await outbox.backfill("docs") == 2499
    assert await outbox.pending() == 0  # nothing was changed by it


async def test_backfill_goes_on_where_it_was(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Cancelled between two batches, the next call reads the rest."""
    await pool.execute(
        "INSERT INTO articles SELECT n, 'title', 'body', n "
        "FROM generate_series(1, 900) AS n"
    )
    await followed(outbox)

    def stop(done: int, _: int | None) -> None:
        if done == 300:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await outbox.backfill("docs", batch_size=100, progress=stop)
    assert await outbox.backfill("docs", batch_size=100) == 600
    assert len(await delivered(outbox, qdrant)) == 900


async def test_what_fires_no_trigger_is_found_by_verify_and_repaired(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """session_replication_role = replica: rows come, change and go unseen."""
    await followed(outbox)
    for number in range(1, 6):
        await pool.execute(INSERT, number, f"t {number}", "body", number)
    await delivered(outbox, qdrant)
    async with pool.acquire() as connection:
        await connection.execute("SET session_replication_role = replica")
        await connection.execute("DELETE FROM articles WHERE id = 1")
        await connection.execute("UPDATE articles SET body = 'other' WHERE id = 2")
        await connection.execute("UPDATE articles SET year = 9 WHERE id = 3")
        await connection.execute(INSERT, 6, "six", None, 6)
    assert await outbox.pending() == 0
    found = await outbox.verify()
    assert dict(found.counts) == {"orphan": 1, "stale": 2, "missing": 1}
    report = await outbox.repair()
    assert report.enqueued == 4
    after = await delivered(outbox, qdrant)
    assert set(after) == {2, 3, 4, 5, 6}
    assert after[3]["year"] == 9


async def test_rows_of_our_own_statement_are_delivered_once(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """A repository that writes the point with the row keeps its vectors and payload."""
    from dataclasses import dataclass

    @dataclass(slots=True)
    class Article:
        id: int
        title: str | None
        body: str | None
        year: int | None
        seen: int = 0

    await followed(outbox)
    embedded = (await LexicalVectorizer().embed(["words"]))[0]
    shape = outbox.shapes.get("docs")
    assert shape is not None
    vector = {next(iter(shape.dense)): embedded.dense}
    articles = Repository(
        pool, Article, table="articles", collection="docs", wake=outbox.wake
    )
    await articles.create(Article(1, "one", "b", 1), vector=vector)
    state = "SELECT ver, vectors IS NOT NULL AS own FROM fm_storage.vector_state"
    (first,) = await pool.fetch(state)
    assert first["own"]
    await outbox.drain(timeout=30)
    assert await outbox.pending() == 0
    await pool.execute("UPDATE articles SET title = 'theirs' WHERE id = 1")
    assert await outbox.pending() == 1
    await Tracker(pool).follow()
    (second,) = await pool.fetch(state)
    assert second["ver"] > first["ver"]
    assert not second["own"]
    await articles.delete(1)
    assert await delivered(outbox, qdrant) == {}


@pytest.mark.slow
async def test_writer_does_not_fail_because_of_a_point(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Keys that no index takes, and a table of ours that is gone."""
    await pool.execute("CREATE TABLE notes (k TEXT PRIMARY KEY, body TEXT, more JSONB)")
    vectorizer = LexicalVectorizer()
    await outbox.track(
        "notes", "docs", text="body", payload=["more"], key="k", vectorizer=vectorizer
    )
    write = "INSERT INTO notes VALUES ($1, $2, $3)"
    for key in ("", "k" * 1500, "a", "00000000-0000-0000-0000-0000000000AF"):
        await pool.execute(write, key, "text", {})
    assert set(await delivered(outbox, qdrant)) == {
        "a",
        "00000000-0000-0000-0000-0000000000af",
    }
    await pool.execute("ALTER TABLE fm_storage.vector_changed RENAME TO away")
    await pool.execute(write, "b", "text", {})
    await pool.execute("DELETE FROM notes WHERE k = 'a'")
    await pool.execute("ALTER TABLE fm_storage.away RENAME TO vector_changed")
    assert await pool.fetchval("SELECT doubtful FROM fm_storage.vector_track")
    await asyncio.sleep(2.1)  # between two looks
    await outbox.drain(timeout=30)
    assert set(await delivered(outbox, qdrant)) == {
        "b",
        "00000000-0000-0000-0000-0000000000af",
    }


async def test_doubt_that_arises_during_a_comparison_stays(pool: Pool, outbox: Outbox):
    """Whoever compares takes back only the doubts from before."""
    await followed(outbox)
    await pool.execute(INSERT, 1, "one", None, 2001)
    doubtful = "SELECT doubtful FROM fm_storage.vector_track"
    tracker = Tracker(pool)
    await tracker.follow()
    await pool.execute("UPDATE fm_storage.vector_track SET doubtful = TRUE")
    await pool.execute("UPDATE fm_storage.vector_state SET payload = '{}'")
    async with pool.transaction() as tx:
        await tx.execute("SELECT FROM fm_storage.vector_state FOR UPDATE")
        compared = asyncio.create_task(tracker.tick())
        await until(lambda: pool.fetchval(WAITS))
        await pool.execute("UPDATE fm_storage.vector_track SET doubtful = TRUE")
    await compared
    assert await pool.fetchval(doubtful)
    await tracker.tick()
    assert not await pool.fetchval(doubtful)


@pytest.mark.slow
async def test_partitions_are_followed_as_they_come_and_go(
    pool: Pool, qdrant: QdrantStore
):
    """Rows written to a partition itself, and attached, detached and dropped ones."""
    outbox = Outbox(pool, qdrant, QUIET)
    await pool.execute(
        "CREATE TABLE days (id BIGINT PRIMARY KEY, body TEXT) PARTITION BY RANGE (id)"
    )
    for nr in range(3):
        await pool.execute(
            f"CREATE TABLE days_{nr} PARTITION OF days "
            f"FOR VALUES FROM ({nr * 10}) TO ({nr * 10 + 10})"
        )
    await outbox.track("days", "docs", text="body", vectorizer=LexicalVectorizer())
    await pool.execute("INSERT INTO days SELECT n, 'x' FROM generate_series(0, 19) n")
    await pool.execute("INSERT INTO days_2 VALUES (25, 'y')")
    await pool.execute("UPDATE days_2 SET body = 'z'")
    await pool.execute("DELETE FROM days_0 WHERE id = 3")
    assert set(await delivered(outbox, qdrant)) == {*range(20), 25} - {3}
    await pool.execute("ALTER TABLE days DETACH PARTITION days_0")
    await pool.execute("DROP TABLE days_1")
    await pool.execute("CREATE TABLE days_9 (id BIGINT PRIMARY KEY, body TEXT)")
    await pool.execute("INSERT INTO days_9 VALUES (95, 'attached')")
    await pool.execute(
        "ALTER TABLE days ATTACH PARTITION days_9 FOR VALUES FROM (90) TO (100)"
    )
    await asyncio.sleep(2.1)  # between two looks
    await outbox.drain(timeout=30)
    assert set(await delivered(outbox, qdrant)) == {25, 95}
    await pool.execute("DROP TABLE days")
    await asyncio.sleep(2.1)
    await outbox.drain(timeout=30)
    assert await delivered(outbox, qdrant) == {}


async def test_script_for_a_migration_does_the_same_and_undoes_it(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """For a role that may change the schema; the application then finds it done."""
    up, down = await outbox.track_script(
        "articles", "docs", text=["title", "body"], payload=["year", "title"]
    )
    before = await pool.fetchval("SELECT count(*) FROM pg_trigger")
    await _run(pool, up)
    assert await followed(outbox) is False
    await pool.execute(INSERT, 1, "one", "first", 2001)
    assert await delivered(outbox, qdrant) == {1: {"title": "one", "year": 2001}}
    await _run(pool, down)
    assert await pool.fetchval("SELECT count(*) FROM pg_trigger") == before
    assert not await outbox.untrack("docs")
    await _run(pool, f"SET standard_conforming_strings = off; {up}")
    await pool.execute("DROP TABLE articles")
    await _run(pool, down)  # a rollback after the table has gone
    assert not await outbox.untrack("docs")


async def _run(pool: Pool, script: str) -> None:
    async with pool.acquire() as connection:
        await connection.raw.execute(script)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"table": "nowhere"}, "no table"),
        ({"text": "missing"}, "missing"),
        ({"payload": ["none"]}, "none"),
        ({"key": "year"}, "cannot name points"),
        ({"text": []}, "text"),
        ({"collection": ""}, "another name"),
        ({"collection": "project_errors_x"}, "another name"),
        ({"table": 5}, "table: is a int; give a name"),
        ({"collection": None}, "collection: is a NoneType"),
        ({"key": 5}, "key: is a int"),
        ({"text": 5}, "text: is a int; give the name of a column"),
        ({"text": [b"body"]}, "text: is a bytes"),
        ({"payload": len}, "payload: is a builtin"),
    ],
)
async def test_what_cannot_be_tracked_is_refused(
    outbox: Outbox, options: dict[str, Any], named: str
):
    """Before anything is changed, with the name of what is wrong."""
    given: dict[str, Any] = {"table": "articles", "text": "body", **options}
    table, collection = given.pop("table"), given.pop("collection", "docs")
    with pytest.raises(ConfigurationInvalid, match=named):
        await outbox.track(table, collection, **given)
    with pytest.raises(ConfigurationInvalid, match="1 or more"):
        await outbox.backfill("docs", batch_size=0)
    with pytest.raises(ConfigurationInvalid, match="no tracked table"):
        await outbox.backfill("docs")


async def test_same_key_but_for_its_case_is_one_point(pool: Pool, qdrant: QdrantStore):
    """A text that looks like a UUID is one; while one of the rows is left, it stays."""
    outbox = Outbox(pool, qdrant, QUIET)
    await pool.execute("CREATE TABLE notes (k TEXT PRIMARY KEY, body TEXT)")
    await outbox.track("notes", "docs", text="body", payload=["body"], key="k")
    outbox.register_vectorizer("docs", LexicalVectorizer(), "payload:body")
    key = "00000000-0000-0000-0000-0000000000af"
    await pool.execute(
        "INSERT INTO notes VALUES ($1, 'x'), ($2, 'y')", key.upper(), key
    )
    await outbox.drain(timeout=30)
    assert await qdrant.count("docs") == 1
    await pool.execute("DELETE FROM notes WHERE k = $1", key.upper())
    assert await delivered(outbox, qdrant) == {key: {"body": "y"}}
    await pool.execute("DELETE FROM notes")
    assert await delivered(outbox, qdrant) == {}


@pytest.mark.parametrize("partitioned", [False, True])
async def test_column_generated_when_it_is_read_is_followed(
    pool: Pool, qdrant: QdrantStore, partitioned: bool
):
    """A trigger does not see it, and so must not conclude that nothing changed."""
    version = await pool.fetchval("SELECT current_setting('server_version_num')::int")
    kept = "VIRTUAL" if version >= 180000 else "STORED"  # what it was before
    by = "PARTITION BY RANGE (id)" if partitioned else ""
    await pool.execute(
        "CREATE TABLE notes (id INT PRIMARY KEY, body TEXT, "
        f"loud TEXT GENERATED ALWAYS AS (upper(body)) {kept}) {by}"
    )
    if partitioned:
        await pool.execute("CREATE TABLE part PARTITION OF notes DEFAULT")
    outbox = Outbox(pool, qdrant, QUIET)
    vectorizer = LexicalVectorizer()
    await outbox.track(
        "notes", "docs", text="loud", payload=["loud"], vectorizer=vectorizer
    )
    await pool.execute("INSERT INTO notes VALUES (1, 'one')")
    assert await delivered(outbox, qdrant) == {1: {"loud": "ONE"}}
    await pool.execute("UPDATE notes SET body = 'two'")
    assert await delivered(outbox, qdrant) == {1: {"loud": "TWO"}}


async def test_rows_written_by_naming_another_table_are_followed(
    pool: Pool, qdrant: QdrantStore
):
    """A partition by its parent, a child by what it inherits from."""
    await pool.execute("CREATE TABLE notes (id INT PRIMARY KEY, body TEXT)")
    await pool.execute("CREATE TABLE child (PRIMARY KEY (id)) INHERITS (notes)")
    await pool.execute(
        "CREATE TABLE days (id INT PRIMARY KEY, body TEXT) PARTITION BY RANGE (id)"
    )
    await pool.execute("CREATE TABLE day PARTITION OF days DEFAULT")
    outbox = Outbox(pool, qdrant, QUIET)
    for parent, table in (("notes", "child"), ("days", "day")):
        name = f"of_{table}"
        vectorizer = LexicalVectorizer()
        await outbox.track(table, name, text="body", vectorizer=vectorizer)
        into = parent if table == "day" else table
        await pool.execute(f"INSERT INTO {into} VALUES (1, 'one'), (2, 'two')")
        await pool.execute(f"DELETE FROM {parent} WHERE id = 1")
        await outbox.drain(timeout=30)
        assert [one.id async for one in qdrant.iter_points(name)] == [2]
        assert (await outbox.verify(name)).agrees
    with pytest.raises(ConfigurationInvalid, match="inherit"):
        await outbox.track("notes", "docs", text="body")


@pytest.mark.slow
async def test_table_dropped_and_made_again_keeps_no_old_points(
    pool: Pool, qdrant: QdrantStore
):
    """Also before any drainer could notice, and after untrack()."""
    outbox = Outbox(pool, qdrant, QUIET)
    make = "CREATE TABLE notes (id INT PRIMARY KEY, body TEXT)"
    given: Any = {"text": "body", "vectorizer": LexicalVectorizer()}
    await pool.execute(make)
    await outbox.track("notes", "docs", **given)
    await pool.execute("INSERT INTO notes SELECT n, 'x' FROM generate_series(1, 9) n")
    await delivered(outbox, qdrant)
    await pool.execute("INSERT INTO notes VALUES (10, 'not followed yet')")
    for number in (20, 30):
        await pool.execute("DROP TABLE notes")
        await pool.execute(make)
        await outbox.track("notes", "docs", **given)
        await pool.execute("INSERT INTO notes VALUES (1, 'x'), ($1, 'new')", number)
        await asyncio.sleep(2.1)  # between two looks
        await outbox.drain(timeout=30)
        assert set(await delivered(outbox, qdrant)) == {1, number}
        await outbox.untrack("docs")


@pytest.mark.slow
async def test_renamed_table_is_followed_under_its_new_name(
    pool: Pool, qdrant: QdrantStore
):
    """By comparing, until track() makes its triggers anew; a key's type may widen."""
    outbox = Outbox(pool, qdrant, QUIET)
    given: Any = {"text": "body", "vectorizer": LexicalVectorizer()}
    await pool.execute("CREATE TABLE notes (id INT PRIMARY KEY, body TEXT)")
    await outbox.track("notes", "docs", **given)
    await pool.execute("INSERT INTO notes VALUES (1, 'one')")
    await delivered(outbox, qdrant)
    await pool.execute("ALTER TABLE notes RENAME TO letters")
    await pool.execute("ALTER TABLE letters ALTER id TYPE BIGINT")
    await pool.execute("INSERT INTO letters VALUES (5000000000, 'two')")
    assert dict((await outbox.verify()).counts) == {"missing": 1}
    assert await outbox.track("letters", "docs", **given)
    await outbox.repair()
    assert set(await delivered(outbox, qdrant)) == {1, 5000000000}
    assert not await outbox.track("letters", "docs", **given)
    await pool.execute("DELETE FROM letters WHERE id = 1")
    assert set(await delivered(outbox, qdrant)) == {5000000000}
    with pytest.raises(ConfigurationInvalid, match="tracked for collection 'docs'"):
        await outbox.track("letters", "others", **given)


@pytest.mark.slow
async def test_locked_table_holds_up_no_other_collection(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Its changes wait, and rows in doubt are compared later."""
    await followed(outbox)
    await qdrant.ensure_collection_exists("things", 2)
    await pool.execute("UPDATE fm_storage.vector_track SET doubtful = TRUE")
    await pool.execute(INSERT, 1, "one", None, 2001)
    async with pool.transaction() as tx:
        await tx.execute("LOCK TABLE articles IN ACCESS EXCLUSIVE MODE")
        await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
        report = await outbox.drain(timeout=3)
        assert (report.delivered, report.remaining) == (1, 1)
        with pytest.raises(LockTimeout):
            await outbox.verify("docs")
    assert await delivered(outbox, qdrant) == {1: {"title": "one", "year": 2001}}


@pytest.mark.lengthy
async def test_many_columns_are_the_payload(pool: Pool, qdrant: QdrantStore):
    """More than a function of the server takes arguments; one may be named alone."""
    outbox = Outbox(pool, qdrant, QUIET)
    columns = [f"c{number}" for number in range(120)]
    listed = ", ".join(f"{name} INT DEFAULT 7" for name in columns)
    await pool.execute(f"CREATE TABLE wide (id INT PRIMARY KEY, body TEXT, {listed})")
    given: Any = {"text": "body", "vectorizer": LexicalVectorizer()}
    await outbox.track("wide", "docs", payload=columns, **given)
    await pool.execute("INSERT INTO wide VALUES (1, 'one')")
    assert await delivered(outbox, qdrant) == {1: dict.fromkeys(columns, 7)}
    assert await outbox.track("wide", "docs", payload="c5", **given)
    await outbox.backfill("docs")
    assert await delivered(outbox, qdrant) == {1: {"c5": 7}}


async def test_pending_changes_are_made_points_before_untrack(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """What was committed while it was tracked is delivered, though read later."""
    await followed(outbox)
    await pool.execute(INSERT, 1, "one", None, 2001)
    await outbox.untrack("docs")
    await pool.execute(INSERT, 2, "two", None, 2001)
    assert await delivered(outbox, qdrant) == {1: {"title": "one", "year": 2001}}


async def test_row_that_was_away_for_a_moment_keeps_its_point(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Deleted when its text was read, and back with the same content after that."""
    await followed(outbox)
    await pool.execute(INSERT, 1, "one", None, 2001)
    tracker = Tracker(pool)
    await tracker.follow()

    async def text_of(executor: Any, ids: list[str]) -> dict[str, str]:
        if await executor.fetchval("SELECT seen = 1 FROM articles WHERE id = 1"):
            return dict.fromkeys(ids, "one")
        async with pool.transaction() as tx:
            await tx.execute("DELETE FROM articles")
            await tx.execute(INSERT, 1, "one", None, 2001)
            await tx.execute("UPDATE articles SET seen = 1")
        await tracker.follow()
        return {}  # as read between the two

    outbox.register_vectorizer("docs", LexicalVectorizer(), text_of)
    assert await delivered(outbox, qdrant) == {1: {"title": "one", "year": 2001}}


async def test_settings_of_a_session_change_no_point(
    pool: Pool, dsn: str, qdrant: QdrantStore, outbox: Outbox
):
    """Dates as texts are the same to every process, whatever its time zone."""
    await pool.execute("CREATE TABLE days (id INT PRIMARY KEY, at TIMESTAMPTZ)")
    vectorizer = LexicalVectorizer()
    await outbox.track("days", "docs", text="at", payload=["at"], vectorizer=vectorizer)
    await pool.execute("INSERT INTO days VALUES (1, '2026-01-02T03:04:05Z')")
    expected = {1: {"at": "2026-01-02T03:04:05+00:00"}}
    assert await delivered(outbox, qdrant) == expected
    name = await pool.fetchval("SELECT quote_ident(current_database())")
    for setting in ("TimeZone = 'Asia/Tokyo'", "DateStyle = 'German'"):
        await pool.execute(f"ALTER DATABASE {name} SET {setting}")
    async with Pool(PostgresConfig(dsn=dsn)) as other:
        elsewhere = Outbox(other, qdrant, QUIET)
        assert (await elsewhere.verify("docs")).agrees
        await elsewhere.backfill("docs")
        assert await elsewhere.pending() == 0


async def test_odd_names_and_types_are_quoted(pool: Pool, qdrant: QdrantStore):
    """Names with quotes, dates and arrays in the payload."""
    outbox = Outbox(pool, qdrant, QUIET)
    await pool.execute('CREATE SCHEMA "o\'dd"')
    await pool.execute(
        """CREATE TABLE "o'dd"."T""x" ("I d" UUID PRIMARY KEY, "te'xt" TEXT,
        "a\\b" DATE, tags TEXT[], ratio FLOAT8)"""
    )
    await outbox.track(
        "o'dd.T\"x",
        "do'cs",
        text="te'xt",
        payload=["a\\b", "tags", "ratio"],
        key="I d",
        vectorizer=LexicalVectorizer(),
    )
    day = dt.date(2026, 1, 2)
    await pool.execute(
        """INSERT INTO "o'dd"."T""x"
        VALUES (gen_random_uuid(), 'x', $1, '{a,b}', 'NaN')""",
        day,
    )
    assert (await outbox.drain(timeout=30)).remaining == 0
    (point,) = [one async for one in qdrant.iter_points("do'cs")]
    assert point.payload["a\\b"] == "2026-01-02"
    assert point.payload["tags"] == ["a", "b"]
    assert (await outbox.verify()).agrees


@pytest.mark.lengthy
async def test_points_of_other_origin_beside_it_are_left_alone(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox
):
    """Written through the outbox into the same collection: no row, and no orphan."""
    await followed(outbox)
    outbox.register_vectorizer("other", LexicalVectorizer(), "payload:t")
    await outbox.upsert("other", [Unembedded(1, {"t": "text"})])
    await pool.execute(INSERT, 1, "one", "first", 2001)
    await delivered(outbox, qdrant)
    assert await qdrant.count("other") == 1


@pytest.mark.slow
async def test_errors_changed_by_plain_sql_are_followed(
    storage: StorageManager, pool: Pool
):
    """DELETE, UPDATE and TRUNCATE of project_errors, and what fires no trigger."""
    async with ErrorManager(storage) as errors:
        for number in range(12):
            await errors.record(f"boom {number}", module="m")
        await storage.outbox.drain(timeout=30)
        (name,) = await storage.qdrant.list_collections()
        await pool.execute("DELETE FROM project_errors WHERE message LIKE 'boom 1%'")
        await pool.execute(
            "UPDATE project_errors SET message = 'rewritten', severity = 'CRITICAL' "
            "WHERE message = 'boom 5'"
        )
        assert await storage.outbox.pending() >= 1
        await storage.outbox.drain(timeout=30)
        assert await storage.qdrant.count(name) == 9
        (hit,) = await errors.find_similar("rewritten", limit=1)
        assert hit.entry.message == "rewritten"
        critical = [
            one.payload["severity"]
            async for one in storage.qdrant.iter_points(name)
            if one.payload["severity"] > 40
        ]
        assert critical == [50]
        async with pool.acquire() as connection:
            await connection.execute("SET session_replication_role = replica")
            await connection.execute(
                "DELETE FROM project_errors WHERE message = 'boom 2'"
            )
        found = await storage.outbox.verify()
        assert dict(found.counts) == {"orphan": 1}
        await storage.outbox.repair(drain=30)
        assert await storage.qdrant.count(name) == 8
        await pool.execute("TRUNCATE project_errors CASCADE")
        await asyncio.sleep(2.1)  # between two looks
        await storage.outbox.drain(timeout=30)
        await storage.outbox.drain(timeout=30)
        assert await storage.qdrant.count(name) == 0
        assert (await storage.outbox.verify()).agrees


@pytest.mark.slow
async def test_many_errors_are_changed_in_one_statement_after_a_single_one(
    storage: StorageManager, pool: Pool
):
    """As for tracked tables: three thousand took eight seconds, and ten times more."""
    async with ErrorManager(storage) as errors:
        await errors.record("the first", module="m")
        columns = await pool.fetchval(
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute "
            "WHERE attrelid = 'project_errors'::regclass AND attnum > 0 "
            "AND NOT attisdropped AND attgenerated = '' AND attname <> 'id'"
        )
        await pool.execute(
            f"INSERT INTO project_errors (id, {columns}) "
            f"SELECT gen_random_uuid(), {columns} FROM project_errors, "
            "generate_series(1, 5000)"
        )
        await pool.execute(
            "INSERT INTO fm_storage.vector_state (collection, point_id, ver, op, "
            "payload) SELECT s.collection, e.id::text, 1, 'u', '{}' "
            "FROM fm_storage.vector_state AS s, project_errors AS e "
            "ON CONFLICT DO NOTHING"
        )
        change = "UPDATE project_errors SET module = module || 'n' WHERE id = ANY ($1)"
        found = await pool.fetch("SELECT id FROM project_errors")
        ids = [record["id"] for record in found]
        async with pool.acquire() as writer:
            await writer.execute(change, ids[:1])
            began = time.monotonic()
            await writer.execute(change, ids)
            await writer.execute("DELETE FROM project_errors WHERE id <> $1", ids[0])
            assert time.monotonic() - began < 10  # half a second
        assert await storage.outbox.pending() == 5001


@pytest.mark.lengthy
async def test_renamed_column_stops_no_one(
    pool: Pool, qdrant: QdrantStore, outbox: Outbox, caplog: pytest.LogCaptureFixture
):
    """Writers and other collections go on; the corrected definition brings the rows."""
    await followed(outbox)
    await pool.execute("ALTER TABLE articles RENAME COLUMN year TO published")
    insert = "INSERT INTO articles (id, title, published) VALUES ($1, $2, 1)"
    await pool.execute(insert, 1, "one")
    await qdrant.ensure_collection_exists("things", 2)
    await outbox.upsert("things", [Point(1, [1.0, 2.0], {})])
    report = await outbox.drain(timeout=30)
    assert (report.delivered, report.remaining) == (1, 1)
    assert "year does not exist" in report.blocked["docs"]
    assert "the tracked rows of docs are not followed" in caplog.text
    found = await outbox.verify()
    assert (found.agrees, found.failing, found.checked) == (False, 1, 1)
    assert await followed(outbox, payload=["published"]) is True
    await pool.execute(insert, 2, "two")
    await outbox.backfill("docs")
    assert await delivered(outbox, qdrant) == {1: {"published": 1}, 2: {"published": 1}}
    await pool.execute("ALTER TABLE articles RENAME COLUMN published TO year")
    await pool.execute("DELETE FROM articles WHERE id = 1")
    assert await outbox.untrack("docs")
    assert await outbox.pending() == 0
