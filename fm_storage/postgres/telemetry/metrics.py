"""OpenTelemetry metrics of pools and statements, if the application has a meter.

Apart because opentelemetry-api is an extra: without it, or without a provider,
nothing is registered and nothing is counted twice. What a pool counts anyway is
read when the application's exporter collects, so lending a connection costs
nothing more; only waits, connects and statements are recorded as they happen.

See https://opentelemetry.io/docs/specs/semconv/database/database-metrics/.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fm_storage.postgres.pool.core import PoolCore

__all__ = [
    "active",
    "connected",
    "operation",
    "switch_on",
    "unwatch",
    "waited",
    "watch",
]

_PREFIX = "db.client.connection."
_POOL = f"{_PREFIX}pool.name"
_STATE = f"{_PREFIX}state"
# The conventions' boundaries for db.client.operation.duration.
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

Attributes = dict[str, Any]
Reading = Callable[["PoolCore"], Iterable[tuple[int, Attributes]]]

active = False
_provider: Any = None
_observation: Any = None
_operation: Any = None
_wait: Any = None
_create: Any = None
# Replaced, never changed: the exporter's thread reads it.
_watched: tuple[weakref.ref[PoolCore], ...] = ()


def _count(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    used = len(lender.lent) + len(lender.mending)
    return ((used, {_STATE: "used"}), (len(lender.idle), {_STATE: "idle"}))


def _smallest(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    return ((lender.config.min_size, {}),)


def _largest(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    return ((lender.config.max_size, {}),)


def _pending(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    return ((lender.waiting, {}),)


def _timeouts(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    return ((lender.counters.timeouts, {}),)


def _acquired(lender: PoolCore) -> Iterable[tuple[int, Attributes]]:
    return ((lender.counters.at_once + lender.counters.waited, {}),)


# Name, kind, unit, what it is, how it is read.
_OBSERVED: tuple[tuple[str, str, str, str, Reading], ...] = (
    (
        f"{_PREFIX}count",
        "up_down_counter",
        "{connection}",
        "Connections by what they are doing.",
        _count,
    ),
    (
        f"{_PREFIX}idle.min",
        "up_down_counter",
        "{connection}",
        "Connections kept open while idle.",
        _smallest,
    ),
    (
        f"{_PREFIX}idle.max",
        "up_down_counter",
        "{connection}",
        "Idle connections at most.",
        _largest,
    ),
    (
        f"{_PREFIX}max",
        "up_down_counter",
        "{connection}",
        "Connections at most.",
        _largest,
    ),
    (
        f"{_PREFIX}pending_requests",
        "up_down_counter",
        "{request}",
        "Callers that wait for a connection.",
        _pending,
    ),
    (
        f"{_PREFIX}timeouts",
        "counter",
        "{timeout}",
        "Callers that got no connection in time.",
        _timeouts,
    ),
    (
        "fm_storage.pool.acquired",
        "counter",
        "{acquisition}",
        "Connections lent, those that nobody had to wait for included.",
        _acquired,
    ),
)


def switch_on() -> bool:
    """Look for a meter provider; called when a pool opens.

    Returns whether anything is measured from now on. The default provider, which
    drops everything, counts as none.
    """
    global active, _provider, _observation, _operation, _wait, _create  # noqa: PLW0603 - process-wide, like the provider itself
    try:
        from opentelemetry import metrics
    except ImportError:
        return False
    provider = metrics.get_meter_provider()
    # The default one has no public name.
    if (
        isinstance(provider, metrics.NoOpMeterProvider)
        or "Proxy" in type(provider).__name__
    ):
        active = False
        return False
    if provider is not _provider:
        _provider, _observation = provider, metrics.Observation
        meter = provider.get_meter("fm_storage")
        for name, kind, unit, what, reading in _OBSERVED:
            make = getattr(meter, f"create_observable_{kind}")
            make(name, callbacks=[_reader(reading)], unit=unit, description=what)
        _operation = _histogram(
            meter, "db.client.operation.duration", "Duration of a statement."
        )
        _wait = _histogram(
            meter,
            f"{_PREFIX}wait_time",
            "How long callers waited that were not lent a connection at once.",
        )
        _create = _histogram(
            meter, f"{_PREFIX}create_time", "How long it took to connect."
        )
    active = True
    return True


def _histogram(meter: Any, name: str, what: str) -> Any:
    return meter.create_histogram(
        name,
        unit="s",
        description=what,
        explicit_bucket_boundaries_advisory=_SECONDS,
    )


def _reader(reading: Reading) -> Callable[[Any], list[Any]]:
    """Return a callback that sums *reading* over the pools of each name."""

    def read(_options: object) -> list[Any]:
        sums: dict[tuple[tuple[str, Any], ...], int] = defaultdict(int)
        for reference in _watched:
            lender = reference()
            if lender is None:
                continue
            for value, attributes in reading(lender):
                sums[(_POOL, lender.name), *attributes.items()] += value
        return [_observation(value, dict(key)) for key, value in sums.items()]

    return read


def watch(lender: PoolCore) -> None:
    """Show a pool from now on."""
    global _watched  # noqa: PLW0603 - see its comment
    _watched = (*(r for r in _watched if r() is not None), weakref.ref(lender))


def unwatch(lender: PoolCore) -> None:
    """Show a pool no longer."""
    global _watched  # noqa: PLW0603 - see its comment
    _watched = tuple(r for r in _watched if r() not in {None, lender})


def waited(pool: str, seconds: float) -> None:
    """Note that a caller had to wait for its connection."""
    if active:
        _wait.record(seconds, {_POOL: pool})


def connected(pool: str, seconds: float) -> None:
    """Note that a connection was made."""
    if active:
        _create.record(seconds, {_POOL: pool})


def operation(seconds: float, attributes: Mapping[str, Any]) -> None:
    """Note how long a statement took, by *attributes* that are few in number."""
    _operation.record(seconds, attributes)
