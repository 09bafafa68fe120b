"""Spans that last as long as the call, where OpenTelemetry is installed and used.

Apart from the store, because the API is optional and must cost nothing when it
is absent: it is used only once the application itself has imported it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

__all__ = ["span"]


def span(
    operation: str, collection: str | None, *, engine: str
) -> AbstractContextManager[Any]:
    """Return a context manager that is a client span, or does nothing."""
    trace = sys.modules.get("opentelemetry.trace")
    if trace is None:
        return nullcontext()
    return _span(trace, operation, collection, engine)


@contextmanager
def _span(
    trace: Any,
    operation: str,
    collection: str | None,
    engine: str,
) -> Iterator[Any]:
    attributes = {
        "db.system.name": "qdrant",
        "db.operation.name": operation,
        "fm_storage.engine": engine,
    }
    if collection is not None:
        attributes["db.collection.name"] = collection
    name = operation if collection is None else f"{operation} {collection}"
    tracer = trace.get_tracer("fm_storage")
    with tracer.start_as_current_span(
        name, kind=trace.SpanKind.CLIENT, attributes=attributes
    ) as current:
        yield current
