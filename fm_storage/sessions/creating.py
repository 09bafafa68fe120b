"""Making and refreshing one temporary view.

A creation is one transaction: the registry row, then the view, its indexes and its
mark. DDL takes no parameters, so the server writes the values of a view into its
text: it infers their types, receives them as parameters of a SELECT, and answers
with typed literals. Nothing is quoted on this side.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    InvalidRecord,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    SessionLost,
    StorageError,
)
from fm_storage.postgres import Connection, Record, Sql, Transaction, quote_qualified
from fm_storage.postgres.arguments import seconds
from fm_storage.postgres.errors import translate
from fm_storage.postgres.sql import sendable
from fm_storage.postgres.tokens import tokens
from fm_storage.sessions import registry
from fm_storage.sessions.names import Kind, TempView

_INDEX = re.compile(
    r"\s*(?P<unique>unique\b)?\s*(?P<using>using\s+\w+\b)?\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)

# A typmod of -1 rather than NULL: format_type(1042, NULL) is "character", which
# as a cast means character(1) and would cut the value.
_TYPE_NAMES = Sql(
    "SELECT pg_catalog.format_type(t.oid, -1) AS name"
    " FROM pg_catalog.unnest($1::oid[]) WITH ORDINALITY AS t (oid, place)"
    " ORDER BY t.place"
)
_REPORT_EVERY = 1.0


@dataclass(frozen=True, slots=True)
class CreateProgress:
    """How far a creation is.

    Attributes:
        stage: ``view`` (of tables, too), ``index 1`` …, ``done``.
        done: Stages that are done.
        total: Stages there are.
        elapsed: Seconds since the creation began.
    """

    stage: str
    done: int
    total: int
    elapsed: float


@dataclass(frozen=True, slots=True)
class ViewPlan:
    """What to create, complete before anything is sent."""

    schema: str
    name: str
    kind: Kind
    sql: str
    args: tuple[Any, ...]
    indexes: tuple[str, ...]
    with_data: bool

    def __post_init__(self) -> None:
        quote_qualified(self.schema, self.name)
        if not isinstance(self.sql, str):
            sendable(self.sql)  # which says what it is
        if self.kind == "view" and self.indexes:
            raise ConfigurationInvalid(
                "indexes",
                "a plain view holds no rows to index; say materialized=True",
            )

    @property
    def target(self) -> str:
        """The view's name, quoted."""
        return quote_qualified(self.schema, self.name)

    def create_sql(self, query: str) -> str:
        """Return the CREATE for *query*, whose values are literals by now."""
        what = "UNLOGGED TABLE" if self.kind == "table" else self.kind.upper()
        text = f"CREATE {what} {self.target} AS\n{query}"
        if self.kind != "view":
            return text + ("\nWITH DATA" if self.with_data else "\nWITH NO DATA")
        # Analysed, not run: whatever it calls leaves nothing on this connection.
        return Sql(text)

    def index_sql(self, index: str) -> str:
        """Return the CREATE INDEX for *index*: what stands behind ``ON view``.

        ``id`` · ``lower(module)`` · ``UNIQUE (id)`` · ``USING gin (payload)`` ·
        ``(id) WHERE id > 7``.
        """
        match = _INDEX.fullmatch(scan(index).text)
        if match is None or not match["rest"].strip():
            raise InvalidName(f"index {index!r}: it names no column; name one")
        rest = match["rest"].strip()
        columns = rest if rest.startswith("(") else f"({rest})"
        unique = "UNIQUE " if match["unique"] else ""
        using = f"{match['using']} " if match["using"] else ""
        return f"CREATE {unique}INDEX ON {self.target} {using}{columns}"


def as_indexes(indexes: Sequence[str]) -> tuple[str, ...]:
    """Return *indexes* as given to ``create_view()``, complete.

    Raises:
        ConfigurationInvalid: One text, whose letters would be taken for indexes,
            or something that is no text.
    """
    if (
        isinstance(indexes, str)
        or not isinstance(indexes, Iterable)
        or not all(isinstance(each, str) for each in indexes)
    ):
        raise ConfigurationInvalid(
            "indexes", f"{indexes!r} is no list of texts; say indexes=('UNIQUE (id)',)"
        )
    return tuple(indexes)


@asynccontextmanager
async def in_time(timeout: float | None, what: str) -> AsyncIterator[None]:
    """Bound the block to *timeout* seconds; None is for ever.

    Raises:
        QueryTimeout: It took longer.
    """
    limit = math.inf if timeout is None else seconds(timeout)
    try:
        async with asyncio.timeout(None if limit == math.inf else limit):
            yield
    except TimeoutError as exc:
        if isinstance(exc, StorageError):
            raise
        raise QueryTimeout(
            f"session: {what} within {timeout} s; raise timeout, or make the query "
            "cheaper",
            sqlstate="57014",
        ) from exc


