"""An error on its way into the catalogue: masked, repaired, fingerprinted.

Every way in (exceptions, messages, entries, log files, the spool) ends in the row
that is made here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple
from uuid import UUID

import orjson

from fm_storage.catalog.record.fingerprint import (
    code_of_template,
    fingerprint_of_template,
    normalise,
)
from fm_storage.catalog.record.frames import exception_type
from fm_storage.catalog.record.redact import (
    MAX_TEXT,
    clean_context,
    is_plain,
    mask_text,
    repair_text,
)
from fm_storage.repositories.identifiers import uuid7
from fm_storage.repositories.severity import Severity

if TYPE_CHECKING:
    from fm_storage._typing import JsonObject
    from fm_storage.repositories import ErrorEntry

RANKS = {
    Severity.DEBUG: 10,
    Severity.INFO: 20,
    Severity.WARNING: 30,
    Severity.ERROR: 40,
    Severity.CRITICAL: 50,
}
"""Severities as numbers that compare."""

REPAIRED = "_repaired"
"""Key of ``manager_context`` that lists what had to be changed."""

_MAX_MODULE, _MAX_CODE = 255, 100
_MAX_MESSAGE = 16 * 1024
_COMMON = 16 * 1024  # characters of a trace that is worth remembering
_NO_MODULE = "unknown"
_FIRST_YEAR, _LAST_YEAR = 1970, 2199


class Origin(NamedTuple):
    """Where an error came from; None for what is not known.

    Attributes:
        trace_id: Trace of OpenTelemetry, 32 hexadecimal digits.
        span_id: The span that was active, 16 hexadecimal digits.
        release: ``catalog.release`` of the configuration.
        environment: ``catalog.environment`` of the configuration.
    """

    trace_id: str | None = None
    span_id: str | None = None
    release: str | None = None
    environment: str | None = None


@dataclass(frozen=True, slots=True)
class Recorded:
    """What became of an error.

    Attributes:
        entry: The error as it is stored: masked, repaired, with its id.
        durable: True only if PostgreSQL has committed it. False means that it
            lies in the spool on this machine and will be replayed by id.
        repairs: What had to be changed so that it could be stored.
        origin: Its trace, release and environment, where any is known.
        counted: Whether it was only counted, and not stored, because its group had
            reached ``catalog.group_limit`` in this minute; never durable.
    """

    entry: ErrorEntry
    durable: bool
    repairs: tuple[str, ...] = ()
    origin: Origin | None = None
    counted: bool = False

    @property
    def id(self) -> UUID:
        """Identity of the entry."""
        return self.entry.id


@cache
def _entity() -> type[ErrorEntry]:
    from fm_storage.repositories import ErrorEntry  # not in a process that reads logs

    return ErrorEntry


class Prepared(NamedTuple):
    """One row of the catalogue, ready for the statement that stores it.

    A tuple, because a log holds millions, and one is made in a fifth of the time
    of a frozen dataclass.
    """

    id: UUID
    timestamp: datetime
    message: str
    stack_trace: str | None
    module: str
    error_code: str
    context: JsonObject | None
    severity: Severity
    fingerprint: int
    template: str
    origin: Origin | None = None

    @property
    def entry(self) -> ErrorEntry:
        """The row as the repository's entity."""
        return _entity()(
            self.message,
            self.module,
            self.error_code,
            self.severity,
            self.stack_trace,
            self.context,
            self.timestamp,
            self.id,
        )

    @property
    def repairs(self) -> tuple[str, ...]:
        """What had to be changed so that the row could be stored."""
        found = (self.context or {}).get(REPAIRED)
        return tuple(map(str, found)) if isinstance(found, list) else ()

    def recorded(self, *, durable: bool, counted: bool = False) -> Recorded:
        """Return what became of the row."""
        return Recorded(self.entry, durable, self.repairs, self.origin, counted)

    def to_json(self) -> bytes:
        """Return one line of JSON that ``from_json()`` reads back."""
        return orjson.dumps(
            (
                str(self.id),
                self.timestamp.isoformat(),
                self.message,
                self.stack_trace,
                self.module,
                self.error_code,
                self.context,
                self.severity,
                self.fingerprint,
                self.template,
                self.origin and tuple(self.origin),
            )
        )

    @classmethod
    def from_json(cls, line: bytes) -> Prepared:
        """Read what ``to_json()`` wrote.

        Raises:
            ValueError: The line is torn or was not written by ``to_json()``.
        """
        fields = orjson.loads(line)
        known = range(len(cls._fields) - 1, len(cls._fields) + 1)
        if not isinstance(fields, list) or len(fields) not in known:
            raise ValueError("not an entry of the spool")
        if len(fields) == len(cls._fields) and fields[-1] is not None:
            fields[-1] = Origin(*fields[-1])
        fields[0] = UUID(fields[0])
        fields[1] = datetime.fromisoformat(fields[1])
        fields[7] = Severity(fields[7])
        return cls(*fields)


CONTEXT = Prepared._fields.index("context")
_SEVERITY = Prepared._fields.index("severity")
RANK = Prepared._fields.index("origin")  # where columns have it


