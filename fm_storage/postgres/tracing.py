"""OpenTelemetry spans around statements, if the application has them.

Apart because opentelemetry-api is an extra: without it, or without a provider,
``active`` stays False and a statement costs nothing more. A span lasts as long
as the awaited call and follows the semantic conventions for databases.

See https://opentelemetry.io/docs/specs/semconv/database/postgresql/.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fm_storage.postgres.errors import translate

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

__all__ = ["active", "fail", "start", "switch_on", "traced"]

active = False
_tracer: Any = None
_kind: Any = None
_error: Any = None


def switch_on() -> bool:
    """Look for a tracer provider; called when a pool opens.

    Returns whether spans are made from now on. The default provider, which
    drops everything, counts as none.
    """
    global active, _tracer, _kind, _error  # noqa: PLW0603 - process-wide, like the provider itself
    try:
        from opentelemetry import trace  # noqa: PLC0415 - an extra
    except ImportError:
        return False
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        active = False
        return False
    _tracer = provider.get_tracer("fm_storage")
    _kind = trace.SpanKind.CLIENT
    _error = trace.StatusCode.ERROR
    active = True
    return True


def start(sql: str, raw: asyncpg.Connection[Any] | None = None) -> Any:  # noqa: ANN401 - a span
    """Start the span of one statement. Parameters are never recorded."""
    operation = sql.split(None, 1)[0].upper() if sql.strip() else "EMPTY"
    attributes: dict[str, Any] = {
        "db.system.name": "postgresql",
        "db.operation.name": operation,
        "db.query.text": sql,
    }
    params = getattr(raw, "_params", None)
    address = getattr(raw, "_addr", None)
    namespace = getattr(params, "database", None)
    if namespace:
        attributes["db.namespace"] = namespace
    if isinstance(address, tuple):
        attributes["server.address"], attributes["server.port"] = address[:2]
    elif address:
        attributes["server.address"] = address
    name = f"{operation} {namespace}" if namespace else operation
    return _tracer.start_span(name, kind=_kind, attributes=attributes)


def fail(span: Any, error: BaseException) -> None:  # noqa: ANN401 - a span
    """Note on *span* why its statement failed."""
    state = getattr(error, "sqlstate", None)
    span.set_attribute("error.type", state or type(error).__name__)
    if state:
        span.set_attribute("db.response.status_code", state)
    span.set_status(_error, type(error).__name__)


def traced(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return *call* with a span around it."""

    async def run(raw: Any, sql: str, *args: Any, timeout: float | None) -> Any:  # noqa: ANN401 - the driver's
        span = start(sql, raw)
        try:
            return await call(raw, sql, *args, timeout=timeout)
        except BaseException as exc:
            fail(span, translate(exc))
            raise
        finally:
            span.end()

    return run
