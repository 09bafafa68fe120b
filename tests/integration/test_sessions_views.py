"""Views of a session: values, names, indexes, refreshing, dropping."""

from __future__ import annotations

import asyncio
import datetime as dt
import uuid
from decimal import Decimal

import pytest

from fm_storage.config import SessionConfig
from fm_storage.errors import (
    ConfigurationInvalid,
    DuplicateRecord,
    InvalidName,
    InvalidRecord,
    QueryFailed,
    QueryTimeout,
    StorageClosed,
)
from fm_storage.postgres import Pool
from fm_storage.sessions import CreateProgress, PostgresSessionManager
from tests.support.waiting import sleeping_on_server, until

NOW = dt.datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("integer", -7),
        ("bigint", 2**62),
        ("numeric", Decimal("-1.50e-9")),
        ("double precision", 0.1 + 0.2),
        ("double precision", float("-inf")),
        ("boolean", True),
        ("text", 'it\'s $1 \\ "x" $$ -- /* ; \n é 🐘'),
        ("varchar(3)", "abc"),
        ("bpchar", "a long one"),
        ("bytea", b"\x00\xff'\\"),
        ("uuid", uuid.UUID(int=7)),
        ("timestamptz", NOW),
        ("date", NOW.date()),
        ("interval", dt.timedelta(days=3, microseconds=5)),
        ("jsonb", {"a": ["'", None, {"b": "\\"}]}),
        ("text[]", ["a,b", 'c"d', None, "{}", "it's"]),
        ("integer[]", [[1, 2], [3, 4]]),
        ("int4range", None),
    ],
)
async def test_values_arrive_as_they_are(pool: Pool, type_, value):
    """A value written into a view by the server reads back equal, type and all."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view(
            f"SELECT $1::{type_} AS value", value, materialized=True
        )
        row = await pool.fetchrow(
            f"SELECT value, pg_typeof(value)::text AS t FROM {view}"
        )
    assert row is not None
    assert row["value"] == value
    assert row["t"] in {
        type_.split("(")[0],
        "character varying",
        "character",
        "bpchar",
        "timestamp with time zone",
    }


async def test_dollar_signs_are_found_by_a_lexer(pool: Pool):
    """Only real parameters are replaced: not in strings, names, bodies, comments."""
    sql = """
        SELECT $1::int AS a, '$1' AS "b$1", $q$ $1 ' $q$ AS c, E'\\'$1' AS d -- $1 '
          , U&'\\0041$1' AS e /* $1 /* nested $2 */ ' */ , x$1.n AS f, $2+n AS g
        FROM (SELECT 1 AS n) AS x$1 WHERE $2 > 0 ; -- the end $3
    """
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view(sql, 5, 6)
        row = await pool.fetchrow(f"SELECT * FROM {view}")
    assert row is not None
    assert tuple(row) == (5, "$1", " $1 ' ", "'$1", "A$1", 1, 7)
    assert list(row.keys())[1] == "b$1"


@pytest.mark.parametrize(
    ("sql", "args", "field"),
    [
        ("SELECT $1::int", (), "$1"),
        ("SELECT $1::int + $2", (1,), "$2"),
        ("SELECT 1", (1,), "$1"),
        ("SELECT $0::int", (), "$1"),
        ("SELECT $1::int", ("no number",), "$1"),
        ("SELECT 1; DROP TABLE project_errors", (), "sql"),
        ("SELECT 'abc", (), "sql"),
        ("SELECT $x$ abc $y$", (), "sql"),
        ('SELECT "abc', (), "sql"),
        ("SELECT 1 /* /* */", (), "sql"),
        (" ; -- nothing", (), "sql"),
    ],
)
async def test_bad_sql_is_refused_before_anything_is_made(pool: Pool, sql, args, field):
    """What does not fit is refused with the place named, and leaves nothing."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(InvalidRecord) as caught:
            await session.create_view(sql, *args)
        assert caught.value.field == field
        assert session.get_session_views() == []
        assert (
            await pool.fetchval("SELECT count(*) FROM fm_storage.session_objects") == 0
        )


