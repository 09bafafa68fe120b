"""What the outbox returns: frozen snapshots and reports.

Separate from the outbox so that the command line and the manager can name them
without loading the drainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta


@dataclass(frozen=True, slots=True)
class OutboxStatistics:
    """What this process has delivered since it opened. Lags in seconds.

    Attributes:
        delivered: Points written or deleted, tombstones sent again not counted.
        batches: Calls to the vector store that succeeded.
        retried: Points whose delivery failed and was put off.
        quarantined: Points set aside.
        embedded: Points whose vectors the drainer made.
        healed: Deletions repeated because a call outlived its lease.
        lag_p50: Median time from the commit's statement to delivery.
        lag_p99: The 99th percentile of it, over the last 4,096 points.
    """

    delivered: int = 0
    batches: int = 0
    retried: int = 0
    quarantined: int = 0
    embedded: int = 0
    healed: int = 0
    lag_p50: float | None = None
    lag_p99: float | None = None


@dataclass(frozen=True, slots=True)
class CollectionBacklog:
    """How far the vector store is behind on one collection.

    Attributes:
        collection: Its name.
        pending: Points to deliver.
        quarantined: Points set aside because the vector store refuses them.
        tombstones: Deletions delivered once that will be sent once more.
        failing: Of the pending ones, those whose last delivery failed.
        oldest_age: How long the longest waiting point has waited.
        error: Why the delivery of one of the failing points failed.
    """

    collection: str
    pending: int
    quarantined: int
    tombstones: int
    failing: int
    oldest_age: timedelta | None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Rebuilding:
    """A rebuild that has not ended.

    Attributes:
        collection: Name that is rebuilt.
        target: Collection of the vector store that is filled behind it.
        copied: Points written to it so far.
        total: Points to write, if they were counted.
        started_at: When it began.
        under_way: Whether a process is at it now. If none is, it was interrupted,
            and ``rebuild()`` goes on where it was.
        exchanging: Whether it has begun to exchange the name; interrupted there,
            it is ended by the next drainer.
    """

    collection: str
    target: str
    copied: int
    total: int | None
    started_at: datetime
    under_way: bool
    exchanging: bool


@dataclass(frozen=True, slots=True)
class OutboxStatus:
    """The state of the queue, for all processes, and of this process's drainer.

    Attributes:
        pending: Points to deliver; quarantined ones and tombstones not counted.
        quarantined: Points set aside because the vector store refuses them.
        tombstones: Deletions delivered once that will be sent once more.
        oldest_age: How long the longest waiting point has waited.
        collections: The same by collection; without those that are up to date.
        drainer: ``off``, ``idle``, ``running``, ``waiting`` (after a failure),
            ``refused`` or ``closed``.
        problem: Why it waits or refuses.
        statistics: Counters of this process.
        rebuilds: Rebuilds that have not ended, interrupted ones among them.
    """

    pending: int
    quarantined: int
    tombstones: int
    oldest_age: timedelta | None
    collections: tuple[CollectionBacklog, ...]
    drainer: str
    problem: str | None
    statistics: OutboxStatistics
    rebuilds: tuple[Rebuilding, ...] = ()


@dataclass(frozen=True, slots=True)
class DrainReport:
    """What one ``drain()`` did.

    Attributes:
        delivered: Points written or deleted by this call.
        quarantined: Points that it set aside.
        remaining: Points still to deliver when it ended.
        problem: The last failure, if there was one.
        blocked: Why points of a collection cannot be delivered by this process
            for now, and what to do, by the collection's name.
        leased: Of those that remain, how many another drainer has taken. If it was
            killed, they can be delivered again once their leases end.
        leased_until: When the last of these leases ends.
    """

    delivered: int
    quarantined: int
    remaining: int
    problem: str | None = None
    blocked: Mapping[str, str] = field(default_factory=dict)
    leased: int = 0
    leased_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Quarantined:
    """A point that the vector store refuses on its own."""

    collection: str
    id: int | str
    version: int
    error: str
    attempts: int
    since: datetime
    quarantined_at: datetime


@dataclass(frozen=True, slots=True)
class Difference:
    """One point on which the two stores disagree.

    Attributes:
        collection: Its collection.
        id: Its id.
        kind: ``missing`` in the vector store, ``orphan`` there, ``stale`` there,
            ``ahead`` there (PostgreSQL was restored), ``changed`` (same version,
            another payload), or ``impossible`` (another program wrote a version that
            PostgreSQL never gave out).
        desired: Version in PostgreSQL; None for a point it does not know.
        found: Version in the vector store; None for a missing point, and for a
            point without a number as its version.
    """

    collection: str
    id: int | str
    kind: str
    desired: int | None
    found: int | None


@dataclass(frozen=True, slots=True)
class Verification:
    """How the two stores compare.

    Attributes:
        checked: Points that were compared.
        pending: Points that differ because they are on their way.
        failing: Points whose last delivery failed, and will be tried again.
        quarantined: Points set aside: the vector store has refused what
            PostgreSQL says, and they stay until they are retried or discarded.
        foreign: Points of the vector store that the outbox did not write: their
            ids are unknown here, and they carry no version that was given out.
        unknown: Collections of the vector store that PostgreSQL knows nothing of
            although they hold points with a version of the outbox, and how many.
            ``repair()`` leaves them alone.
        counts: Number of differences by kind.
        samples: The first 100 differences.
        greatest: Greatest version found in the vector store that PostgreSQL can
            have given out.
    """

    checked: int = 0
    pending: int = 0
    failing: int = 0
    quarantined: int = 0
    foreign: int = 0
    unknown: Mapping[str, int] = field(default_factory=dict)
    counts: Mapping[str, int] = field(default_factory=dict)
    samples: tuple[Difference, ...] = ()
    greatest: int = 0

    @property
    def agrees(self) -> bool:
        """Whether both stores were seen to be equal: no point differs or waits."""
        open_points = self.pending or self.failing or self.quarantined
        return not (self.counts or open_points or self.unknown)


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What ``repair()`` found and put in the queue again.

    Attributes:
        verification: What was found.
        enqueued: Points that will be delivered anew.
        drained: What was delivered at once, if that was asked for.
    """

    verification: Verification
    enqueued: int
    drained: DrainReport | None = None


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What ``rebuild()`` did.

    Attributes:
        collection: Name that was rebuilt.
        target: Collection of the vector store that the name means now.
        copied: Points written from PostgreSQL, those before a restart included.
        resumed: Whether it went on from a rebuild that had been interrupted.
        repair: What changed meanwhile and was repaired after the exchange.
    """

    collection: str
    target: str
    copied: int
    resumed: bool
    repair: RepairReport
