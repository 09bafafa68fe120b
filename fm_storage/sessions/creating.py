"""Making and refreshing one temporary view.

Apart from the session because a creation is a small transaction with its own
order: the registry row, then the view, its indexes and its mark. Everything
happens or nothing does.
"""

from __future__ import annotations

import asyncio
import math
import re
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import Any

from fm_storage.errors import (
    ConfigurationInvalid,
    InvalidName,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    SessionLost,
    StorageError,
)
from fm_storage.postgres import Connection, Sql, Transaction, quote_qualified
from fm_storage.sessions import registry
from fm_storage.sessions.literals import rendered, scan
from fm_storage.sessions.names import Kind, TempView

__all__ = ["CreateProgress", "ViewPlan", "as_indexes", "create", "in_time", "refresh"]

_INDEX = re.compile(
    r"\s*(?P<unique>unique\b)?\s*(?P<using>using\s+\w+\b)?\s*(?P<rest>.*)",
    re.IGNORECASE | re.DOTALL,
)


_TELL_EVERY = 1.0


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
            text += "\nWITH DATA" if self.with_data else "\nWITH NO DATA"
        return text

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
    if isinstance(indexes, str) or not all(isinstance(each, str) for each in indexes):
        raise ConfigurationInvalid(
            "indexes", f"{indexes!r} is no list of texts; say indexes=('UNIQUE (id)',)"
        )
    return tuple(indexes)


@asynccontextmanager
async def in_time(timeout: float | None, said: str) -> AsyncIterator[None]:
    """Bound the block to *timeout* seconds; None is for ever.

    Raises:
        QueryTimeout: It took longer.
    """
    try:
        async with asyncio.timeout(timeout):
            yield
    except TimeoutError as exc:
        if isinstance(exc, StorageError):
            raise
        raise QueryTimeout(
            f"session: {said} within {timeout} s; raise timeout, or make the query "
            "cheaper",
            sqlstate="57014",
        ) from exc


async def create(
    connection: Connection,
    plan: ViewPlan,
    *,
    owner: uuid.UUID,
    session: uuid.UUID,
    keep: bool,
    progress: Callable[[CreateProgress], None] | None = None,
) -> tuple[TempView, int]:
    """Create the view of *plan*; return it and the number of its registry row.

    If cancelled, the server is told; whether the view exists is then unknown
    until the registry is asked.

    Raises:
        SessionLost: The owner was condemned by a reaper.
        DuplicateRecord: The name is in the registry.
    """
    started = monotonic()
    indexes = [plan.index_sql(index) for index in plan.indexes]
    total = 1 + len(indexes)

    def tell(stage: str, done: int) -> None:
        if progress is not None:
            progress(CreateProgress(stage, done, total, monotonic() - started))

    async with connection.transaction() as transaction:
        query = await rendered(connection, plan.sql, plan.args)
        number = await _add_row(transaction, plan, owner, session, keep=keep)
        with _telling(lambda: tell("view", 0)):
            status = await transaction.execute(plan.create_sql(query), timeout=math.inf)
        for done, statement in enumerate(indexes, 1):
            with _telling(partial(tell, f"index {done}", done)):
                await transaction.execute(statement, timeout=math.inf)
        mark = registry.tag(owner, session)
        await transaction.execute(
            Sql(f"COMMENT ON {plan.kind.upper()} {plan.target} IS '{mark}'")
        )
        oid = await transaction.fetchval(registry.SET_OID, number, _rows_of(status))
    tell("done", total)
    return TempView(plan.schema, plan.name, plan.kind, oid), number


@contextmanager
def _telling(tell: Callable[[], None]) -> Iterator[None]:
    """Tell now, and every second until the block ends.

    The server shows no progress of a CREATE MATERIALIZED VIEW; that it goes on, and
    since when, is all there is to tell.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def again() -> None:
        nonlocal timer
        timer = loop.call_later(_TELL_EVERY, again)
        tell()

    timer = loop.call_later(_TELL_EVERY, again)
    tell()
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
) -> int:
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
            "logged in as, and a reaper could not tell whose views these are; log "
            "in as the role that shall own them",
            sqlstate="42501",
        )
    number: int = row["id"]
    return number


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
