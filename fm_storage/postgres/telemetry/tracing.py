"""OpenTelemetry spans and durations of statements, if the application has them.

Apart because opentelemetry-api is an extra: without it, or without a provider,
``active`` stays False and a statement costs nothing more. A span lasts as long
as the awaited call and follows the semantic conventions for databases.

See https://opentelemetry.io/docs/specs/semconv/database/postgresql/.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.postgres.errors import translate
from fm_storage.postgres.telemetry import metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    import asyncpg

__all__ = ["Observed", "active", "switch_on", "traced"]

active = False
_tracer: Any = None
_kind: Any = None
_error: Any = None


def switch_on() -> bool:
    """Look for providers of tracers and meters; called when a pool opens.

    Returns whether statements are observed from now on. The default providers,
    which drop everything, count as none.
    """
    global active, _tracer, _kind, _error  # noqa: PLW0603 - process-wide, like the providers themselves
    measured = metrics.switch_on()
    _tracer = None
    try:
        from opentelemetry import trace
    except ImportError:
        return False
    provider = trace.get_tracer_provider()
    if not isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        _tracer = provider.get_tracer("fm_storage")
        _kind = trace.SpanKind.CLIENT
        _error = trace.StatusCode.ERROR
    active = measured or _tracer is not None
    return active


class Observed:
    """One statement under way: its span, its clock. Parameters are never recorded."""

    __slots__ = ("_attributes", "_span", "_started")

    def __init__(self, sql: str, raw: asyncpg.Connection[Any] | None = None) -> None:
        operation = sql.split(None, 1)[0].upper() if sql.strip() else "EMPTY"
        self._attributes: dict[str, Any] = {
            "db.system.name": "postgresql",
            "db.operation.name": operation,
        }
        params = getattr(raw, "_params", None)
        address = getattr(raw, "_addr", None)
        namespace = getattr(params, "database", None)
        if namespace:
            self._attributes["db.namespace"] = namespace
        if isinstance(address, tuple):
            (
                self._attributes["server.address"],
                self._attributes["server.port"],
            ) = address[:2]
        elif address:
            self._attributes["server.address"] = address
        self._span = None
        if _tracer is not None:
            self._span = _tracer.start_span(
                f"{operation} {namespace}" if namespace else operation,
                kind=_kind,
                attributes={**self._attributes, "db.query.text": sql},
            )
        self._started = monotonic()

    def fail(self, error: BaseException) -> None:
        """Note why the statement failed."""
        state = getattr(error, "sqlstate", None)
        why = {"error.type": state or type(error).__name__}
        if state:
            why["db.response.status_code"] = state
        self._attributes |= why
        if self._span is not None:
            self._span.set_attributes(why)
            self._span.set_status(_error, type(error).__name__)

    def end(self) -> None:
        """Note that the awaited call has ended."""
        if metrics.active:
            metrics.operation(monotonic() - self._started, self._attributes)
        if self._span is not None:
            self._span.end()


def traced(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Return *call*, observed."""

    async def run(raw: Any, sql: str, *args: Any, timeout: float | None) -> Any:
        observed = Observed(sql, raw)
        try:
            return await call(raw, sql, *args, timeout=timeout)
        except BaseException as exc:  # noted, and passed on
            observed.fail(translate(exc))
            raise
        finally:
            observed.end()

    return run