async def test_names_are_quoted_never_rewritten(pool: Pool):
    """Awkward names work as they are; shown quoted only where needed."""
    names = ['a "quoted" one', "select", "UPPER", "_a1", "f" * 63, "é", "a.b", "x-end"]
    async with PostgresSessionManager(pool) as session:
        for name in names:
            view = await session.create_view("SELECT 1 AS one", name=name)
            assert view.name == name
            assert await pool.fetchval(f"SELECT one FROM {view}") == 1
        assert session.get_session_views()[:4] == [
            'filtermate_temp."a ""quoted"" one"',
            'filtermate_temp."select"',
            'filtermate_temp."UPPER"',
            "filtermate_temp._a1",
        ]
        assert await session.cleanup_session_views() == len(names)


@pytest.mark.parametrize("name", ["f" * 64, "é" * 32, "a\0b", "\ud800"])
async def test_impossible_names_are_refused(pool: Pool, name):
    """A name PostgreSQL would cut or cannot hold is refused, not changed."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(InvalidName):
            await session.create_view("SELECT 1", name=name)


async def test_generated_names_are_unique_and_short(pool: Pool):
    """Generated names have the prefix and fit into 63 bytes."""
    config = SessionConfig(prefix="é" * 15)
    async with PostgresSessionManager(pool, config=config) as session:
        view = await session.create_view("SELECT 1")
        assert view.name.startswith("é" * 15)
        assert len(view.name.encode()) == 62
    too_long = SessionConfig(prefix="é" * 16)
    async with PostgresSessionManager(pool, config=too_long) as session:
        with pytest.raises(InvalidName):
            await session.create_view("SELECT 1")


@pytest.mark.lengthy
async def test_a_name_in_use_is_refused(pool: Pool):
    """A live session's name is refused at once, one's own even without I/O."""
    async with (
        PostgresSessionManager(pool) as mine,
        PostgresSessionManager(pool) as other,
    ):
        await mine.create_view("SELECT 1 AS one", name="taken")
        with pytest.raises(InvalidName):
            await mine.create_view("SELECT 2 AS one", name="taken")
        with pytest.raises(DuplicateRecord, match="lives"):
            await other.create_view("SELECT 3 AS one", name="taken")
        assert other.get_session_views() == []
        assert await pool.fetchval("SELECT one FROM filtermate_temp.taken") == 1


async def test_a_users_relation_is_never_replaced(pool: Pool):
    """A name that a relation of somebody else's has is refused; it stays."""
    async with PostgresSessionManager(pool) as session:
        await session.ensure_schema_exists()
        await pool.execute("CREATE TABLE filtermate_temp.theirs AS SELECT 7 AS n")
        with pytest.raises(QueryFailed) as caught:
            await session.create_view("SELECT 1", name="theirs")
        assert caught.value.sqlstate == "42P07"
    assert await pool.fetchval("SELECT n FROM filtermate_temp.theirs") == 7


async def test_indexes_of_every_kind(pool: Pool):
    """btree, unique, gin, gist, hash, brin, expression, partial: as asked for."""
    indexes = (
        "id",
        "UNIQUE (id)",
        "lower(word)",
        "((id * 2)) WHERE id > 3",
        "USING gin (doc)",
        "USING gist (during)",
        "using hash (word)",
        "USING brin (id)",
        "word, id DESC",
        "unique (word) INCLUDE (id)",
    )
    async with PostgresSessionManager(pool) as session:
        seen: list[CreateProgress] = []
        view = await session.create_view(
            "SELECT n AS id, 'w' || n AS word, jsonb_build_object('n', n) AS doc,"
            " int4range(n, n + 2) AS during FROM generate_series(1, $1::int) AS n",
            20,
            materialized=True,
            indexes=indexes,
            progress=seen.append,
        )
        made = await pool.fetch(
            "SELECT indexdef FROM pg_indexes WHERE tablename = $1", view.name
        )
        text = "\n".join(row["indexdef"] for row in made)
        assert len(made) == len(indexes)
        for part in (
            "gin (doc)",
            "gist (during)",
            "hash (word)",
            "brin (id)",
            "lower(word)",
            "WHERE (id > 3)",
            "UNIQUE INDEX",
            "id DESC",
        ):
            assert part in text
        assert [p.stage for p in seen][:2] == ["view", "index 1"]
        assert (seen[-1].stage, seen[-1].done) == ("done", len(indexes) + 1)
        own = (await session.info()).own[0]
        assert own.rows == 20
        assert own.size is not None
        assert own.size > 10 * 8192


