"""OpenTelemetry spans and durations of statements, if the application has them.

opentelemetry-api is an extra: without it, or without a provider, ``state.active``
stays False and a statement costs nothing more. A span lasts as long as the
awaited call and follows the semantic conventions for databases.

See https://opentelemetry.io/docs/specs/semconv/database/postgresql/.
"""

from __future__ import annotations

from time import monotonic
from typing import TYPE_CHECKING, Any

from fm_storage.postgres.errors import translate
from fm_storage.postgres.telemetry import metrics
from fm_storage.postgres.telemetry.text import described

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping


class _State:
    """Whether and how statements are observed, for the whole process."""

    __slots__ = ("active", "error", "kind", "tracer")

    def __init__(self) -> None:
        self.active = False
        self.tracer: Any = None
        self.kind: Any = None
        self.error: Any = None


state = _State()


def switch_on() -> bool:
    """Look for providers of tracers and meters; called when a pool opens.

    Returns whether statements are observed from now on. The default providers,
    which drop everything, count as none.
    """
    measured = metrics.switch_on()
    state.tracer = None
    try:
        from opentelemetry import trace
    except ImportError:
        return False
    provider = trace.get_tracer_provider()
    if not isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        state.tracer = provider.get_tracer("fm_storage")
        state.kind = trace.SpanKind.CLIENT
        state.error = trace.StatusCode.ERROR
    state.active = measured or state.tracer is not None
    return state.active


class Observed:
    """One statement under way: its span, its clock. Parameters are never recorded."""

    __slots__ = ("_attributes", "_span", "_started")

    def __init__(self, sql: str, server: Mapping[str, Any]) -> None:
        operation, text = described(sql)
        self._attributes: dict[str, Any] = {
            "db.system.name": "postgresql",
            "db.operation.name": operation,
            **server,
        }
        self._span = None
        if state.tracer is not None:
            namespace = server.get("db.namespace")
            self._span = state.tracer.start_span(
                f"{operation} {namespace}" if namespace else operation,
                kind=state.kind,
                attributes={**self._attributes, "db.query.text": text},
            )
        self._started = monotonic()

    def fail(self, error: BaseException) -> None:
        """Note why the statement failed."""
        code = getattr(error, "sqlstate", None)
        why = {"error.type": code or type(error).__name__}
        if code:
            why["db.response.status_code"] = code
        self._attributes |= why
        if self._span is not None:
            self._span.set_attributes(why)
            self._span.set_status(state.error, type(error).__name__)

    def end(self) -> None:
        """Note that the awaited call has ended."""
        metrics.operation(monotonic() - self._started, self._attributes)
        if self._span is not None:
            self._span.end()


def traced(
    call: Callable[..., Awaitable[Any]], server_of: Callable[[Any], Mapping[str, Any]]
) -> Callable[..., Awaitable[Any]]:
    """Return *call*, observed; *server_of* describes its connection's server."""

    async def run(raw: Any, sql: str, *args: Any, timeout: float | None) -> Any:
        observed = Observed(sql, server_of(raw))
        try:
            return await call(raw, sql, *args, timeout=timeout)
        except BaseException as exc:  # noted, and passed on
            observed.fail(translate(exc))
            raise
        finally:
            observed.end()

    return run
