"""The driver's errors, translated once into the tree of ``fm_storage.errors``.

No other room knows the driver's errors. SQLSTATE decides, never the message text,
which is localised and changes between versions. Our messages carry neither parameter
values nor the server's DETAIL (both hold data); the original is kept as
``__cause__``.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.exceptions import OutdatedSchemaCacheError

from fm_storage.errors import (
    CheckViolated,
    ConnectionBusy,
    ConnectionFailed,
    DeadlockDetected,
    DuplicateRecord,
    ForeignKeyViolated,
    InvalidRecord,
    LockTimeout,
    NotNullViolated,
    PermissionDenied,
    QueryFailed,
    QueryTimeout,
    SerializationFailed,
    StorageError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_BY_SQLSTATE: Mapping[str, type[QueryFailed]] = {
    "23505": DuplicateRecord,
    "23P01": DuplicateRecord,
    "23503": ForeignKeyViolated,
    "23001": ForeignKeyViolated,
    "23514": CheckViolated,
    "23502": NotNullViolated,
    "42501": PermissionDenied,
    "28000": PermissionDenied,
    "28P01": PermissionDenied,
    "40001": SerializationFailed,
    "40P01": DeadlockDetected,
    "55P03": LockTimeout,
    "57014": QueryTimeout,
}
_REMEDIES: Mapping[type[QueryFailed], str] = {
    DuplicateRecord: "use upsert(), or another key",
    ForeignKeyViolated: "write the row it refers to first, or delete the rows "
    "that refer to it",
    CheckViolated: "correct the value",
    NotNullViolated: "give a value",
    PermissionDenied: "GRANT the right, or use another role",
    SerializationFailed: "run the whole transaction again (run_in_transaction())",
    DeadlockDetected: "run the whole transaction again (run_in_transaction())",
    LockTimeout: "try again later, or raise lock_timeout",
    QueryTimeout: "raise the timeout, or make the statement cheaper",
}
_LOGIN = "check user and password, and what pg_hba.conf asks for"
_RETYPED = ("42804", "42846", "42883", "42725", "42P08", "42P18")
OUTDATED = frozenset({None, "0A000", "26000", "XX000", *_RETYPED})
"""What a statement ends with that was prepared before the schema was changed; None
where the driver finds it. Only with ``retryable``."""
_LOST = frozenset({"57P01", "57P02", "57P03", "57P05", "25P03", "25P04"})
_UNKNOWN = (
    "whether the statement took effect is unknown, try again where that is harmless"
)
_PARAMETER = re.compile(r"\$(\d+)")
_BOUND = re.compile(r"[^\n()]*\$\d+[^\n()]*")
_ELEMENT = re.compile(r"element #(\d+)")


class FromCaller(Exception):
    """Carries what the caller's own code raised through the driver, untouched.

    The driver would take an OSError of a COPY source for the connection's end, and a
    TimeoutError for its own.

    Attributes:
        error: What was raised.
    """

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error


def is_callers(exc: BaseException) -> bool:
    """Whether *exc* carries what the caller's own code raised."""
    return isinstance(exc, FromCaller) or isinstance(exc.__cause__, FromCaller)


def cause_of(error: BaseException, exc: BaseException) -> BaseException | None:
    """Return what to raise *error* from: its own cause if it is the caller's."""
    return error.__cause__ if is_callers(exc) else exc


def translate(
    exc: BaseException, args: Sequence[Any] = (), *, owner: str = "postgres"
) -> BaseException:
    """Return our error for *exc*, or *exc* itself when it is not the driver's.

    Args:
        exc: What a call of the driver raised.
        args: The statement's parameters, looked at only to name the wrong one.
        owner: Name of the pool, for the message.
    """
    if isinstance(exc, FromCaller):
        return exc.error
    if isinstance(exc, StorageError):
        return _located(exc)
    if isinstance(exc, asyncpg.PostgresError):
        cause = exc.__cause__
        if isinstance(cause, asyncpg.SerializationError):  # a standby has ended it
            return _from_server(cause, args, owner)
        if isinstance(cause, FromCaller):  # a codec's, by the driver's encoder
            return cause.error
        if isinstance(exc, asyncpg.DataError) and exc.severity is None:
            return _from_encoder(exc, args)  # raised by the driver itself
        return _from_server(exc, args, owner)
    if isinstance(exc, (asyncpg.InterfaceError, asyncpg.InternalClientError)):
        return _from_driver(exc, owner)
    if isinstance(exc, (OSError, asyncio.IncompleteReadError)):
        return _from_system(exc, owner)
    return exc


def _from_system(exc: Exception, owner: str) -> StorageError:
    """Translate what the event loop and the kernel raise."""
    if isinstance(exc, TimeoutError):
        return QueryTimeout(
            f"{owner}: the statement did not end within its timeout and was "
            f"cancelled; {_REMEDIES[QueryTimeout]}"
        )
    why = getattr(exc, "strerror", None) or type(exc).__name__
    return ConnectionFailed(f"{owner}: the connection broke ({why}); {_UNKNOWN}")


