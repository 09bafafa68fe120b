"""A DB-API connection over the pool's driver: for yoyo, and for steps in Python.

It connects as the pool does, so that an address means the same for both. Each call
of the thread that migrates runs on an event loop in a daemon thread of its own, and
another thread may stop it. See https://peps.python.org/pep-0249/.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import threading
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Self, TypeVar

from fm_storage.config import PostgresConfig
from fm_storage.config.addresses import parameters_of
from fm_storage.errors import InvalidRecord, QueryFailed, StorageError
from fm_storage.postgres.connect.connector import Connector
from fm_storage.postgres.errors import translate
from fm_storage.postgres.sql import quote_type
from fm_storage.postgres.tokens import Token, fold, tokens

apilevel, threadsafety, paramstyle = "2.0", 1, "pyformat"
DatabaseError = QueryFailed
"""What the server refused; a lost connection is ``ConnectionFailed``."""

T = TypeVar("T")

_CLOSE_TIMEOUT = 1.0
_PLACEHOLDER = re.compile(r"%(?:%|s|\((?P<name>[^)]+)\)s|(?P<wrong>.|$))", re.DOTALL)
_TEXTUAL_JSON = frozenset({"json", "jsonb"})
_WITH_ROWS = frozenset({"select", "values", "table", "with", "show", "explain"})


class MigrationStopped(Exception):
    """The caller was cancelled; what ran was rolled back."""


class NotInDbApi(AttributeError):
    """A step in Python used what is not in DB-API."""


def _refuse_attribute(owner: object, name: str) -> NoReturn:
    raise NotInDbApi(
        f"{name!r} of a {type(owner).__name__.lower()} is not in DB-API; use cursor(), "
        "execute(), executemany(), the fetch methods, commit() and rollback()"
    )


class Connection:
    """One connection, for the thread that migrates; it starts in autocommit.

    Args:
        config: The server, as for a pool.
    """

    def __init__(self, config: PostgresConfig) -> None:
        self._config = config
        self._raw: Any = None  # by open()
        self._loop = asyncio.new_event_loop()
        self._task: asyncio.Task[Any] | None = None  # on the loop, by _stoppable()
        self._stopped = False  # on the loop, by _stop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="fm_storage migrate (loop)", daemon=True
        )
        self._thread.start()

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_attribute(self, name)

    # -- life -----------------------------------------------------------------------

    def open(self) -> None:
        """Connect.

        Raises:
            MigrationStopped: ``stop()`` was called meanwhile.
            StorageError: As of ``Pool``.
        """

        async def connect() -> None:
            self._raw = await Connector(self._config).connect()

        self._run(connect)

    @property
    def closed(self) -> bool:
        """Whether the connection was closed or lost."""
        return self._raw is None or self._raw.is_closed()

    @property
    def process_id(self) -> int:
        """Number of the server process, as the server (or a pooler) greeted."""
        return int(self._raw.get_server_pid())

    def close(self) -> None:
        """Close the connection and end its loop; a second call does nothing."""
        if not self._thread.is_alive():
            return

        async def close() -> None:
            if self._raw is not None:
                try:
                    await self._raw.close(timeout=_CLOSE_TIMEOUT)
                except (OSError, asyncio.CancelledError):
                    self._raw.terminate()

        with contextlib.suppress(StorageError):
            self._run(close, stoppable=False)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def stop(self) -> None:
        """End what runs, and let nothing begin but ROLLBACK; from any thread."""
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._stop)

    def _stop(self) -> None:
        self._stopped = True
        if self._task is not None:
            self._task.cancel()  # the driver then cancels the query on the server

    # -- statements -----------------------------------------------------------------

    def run(self, sql: str, *, stoppable: bool = True) -> str:
        """Run *sql* by the simple protocol, without its rows; return its tag.

        Raises:
            MigrationStopped: ``stop()`` was called.
            QueryFailed: The server refused it, or it is COPY from or to the client.
            ConnectionFailed: The connection broke.
        """
        _refuse_copy(sql)
        tag: str = self._run(lambda: self._raw.execute(sql), stoppable=stoppable)
        return tag

    def fetch(self, sql: str, *args: object) -> list[tuple[Any, ...]]:
        """Run *sql* with values for ``$1`` …, and return its rows."""
        rows = self._run(lambda: self._raw.fetch(sql, *args))
        return [tuple(row) for row in rows]

    def prepared(
        self, sql: str, args: Sequence[object]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[str, int]], str]:
        """Run *sql*; return its rows, its columns (name and type) and its tag.

        A value that does not fit the type that the server infers is sent as text,
        which the server converts, as it does with a literal.
        """
        return self._run(lambda: self._prepared(sql, args))

    async def _prepared(
        self, sql: str, args: Sequence[object]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[str, int]], str]:
        statement = await self._raw.prepare(sql)
        kinds = statement.get_parameters()
        rows = None
        # The codec for json would make a JSON string of a text.
        if not any(
            isinstance(value, str) and kind.name in _TEXTUAL_JSON
            for kind, value in zip(kinds, args, strict=True)
        ):
            try:
                rows = await statement.fetch(*args)
            except Exception as exc:  # judged below
                if not isinstance(translate(exc), InvalidRecord):
                    raise
                # Refused by the driver's encoders: nothing was sent yet.
        if rows is None:
            statement = await self._raw.prepare(_as_text(sql, kinds))
            rows = await statement.fetch(
                *(None if value is None else str(value) for value in args)
            )
        columns = [(each.name, each.type.oid) for each in statement.get_attributes()]
        return [tuple(row) for row in rows], columns, statement.get_statusmsg()

    def cursor(self) -> Cursor:
        """Return a cursor."""
        return Cursor(self)

    def commit(self) -> None:
        """Commit the transaction that is open, if one is."""
        if self._raw.is_in_transaction():
            self.run("COMMIT")

    def rollback(self) -> None:
        """Roll back the transaction that is open, if one is; also when stopped."""
        if self._raw.is_in_transaction():
            self.run("ROLLBACK", stoppable=False)

    # -- the loop -------------------------------------------------------------------

    def _run(
        self, work: Callable[[], Coroutine[Any, Any, T]], *, stoppable: bool = True
    ) -> T:
        """Run *work* on the loop, and wait for it in this thread."""
        body = self._stoppable(work) if stoppable else work()
        try:
            return asyncio.run_coroutine_threadsafe(body, self._loop).result()
        except MigrationStopped:
            raise
        except Exception as exc:  # translated
            error = translate(exc, owner="migrations")
            if error is exc:
                raise
            raise error from exc

    async def _stoppable(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        # On the loop, as is _stop(): neither can come between two lines of the other.
        if self._stopped:
            raise MigrationStopped
        self._task = asyncio.current_task()
        try:
            return await work()
        except asyncio.CancelledError:
            raise MigrationStopped from None
        finally:
            self._task = None


class Cursor:
    """A cursor: runs statements, and holds the rows of the last one."""

    arraysize = 1

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.description: list[tuple[Any, ...]] | None = None
        self.rowcount = -1
        self._rows: Iterator[tuple[Any, ...]] = iter(())

    def __getattr__(self, name: str) -> NoReturn:
        _refuse_attribute(self, name)

    def __enter__(self) -> Self:
        """Use it in a block."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close it."""

    def __iter__(self) -> Iterator[tuple[Any, ...]]:
        """Iterate over the rows that were not fetched yet."""
        return self._rows

    def execute(
        self,
        operation: str,
        parameters: Sequence[object] | Mapping[str, object] | None = None,
    ) -> Cursor:
        """Run a statement with values for ``%s`` or ``%(name)s``.

        Without *parameters* the text may hold several statements.

        Raises:
            QueryFailed: The server refused it.
        """
        if parameters is None and not _has_rows(operation):
            tag, self.description = self.connection.run(operation), None
            self._rows = iter(())
        else:
            sql, args = operation, list[object]()
            if parameters is not None:
                sql, args = _numbered(operation, parameters)
            _refuse_copy(sql)
            rows, columns, tag = self.connection.prepared(sql, args)
            self._rows = iter(rows)
            blank = (None,) * 5
            self.description = [(*column, *blank) for column in columns] or None
        count = tag.rpartition(" ")[2]
        self.rowcount = int(count) if count.isdigit() else -1
        return self

    def executemany(
        self,
        operation: str,
        seq_of_parameters: Sequence[Sequence[object] | Mapping[str, object]],
    ) -> None:
        """Run a statement once for each of several sets of values."""
        for parameters in seq_of_parameters:
            self.execute(operation, parameters)

    def fetchone(self) -> tuple[Any, ...] | None:
        """Return the next row, None after the last."""
        return next(self._rows, None)

    def fetchmany(self, size: int | None = None) -> list[tuple[Any, ...]]:
        """Return the next *size* rows (``arraysize``)."""
        wanted = range(self.arraysize if size is None else size)
        return [row for _, row in zip(wanted, self._rows, strict=False)]

    def fetchall(self) -> list[tuple[Any, ...]]:
        """Return the rows that were not fetched yet."""
        return list(self._rows)

    def close(self) -> None:
        """Do nothing: the rows are here already."""