async def create(
    connection: Connection,
    plan: ViewPlan,
    *,
    owner: uuid.UUID,
    session: uuid.UUID,
    mark: str,
    keep: bool,
    private: bool,
    progress: Callable[[CreateProgress], None] | None = None,
) -> tuple[TempView, int]:
    """Create the view of *plan*; return it and the number of its registry row.

    If cancelled, the query is cancelled on the server; whether the view exists is
    then unknown until the registry is asked.

    Raises:
        SessionLost: The owner was condemned by a reaper.
        DuplicateRecord: The name is in the registry.
    """
    started = monotonic()
    indexes = [plan.index_sql(index) for index in plan.indexes]
    total = 1 + len(indexes)

    def report(stage: str, done: int) -> None:
        if progress is not None:
            progress(CreateProgress(stage, done, total, monotonic() - started))

    async with connection.transaction() as transaction:
        query = await rendered(connection, plan.sql, plan.args)
        row = await _add_row(transaction, plan, owner, session, keep=keep)
        with _reporting(lambda: report("view", 0)):
            status = await transaction.execute(plan.create_sql(query), timeout=math.inf)
        for done, statement in enumerate(indexes, 1):
            with _reporting(partial(report, f"index {done}", done)):
                await transaction.execute(statement, timeout=math.inf)
        marked = f"COMMENT ON {plan.kind.upper()} {plan.target} IS '{mark}'"
        if row["grouped"] and not private:
            rights = "ALL" if plan.kind == "table" else "SELECT"
            marked += f"; GRANT {rights} ON {plan.target} TO {registry.GROUP}"
        await transaction.execute(Sql(marked))
        number: int = row["id"]
        oid = await transaction.fetchval(registry.SET_OID, number, _rows_of(status))
    report("done", total)
    return TempView(plan.schema, plan.name, plan.kind, oid), number


