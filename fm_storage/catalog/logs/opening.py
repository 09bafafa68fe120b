"""Log files, open: packed or not, in UTF-8 or UTF-16, refused if they are no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NoReturn, Protocol, cast

from fm_storage.catalog.logs.journal import JournalExport, is_journal_export
from fm_storage.errors import InvalidRecord

__all__ = ["MAX_LINE", "OpenLog", "open_log", "source_name"]

MAX_LINE = 256 * 1024
"""Bytes that are taken for one line at most."""

_SNIFF = 8192
_PACKED = 8  # times a packed log is larger, about
_BINARY_SHARE = 0.05
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_UTF16 = {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
_TEXT_CONTROLS = frozenset(b"\t\n\r\x0b\x0c\x1b\x08")

# The name of a rotated or packed log without what rotation added to it.
_ROTATED = re.compile(
    r"(?:[.-](?:\d{1,10}|\d{4}-\d\d-\d\d(?:[T_-]\S*)?|gz|bz2|xz|old))+$"
)


class ByteStream(Protocol):
    """What a log is read from."""

    def readline(self, size: int, /) -> bytes:
        """Return the next line, or at most *size* bytes of it."""
        ...

    def close(self) -> None:
        """Close what lies below."""
        ...


@dataclass(frozen=True, slots=True)
class OpenLog:
    """A log file, open.

    Attributes:
        stream: Its bytes, unpacked.
        file: Its bytes as they lie on disk.
        size: Bytes to be read, None if it is packed.
        modified: When it was last written to.
    """

    stream: ByteStream
    file: IO[bytes]
    size: int | None
    modified: datetime

    @property
    def weight(self) -> int:
        """About how many bytes there are to read, also if it is packed."""
        if self.size is not None:
            return self.size
        return os.fstat(self.file.fileno()).st_size * _PACKED

    def close(self) -> None:
        """Close the stream, and the file below it (unpackers leave it open)."""
        self.stream.close()
        self.file.close()

    def lines(self) -> Iterator[bytes]:
        """Yield the lines; one without end comes in bounded pieces."""
        while line := self.stream.readline(MAX_LINE):
            yield line


def open_log(path: str | os.PathLike[str] | int) -> OpenLog:
    """Open a log, packed (gz, bz2, xz) or not.

    Args:
        path: Its path, or the descriptor of a file; that is closed with the log.

    Raises:
        InvalidRecord: It is empty, or it is not text.
        OSError: It cannot be read.
    """
    shown = str(path)
    raw = io.BufferedReader(io.FileIO(path))
    try:
        about = os.fstat(raw.fileno())
        modified = datetime.fromtimestamp(about.st_mtime, UTC)
        head = raw.read(_SNIFF)
        if not head:
            _refuse(shown, "it is empty; nothing was ingested")
        raw.seek(0)
        unpacked = _unpacked(raw, head)
        stream: IO[bytes] = raw if unpacked is None else unpacked
        if unpacked is not None:
            try:
                head = stream.read(_SNIFF)
                stream.seek(0)
            except (OSError, EOFError, lzma.LZMAError, zlib.error) as exc:
                _refuse(shown, f"it cannot be unpacked ({exc}); repair the file", exc)
            if not head:
                _refuse(shown, "it is empty inside; nothing was ingested")
        size = about.st_size if unpacked is None else None
        for mark, encoding in _UTF16.items():
            if head.startswith(mark):
                return OpenLog(_Recoded(stream, encoding), raw, size, modified)
        if is_journal_export(head):
            return OpenLog(JournalExport(stream), raw, None, modified)
        _refuse_binary(shown, head)
    except BaseException:  # let go of the file, then pass it on
        raw.close()
        raise
    return OpenLog(stream, raw, size, modified)


def _unpacked(raw: IO[bytes], head: bytes) -> IO[bytes] | None:
    if head.startswith(_GZIP):
        return cast("IO[bytes]", gzip.GzipFile(fileobj=raw, mode="rb"))
    if head.startswith(_BZIP2):
        return cast("IO[bytes]", bz2.BZ2File(raw))
    if head.startswith(_XZ):
        return cast("IO[bytes]", lzma.LZMAFile(raw))
    return None


def _refuse(shown: str, problem: str, cause: BaseException | None = None) -> NoReturn:
    raise InvalidRecord(f"log {shown!r}: {problem}", field="path") from cause


def _refuse_binary(shown: str, head: bytes) -> None:
    controls = sum(byte < 32 and byte not in _TEXT_CONTROLS for byte in head)
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        valid = True
    except UnicodeDecodeError:
        valid = False
    allowed = _BINARY_SHARE if valid else _BINARY_SHARE / 5
    if controls > max(1, len(head) * allowed):
        _refuse(
            shown,
            f"it is not text ({controls} control bytes among the first {len(head)}); "
            "give a log file, packed with gzip, bzip2 or xz if you like",
        )


class _Recoded:
    """A UTF-16 log, read as UTF-8."""

    def __init__(self, stream: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(stream, encoding, errors="replace", newline="\n")

    def readline(self, size: int, /) -> bytes:
        return self._text.readline(size).encode()

    def close(self) -> None:
        self._text.close()


def source_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a log without its folder and what rotation added."""
    name = Path(path).name
    return _ROTATED.sub("", name) or name
