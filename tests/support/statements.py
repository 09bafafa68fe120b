"""Random SQL statements, and what a connection looks like after them.

The grammar favours what a reader of the text may take for something else: user
functions with the names of keywords and of built-in functions, comments and line
ends between a name and its parenthesis, keywords as labels, functions of a row
called like a column. A statement may fail; what matters is what it leaves behind.
"""

from __future__ import annotations

import contextlib
import random

import asyncpg

from fm_storage.postgres.connection.classifier import Classifier, UserNames

__all__ = ["Statements", "sweep"]

SETUP = """
CREATE TABLE jobs (id int PRIMARY KEY, insert int, merge int, "into" text, body jsonb);
INSERT INTO jobs SELECT n, n, n, n::text, '{}' FROM generate_series(1, 3) AS s(n);
CREATE FUNCTION leave(text) RETURNS text LANGUAGE sql
  AS $$ SELECT set_config('app.left', $1, false) $$;
CREATE FUNCTION hold(int) RETURNS int LANGUAGE sql
  AS $$ SELECT $1 FROM (SELECT pg_advisory_lock($1)) AS locked $$;
CREATE FUNCTION set(text, text) RETURNS text LANGUAGE sql AS $$ SELECT leave($2) $$;
CREATE FUNCTION set(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION insert(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION merge(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION by(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION over(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION filter(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION "like"(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION log(text) RETURNS text LANGUAGE sql AS $$ SELECT leave($1) $$;
CREATE FUNCTION lower(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION abs(text) RETURNS text LANGUAGE sql AS $$ SELECT leave($1) $$;
CREATE FUNCTION "substring"(int, int, int) RETURNS int LANGUAGE sql
  AS $$ SELECT hold($1) $$;
CREATE FUNCTION "Lower"(text) RETURNS text LANGUAGE sql AS $$ SELECT leave($1) $$;
CREATE FUNCTION größe(int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION touched(jobs) RETURNS text LANGUAGE sql AS $$ SELECT leave('row') $$;
CREATE FUNCTION anything(anyelement) RETURNS text LANGUAGE sql
  AS $$ SELECT leave('any') $$;
CREATE FUNCTION add_up(int, int) RETURNS int LANGUAGE sql AS $$ SELECT hold($1) $$;
CREATE FUNCTION concat_left(text, text) RETURNS text LANGUAGE sql
  AS $$ SELECT leave($2) $$;
CREATE AGGREGATE sum(text) (sfunc = concat_left, stype = text);
CREATE OPERATOR +#+ (leftarg = int, rightarg = int, function = add_up);
CREATE OPERATOR || (leftarg = int, rightarg = int, function = add_up);
CREATE PROCEDURE go() LANGUAGE sql AS $$ SELECT leave('call') $$;
"""
"""Run once in an empty database."""

STATE = """
SELECT jsonb_build_object(
  'left', coalesce(current_setting('app.left', true), ''),
  'settings', (SELECT jsonb_object_agg(name, setting) FROM pg_settings
    WHERE setting IS DISTINCT FROM reset_val),
  'roles', current_user || ' ' || session_user,
  'locks', (SELECT count(*) FROM pg_locks
    WHERE pid = pg_backend_pid() AND locktype = 'advisory'),
  'temporary', (SELECT jsonb_agg(relname::text ORDER BY relname) FROM pg_class
    WHERE relnamespace = pg_my_temp_schema()),
  'prepared', (SELECT jsonb_agg(name ORDER BY name) FROM pg_prepared_statements
    WHERE from_sql),
  'cursors', (SELECT jsonb_agg(name ORDER BY name) FROM pg_cursors
    WHERE is_holdable),
  'channels', (SELECT jsonb_agg(c ORDER BY c) FROM pg_listening_channels() AS p(c))
)::text
"""
"""What a statement can leave on its connection, as one text."""

