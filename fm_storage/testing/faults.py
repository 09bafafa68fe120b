"""Faults that a test server commits on request, and what it remembers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Literal

Kind = Literal["status", "reset", "stall", "half", "late_reset"]


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that goes wrong.

    Attributes:
        kind: ``status`` answers with an error; ``reset`` drops the connection
            before the request is carried out, ``late_reset`` after it; ``stall``
            keeps silent for *seconds* and then carries on; ``half`` sends half
            of the answer and closes.
        status: Of a ``status`` fault.
        headers: Sent with it (over gRPC as trailers).
        seconds: Of a ``stall``.
        text: Of a ``status`` fault: what the answer says.
    """

    kind: Kind
    status: int = 500
    headers: tuple[tuple[str, str], ...] = ()
    seconds: float = 0.0
    text: str = "a fault on request"

    @classmethod
    def too_many(cls, retry_after: float | str | None = None) -> Fault:
        """Answer 429; *retry_after* in seconds, or ``"date"`` for a date soon."""
        if retry_after is None:
            return cls("status", 429)
        if retry_after == "date":
            soon = datetime.now(UTC) + timedelta(seconds=1)
            return cls("status", 429, (("Retry-After", format_datetime(soon, True)),))
        return cls("status", 429, (("Retry-After", str(retry_after)),))

    @classmethod
    def answer(cls, status: int) -> Fault:
        """Answer with an error status."""
        return cls("status", status)

    @classmethod
    def reset(cls, *, after: bool = False) -> Fault:
        """Drop the connection, before or *after* the request was carried out."""
        return cls("late_reset" if after else "reset")

    @classmethod
    def stall(cls, seconds: float) -> Fault:
        """Keep silent for a while, then answer."""
        return cls("stall", seconds=seconds)

    @classmethod
    def half_close(cls) -> Fault:
        """Send half of the answer, then close."""
        return cls("half")


@dataclass(frozen=True, slots=True)
class Seen:
    """One request that arrived.

    Attributes:
        method: HTTP method; ``POST`` over gRPC.
        path: Path without its query; over gRPC ``/qdrant.Points/Upsert``.
        size: Bytes of the body, or of the message.
        status: Answered status, that of REST; 0 where the connection was dropped.
        connection: Number of the connection it came on.
    """

    method: str
    path: str
    size: int
    status: int
    connection: int


@dataclass(slots=True)
class _Script:
    fault: Fault
    times: int
    matches: Callable[[str, str], bool]


@dataclass(slots=True)
class Faults:
    """The script: which faults come, and when."""

    _scripts: list[_Script] = field(default_factory=list)
    _every: tuple[int, list[Fault]] | None = None
    _count: int = 0

    def add(
        self,
        fault: Fault,
        *,
        times: int = 1,
        method: str | None = None,
        path: str | None = None,
    ) -> None:
        """Commit *fault* on the next requests.

        Args:
            fault: What goes wrong.
            times: On how many requests.
            method: Only on requests of this method.
            path: Only on requests whose path contains this.
        """

        def matches(seen_method: str, seen_path: str) -> bool:
            return (method is None or seen_method == method) and (
                path is None or path in seen_path
            )

        self._scripts.append(_Script(fault, times, matches))

    def every(self, count: int, *faults: Fault) -> None:
        """Commit one of *faults*, in turn, on every *count*-th request."""
        self._every = (count, list(faults))

    def clear(self) -> None:
        """Behave."""
        self._scripts.clear()
        self._every = None

    def next(self, method: str, path: str) -> Fault | None:
        """Return the fault for a request, if there is one."""
        for script in self._scripts:
            if script.times > 0 and script.matches(method, path):
                script.times -= 1
                return script.fault
        if self._every is not None:
            self._count += 1
            count, faults = self._every
            if self._count % count == 0:
                return faults[(self._count // count) % len(faults)]
        return None
