"""Spans that last as long as the call, where OpenTelemetry is installed and used.

The API is optional and costs nothing when it is absent: it is used only once the
application itself has imported it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

_PORT = 6333


@contextmanager
def span(
    trace: Any, operation: str, collection: str | None, *, engine: str, url: str
) -> Iterator[Any]:
    """Make a client span with *trace*, the module ``opentelemetry.trace``."""
    attributes: dict[str, str | int] = {
        "db.system.name": "qdrant",
        "db.operation.name": operation,
        "fm_storage.engine": engine,
    }
    server = urlsplit(url)
    if server.hostname:
        attributes["server.address"] = server.hostname
        attributes["server.port"] = server.port or _PORT
    if collection is not None:
        attributes["db.collection.name"] = collection
    name = operation if collection is None else f"{operation} {collection}"
    tracer = trace.get_tracer("fm_storage")
    with tracer.start_as_current_span(
        name, kind=trace.SpanKind.CLIENT, attributes=attributes
    ) as current:
        yield current
