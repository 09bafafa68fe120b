"""Log files, open: packed or not, in any encoding, refused if they are no text."""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import lzma
import os
import re
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, NoReturn, Protocol, cast

from fm_storage.catalog.logs.journal import JournalExport, is_journal_export
from fm_storage.errors import InvalidRecord

MAX_LINE = 256 * 1024
"""Bytes that are taken for one line at most."""

_SNIFF = 8192
_PACKED = 8  # times a packed log is larger, about
_BINARY_SHARE = 0.05
_GZIP, _BZIP2, _XZ = b"\x1f\x8b", b"BZh", b"\xfd7zXZ\x00"
_ZIP = b"PK\x03\x04"
_MARKS = {  # the longer ones first: one of UTF-32 begins as one of UTF-16 does
    codecs.BOM_UTF32_LE: "utf-32-le",
    codecs.BOM_UTF32_BE: "utf-32-be",
    codecs.BOM_UTF16_LE: "utf-16-le",
    codecs.BOM_UTF16_BE: "utf-16-be",
}
_BROKEN = (EOFError, OSError, lzma.LZMAError, zlib.error, zipfile.BadZipFile)
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


@dataclass(slots=True)
class OpenLog:
    """A log file, open.

    Attributes:
        stream: Its bytes, unpacked.
        file: Its bytes as they lie on disk.
        size: Bytes to be read, None if it is packed.
        modified: When it was last written to.
        broken: Why its end could not be unpacked, once that was reached.
    """

    stream: ByteStream
    file: IO[bytes]
    size: int | None
    modified: datetime
    broken: str | None = None

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
        """Yield the lines; one without end comes in bounded pieces.

        What lies before the break of a damaged archive is read; see ``broken``.
        """
        try:
            while line := self.stream.readline(MAX_LINE):
                yield line
        except _BROKEN as exc:
            if self.size is not None:
                raise  # not packed: the disk cannot be read
            self.broken = f"its end cannot be unpacked ({exc})"


def open_log(path: str | os.PathLike[str] | int) -> OpenLog:
    """Open a log, packed (gz, bz2, xz, a zip of one file) or not.

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
        unpacked = _unpacked(raw, head, shown)
        stream = cast("IO[bytes]", raw if unpacked is None else unpacked)
        size = about.st_size if unpacked is None else None
        if unpacked is not None:
            head = _sniffed(unpacked, shown)
        text = _text_of(stream, head, shown)
    except BaseException:  # let go of the file, then pass it on
        raw.close()
        raise
    size = None if isinstance(text, JournalExport) else size
    return OpenLog(text, raw, size, modified)


def _sniffed(unpacked: io.BufferedIOBase, shown: str) -> bytes:
    """Return the first bytes of what an archive holds."""
    try:
        head = unpacked.read1(_SNIFF)
        unpacked.seek(0)
    except _BROKEN as exc:
        _refuse(shown, f"it cannot be unpacked ({exc}); repair the file", exc)
    if not head:
        _refuse(shown, "it is empty inside; nothing was ingested")
    return head


def _text_of(stream: IO[bytes], head: bytes, shown: str) -> ByteStream:
    """Return lines of UTF-8, whatever the encoding and the ends of lines are."""
    if not head.strip(b"\0"):  # as copytruncate leaves it: look behind the NULs
        while (more := stream.read(_SNIFF)) and not more.strip(b"\0"):
            pass
        stream.seek(0)
        head = more
    encoding = _encoding_of(head)
    if encoding is not None:
        return _Recoded(stream, encoding)
    if is_journal_export(head):
        return JournalExport(stream)
    _refuse_binary(shown, head.lstrip(b"\0"))
    if b"\r" in head and b"\n" not in head:
        return _Recoded(stream, "utf-8", newline=None)
    return stream


def _encoding_of(head: bytes) -> str | None:
    """Return the encoding of a text that is not a superset of ASCII."""
    for mark, encoding in _MARKS.items():
        if head.startswith(mark):
            return encoding
    half = len(head) // 2
    if head[1::2].count(0) > half * 0.8 and head[::2].count(0) < half * 0.2:
        return "utf-16-le"
    if head[::2].count(0) > half * 0.8 and head[1::2].count(0) < half * 0.2:
        return "utf-16-be"
    return None


def _unpacked(raw: IO[bytes], head: bytes, shown: str) -> io.BufferedIOBase | None:
    if head.startswith(_GZIP):
        return gzip.GzipFile(fileobj=raw, mode="rb")
    if head.startswith(_BZIP2):
        return bz2.BZ2File(raw)
    if head.startswith(_XZ):
        return lzma.LZMAFile(raw)
    if head.startswith(_ZIP):
        try:
            archive = zipfile.ZipFile(raw)
        except zipfile.BadZipFile as exc:
            _refuse(shown, f"it cannot be unpacked ({exc}); repair the file", exc)
        members = [one for one in archive.infolist() if not one.is_dir()]
        if len(members) != 1:
            _refuse(shown, f"it is a zip of {len(members)} files; unpack it")
        return cast("io.BufferedIOBase", archive.open(members[0]))
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
    """A log in another encoding or with other ends of lines, read as UTF-8."""

    def __init__(
        self, stream: IO[bytes], encoding: str, *, newline: str | None = "\n"
    ) -> None:
        errors = "surrogateescape" if encoding == "utf-8" else "replace"
        self._text = io.TextIOWrapper(stream, encoding, errors=errors, newline=newline)

    def readline(self, size: int, /) -> bytes:
        return self._text.readline(size).encode("utf-8", "surrogateescape")

    def close(self) -> None:
        self._text.close()


def source_name(path: str | os.PathLike[str]) -> str:
    """Return the name of a log without its folder and what rotation added."""
    name = Path(path).name
    return _ROTATED.sub("", name) or name