@contextmanager
def _reporting(report: Callable[[], None]) -> Iterator[None]:
    """Report now, and every second until the block ends.

    The server shows no progress of a CREATE MATERIALIZED VIEW; that it goes on, and
    since when, is all that is known.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def again() -> None:
        nonlocal timer
        timer = loop.call_later(_REPORT_EVERY, again)
        report()

    timer = loop.call_later(_REPORT_EVERY, again)
    report()
    try:
        yield
    finally:
        timer.cancel()


async def _add_row(
    transaction: Transaction,
    plan: ViewPlan,
    owner: uuid.UUID,
    session: uuid.UUID,
    *,
    keep: bool,
) -> Record:
    try:
        row = await transaction.fetchrow(
            registry.ADD_OBJECT,
            *(owner, session, plan.schema, plan.name, plan.kind, keep),
        )
    except StorageError as exc:
        raise registry.explained(exc) from exc.__cause__
    if row is None:
        raise SessionLost(
            "session: a reaper took it for dead while its lease was lost; open a "
            "new session and create its views again"
        )
    if not row["same_role"]:
        raise PermissionDenied(
            "session: the connection acts for another role (SET ROLE) than it "
            "logged in as, and a reaper could not see whose views these are; log "
            "in as the role that shall own them",
            sqlstate="42501",
        )
    return row


def _rows_of(status: str) -> int | None:
    """Return the rows named by ``SELECT 12``, the tag of a filled view."""
    word, _, count = status.partition(" ")
    return int(count) if word == "SELECT" and count.isdigit() else None


_MAY_REFRESH = Sql(
    "SELECT b.oid, c.oid IS NOT NULL AS exists,"
    " o.condemned_at IS NOT NULL AS condemned, c.relispopulated AS filled,"
    " EXISTS (SELECT FROM pg_catalog.pg_index i WHERE i.indrelid = c.oid"
    " AND i.indisunique AND i.indimmediate AND i.indisvalid"
    " AND i.indpred IS NULL AND i.indexprs IS NULL) AS unique_index,"
    " pg_catalog.set_config('client_connection_check_interval', '200', true)"
    " FROM fm_storage.session_objects b"
    " JOIN fm_storage.session_owners o ON o.id = b.owner_id"
    " LEFT JOIN pg_catalog.pg_class c ON c.oid = b.oid"
    " WHERE b.session_id = $1 AND b.schema_name = $2 AND b.name = $3"
    " FOR KEY SHARE OF b"
)


async def refresh(
    connection: Connection,
    view: TempView,
    *,
    session: uuid.UUID,
    concurrently: bool | None,
) -> tuple[bool, str]:
    """Fill *view* anew; return whether readers were let in, else why not.

    Raises:
        SessionLost: The view was reaped.
        QueryFailed: *concurrently* was demanded and is not possible (55000).
    """
    async with connection.transaction() as transaction:
        # The row's lock keeps a reaper from dropping what is being refreshed.
        row = await transaction.fetchrow(_MAY_REFRESH, session, view.schema, view.name)
        if row is None or row["condemned"]:
            raise SessionLost(
                f"session: {view} was reaped while the lease was lost; open a new "
                "session and create it again"
            )
        if not row["exists"]:
            raise InvalidName(
                f"session: {view} was dropped by somebody else; create it again"
            )
        why = ""
        if not row["filled"]:
            why = "it holds no data yet"
        elif not row["unique_index"]:
            why = "it has no unique index on plain columns of all rows"
        if concurrently and why:
            raise QueryFailed(
                f"session: {view} cannot be refreshed concurrently, {why}; create it "
                "with indexes=('UNIQUE (…)',), or leave concurrently out",
                sqlstate="55000",
            )
        let_in = not why and concurrently is not False
        how = "CONCURRENTLY " if let_in else ""
        await transaction.execute(
            Sql(f"REFRESH MATERIALIZED VIEW {how}{view.sql}"), timeout=math.inf
        )
    return let_in, why or ("" if let_in else "concurrently=False was asked for")


@dataclass(frozen=True, slots=True)
class Statement:
    """One statement, cut at its parameters.

    Attributes:
        parts: Text between the parameters, one more than there are parameters.
        parameters: Numbers of the parameters in the order of the text.
    """

    parts: tuple[str, ...]
    parameters: tuple[int, ...]

    @property
    def text(self) -> str:
        """The statement as given, without what followed its last token."""
        return self.filled(lambda number: f"${number}")

    def filled(self, value: Callable[[int], str]) -> str:
        """Return the text with ``value(number)`` in the place of each parameter."""
        pieces = [self.parts[0]]
        for number, part in zip(self.parameters, self.parts[1:], strict=True):
            pieces += (value(number), part)
        return "".join(pieces)


def scan(sql: str, *, standard_strings: bool = True) -> Statement:
    """Find the parameters of *sql*, which must be one statement.

    Trailing semicolons, blanks and comments are cut off.

    Args:
        sql: The text.
        standard_strings: The server's ``standard_conforming_strings``.

    Raises:
        InvalidRecord: There is no statement or a second one, or a string, name or
            comment does not end.
    """
    parts: list[str] = []
    numbers: list[int] = []
    start = last = 0
    ended = False
    for token in tokens(sql, standard_strings=standard_strings, owner="view"):
        if token.text == ";":
            ended = True
            continue
        if ended:
            raise InvalidRecord(
                "view: the SQL holds a second statement; give one SELECT", field="sql"
            )
        last = token.end
        if token.kind == "parameter":
            parts.append(sql[start : token.start])
            numbers.append(int(token.text[1:]))
            start = last
    if not last:
        raise InvalidRecord("view: the SQL is empty; give a SELECT", field="sql")
    parts.append(sql[start:last])
    return Statement(tuple(parts), tuple(numbers))


async def rendered(connection: Connection, sql: str, args: Sequence[Any]) -> str:
    """Return *sql* as one statement with *args* written in as typed literals.

    Raises:
        InvalidRecord: The parameters and *args* do not match, a value does not fit
            its parameter's type, or *sql* is not one statement.
        QueryFailed: The server cannot parse *sql*, or infer a type.
    """
    standard = connection.reported("standard_conforming_strings") != "off"
    statement = scan(sql, standard_strings=standard)
    wanted = max(statement.parameters, default=0)
    if 0 in statement.parameters or wanted != len(args):
        raise InvalidRecord(
            f"view: its SQL has {_up_to(wanted)}, but {len(args)} value(s) were "
            "given; give one for each",
            field=f"${min(wanted, len(args)) + 1}",
        )
    if not args:
        return statement.text
    try:
        sendable(statement.text)
        prepared = await connection.raw.prepare(statement.text)
    except Exception as exc:  # the driver's errors become ours
        error = translate(exc, owner="session")
        if error is exc:
            raise
        raise error from exc
    oids = [kind.oid for kind in prepared.get_parameters()]
    names = [row["name"] for row in await connection.fetch(_TYPE_NAMES, oids)]
    columns = ", ".join(
        # format() uses the type's output function, where ::text could use a cast.
        f"pg_catalog.format('(%L::%s)', ${n}::{name}, ${n + len(names)}::text)"
        for n, name in enumerate(names, 1)
    )
    row = await connection.fetchrow(f"SELECT {columns}", *args, *names)
    if row is None:
        raise AssertionError(columns)
    literals = list(row.values())
    return statement.filled(lambda number: str(literals[number - 1]))


def _up_to(wanted: int) -> str:
    return f"parameters up to ${wanted}" if wanted else "no parameters"
