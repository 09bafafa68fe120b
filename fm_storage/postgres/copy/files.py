"""COPY between a file and a table, with progress.

The server reads and writes the format (CSV, text, its own binary): the bytes pass
through in blocks, and files are read and written in a thread, never on the event
loop.

See https://www.postgresql.org/docs/current/sql-copy.html.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, TypeAlias, TypeVar

import asyncpg

from fm_storage._typing import Relation
from fm_storage.concurrency.shield import wait_done
from fm_storage.errors import ConfigurationInvalid, InvalidRecord
from fm_storage.postgres.arguments import function, names_of, of_kind
from fm_storage.postgres.connect.internals import (
    copy_in,
    copy_out,
    describe,
    forget_types,
    parameter_types,
)
from fm_storage.postgres.copy.source import callers_code, from_caller
from fm_storage.postgres.errors import FromCaller
from fm_storage.postgres.executor import CopyOptions, CopyProgress
from fm_storage.postgres.sql import (
    Sql,
    quote_ident,
    quote_literal,
    quote_qualified,
    quote_type,
)
from fm_storage.postgres.tokens import tokens

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Source, Target, Value

Run: TypeAlias = Callable[..., Awaitable[Any]]
T = TypeVar("T")

_FILES = "give a path or a binary file"
_BLOCK = 256 * 1024
_EVERY = 0.1
_OPENS_WITHIN = 1.0
_PLACE = re.compile(r"COPY .*?, line (\d+)(?:, column ([^:,]+))?")


class _Meter:
    """Reports the progress, ten times a second at most, and at the end."""

    def __init__(
        self, report: Callable[[CopyProgress], object] | None, total: int | None = None
    ) -> None:
        self._report = report
        self._total = total
        self._done = 0
        self._began = monotonic()
        self._reported = 0.0

    def add(self, size: int) -> None:
        """Count *size* more bytes."""
        self._done += size
        if monotonic() - self._reported >= _EVERY:
            self.report()

    def report(self) -> None:
        """Report what has been counted."""
        if self._report is not None:
            self._reported = now = monotonic()
            with callers_code():
                self._report(CopyProgress(self._done, self._total, now - self._began))


class _FileJob(ABC):
    """One COPY with a file at our end, which is opened before anything is borrowed.

    Attributes:
        sql: The statement.
    """

    sql: str

    def __init__(self, options: CopyOptions) -> None:
        unknown = options.keys() - CopyOptions.__annotations__
        if unknown:
            raise TypeError(f"unexpected keyword argument {min(unknown)!r}")
        self._progress = options.get("progress")
        if self._progress is not None:
            function(self._progress, "progress")
        self._timeout = options.get("timeout")
        self._with = _with(options)
        self._file: BinaryIO | None = None  # by _open()

    async def copy(self, run: Run) -> int:
        """Open the file, have *run* do the COPY, close the file."""
        await self._open()
        whole = False
        timeout = float("inf") if self._timeout is None else self._timeout
        try:
            done: int = await run(self.run, self.sql, (), timeout)
            whole = True
        finally:
            if self._file is not None:
                self._file.close()
            self._closed(whole=whole)
        return done

    @abstractmethod
    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Do the COPY and return the number of rows."""

    @abstractmethod
    async def _open(self) -> None:
        """Open the file, if it was given by name."""

    async def _opened(self, make: Callable[[], BinaryIO]) -> BinaryIO:
        """Return the file that *make* opens in a thread: a pipe may take for ever.

        Cancelled, the file is closed and cleaned up, however late it opens.
        """
        opening = asyncio.ensure_future(asyncio.to_thread(make))
        try:
            return await asyncio.shield(opening)
        except asyncio.CancelledError:
            opening.add_done_callback(self._too_late)
            await wait_done(opening, _OPENS_WITHIN)
            raise

    def _too_late(self, opening: asyncio.Future[BinaryIO]) -> None:
        if not opening.cancelled() and opening.exception() is None:
            opening.result().close()
            self._closed(whole=False)

    def _closed(self, *, whole: bool) -> None:
        """Clean up when the file is closed; *whole* if the COPY got to its end."""
        del whole

    async def _on_disk(self, job: Callable[..., T], *arguments: object) -> T:
        """Run *job* in a thread; what it raises is the caller's to see."""

        def work() -> T | FromCaller:
            try:
                return job(*arguments)
            except BaseException as exc:  # not by asyncio, which makes some anew
                return FromCaller(exc)

        result = await asyncio.to_thread(work)
        if isinstance(result, FromCaller):
            raise result
        return result