_SPACES = (
    " ",
    " ",
    " ",
    "\n",
    "\t",
    " /* x */ ",
    " -- x\n",
    " -- x\r",
    "/* a /* b */ */",
)
_CALLED = (
    *("lower", "abs", "count", "coalesce", "length", "upper", "md5", "round", "sum"),
    *("set", "insert", "merge", "by", "over", "filter", "like", "log", "größe"),
    *("substring", "substring", "leave", "hold", "anything", "touched", "Lower"),
    *("set_config", "pg_advisory_lock", "pg_try_advisory_lock", "nextval", "now"),
    *("pg_notify", "current_setting", "generate_series", "json_build_object"),
)
_LABELS = ("insert", "merge", "into_", "update", "key", "x", "set", "by", '"into"')
_WHOLE = (
    "SET app.left = 'x'",
    "SET LOCAL work_mem = '1MB'",
    "SET SESSION AUTHORIZATION DEFAULT",
    "LISTEN somebody",
    "PREPARE mine AS SELECT 1",
    "DECLARE c CURSOR WITH HOLD FOR SELECT 1",
    "CREATE TEMP TABLE IF NOT EXISTS t1 AS SELECT 1 AS a",
    "DO $$ BEGIN PERFORM leave('do'); END $$",
    "CALL go()",
    "EXPLAIN ANALYZE SELECT leave('explained')",
    "SHOW work_mem",
    "TABLE jobs",
    "VALUES (1), (2)",
)


