"""COPY between a file and a table, with progress.

Apart from COPY of records, because here the server reads and writes the format
(CSV, text, its own binary): the bytes pass through, in blocks, and files are read
and written in a thread, never on the event loop.

See https://www.postgresql.org/docs/current/sql-copy.html.
"""

from __future__ import annotations

import asyncio
import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import (
    AsyncIterable,
    AsyncIterator,
    Awaitable,
    Callable,
    Sequence,
)
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias, TypeVar

import asyncpg

from fm_storage.errors import ConfigurationInvalid, ConnectionFailed, InvalidRecord
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified

if TYPE_CHECKING:
    from fm_storage.postgres.executor import Value

__all__ = ["CopyProgress", "FileIn", "FileOut", "Format", "Source", "Target"]

Format: TypeAlias = Literal["csv", "text", "binary"]
Source: TypeAlias = str | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]
Target: TypeAlias = str | os.PathLike[str] | BinaryIO

Run: TypeAlias = Callable[..., Awaitable[Any]]
T = TypeVar("T")

_BLOCK = 256 * 1024
_EVERY = 0.1
_PLACE = re.compile(r"COPY .*?, line (\d+)(?:, column ([^:,]+))?")


@dataclass(frozen=True, slots=True)
class CopyProgress:
    """How far a COPY of a file is.

    Attributes:
        done: Bytes read or written.
        total: Bytes there are, None where that is not known.
        elapsed: Seconds since it began.
    """

    done: int
    total: int | None
    elapsed: float


class _Meter:
    """Tells the progress, ten times a second at most, and at the end."""

    def __init__(
        self, tell: Callable[[CopyProgress], object] | None, total: int | None
    ) -> None:
        self._tell = tell
        self._total = total
        self._done = 0
        self._began = monotonic()
        self._told = 0.0

    def add(self, size: int) -> None:
        """Count *size* bytes more."""
        self._done += size
        if self._tell is not None and monotonic() - self._told >= _EVERY:
            self._say()

    def end(self) -> None:
        """Say how much it was."""
        self._say()

    def _say(self) -> None:
        self._told = monotonic()
        if self._tell is not None:
            self._tell(CopyProgress(self._done, self._total, self._told - self._began))


def _options(
    fmt: Format, *, header: bool | None, delimiter: str | None, null: str | None
) -> str:
    """Return what stands behind a COPY, quoted."""
    if fmt not in {"csv", "text", "binary"}:
        raise ConfigurationInvalid(
            "format", f"{fmt!r} is unknown; use csv, text or binary"
        )
    words = [f"FORMAT {fmt}"]
    if header is None and fmt == "csv":
        header = True
    if header:
        words.append("HEADER")
    for name, given in (("DELIMITER", delimiter), ("NULL", null)):
        if given is not None:
            # E'' means the same whatever standard_conforming_strings is.
            inner = given.replace("\\", "\\\\").replace("'", "''")
            words.append(f"{name} E'{inner}'")
    if fmt != "binary":
        words.append("ENCODING 'UTF8'")
    return f"({', '.join(words)})"


