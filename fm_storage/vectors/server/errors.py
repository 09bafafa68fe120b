"""The client's eight kinds of exceptions, and local mode's texts, as our errors.

The only place that knows them; no exception of the client passes it. Loaded
together with the client.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import grpc
from qdrant_client.common.client_exceptions import (
    QdrantException,
    ResourceExhaustedResponse,
)
from qdrant_client.http.exceptions import (
    ResponseHandlingException,
    UnexpectedResponse,
)

from fm_storage.errors import (
    CollectionNotFound,
    DimensionMismatch,
    InvalidRecord,
    InvalidVector,
    RateLimited,
    StorageError,
    VectorStoreUnavailable,
)
from fm_storage.vectors.points import no_point

_DIMENSIONS = re.compile(r"expected dim: (\d+), got (\d+)")
_DATE = re.compile(r"not a valid integer: (.*)", re.DOTALL)
_NO_POINT = re.compile(r"(?:No point with id|Point) (\S+)(?: is)?(?: not)? found")
_EXISTS = ("already exists",)
_SHOWN = 300
_STRICT = "Help:"
"""In the text of strict mode, whose refusals some versions call forbidden."""


class AlreadyExists(Exception):
    """The name is taken; the caller knows whether that is an error."""


@contextmanager
def readable(operation: str, collection: str | None) -> Iterator[None]:
    """Name an answer that has not the form of Qdrant's: another server is there."""
    try:
        yield
    except (AttributeError, LookupError, TypeError) as exc:
        what = f"the answer is none of Qdrant's ({exc!r}); check qdrant.url"
        raise _unavailable(what, operation, collection, retryable=False) from exc


@contextmanager
def translated(operation: str, collection: str | None) -> Iterator[None]:
    """Raise our errors for whatever the client raises inside."""
    try:
        yield
    except (StorageError, AlreadyExists):
        raise
    except (
        UnexpectedResponse,
        ResponseHandlingException,
        QdrantException,
        grpc.RpcError,
        grpc.aio.UsageError,
        ValueError,
        RuntimeError,
        NotImplementedError,
    ) as exc:
        raise _translate(exc, operation, collection) from exc


def _translate(exc: Exception, operation: str, collection: str | None) -> Exception:
    if isinstance(exc, UnexpectedResponse):
        return _from_status(exc, operation, collection)
    if isinstance(exc, ResourceExhaustedResponse):
        return _limited(operation, collection, float(exc.retry_after_s))
    if isinstance(exc, ResponseHandlingException):
        return _from_transport(exc, operation, collection)
    if isinstance(exc, QdrantException):
        found = _DATE.search(str(exc))
        return _limited(operation, collection, _until(found[1]) if found else None)
    if isinstance(exc, grpc.aio.AioRpcError):
        return _from_code(exc, operation, collection)
    if isinstance(exc, ValueError):
        return _from_text(str(exc), operation, collection)
    if isinstance(exc, NotImplementedError):
        return InvalidRecord(f"vector store: {operation} is not possible here ({exc})")
    return _unavailable(
        f"the client failed ({type(exc).__name__}: {exc})",
        operation,
        collection,
        retryable=False,
    )


def _until(date: str) -> float | None:
    """Return the seconds until an HTTP date, None where it is none."""
    try:
        moment = parsedate_to_datetime(date.strip())
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())


def _limited(
    operation: str, collection: str | None, seconds: float | None
) -> RateLimited:
    wish = "" if seconds is None else f" and asks for {seconds:.0f} s of patience"
    return RateLimited(
        f"vector store: the server limits the rate of {operation}{wish}; "
        "send less, or raise qdrant.timeout",
        operation=operation,
        collection=collection,
        retry_after=seconds,
    )


def _unavailable(
    what: str, operation: str, collection: str | None, *, retryable: bool
) -> VectorStoreUnavailable:
    remedy = "try again later" if retryable else "see the server's log"
    return VectorStoreUnavailable(
        f"vector store: {operation}: {what}; {remedy}",
        operation=operation,
        collection=collection,
        retryable=retryable,
    )


def _too_large(operation: str) -> InvalidRecord:
    return InvalidRecord(
        f"vector store: {operation}: the server refuses a request of this size; "
        "lower qdrant.max_batch_bytes"
    )


