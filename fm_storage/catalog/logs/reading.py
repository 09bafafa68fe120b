"""Lines of a log as entries of the catalogue: streaming, any size.

The only I/O is that of the iterator of lines, so that a log can be read in a
thread while the batch before is being stored.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, tzinfo
from hashlib import blake2b
from typing import NamedTuple
from uuid import UUID

from fm_storage.catalog.logs.entry import Header, IngestReport
from fm_storage.catalog.logs.fields import json_of
from fm_storage.catalog.logs.formats import LineParser
from fm_storage.catalog.logs.levels import guess_severity
from fm_storage.catalog.logs.opening import MAX_LINE
from fm_storage.catalog.record.redact import mask_text
from fm_storage.catalog.record.row import Prepared, is_plausible, prepare
from fm_storage.repositories.severity import Severity

_MAX_LINES = 2000
_SAMPLES = 5
_MAX_BATCH = 8 * 1024 * 1024

# What begins an entry of its own even where no header is, and what continues one.
_ALWAYS_NEW = re.compile(
    r"panic: |fatal error: |Exception in thread \"|Uncaught |thread '.*' .*panicked at"
    r"|Exception ignored in|UnhandledPromiseRejection|Fatal Python error: "
)
_TRACE_START = re.compile(
    r"(?:\s*[+|] )?(?:Traceback \(most recent call last\):|Exception Group Traceback)"
    r"|(?:[A-Za-z_]\w*\.)+[A-Z][\w$]*(?:Exception|Error|Throwable)\b|Stack trace:$"
    r"|[A-Z]\w*(?:Error|Exception)(?:: |$)|Caused by:|goroutine \d+ \[|Error: \S"
)
_FRAME = re.compile(
    r"\s+at \S|\s*(?:\| )*\s+File \"|Traceback \(most|\s*\.\.\. \d+ (?:more|common)"
    r"|Caused by:|goroutine \d+ \[|panic: |[Ss]tack backtrace:|\s+[+|] .*Traceback \("
    r"|#\d+ \S|\s*(?:from )?\S+\.rb:\d+:in |\s+\S+\.go:\d+"
)
_GO_FUNCTION = re.compile(r"[\w./-]+\.[\w.*()]+(?:\(.*\))?$")
# Begins like a header of its own, whatever its format is.
_DATED = re.compile(
    r"[\[(<]?(?:\d{4}[-/.]\d\d[-/.]\d\d|\d\d[-/.]\d\d[-/.]\d{4}|\d\d:\d\d:\d\d)"
    r"[\sT,.:\])>]"
)
# Sequences of terminals: colours, titles and links, and the rest.
_ANSI = re.compile(
    r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])"
)
_CRI = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\dT[\d:.]+(?:Z|[+-]\d\d:\d\d)) (?P<stream>stdout|stderr) "
    r"(?P<tag>[FP])(?::\S*)? (?P<line>.*)",
    re.DOTALL,
)
_LONGEST_OBJECT = 16 * 1024 * 1024
_MAX_UNKNOWN = 20  # lines that continue a message without being indented
_TRACED = frozenset({"WARNING", "ERROR", "CRITICAL"})


class _Wrapped(NamedTuple):
    """A line as the runtime of a container wraps it."""

    at: str
    stream: str
    text: str
    whole: bool


def _unwrap(line: str) -> _Wrapped | None:
    """Return what Docker's json-file or Kubernetes' CRI wraps, or None."""
    if line[:1] == "{":
        fields = json_of(line) if '"log":' in line and '"stream":' in line else None
        if fields is None or not isinstance(text := fields.get("log"), str):
            return None
        at, stream = str(fields.get("time", "")), str(fields.get("stream"))
        return _Wrapped(at, stream, text.rstrip("\r\n"), text.endswith("\n"))
    found = _CRI.match(line) if " std" in line[19:45] else None
    if found is None:
        return None
    return _Wrapped(found["at"], found["stream"], found["line"], found["tag"] == "F")


@dataclass(slots=True)
class _Open:
    """The entry that the lines being read belong to."""

    header: Header
    offset: int
    line: int
    digest: bytes
    more: list[str] = field(default_factory=list)
    size: int = 0
    trace_at: int | None = None
    unknown: int = 0  # of *more*, lines without indentation, before a trace

    def add(self, line: str) -> None:
        """Add a line that continues the entry, perhaps the first of its trace."""
        if self.trace_at is None and (
            _FRAME.match(line) is not None or _TRACE_START.match(line) is not None
        ):
            self.trace_at = len(self.more)
            if self.more and _GO_FUNCTION.match(self.more[-1]) is not None:
                self.trace_at -= 1  # Go writes its place below it
        self.more.append(line)
        self.size += len(line)


class LogReader:
    """Turns lines into prepared entries, batch by batch.

    Args:
        lines: Byte lines, with their ends.
        source: Name of the log; part of every id.
        module: Module of entries that name none; the source's stem if None.
        least: Entries below this severity are counted and left out.
        zone: Time zone of timestamps that name none.
        now: When the log was last written to: the time of entries whose log has
            no timestamps at all.
        format: A pattern of the application's own, tried first.
    """

    def __init__(
        self,
        lines: Iterable[bytes],
        *,
        source: str,
        module: str | None = None,
        least: Severity | None = None,
        zone: tzinfo = UTC,
        now: datetime | None = None,
        format: re.Pattern[str] | None = None,
    ) -> None:
        self._lines = iter(lines)
        self._now = now or datetime.now(UTC)
        self._parser = LineParser(zone=zone, now=self._now, format=format)
        self._module = module or source.split(".", 1)[0] or source
        self._ranks = _ranks_from(least)
        self._identity: bytes | None = None
        self._last: datetime | None = None
        self._open: _Open | None = None
        self._piece: tuple[bytes, int] | None = None  # of a line that goes on
        # Of a container's log: the stream being read, the entries of the others,
        # the beginnings of partial lines, and the time of the current line.
        self._stream = ""
        self._others: dict[str, _Open | None] = {}
        self._partial: dict[str, str] = {}
        self._at: datetime | None = None
        self.report = IngestReport(source=source, formats=self._parser.formats)

    def batches(self, size: int) -> Iterator[list[Prepared]]:
        """Yield batches of at most *size* entries until the log ends.

        One that holds much text ends earlier, so that memory stays bounded.
        """
        batch: list[Prepared] = []
        held = 0
        for entry in self._entries():
            batch.append(entry)
            held += len(entry.message) + len(entry.stack_trace or "")
            if len(batch) >= size or held > _MAX_BATCH:
                yield batch
                batch, held = [], 0
        if batch:
            yield batch

    def _entries(self) -> Iterator[Prepared]:
        yield from self.feed(self._lines, last=True)

    def feed(self, lines: Iterable[bytes], *, last: bool) -> Iterator[Prepared]:
        """Yield the entries that *lines* complete; with *last*, also the open one."""
        report = self.report
        for raw, size in self._joined(lines, last=last):
            offset = report.bytes
            report.bytes += size
            report.lines += 1
            report.truncated += size > len(raw)
            if self._identity is None:
                self._identity = self._identity_of(raw)
            line = _decode(raw)
            if line[:1] == "{" or " std" in line[19:45]:
                inner = self._unwrapped(line)
                if inner is None:
                    continue
                line = inner
            done = self._take(line, offset, raw)
            if done is not None:
                yield done
        if last:
            yield from self._ended()

    def _ended(self) -> Iterator[Prepared]:
        """Yield what is still open at the end of the log."""
        for stream, text in self._partial.items():  # cut off by a rotation
            self._switch(stream)
            raw = text.encode("utf-8", "replace")
            done = self._take(text, self.report.bytes, raw)
            if done is not None:
                yield done
        self._partial = {}
        for stream in (self._stream, *self._others):
            self._switch(stream)
            done = self._finish()
            if done is not None:
                yield done

    def _identity_of(self, first: bytes) -> bytes:
        """Return what tells this log from others: its name and its first line."""
        text = self.report.source.encode() + b"\0" + first.rstrip(b"\r\n")
        return blake2b(text, digest_size=16).digest()

    def _take(self, line: str, offset: int, raw: bytes) -> Prepared | None:
        """Begin or continue an entry with a line; return the entry that it ends."""
        header = self._parser.parse(line)
        if header is None or self._goes_on(header):
            return self._continue(header.message if header else line, offset, raw)
        if self._completes(header):
            return None
        return self._begin(header, offset, raw)

    def _unwrapped(self, line: str) -> str | None:
        """Return the application's own line, or None if its end is still to come."""
        wrapped = _unwrap(line)
        if wrapped is None:
            return line
        whole = self._partial.pop(wrapped.stream, "") + wrapped.text
        if not wrapped.whole and len(whole) < MAX_LINE:
            self._partial[wrapped.stream] = whole
            return None
        self._at = self._parser.time(wrapped.at)
        self._switch(wrapped.stream)
        return whole

    def _joined(
        self, lines: Iterable[bytes], *, last: bool
    ) -> Iterator[tuple[bytes, int]]:
        """Yield whole lines, bounded, and how many bytes each had.

        A line longer than a piece comes in several. Of an object of JSON enough is
        kept to read it, of anything else the first piece.
        """
        for piece in lines:
            if self._piece is None:
                if piece.endswith(b"\n"):
                    yield piece, len(piece)
                else:
                    self._piece = (piece, len(piece))
                continue
            kept, size = self._piece
            if kept[:1] == b"{" and size < _LONGEST_OBJECT:
                kept += piece
            elif kept[:1] == b"\0" and not kept.strip(b"\0"):
                kept = piece  # behind what copytruncate has left
            self._piece = (kept, size + len(piece))
            if piece.endswith(b"\n"):
                yield self._piece
                self._piece = None
        if last and self._piece is not None:
            yield self._piece
            self._piece = None

    def _switch(self, stream: str) -> None:
        """Go on with another stream of the container: traces do not mix."""
        if stream != self._stream:
            self._others[self._stream] = self._open
            self._open = self._others.pop(stream, None)
            self._stream = stream

    def _begin(self, header: Header, offset: int, raw: bytes) -> Prepared | None:
        """Open an entry; return the one before it."""
        done = self._finish()
        if header.timestamp is None:
            header.timestamp = self._at
        self._open = _Open(header, offset, self.report.lines, raw)
        if header.timestamp is not None and is_plausible(header.timestamp):
            self._last = header.timestamp
        return done

    def _goes_on(self, header: Header) -> bool:
        """Return whether a line is one of a trace, each with the header of the first.

        As OpenStack writes them.
        """
        current, message = self._open, header.message
        if current is None or header.timestamp is None:
            return False
        if current.trace_at is None:
            if not message.startswith("Traceback (most recent"):
                return False
        elif not (_TRACE_START.match(message) or _FRAME.match(message)) and (
            message[:2] != "  "
        ):
            return False
        one, other = current.header, header
        return (one.timestamp, one.module, one.severity) == (
            other.timestamp,
            other.module,
            other.severity,
        )

    def _completes(self, header: Header) -> bool:
        """Take the second line of java.util.logging, which has level and message."""
        current = self._open
        if current is None or current.header.severity or current.header.message:
            return False
        if header.timestamp is not None or current.more:
            return False
        current.header.severity = header.severity
        current.header.message = header.message
        return True

    def _continue(self, line: str, offset: int, raw: bytes) -> Prepared | None:
        """Add a line without a header to its entry, or begin one with it."""
        current = self._open
        report = self.report
        if not line.strip():
            if current is not None and current.more:
                current.more.append("")
            return None
        begins = _ALWAYS_NEW.match(line) is not None
        if not begins and _TRACE_START.match(line) is not None:
            begins = current is None or (
                current.header.severity not in _TRACED and not current.more
                and not current.header.message.rstrip().endswith(":")
            )  # fmt: skip
        if begins:
            ends = line.startswith(("panic", "fatal", "Fatal", "thread '"))
            severity = "CRITICAL" if ends else "ERROR"
            header = Header(None, severity, None, line.strip(), dated=False)
            done = self._begin(header, offset, raw)
            assert self._open is not None
            self._open.more.append(line)
            self._open.trace_at = 0
            return done
        if current is None or not self._belongs(line, current):
            if _DATED.match(line) is not None:
                # A header of an unknown format is no part of the entry before it.
                formats = self._parser.formats
                formats["unknown"] = formats.get("unknown", 0) + 1
                severity = guess_severity(line)
                header = Header(None, severity, None, line, dated=False)
                return self._begin(header, offset, raw)
            report.unparsed += 1
            if len(report.samples) < _SAMPLES:
                report.samples.append(mask_text(line[:200]))
            return None
        if len(current.more) >= _MAX_LINES or current.size > MAX_LINE:
            report.truncated += 1
            return None
        current.add(line)
        return None

    @staticmethod
    def _belongs(line: str, current: _Open) -> bool:
        """Return whether a line without a header continues the message of an entry."""
        if current.trace_at is not None or line[0] in " \t":
            return True
        current.unknown += 1
        return current.unknown <= _MAX_UNKNOWN and _DATED.match(line) is None

    def _finish(self) -> Prepared | None:
        """Close the entry being read, and return it if it is wanted."""
        current, self._open = self._open, None
        if current is None:
            return None
        self.report.entries += 1
        header = current.header
        severity = header.severity or (
            "ERROR"
            if current.trace_at is not None
            else guess_severity("\n".join((header.message, *current.more[:1])))
        )
        if severity not in self._ranks:
            self.report.skipped += 1
            return None
        message, trace = header.message, header.trace
        if current.more:
            at = current.trace_at
            text = current.more if at is None else current.more[:at]
            if text:
                message = "\n".join([message, *text]).strip("\n").rstrip()
            if at is not None:
                trace = "\n".join(current.more[at:]).rstrip()
                if header.message == current.more[0].strip():
                    message = _headline(current.more) or message
        context = header.context
        context["source"] = self.report.source
        context["line"] = str(current.line)
        notes: tuple[str, ...] = ()
        timestamp = header.timestamp
        if timestamp is not None and not is_plausible(timestamp):
            notes = (f"timestamp: {timestamp.isoformat()} is implausible",)
            timestamp = None
        return prepare(
            message or "(empty)",
            module=header.module or self._module,
            severity=self._ranks[severity],
            stack_trace=trace,
            context=context,
            timestamp=timestamp or self._last or self._now,
            entry_id=self._id(current),
            notes=notes,
        )

    def _id(self, current: _Open) -> UUID:
        """Return an id made of source, offset and content: the same every time.

        It begins with the entry's time where the line itself has one, as new ids
        do, so that the index grows at its end.
        """
        assert self._identity is not None
        found = blake2b(
            b"%d\0" % current.offset + current.digest.rstrip(b"\r\n"),
            digest_size=16,
            key=self._identity,
        ).digest()
        bits = int.from_bytes(found)
        at = current.header.timestamp
        if at is not None and current.header.dated and is_plausible(at):
            milliseconds = int(at.timestamp() * 1000) & ((1 << 48) - 1)
            bits = milliseconds << 80 | bits & ((1 << 80) - 1)
        bits = bits & ~(0xF << 76) | 0x8 << 76  # version 8: of our own making
        bits = bits & ~(0x3 << 62) | 0x2 << 62
        return UUID(int=bits)