class _FileJob(ABC):
    """One COPY with a file at our end, which is opened before anything is borrowed."""

    sql: str
    broken: OSError | None = None
    """What our file said, which the driver would take for the connection's end."""

    async def copy(self, run: Run, timeout: float | None) -> int:
        """Open the file, have *run* do the COPY, close the file."""
        await self._open()
        whole = False
        try:
            done: int = await run(self.run, self.sql, (), timeout)
            whole = True
        except ConnectionFailed:
            if self.broken is not None:
                raise self.broken from None
            raise
        finally:
            self._close(whole=whole)
        return done

    @abstractmethod
    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Do the COPY and return how many rows there were."""

    @abstractmethod
    async def _open(self) -> None:
        """Open the file, if it was given by name."""

    @abstractmethod
    def _close(self, *, whole: bool) -> None:
        """Close what ``_open()`` opened; *whole* if the COPY got to its end."""

    async def _on_disk(self, job: Callable[..., T], *arguments: object) -> T:
        """Run *job* in a thread, and remember what the file system has against it."""
        try:
            return await asyncio.to_thread(job, *arguments)
        except OSError as exc:
            self.broken = exc
            raise


class FileIn(_FileJob):
    """One COPY of a file into a table.

    Attributes:
        sql: The statement, from quoted identifiers.
    """

    def __init__(
        self,
        table: str,
        source: Source,
        *,
        columns: Sequence[str] | None,
        schema: str | None,
        fmt: Format,
        header: bool | None,
        delimiter: str | None,
        null: str | None,
        progress: Callable[[CopyProgress], object] | None,
    ) -> None:
        self._source = source
        self._file: BinaryIO | None = None  # by _open()
        self._total: int | None = None
        self._progress = progress
        options = _options(fmt, header=header, delimiter=delimiter, null=null)
        self.sql = Sql(f"COPY {_table(schema, table, columns)} FROM STDIN {options}")

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Send the file and return how many rows it had.

        Raises:
            InvalidRecord: A line does not fit; nothing was written.
        """
        driver: Any = raw
        try:
            tag: str = await driver._protocol.copy_in(  # noqa: SLF001 - as the driver's own COPY does
                sql, self._blocks(), None, None, None, timeout
            )
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
        return int(tag.rpartition(" ")[2])

    async def _open(self) -> None:
        if isinstance(self._source, str | os.PathLike):
            self._file = await asyncio.to_thread(Path(self._source).open, "rb")
            self._total = os.fstat(self._file.fileno()).st_size

    def _close(self, *, whole: bool) -> None:
        del whole
        if self._file is not None:
            self._file.close()

    async def _blocks(self) -> AsyncIterator[bytes]:
        meter = _Meter(self._progress, self._total)
        if isinstance(self._source, AsyncIterable):
            async for block in self._source:
                meter.add(len(block))
                yield block
        else:
            file: Any = self._file or self._source
            while block := await self._on_disk(file.read, _BLOCK):
                meter.add(len(block))
                yield block
        meter.end()


class FileOut(_FileJob):
    """One COPY of a table, or of a query's rows, into a file.

    Attributes:
        sql: The statement, without the query's values.
    """

    def __init__(
        self,
        target: Target,
        *,
        table: str | None,
        query: str | None,
        args: Sequence[Value],
        columns: Sequence[str] | None,
        schema: str | None,
        fmt: Format,
        header: bool | None,
        delimiter: str | None,
        null: str | None,
        progress: Callable[[CopyProgress], object] | None,
    ) -> None:
        if (table is None) == (query is None):
            raise ConfigurationInvalid(
                "copy_to", "takes either a table or a query; give one of them"
            )
        self._target = target
        self._file: BinaryIO | None = None  # by _open()
        self._part: Path | None = None
        self._args = tuple(args)
        self._query = query
        self._progress = progress
        self._end = " TO STDOUT " + _options(
            fmt, header=header, delimiter=delimiter, null=null
        )
        if table is not None:
            self.sql = Sql(f"COPY {_table(schema, table, columns)}{self._end}")
        else:
            self.sql = f"COPY ({query}){self._end}"

    async def run(
        self, raw: asyncpg.Connection[Any], sql: str, *, timeout: float | None
    ) -> int:
        """Write the file and return how many rows it has."""
        if self._args:
            # COPY takes no parameters: the server writes them as literals.
            from asyncpg import utils

            text = await utils._mogrify(raw, self._query or "", self._args)  # noqa: SLF001 - as the driver's own does
            sql = f"COPY ({text}){self._end}"
        meter = _Meter(self._progress, None)
        file: Any = self._file or self._target

        async def sink(block: bytes) -> None:
            await self._on_disk(file.write, block)
            meter.add(len(block))

        driver: Any = raw
        tag: str = await driver._protocol.copy_out(sql, sink, timeout)  # noqa: SLF001 - as above
        await self._on_disk(file.flush)
        meter.end()
        return int(tag.rpartition(" ")[2])

    async def _open(self) -> None:
        if isinstance(self._target, str | os.PathLike):
            # Beside it, and renamed at the end: nobody sees half a file.
            path = Path(self._target)
            self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
            self._file = await asyncio.to_thread(self._part.open, "xb")

    def _close(self, *, whole: bool) -> None:
        if self._part is None or self._file is None:
            return
        self._file.close()
        if whole:
            self._part.replace(Path(str(self._target)))
        else:
            self._part.unlink(missing_ok=True)


def _table(schema: str | None, table: str, columns: Sequence[str] | None) -> str:
    named = quote_qualified(schema, table)
    if columns is None:
        return named
    return f"{named} ({', '.join(map(quote_ident, columns))})"