async def test_a_failing_index_leaves_nothing(pool: Pool):
    """View, indexes and registry row are made together or not at all."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(QueryFailed):
            await session.create_view(
                "SELECT 1 AS id", materialized=True, indexes=("id", "nosuch")
            )
        with pytest.raises(InvalidName):
            await session.create_view(
                "SELECT 1 AS id", materialized=True, indexes=("UNIQUE",)
            )
        with pytest.raises(InvalidRecord):
            await session.create_view(
                "SELECT 1 AS id", materialized=True, indexes=("id); DROP TABLE x; --",)
            )
        with pytest.raises(ConfigurationInvalid):
            await session.create_view("SELECT 1 AS id", indexes=("id",))
        assert (await session.info()).views == ()


async def test_refresh_lets_readers_in_where_it_can(pool: Pool, caplog):
    """CONCURRENTLY with a unique index and data; else readers wait, and it says so."""
    await pool.execute("CREATE TABLE base AS SELECT generate_series(1, 3) AS n")
    caplog.set_level("INFO", "fm_storage.sessions")
    async with PostgresSessionManager(pool) as session:
        plain = await session.create_view("SELECT n FROM base", materialized=True)
        unique = await session.create_view(
            "SELECT n FROM base", materialized=True, indexes=("UNIQUE (n)",)
        )
        partial = await session.create_view(
            "SELECT n FROM base", materialized=True, indexes=("UNIQUE (n) WHERE n > 0",)
        )
        empty = await session.create_view(
            "SELECT n FROM base",
            materialized=True,
            indexes=("UNIQUE (n)",),
            with_data=False,
        )
        await pool.execute("INSERT INTO base VALUES (4)")
        assert await session.refresh_view(unique) is True
        assert await session.refresh_view(unique, concurrently=False) is False
        assert await session.refresh_view(str(plain)) is False
        assert "unique index" in caplog.text
        assert await session.refresh_view(partial) is False
        assert await session.refresh_view(empty) is False
        assert await session.refresh_view(empty) is True
        with pytest.raises(QueryFailed) as caught:
            await session.refresh_view(plain, concurrently=True)
        assert caught.value.sqlstate == "55000"
        for view in (plain, unique, partial, empty):
            assert await pool.fetchval(f"SELECT count(*) FROM {view}") == 4


async def test_a_view_may_be_dropped_by_hand(pool: Pool):
    """drop_view() drops one; what is unknown is distinguished from what is gone."""
    async with PostgresSessionManager(pool) as session:
        one = await session.create_view("SELECT 1", name="one")
        two = await session.create_view("SELECT 2", name="two")
        assert await session.drop_view(one) is True
        with pytest.raises(InvalidName):
            await session.drop_view(one)
        await pool.execute(f"DROP VIEW {two}")
        with pytest.raises(InvalidName):
            await session.refresh_view(two)
        assert await session.drop_view("two") is False
        assert session.last_cleanup.already_gone == ("filtermate_temp.two",)
        assert session.get_session_views() == []


async def test_cascade_only_on_request(pool: Pool):
    """A dependent view refuses the DROP; cascade=True, said outright, takes it."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 1 AS one")
        await pool.execute(f"CREATE VIEW public.users AS SELECT one FROM {view}")
        assert await session.drop_view(view) is False
        (refusal,) = session.last_cleanup.refused
        assert (refusal.view, refusal.sqlstate) == (str(view), "2BP01")
        assert refusal.will_retry
        assert session.get_session_views() == [str(view)]
        assert await session.drop_view(view, cascade=True) is True
    assert await pool.fetchval("SELECT to_regclass('public.users')") is None


async def test_a_long_creation_has_a_timeout_and_can_be_cancelled(pool: Pool):
    """Both end on the server, too, and leave no view."""
    async with PostgresSessionManager(pool) as session:
        slow = "SELECT pg_sleep(20)::text"
        with pytest.raises(QueryTimeout):
            await session.create_view(slow, materialized=True, timeout=0.1)
        task = asyncio.ensure_future(session.create_view(slow, materialized=True))
        await sleeping_on_server(pool)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await session.cleanup_session_views() == 0
        assert session.last_cleanup.complete
    running = (
        "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%pg_sleep(20)%'"
        " AND pid <> pg_backend_pid() AND state = 'active'"
    )

    async def ended() -> bool:
        found: int = await pool.fetchval(running)
        return found == 0

    await until(ended, within=10)  # the server is notified, and stops a moment later