def columns_of(rows: Sequence[Prepared]) -> list[list[Any]]:
    """Return the parameters of the bulk statement: columns, in order of id.

    In one order everywhere, so that two batches with common rows cannot
    deadlock; a row that occurs twice counts once.
    """
    distinct = {row.id.int: row for row in rows}  # numbers compare at once
    if not distinct:
        return [[] for _ in range(len(Prepared._fields) + 1)]
    ordered = [distinct[key] for key in sorted(distinct)]
    columns: list[list[Any]] = [list(column) for column in zip(*ordered, strict=True)]
    columns[CONTEXT] = [
        None if context is None else json_text(context) for context in columns[CONTEXT]
    ]
    severities = columns[_SEVERITY]
    columns[_SEVERITY] = [severity.value for severity in severities]
    columns.insert(RANK, [RANKS[severity] for severity in severities])
    return columns


def line_of(columns: Sequence[Sequence[Any]], at: int) -> str:
    """Return the line of a log at which the entry of a row begins."""
    return str(orjson.loads(columns[CONTEXT][at] or "{}").get("line", "?"))


def json_text(value: Mapping[str, Any]) -> str:
    """Return *value* as JSON."""
    return orjson.dumps(value).decode()


def is_plausible(timestamp: datetime) -> bool:
    """Return whether something can have happened then: in the years 1970 to 2199.

    Others stand for *no time* (the zero value of Go and .NET is in the year 1), or
    leave with their offset what a ``timestamptz`` holds.
    """
    return _FIRST_YEAR <= timestamp.year <= _LAST_YEAR


def prepare(
    message: str,
    *,
    module: str | None = None,
    error_code: str | None = None,
    severity: Severity = Severity.ERROR,
    stack_trace: str | None = None,
    context: Mapping[Any, Any] | None = None,
    timestamp: datetime | None = None,
    entry_id: UUID | None = None,
    notes: Sequence[str] = (),
    origin: Origin | None = None,
) -> Prepared:
    """Return the row for an error, whatever its parts hold; never raises.

    Secrets are masked. What PostgreSQL cannot store (NUL, lone surrogates, text
    or context without bound, an over-long code) is repaired, and the repairs are
    listed under ``_repaired`` in the context. So is a time at which nothing can
    have happened.
    """
    done = list(notes)
    message, stack_trace, plain = _cleaned(message, stack_trace, context, done)
    module = _short(module or _NO_MODULE, "module", done, _MAX_MODULE)
    template = normalise(message)
    error_code = _classified(error_code, stack_trace, template, done)
    if timestamp is None:
        timestamp = datetime.now(UTC)
    elif not is_plausible(timestamp):
        done.append(f"timestamp: {timestamp.isoformat()} is implausible, taken as now")
        timestamp = datetime.now(UTC)
    elif timestamp.tzinfo is None:
        timestamp = timestamp.replace(tzinfo=UTC)
        done.append("timestamp: no zone, taken as UTC")
    found = fingerprint_of_template(
        template, module=module, error_code=error_code, stack_trace=stack_trace
    )
    return Prepared(
        entry_id or uuid7(),
        timestamp,
        message,
        stack_trace,
        module,
        error_code,
        {**(plain or {}), REPAIRED: list(done)} if done else plain,
        severity,
        found.value,
        found.template,
        origin,
    )


def _cleaned(
    message: str,
    stack_trace: str | None,
    context: Mapping[Any, Any] | None,
    done: list[str],
) -> tuple[str, str | None, JsonObject | None]:
    """Repair and mask the texts; note in *done* what was repaired."""
    as_it_is = is_plain(message, context)
    if not as_it_is:
        message, changes = _whole(message, "message", _MAX_MESSAGE)
        done.extend(changes)
    if stack_trace is not None:
        whole = _common_whole if len(stack_trace) < _COMMON else _whole
        stack_trace, changes = whole(stack_trace)
        done.extend(changes)
    plain: JsonObject | None = None
    if context:
        plain, changes = (dict(context), ()) if as_it_is else clean_context(context)
        done.extend(changes)
    return message, stack_trace, plain


def _classified(
    error_code: str | None, stack_trace: str | None, template: str, done: list[str]
) -> str:
    """Return the code of the kind of error: the one given, or one of our making."""
    if error_code:
        return _short(error_code, "error_code", done, _MAX_CODE)
    return (exception_type(stack_trace) or code_of_template(template))[:_MAX_CODE]


def _whole(
    text: str, field: str = "stack_trace", limit: int = MAX_TEXT
) -> tuple[str, tuple[str, ...]]:
    """Repair, then mask: a masked text is never longer than a whole one may be."""
    repaired, changes = repair_text(text, limit=limit)
    return mask_text(repaired), tuple(f"{field}: {change}" for change in changes)


# The same fault at the same place has the same trace, again and again.
_common_whole = lru_cache(maxsize=128)(_whole)


def _short(text: str, field: str, done: list[str], limit: int) -> str:
    if len(text) <= limit and text.isascii() and "\x00" not in text:
        return text
    repaired, changes = repair_text(text, limit=1 << 20)
    done.extend(f"{field}: {change}" for change in changes)
    if len(repaired) > limit:
        done.append(f"{field}: cut from {len(repaired)} characters")
        repaired = repaired[: limit - 1] + "…"
    return repaired
