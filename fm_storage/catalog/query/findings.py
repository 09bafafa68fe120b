"""Results of the analyzer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from fm_storage.repositories import Severity


@dataclass(frozen=True, slots=True)
class Totals:
    """How much there is within a period; *first* and *last* are None if nothing."""

    errors: int
    groups: int
    first: datetime | None
    last: datetime | None


@dataclass(frozen=True, slots=True)
class Pattern:
    """A message without its variable parts, and how much of everything it is."""

    fingerprint: str
    template: str
    module: str
    error_code: str
    severity: Severity
    count: int
    share: float
    first_seen: datetime
    last_seen: datetime


@dataclass(frozen=True, slots=True)
class TimelineBucket:
    """Errors by severity from *start* until the next bucket."""

    start: datetime
    counts: Mapping[Severity, int] = field(default_factory=dict)

    @property
    def total(self) -> int:
        """Errors of all severities."""
        return sum(self.counts.values())


@dataclass(frozen=True, slots=True)
class Growth:
    """A group that occurs more often now than in the period before."""

    fingerprint: str
    template: str
    module: str
    error_code: str
    severity: Severity
    now: int
    before: int


@dataclass(frozen=True, slots=True)
class Correlation:
    """Two groups that occur in the same slots of time.

    Attributes:
        first: Fingerprint of one group; *second* of the other.
        together: Slots in which both occur.
        overlap: Of the slots in which either occurs, the part with both (0…1).
        lift: How many times more often than chance would have it.
    """

    first: str
    first_module: str
    first_template: str
    second: str
    second_module: str
    second_template: str
    together: int
    overlap: float
    lift: float
