"""The client's eight kinds of exceptions become ours, whatever their words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any

import grpc
import httpx
import pytest
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
    RecordNotFound,
    StorageError,
    VectorStoreUnavailable,
)
from fm_storage.vectors.server.errors import AlreadyExists, translated


def answer(
    status: int, content: bytes = b"", *, patience: str | None = None
) -> UnexpectedResponse:
    """Return the client's exception for an answer."""
    headers = {} if patience is None else {"Retry-After": patience}
    return UnexpectedResponse(status, "why", content, httpx.Headers(headers))


def error(text: str) -> bytes:
    """Return a body as Qdrant writes it."""
    return f'{{"status": {{"error": "{text}"}}}}'.encode()


def code(name: str, text: str = "", *trailers: tuple[str, Any]) -> grpc.aio.AioRpcError:
    """Return gRPC's exception."""
    return grpc.aio.AioRpcError(
        getattr(grpc.StatusCode, name),
        grpc.aio.Metadata(),
        grpc.aio.Metadata(*trailers),
        text,
    )


SOON = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
DIMENSION = "Vector dimension error: expected dim: 4, got 3"
CASES: list[tuple[str, Exception, type[Exception], bool | None]] = [
    (
        "404",
        answer(404, error("Collection `a` doesn't exist")),
        CollectionNotFound,
        None,
    ),
    ("404 point", answer(404, error("No point with id 7 found")), RecordNotFound, None),
    ("404 route", answer(404), VectorStoreUnavailable, False),
    ("409", answer(409, error("it exists")), AlreadyExists, None),
    ("400", answer(400, error("Format error")), InvalidRecord, None),
    ("400 size", answer(400, error(DIMENSION)), DimensionMismatch, None),
    ("400 name", answer(400, error("Not existing vector name")), InvalidVector, None),
    (
        "400 exists",
        answer(400, error("Collection already exists")),
        AlreadyExists,
        None,
    ),
    ("401", answer(401), VectorStoreUnavailable, False),
    ("403", answer(403), VectorStoreUnavailable, False),
    ("408", answer(408), VectorStoreUnavailable, True),
    ("413", answer(413), InvalidRecord, None),
    ("418", answer(418, b"not JSON"), VectorStoreUnavailable, False),
    ("429", answer(429), RateLimited, True),
    ("429 date", answer(429, patience=SOON), RateLimited, True),
    ("500", answer(500, error("panic")), VectorStoreUnavailable, True),
    ("limited", ResourceExhaustedResponse("slow down", 3), RateLimited, True),
    ("date", QdrantException(f"not a valid integer: {SOON}"), RateLimited, True),
    ("no date", QdrantException("not a valid integer: soon"), RateLimited, True),
    (
        "timeout",
        ResponseHandlingException(httpx.ReadTimeout("")),
        VectorStoreUnavailable,
        True,
    ),
    (
        "protocol",
        ResponseHandlingException(httpx.LocalProtocolError("x")),
        VectorStoreUnavailable,
        False,
    ),
    (
        "closed",
        ResponseHandlingException(RuntimeError("client has been closed")),
        VectorStoreUnavailable,
        False,
    ),
    ("grpc 404", code("NOT_FOUND", "Collection gone"), CollectionNotFound, None),
    ("grpc taken", code("ALREADY_EXISTS"), AlreadyExists, None),
    ("grpc bad", code("INVALID_ARGUMENT", DIMENSION), DimensionMismatch, None),
    ("grpc range", code("OUT_OF_RANGE", "x"), InvalidRecord, None),
    ("grpc key", code("UNAUTHENTICATED"), VectorStoreUnavailable, False),
    ("grpc denied", code("PERMISSION_DENIED"), VectorStoreUnavailable, False),
    ("grpc deadline", code("DEADLINE_EXCEEDED"), VectorStoreUnavailable, True),
    ("grpc away", code("UNAVAILABLE"), VectorStoreUnavailable, True),
    ("grpc unknown", code("UNIMPLEMENTED", "no"), VectorStoreUnavailable, False),
    ("grpc limited", code("RESOURCE_EXHAUSTED"), RateLimited, True),
    (
        "grpc too large",
        code("RESOURCE_EXHAUSTED", "message larger than max"),
        InvalidRecord,
        None,
    ),
    ("grpc misuse", grpc.aio.UsageError("closed"), VectorStoreUnavailable, False),
    ("local text", ValueError("Collection a not found"), CollectionNotFound, None),
    ("local mode", NotImplementedError("no snapshots"), InvalidRecord, None),
    ("broken", RuntimeError("what now"), VectorStoreUnavailable, False),
]


@pytest.mark.parametrize(
    ("raised", "expected", "retryable"),
    [pytest.param(*case[1:], id=case[0].replace(" ", "_")) for case in CASES],
)
def test_exception_of_the_client_becomes_ours(
    raised: Exception,
    expected: type[Exception],
    retryable: bool | None,
) -> None:
    """Type, retryability and cause are right; the client's type never leaks."""
    with pytest.raises((StorageError, AlreadyExists)) as caught, translated("op", "a"):
        raise raised
    assert type(caught.value) is expected
    assert caught.value.__cause__ is raised
    if retryable is not None:
        assert isinstance(caught.value, VectorStoreUnavailable)
        assert caught.value.retryable is retryable
        assert caught.value.operation == "op"
        assert caught.value.collection == "a"


@pytest.mark.parametrize(
    ("raised", "seconds"),
    [
        (ResourceExhaustedResponse("x", 3), 3),
        (QdrantException(f"not a valid integer: {SOON}"), "soon"),
        (QdrantException("not a valid integer: 2020-13-45"), None),
        (code("RESOURCE_EXHAUSTED", "", ("retry-after", "7")), 7),
        (code("RESOURCE_EXHAUSTED", "", ("retry-after", SOON)), "soon"),
        (answer(429, patience=SOON), "soon"),
        (answer(429, patience="Sun, 06 Nov 1994 08:49:37 GMT"), 0),
    ],
)
def test_patience_asked_for_is_reported(
    raised: Exception, seconds: float | str | None
) -> None:
    """Retry-After is read as a number and as a date, on both wires."""
    if isinstance(seconds, str):  # what is left until that moment, by now
        left = parsedate_to_datetime(SOON) - datetime.now(UTC)
        seconds = left.total_seconds()
    with pytest.raises(RateLimited) as caught, translated("op", "a"):
        raise raised
    if seconds is None:
        assert caught.value.retry_after is None
    else:
        assert caught.value.retry_after == pytest.approx(seconds, abs=20)


def test_our_own_errors_pass() -> None:
    """What is ours already is not wrapped again."""
    ours = CollectionNotFound("a", operation="op")
    with pytest.raises(CollectionNotFound) as caught, translated("op", "a"):
        raise ours
    assert caught.value is ours