def for_migrations(config: PostgresConfig) -> PostgresConfig:
    """Return *config* as a connection for migrations wants it.

    Of several hosts it is the one that can write, unless the address says which.
    """
    changes: dict[str, Any] = {
        "application_name": "fm_storage migrate",
        # One connection, to the server itself or refused: nothing to find out.
        "pooler": "transaction",
    }
    found = parameters_of(config.dsn)
    if (
        "," in found.get("host", "")
        and config.target_session_attrs is None
        and "target_session_attrs" not in found
    ):
        changes["target_session_attrs"] = "read-write"
    return config.model_copy(update=changes)


def reason(exc: StorageError) -> str:
    """Return the server's message, without our remedy and its DETAIL."""
    cause = exc.__cause__
    return str(cause.args[0] if cause is not None and cause.args else exc).strip()


def _has_rows(sql: str) -> bool:
    """Whether *sql* is one statement that returns rows."""
    found = _meaningful(sql)
    if not found or any(token.text == ";" for token in found[:-1]):
        return False
    words = {fold(token.text) for token in found if token.kind == "word"}
    return fold(found[0].text) in _WITH_ROWS or "returning" in words


def copies_through_client(sql: str) -> bool:
    """Whether *sql* is COPY from or to the client, which would wait for ever."""
    words = [fold(token.text) for token in _meaningful(sql) if token.kind == "word"]
    return words[:1] == ["copy"] and not {"stdin", "stdout"}.isdisjoint(words)