class Statements:
    """Makes one statement after the other from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._depth = 0

    def one(self) -> str:
        """Return a statement."""
        pick = self._random.random()
        if pick < 0.08:
            return self._random.choice(_WHOLE)
        if pick < 0.2:
            return self._change()
        if pick < 0.35:
            return self._with() + self._choice(self._select, self._change)
        return self._select() + self._random.choice(("", "", "", ";", " FOR UPDATE"))

    def _choice(self, *makers) -> str:
        return self._random.choice(makers)()

    def _space(self) -> str:
        return self._random.choice(_SPACES)

    def _with(self) -> str:
        name = self._random.choice(("q", "insert", "merge", "r"))
        columns = self._random.choice(("", "(a)", " (a)"))
        body = self._choice(self._select, self._select, self._change)
        more = self._random.choice(("", ", s(b) AS (SELECT 2)"))
        return f"WITH {name}{columns} AS{self._space()}({body}){more}{self._space()}"

    def _select(self) -> str:
        columns = ", ".join(self._column() for _ in range(self._random.randint(1, 3)))
        into = self._random.choice(("", "", "", "", " INTO TEMP t2", " INTO t3_temp"))
        if "t3_temp" in into:
            into = self._space() + "INTO TEMPORARY TABLE t3"
        source = self._random.choice(
            (
                "",
                " FROM jobs",
                " FROM jobs AS j",
                " FROM jobs j WHERE id IN (1, 2)",
                " FROM generate_series(1, 2) AS insert(n)",
            )
        )
        return f"SELECT{self._space()}{columns}{into}{source}"

    def _change(self) -> str:
        value = self._expression()
        update = f"ON CONFLICT (id) DO UPDATE SET merge = {self._number()}"
        matched = f"WHEN MATCHED THEN UPDATE SET merge = {self._number()}"
        return self._random.choice(
            (
                f"INSERT INTO jobs (id) SELECT {value} WHERE false RETURNING id",
                f"INSERT{self._space()}INTO public.jobs(id) VALUES (1) {update}",
                f"UPDATE jobs SET (insert, merge) = (1, {self._number()})",
                f"UPDATE jobs SET merge = 1 WHERE {value} IS NULL RETURNING id",
                f"DELETE FROM jobs WHERE id < 0 AND {value} IS NOT NULL",
                f"MERGE INTO jobs j USING jobs s ON j.id = s.id {matched}",
            )
        )

    def _column(self) -> str:
        expression = self._expression()
        if self._random.random() < 0.4:
            by = self._random.choice((" AS ", " "))
            return f"{expression}{by}{self._random.choice(_LABELS)}"
        return expression

    def _number(self) -> str:
        return self._random.choice(
            ("1", "2.5", "1_0", "$$1$$::int", "id", "merge", self._call())
        )

    def _expression(self) -> str:
        self._depth += 1
        try:
            if self._depth > 3:
                return self._random.choice(("1", "'a'", "NULL"))
            return self._choice(
                self._literal,
                self._literal,
                self._call,
                self._call,
                self._operation,
                self._cast,
                self._row,
                self._choice_of,
                self._sub,
            )
        finally:
            self._depth -= 1

    def _literal(self) -> str:
        return self._random.choice(
            ("1", "'a'", "'it''s'", "E'\\'; SET ROLE x'", "$q$ leave('x') $q$", "NULL",
             "'back\\'", "U&'\\0061'", "B'1'", "'a'\n'b'", "current_user", "id", "1.",
             "ARRAY[1, 2]", "ROW(1, 2)", "(1)", "$1")
        )  # fmt: skip

    def _call(self) -> str:
        name = self._random.choice(_CALLED)
        form = self._random.random()
        if name == "Lower" or form < 0.15:
            name = f'"{name}"'
        if form > 0.85:
            name = self._random.choice(("public.", "pg_catalog.", "public . ")) + name
        space = self._random.choice(("", "", "", self._space()))
        arguments = self._random.choice(
            ("1", "7", "'a'", "'app.left', 'b'", "'app.left', 'c', false", "1, 2, 3",
             "jobs", "'s'", "*", "1, 2", "'a', 1, 1", "")
        )  # fmt: skip
        tail = self._random.choice(("", "", "", " OVER ()", " FILTER (WHERE true)"))
        return f"{name}{space}({arguments}){tail}"

    def _operation(self) -> str:
        operator = self._random.choice(
            ("+", "-", "||", "+#+", "=", "<", "->>", "@>", "-- x\n+", "*-", "+ +")
        )
        left, right = self._random.choice(
            (("1", "2"), (self._expression(), self._expression()))
        )
        return f"{left}{operator}{right}"

    def _cast(self) -> str:
        kind = self._random.choice(
            ("int", "text", "numeric(5, 2)", "varchar(3)", "jobs")
        )
        value = self._expression()
        return self._random.choice((f"({value})::{kind}", f"CAST({value} AS {kind})"))

    def _row(self) -> str:
        return self._random.choice(
            ("jobs.touched", "(jobs).touched", 'jobs."touched"', "jobs.anything",
             "j.id", "jobs.insert", "(ROW(1)).anything")
        )  # fmt: skip

    def _choice_of(self) -> str:
        value = self._expression()
        return self._random.choice(
            (f"CASE WHEN {value} IS NULL THEN 1 ELSE 2 END", f"COALESCE({value}, NULL)",
             f"{value} IN (NULL)", f"EXISTS (SELECT {value})", f"NULLIF({value}, NULL)")
        )  # fmt: skip

    def _sub(self) -> str:
        return f"(SELECT {self._expression()} LIMIT 1)"


async def sweep(dsn: str, seed: int, number: int) -> None:
    """Run *number* statements, and compare the connection before and after each."""
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    try:
        await connection.execute(SETUP)
        classifier = Classifier()
        classifier.learn(await UserNames.read(connection, 20))
        await connection.execute("DISCARD ALL")
        clean = await connection.fetchval(STATE)
        statements = Statements(seed)
        lean = left = 0
        for _ in range(number):
            sql = statements.one()
            judged = classifier.classify(sql)
            with contextlib.suppress(asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.fetch(sql)
            state = await connection.fetchval(STATE)
            if judged:
                lean += 1
                assert state == clean, f"seed {seed}: {sql!r} left {state}"
            if state != clean:
                left += 1
                await connection.execute("DISCARD ALL")
        # The grammar must reach both, or the property says nothing.
        assert lean > number // 10
        assert left > number // 50
    finally:
        await connection.close()