def _from_server(
    exc: asyncpg.PostgresError, args: Sequence[Any], owner: str
) -> StorageError:
    state: str = exc.sqlstate or ""
    text = str(exc.args[0]) if exc.args else type(exc).__name__
    if state in {"22021", "22P05"}:
        found = explain_parameters(args)
        if found is not None:
            found.sqlstate = state
            return found
    if state[:2] == "08" or state in _LOST:
        return ConnectionFailed(
            f"{owner}: the connection broke ({text}); {_UNKNOWN}",
            sqlstate=state or None,
        )
    known = _BY_SQLSTATE.get(state)
    if known is None and state.startswith("28"):
        known = PermissionDenied
    kind = known or QueryFailed
    remedy = _LOGIN if state.startswith("28") else _REMEDIES.get(kind)
    if "ON CONFLICT" in text:
        remedy = "name the columns of a unique constraint, no deferrable or partial one"
    return kind(
        f"{owner}: {text} ({state})" + (f"; {remedy}" if remedy else ""),
        sqlstate=state or None,
        constraint=getattr(exc, "constraint_name", None),
        table=getattr(exc, "table_name", None),
        column=getattr(exc, "column_name", None),
        retryable=True
        if isinstance(exc, asyncpg.InvalidCachedStatementError)
        or is_type_gone(exc)
        or getattr(exc, "is_outdated", False)
        or state.startswith(("40", "53"))
        else None,
    )


def _from_driver(exc: Exception, owner: str) -> StorageError:
    """Translate what the driver found without asking the server."""
    if isinstance(exc, OutdatedSchemaCacheError):
        return QueryFailed(
            f"{owner}: a composite type was changed, so the rows of the statement, "
            "which ran, could not be read; run it again where that is harmless",
            retryable=True,
        )
    text = str(exc).splitlines()[0]
    if "argument" in text and "passed" in text:
        return InvalidRecord(f"parameters: {text}; pass one value for each $n")
    if "cannot exceed 32767" in text:
        return InvalidRecord(
            "parameters: a statement has room for 32,767; pass an array "
            "(= ANY($1), unnest($1)), or many rows with executemany() or "
            "copy_records()"
        )
    if "another operation" in text:
        return ConnectionBusy(
            f"{owner}: another task is running a statement on this connection; "
            "acquire one connection per task"
        )
    if "anonymous composite" in text:
        return InvalidRecord(f"parameters: {text}; cast it ($1::the_type)")
    if "no binary format" in text:
        text += "; use executemany(), or register the type with format='binary'"
    if "closed" in text:
        return ConnectionFailed(f"{owner}: the connection is closed; acquire another")
    if "composite type" in text:
        text += (
            "; select its fields, (value).*, or register_type() those that the driver "
            "does not know, with format='binary'"
        )
    return QueryFailed(f"{owner}: {text}")


def _from_encoder(exc: BaseException, args: Sequence[Any]) -> StorageError:
    """Translate a parameter's refusal by the driver's encoders."""
    if isinstance(exc.__cause__, StorageError):
        return _located(exc.__cause__, str(exc))
    return explain_parameters(args) or _wrong_type(exc, args)


def _wrong_type(exc: BaseException, args: Sequence[Any]) -> InvalidRecord:
    """Name the parameter, leave out its value."""
    text = str(exc)
    place = _PARAMETER.search(text)
    element = _ELEMENT.search(text)
    field = f"${place[1]}" if place else None
    cause = exc.__cause__
    why = type(cause).__name__ if cause is not None else "wrong number of parameters"
    if place is None:
        return InvalidRecord(
            f"parameters: {text.splitlines()[0]}; give one value for each $n"
        )
    remedy = "convert it"
    given = args[int(place[1]) - 1] if int(place[1]) <= len(args) else None
    if isinstance(given, list) and list in set(map(type, given)):
        # The driver takes lists in a list for one array of several dimensions.
        remedy += f" (for elements that are lists, texts: {field}::text[]::a_type[])"
    return InvalidRecord(
        f"parameter {field}: the value does not fit the column's type ({why}); "
        f"{remedy}",
        field=field,
        index=int(element[1]) if element else None,
    )


def _located(exc: StorageError, text: str = "") -> StorageError:
    """Add the parameter's number to an error that a codec raised."""
    place = _PARAMETER.search(text)
    if isinstance(exc, InvalidRecord) and exc.field is None and place:
        element = _ELEMENT.search(text)
        return InvalidRecord(
            f"parameter ${place[1]}: {exc}",
            field=f"${place[1]}",
            index=int(element[1]) if element else None,
        )
    return exc


def is_type_gone(exc: BaseException) -> bool:
    """Whether a type that a statement was prepared with was dropped since.

    The server finds that before it executes anything, and says so in a message that
    it never translates.
    """
    context = getattr(exc, "context", None)
    return (
        isinstance(exc, asyncpg.InternalServerError)
        and str(exc).startswith("cache lookup failed for type")
        and not getattr(exc, "internal_query", None)
        # Bind says which parameter, in the server's language; a function has a line
        # for each call.
        and (context is None or _BOUND.fullmatch(context) is not None)
    )


def is_own(exc: BaseException) -> bool:
    """Whether *exc* is about the statement itself, not from a function in it."""
    return not (getattr(exc, "context", None) or getattr(exc, "internal_query", None))


def unsent(owner: str) -> ConnectionFailed:
    """Return the error for a connection that ended before it was written to."""
    return ConnectionFailed(
        f"{owner}: the connection had ended and nothing was sent; try again"
    )


def explain_parameters(args: Sequence[Any]) -> InvalidRecord | None:
    """Return an error naming the first parameter no text column can hold."""
    for number, value in enumerate(args, 1):
        for text in _texts(value):
            if "\0" in text:
                why = "a NUL"
            else:
                try:
                    text.encode()
                except UnicodeEncodeError:
                    why = "a lone surrogate"
                else:
                    continue
            return InvalidRecord(
                f"parameter ${number}: the text holds {why}, which PostgreSQL "
                "cannot store; remove it",
                field=f"${number}",
            )
    return None


def _texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, (list, tuple)):
        return [text for item in value for text in _texts(item)]
    if isinstance(value, dict):
        return _texts([*value, *value.values()])
    return []