def _ranks_from(least: Severity | None) -> dict[str, Severity]:
    levels = list(Severity)
    return {
        level.value: level for level in levels[levels.index(least) if least else 0 :]
    }


def _headline(lines: list[str]) -> str | None:
    """Return the line of a trace that says what happened.

    Python's last one; Rust's second one, since a panic begins with its place.
    """
    if lines[0].startswith("thread '"):
        text = lines[1].strip() if lines[0].endswith(":") and lines[1:] else ""
        return f"panicked: {text}" if text else None
    if (
        not lines[0]
        .lstrip(" +|")
        .startswith(("Traceback", "Exception Group Traceback"))
    ):
        return None
    for line in reversed(lines):
        text = line.strip(" |+-")
        if text and not line.startswith("    ") and not text.startswith("File "):
            return text
    return None


def _decode(raw: bytes) -> str:
    try:
        line = raw.decode()
    except UnicodeDecodeError:
        try:
            line = raw.decode("cp1252")
        except UnicodeDecodeError:
            line = raw.decode("latin-1")
    line = line.rstrip("\r\n")
    if line[:1] in "\ufeff\x00":  # a mark, or what copytruncate leaves in front
        line = line.lstrip("\ufeff\x00")
    return _ANSI.sub("", line) if "\x1b" in line else line