def _from_transport(
    exc: ResponseHandlingException, operation: str, collection: str | None
) -> Exception:
    source = exc.source
    name = type(source).__name__
    if name == "ValidationError":
        what = "the answer cannot be read"
        return _unavailable(what, operation, collection, retryable=False)
    if name in {"ProtocolError", "LocalProtocolError", "UnsupportedProtocol"}:
        what = f"{name}: {source}"
        return _unavailable(what, operation, collection, retryable=False)
    if isinstance(source, RuntimeError):  # the client was closed
        what = f"{source}"
        return _unavailable(what, operation, collection, retryable=False)
    # str() of a timeout is empty: its type says more.
    message = f"{name}: {source}".removesuffix(": ")
    return _unavailable(message, operation, collection, retryable=True)


def _from_status(
    exc: UnexpectedResponse, operation: str, collection: str | None
) -> Exception:
    status = exc.status_code or 0
    text = exc.content.decode(errors="replace")[:_SHOWN]
    try:
        reason = exc.structured()["status"]["error"]
        text = str(reason)[:_SHOWN]
    except (ValueError, KeyError, TypeError):
        pass
    if status == 404:
        return _missing(text, operation, collection)
    if status == 409:
        return AlreadyExists(text)
    if status in {400, 422} or (status == 403 and _STRICT in text):
        return _from_text(text, operation, collection)
    if status in {401, 403}:
        what = f"the server refuses access ({status} {text}); set qdrant.api_key"
        return _unavailable(what, operation, collection, retryable=False)
    if 300 <= status < 400:
        where = exc.headers.get("Location") if exc.headers else None
        what = f"the server answered {status} and leads to {where}; correct qdrant.url"
        return _unavailable(what, operation, collection, retryable=False)
    if status == 413:
        return _too_large(operation)
    if status == 429:
        wish = exc.headers.get("Retry-After") if exc.headers else None
        return _limited(operation, collection, _until(wish) if wish else None)
    what = f"the server answered {status} ({text})"
    return _unavailable(
        what,
        operation,
        collection,
        retryable=status >= 500 or status == 408,
    )


def _from_code(
    exc: grpc.aio.AioRpcError, operation: str, collection: str | None
) -> Exception:
    code, text = exc.code(), exc.details() or ""
    if code == grpc.StatusCode.NOT_FOUND:
        return _missing(text, operation, collection)
    if code == grpc.StatusCode.ALREADY_EXISTS:
        return AlreadyExists(text)
    if code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.OUT_OF_RANGE} or (
        code == grpc.StatusCode.PERMISSION_DENIED and _STRICT in text
    ):
        return _from_text(text, operation, collection)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED and "larger than" in text:
        return _too_large(operation)
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        wish = dict(exc.trailing_metadata() or ()).get("retry-after")
        seconds = None
        if wish is not None:
            given = wish.decode() if isinstance(wish, bytes) else str(wish)
            seconds = float(given) if given.isdecimal() else _until(given)
        return _limited(operation, collection, seconds)
    if code in {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED}:
        what = f"the server refuses access ({text[:_SHOWN]}); set qdrant.api_key"
        return _unavailable(what, operation, collection, retryable=False)
    passing = code in {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    }
    what = f"{code.name} ({text[:_SHOWN]})"
    return _unavailable(what, operation, collection, retryable=passing)


def _missing(text: str, operation: str, collection: str | None) -> Exception:
    point = _NO_POINT.search(text)
    if point is not None:
        return no_point(collection or "", point[1])
    if "route" in text.lower() or not text:
        what = "the server does not know this call; is it Qdrant 1.16 or newer?"
        return _unavailable(what, operation, collection, retryable=False)
    return CollectionNotFound(collection or "", operation=operation)


def _from_text(text: str, operation: str, collection: str | None) -> Exception:
    name, lower = collection or "", text.lower()
    if any(mark in lower for mark in _EXISTS):
        return AlreadyExists(text)
    if _NO_POINT.search(text):
        return _missing(text, operation, collection)
    if "not found" in lower and "collection" in lower:
        return CollectionNotFound(name, operation=operation)
    found = _DIMENSIONS.search(text)
    if found is not None:
        return DimensionMismatch(name, expected=int(found[1]), got=int(found[2]))
    if "vector name" in lower or "not existing vector" in lower:
        return InvalidVector(f"collection {name!r}: {text}", collection=name)
    return InvalidRecord(f"collection {name!r}: {operation} refused: {text}")