async def test_text_that_cannot_be_sent_is_refused(pool: Pool):
    """A NUL would cut the connection: with values or without, it is never sent."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(InvalidRecord, match="NUL"):
            await session.create_view('SELECT $1::text AS "a\0b"', "x")
        with pytest.raises(InvalidRecord, match="NUL"):
            await session.create_view('SELECT 1 AS "a\0b"')
    assert pool.statistics().reconnects == 0


async def test_a_closed_session_says_so(pool: Pool):
    """After the block every operation names the remedy; closing twice is fine."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 1")
    await session.aclose()
    with pytest.raises(StorageClosed, match="open a new one"):
        await session.create_view("SELECT 1")
    assert await pool.fetchval("SELECT to_regclass($1)", str(view)) is None


async def test_views_on_views_are_dropped_in_order(pool: Pool):
    """Views of a session may depend on each other, across kinds."""
    async with PostgresSessionManager(pool) as session:
        a = await session.create_view("SELECT 1 AS n")
        b = await session.create_view(f"SELECT n FROM {a}", materialized=True)
        c = await session.create_view(f"SELECT n FROM {b}")
        await session.create_view(f"SELECT n FROM {c}, {a} AS a (m)", materialized=True)
        assert await session.cleanup_session_views() == 4
        assert session.last_cleanup.refused == ()


async def test_a_function_may_give_the_connections(dsn: str, pool: Pool):
    """An async function that returns an asyncpg connection is a provider."""
    import asyncpg

    async with PostgresSessionManager(lambda: asyncpg.connect(dsn)) as session:
        view = await session.create_view("SELECT $1::int AS n", 3)
        assert await pool.fetchval(f"SELECT n FROM {view}") == 3
    assert await pool.fetchval("SELECT count(*) FROM fm_storage.session_owners") == 0
    with pytest.raises(ConfigurationInvalid):
        async with PostgresSessionManager("nonsense"):
            pass


@pytest.mark.slow
async def test_a_long_creation_tells_that_it_goes_on(pool: Pool):
    """Progress is reported when a stage begins, and every second while it lasts."""
    seen: list[CreateProgress] = []
    async with PostgresSessionManager(pool) as session:
        await session.create_view(
            "SELECT pg_sleep(2.5)::text AS a",
            materialized=True,
            indexes=("a",),
            progress=seen.append,
        )
    stages = [each.stage for each in seen]
    assert stages.count("view") >= 2
    assert list(dict.fromkeys(stages)) == ["view", "index 1", "done"]
    assert seen[1].elapsed >= 1


async def test_a_function_may_give_connections_of_ours(pool: Pool):
    """What pool.connect() returns is as good as the driver's own connection."""
    async with PostgresSessionManager(lambda: pool.connect("session")) as session:
        view = await session.create_view("SELECT $1::text AS t", "x")
        assert await pool.fetchval(f"SELECT t FROM {view}") == "x"
        assert (await session.info()).own[0].kind == "view"


async def test_an_untypable_parameter_is_the_servers_to_refuse(pool: Pool):
    """Where no type can be inferred the server says so, and nothing is made."""
    async with PostgresSessionManager(pool) as session:
        with pytest.raises(QueryFailed) as caught:
            await session.create_view("SELECT $1 IS NULL AS n", None)
        assert caught.value.sqlstate == "42P18"
        with pytest.raises(QueryFailed) as caught:
            await session.create_view("SELECT $1::int AS n FROM nowhere", 1)
        assert caught.value.sqlstate == "42P01"
        assert (await session.info()).views == ()


async def test_the_last_reference_drops_the_view(pool: Pool):
    """A view that several parts of a program use goes when the last one is done."""
    async with PostgresSessionManager(pool) as session:
        view = await session.create_view("SELECT 1 AS n")
        for holder in ("layer", "layer", "table"):
            session.add_reference(view, holder)
        assert await session.release_reference(view, "stranger") is False
        assert await session.release_reference(view, "layer") is False
        assert await pool.fetchval(f"SELECT n FROM {view}") == 1
        assert await session.release_reference(str(view), "table") is True
        assert session.get_session_views() == []
        assert await session.release_reference(view, "table") is False
        with pytest.raises(InvalidName):
            session.add_reference(view, "late")
    absent = PostgresSessionManager(None)
    absent.add_reference("x", 1)
    assert await absent.release_reference("x", 1) is False