class FileIn(_FileJob):
    """One COPY of a file into a table."""

    def __init__(
        self, table: str | Relation, source: Source, options: CopyOptions
    ) -> None:
        super().__init__(options)
        if not hasattr(source, "read"):
            of_kind(source, (str, os.PathLike, AsyncIterable), "source", _FILES)
        self._source = source
        self._total: int | None = None
        self.sql = Sql(f"COPY {_table(table, options)} FROM STDIN {self._with}")

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Send the file and return the number of its rows.

        Raises:
            InvalidRecord: A line does not fit; nothing was written.
        """
        try:
            return await copy_in(raw, sql, blocks=self._blocks(), timeout=timeout)
        except asyncpg.DataError as exc:
            place = _PLACE.search(getattr(exc, "context", None) or "")
            if place is None:
                raise
            column = f", column {place[2]}" if place[2] else ""
            found = InvalidRecord(
                f"file: line {place[1]}{column}: the value does not fit "
                f"({type(exc).__name__}); nothing was written, correct it",
                field=place[2],
                index=int(place[1]),
            )
            found.sqlstate = exc.sqlstate
            raise found from exc

    async def _open(self) -> None:
        if isinstance(self._source, str | os.PathLike):
            try:
                path = Path(self._source)
                self._file = await self._opened(lambda: path.open("rb"))
            except ValueError as exc:  # a NUL, a lone surrogate
                raise _no_path("source", exc) from exc
            self._total = os.fstat(self._file.fileno()).st_size

    async def _blocks(self) -> AsyncIterator[bytes]:
        meter = _Meter(self._progress, self._total)
        if isinstance(self._source, AsyncIterable):
            async for block in from_caller(self._source):
                meter.add(len(block))
                yield block
        else:
            file: Any = self._file or self._source
            while block := await self._on_disk(file.read, _BLOCK):
                meter.add(len(block))
                yield block
        meter.report()


class FileOut(_FileJob):
    """One COPY of a table, or of a query's rows, into a file."""

    def __init__(
        self,
        target: Target,
        options: CopyOptions,
        *,
        table: str | Relation | None,
        query: str | None,
        args: Sequence[Value],
    ) -> None:
        super().__init__(options)
        if not hasattr(target, "write"):
            of_kind(target, (str, os.PathLike), "target", _FILES)
        of_kind(args, Sequence, "args", "give a list of values")
        if (table is None) == (query is None):
            raise ConfigurationInvalid(
                "copy_to", "takes either a table or a query; give one of them"
            )
        if query is not None:
            of_kind(query, str, "query", "give the text of a statement")
        self._target = target
        self._part: Path | None = None
        self._args = tuple(args)
        self._query = query or ""
        if table is not None:
            self.sql = Sql(f"COPY {_table(table, options)} TO STDOUT {self._with}")
        else:
            self.sql = f"COPY ({query}) TO STDOUT {self._with}"

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Write the file and return the number of its rows."""
        if self._args:
            text = await _with_literals(raw, self._query, self._args)
            sql = f"COPY ({text}) TO STDOUT {self._with}"
        meter = _Meter(self._progress)
        file: Any = self._file or self._target

        async def sink(block: bytes) -> None:
            await self._on_disk(file.write, block)
            meter.add(len(block))

        rows = await copy_out(raw, sql, sink, timeout)
        await self._on_disk(file.flush)
        meter.report()
        return rows

    async def _open(self) -> None:
        if isinstance(self._target, str | os.PathLike):
            try:
                self._file = await self._opened(partial(self._make, Path(self._target)))
            except ValueError as exc:
                raise _no_path("target", exc) from exc

    def _make(self, path: Path) -> BinaryIO:
        if path.exists() and not path.is_file():
            return path.open("wb")  # a device or a pipe: a rename would replace it
        # Beside it, and renamed at the end: nobody sees half a file.
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        return self._part.open("xb")

    def _closed(self, *, whole: bool) -> None:
        if self._part is None:
            return
        if whole:
            self._part.replace(Path(str(self._target)))
        else:
            self._part.unlink(missing_ok=True)


def _no_path(name: str, exc: ValueError) -> ConfigurationInvalid:
    return ConfigurationInvalid(name, f"is no path ({exc}); {_FILES}")


async def _with_literals(raw: Any, sql: str, args: Sequence[Value]) -> str:
    """Have the server write *args* into *sql*: COPY takes no parameters."""
    # Nothing from a cache: a type may have been made anew.
    forget_types(raw)
    kinds = parameter_types(await describe(raw, sql, None))
    columns = [
        f"quote_literal(${number}::{quote_type(kind)}::text)"
        for number, kind in enumerate(kinds, 1)
    ]
    written = await raw.prepare(f"SELECT {', '.join(columns)}")
    values: Any = await written.fetchrow(*args)
    text, at = "", 0
    for token in tokens(sql):
        if token.kind == "parameter":
            value = values[int(token.text[1:]) - 1]
            text += sql[at : token.start] + ("NULL" if value is None else value)
            at = token.end
    return text + sql[at:]


def _table(table: str | Relation, options: CopyOptions) -> str:
    named = quote_qualified(options.get("schema"), table)
    columns = options.get("columns")
    if columns is None:
        return named
    names_of(columns)
    return f"{named} ({', '.join(map(quote_ident, columns))})"


def _with(options: CopyOptions) -> str:
    """Return what stands behind a COPY, quoted."""
    form = options.get("format", "csv")
    if form not in ("csv", "text", "binary"):  # of any type, hashable or not
        raise ConfigurationInvalid(
            "format", f"{form!r} is unknown; use csv, text or binary"
        )
    words = [f"FORMAT {form}"]
    header = options.get("header")
    if header or (header is None and form == "csv"):
        words.append("HEADER")
    for name, given in (
        ("DELIMITER", options.get("delimiter")),
        ("NULL", options.get("null")),
    ):
        if given is not None:
            of_kind(given, str, name.lower(), "give a str")
            words.append(f"{name} {quote_literal(given)}")
    if form != "binary":
        words.append("ENCODING 'UTF8'")
    return f"({', '.join(words)})"
