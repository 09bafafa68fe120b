"""OpenTelemetry metrics of pools and statements, if the application has a meter.

opentelemetry-api is an extra: without it, or without a provider, nothing is
registered and nothing is counted twice. What a pool counts anyway is read when
the application's exporter collects, so that acquiring costs nothing more; only
waits, connects and statements are recorded as they happen.

See https://opentelemetry.io/docs/specs/semconv/database/database-metrics/.
"""

from __future__ import annotations

import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from operator import add
from typing import Any

from fm_storage.postgres.statistics import PoolStatistics

_PREFIX = "db.client.connection."
_POOL = f"{_PREFIX}pool.name"
_STATE = f"{_PREFIX}state"
# The conventions' boundaries for db.client.operation.duration.
_SECONDS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)

Reading = Callable[[PoolStatistics, int, int], Iterable[tuple[float, str | None]]]
"""From a pool's numbers and its two limits to values and what they are in."""


class _State:
    """What is measured, for the whole process, like the provider itself."""

    def __init__(self) -> None:
        self.active = False
        self.provider: Any = None
        self.observation: Any = None
        self.operation: Any = None
        self.wait: Any = None
        self.create: Any = None
        # Replaced, never changed: the exporter's thread reads it.
        self.watched: tuple[tuple[_Source, int, int], ...] = ()


_Source = weakref.WeakMethod[Callable[[], PoolStatistics]]
state = _State()


# Name, kind, unit, what it is, how it is read.
_OBSERVED: tuple[tuple[str, str, str, str, Reading], ...] = (
    (
        f"{_PREFIX}count",
        "up_down_counter",
        "{connection}",
        "Connections by what they are doing.",
        lambda pool, _low, _high: (
            (pool.busy + pool.resetting, "used"),
            (pool.idle, "idle"),
        ),
    ),
    (
        f"{_PREFIX}idle.min",
        "up_down_counter",
        "{connection}",
        "Connections kept open while idle.",
        lambda _pool, low, _high: ((low, None),),
    ),
    (
        f"{_PREFIX}idle.max",
        "up_down_counter",
        "{connection}",
        "Maximum number of idle connections.",
        lambda _pool, _low, high: ((high, None),),
    ),
    (
        f"{_PREFIX}max",
        "up_down_counter",
        "{connection}",
        "Maximum number of connections.",
        lambda _pool, _low, high: ((high, None),),
    ),
    (
        f"{_PREFIX}pending_requests",
        "up_down_counter",
        "{request}",
        "Callers that wait for a connection.",
        lambda pool, _low, _high: ((pool.waiting, None),),
    ),
    (
        f"{_PREFIX}timeouts",
        "counter",
        "{timeout}",
        "Callers that got no connection in time.",
        lambda pool, _low, _high: ((pool.timeouts, None),),
    ),
    (
        "fm_storage.pool.acquired",
        "counter",
        "{acquisition}",
        "Connections acquired, those without waiting included.",
        lambda pool, _low, _high: ((pool.acquired, None),),
    ),
    (
        "fm_storage.pool.lag",
        "gauge",
        "s",
        "Seconds that the replica is behind.",
        lambda pool, _low, _high: () if pool.lag is None else ((pool.lag, None),),
    ),
    (
        "fm_storage.pool.fallbacks",
        "counter",
        "{read}",
        "Reads that the primary answered in the replica's place.",
        lambda pool, _low, _high: ((pool.fallbacks, None),),
    ),
)


def switch_on() -> bool:
    """Look for a meter provider; called when a pool opens.

    Returns whether anything is measured from now on. The default provider, which
    drops everything, counts as none.
    """
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
        state.active = False
        return False
    if provider is not state.provider:
        state.provider, state.observation = provider, metrics.Observation
        meter = provider.get_meter("fm_storage")
        for name, kind, unit, what, reading in _OBSERVED:
            make = getattr(meter, f"create_observable_{kind}")
            join = max if kind == "gauge" else add
            make(
                name,
                callbacks=[_reader(reading, join)],
                unit=unit,
                description=what,
            )
        state.operation = _histogram(
            meter, "db.client.operation.duration", "Duration of a statement."
        )
        state.wait = _histogram(
            meter,
            f"{_PREFIX}wait_time",
            "Wait of callers that did not get a connection at once.",
        )
        state.create = _histogram(meter, f"{_PREFIX}create_time", "Time to connect.")
    state.active = True
    return True


def _histogram(meter: Any, name: str, what: str) -> Any:
    return meter.create_histogram(
        name,
        unit="s",
        description=what,
        explicit_bucket_boundaries_advisory=_SECONDS,
    )


def _reader(
    reading: Reading, join: Callable[[float, float], float]
) -> Callable[[Any], list[Any]]:
    """Return a callback that joins *reading* over the pools of each name."""

    def read(_options: object) -> list[Any]:
        sums: dict[tuple[tuple[str, str], ...], float] = defaultdict(int)
        for reference, low, high in state.watched:
            statistics = reference()
            if statistics is None:
                continue
            pool = statistics()
            for value, kind in reading(pool, low, high):
                key = ((_POOL, pool.name), *([(_STATE, kind)] if kind else []))
                sums[key] = join(sums[key], value)
        return [state.observation(value, dict(key)) for key, value in sums.items()]

    return read


def watch(
    statistics: Callable[[], PoolStatistics], *, min_size: int, max_size: int
) -> None:
    """Show a pool from now on; *statistics* is a method of it, held weakly."""
    unwatch()
    added = (weakref.WeakMethod(statistics), min_size, max_size)
    state.watched = (*state.watched, added)


def unwatch(statistics: Callable[[], PoolStatistics] | None = None) -> None:
    """Show a pool no longer, nor any that is gone."""
    state.watched = tuple(
        each for each in state.watched if each[0]() not in {None, statistics}
    )


def waited(pool: str, seconds: float) -> None:
    """Note that a caller had to wait for its connection."""
    if state.active:
        state.wait.record(seconds, {_POOL: pool})


def connected(pool: str, seconds: float) -> None:
    """Note that a connection was made."""
    if state.active:
        state.create.record(seconds, {_POOL: pool})


def operation(seconds: float, attributes: Mapping[str, Any]) -> None:
    """Note how long a statement took, by *attributes* that are few in number."""
    if state.active:
        state.operation.record(seconds, attributes)