def _refuse_copy(sql: str) -> None:
    if copies_through_client(sql):
        raise QueryFailed(
            "migrations: COPY from or to the client is not possible in a migration; "
            "use INSERT, or COPY with a file on the server"
        )


def _meaningful(sql: str) -> list[Token]:
    try:
        return list(tokens(sql))
    except StorageError:  # what does not end, the server refuses
        return []


def _numbered(
    sql: str, parameters: Sequence[object] | Mapping[str, object]
) -> tuple[str, list[object]]:
    """Return *sql* with ``$1`` … for its placeholders, and their values."""
    args: list[object] = []

    def number(found: re.Match[str]) -> str:
        name = found["name"]
        if found["wrong"] is not None:
            raise QueryFailed(
                f"migrations: {found[0]!r} is no placeholder; write %s or %(name)s, "
                "and %% for a percent sign"
            )
        if found[0] == "%%":
            return "%"
        try:
            if isinstance(parameters, Mapping):
                args.append(parameters[name or "s"])
            else:
                args.append(parameters[len(args)])
        except (LookupError, TypeError):
            raise QueryFailed(
                f"migrations: no value was given for placeholder {found[0]}"
            ) from None
        return f"${len(args)}"

    text = _PLACEHOLDER.sub(number, sql)
    if not isinstance(parameters, Mapping) and len(args) != len(parameters):
        raise QueryFailed(
            f"migrations: the statement has {len(args)} placeholder(s), but "
            f"{len(parameters)} value(s) were given"
        )
    return text, args


def _as_text(sql: str, kinds: Sequence[Any]) -> str:
    """Return *sql* with each parameter sent as text and cast to its type."""
    text, at = "", 0
    for token in tokens(sql):
        if token.kind == "parameter":
            kind = quote_type(kinds[int(token.text[1:]) - 1])
            text += f"{sql[at : token.start]}CAST({token.text}::text AS {kind})"
            at = token.end
    return text + sql[at:]
