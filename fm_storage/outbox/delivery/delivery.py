"""Delivering one batch of leased rows, whatever the vector store answers.

The drainer decides when; here is decided what a failure means. An outage
postpones rows, a missing collection postpones its own rows only, and a batch that
is refused is halved until the point that is refused alone has been found and set
aside; the others are delivered. No number of attempts drops one.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias
from uuid import UUID

from fm_storage.concurrency.backoff import Backoff
from fm_storage.concurrency.pacing import in_chunks
from fm_storage.errors import (
    CollectionDamaged,
    CollectionMismatch,
    CollectionNotFound,
    EmbeddedFailed,
    InvalidRecord,
    InvalidVector,
    StorageClosed,
    StorageError,
    VectorStoreUnavailable,
)
from fm_storage.outbox.delivery.counters import Counters
from fm_storage.outbox.delivery.embed import Embedder
from fm_storage.outbox.delivery.points import points_of
from fm_storage.outbox.delivery.queue import Leased, Queue
from fm_storage.outbox.delivery.texts import ALONE, TextsFailed
from fm_storage.vector_state import (
    VERSION_KEY,
    decode_id,
    payload_digest,
)

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

_Failed: TypeAlias = "list[tuple[Leased, Exception]]"

_log = logging.getLogger("fm_storage.outbox")

_OUTAGES = (VectorStoreUnavailable, EmbeddedFailed, StorageClosed)
_FIRST_PAUSE = 0.05
_SHOWN = 500
"""Characters of an error kept with a row."""


def lease_clock() -> float:
    """Return seconds that go on while the process or the machine is suspended."""
    if hasattr(time, "CLOCK_BOOTTIME"):
        return time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.monotonic()


def pauses(longest: float) -> Backoff:
    """Return the pauses after failed deliveries, none longer than *longest*."""
    return Backoff(_FIRST_PAUSE, longest)


@dataclass(slots=True)
class Outcome:
    """What became of a batch.

    Attributes:
        collection: The collection of its points.
        outage: The failure of the store, if there was one.
        blocked: The failure that concerns the collection, such as that it is missing.
        failing: The failure of the application's text source or vectorizer; points
            that have vectors are delivered meanwhile.
        unserved: Whether it has points that this process has no vectorizer for.
        created: Collections that were missing and could be created.
        embedded: Points whose text was found and embedded.
        delivered: Points whose delivery was recorded.
        quarantined: Points set aside.
        greatest: Greatest version delivered.
    """

    collection: str
    outage: BaseException | None = None
    blocked: BaseException | None = None
    failing: BaseException | None = None
    unserved: bool = False
    created: set[str] = field(default_factory=set)
    embedded: int = 0
    delivered: int = 0
    quarantined: int = 0
    greatest: int = 0

    @property
    def failure(self) -> BaseException | None:
        """The failure that it met, if there was one."""
        return self.outage or self.blocked or self.failing


class Delivery:
    """Sends leased rows and records what became of them.

    Cancelled, a batch under way may still arrive; its rows stay on lease and
    are delivered again afterwards, which the version makes harmless.
    """

    def __init__(
        self,
        queue: Queue,
        store: QdrantStore,
        embedder: Embedder,
        counters: Counters,
        *,
        lease: float,
        max_backoff: float,
    ) -> None:
        self._queue = queue
        self._store = store
        self._embedder = embedder
        self._counters = counters
        self.lease = lease
        self._pauses = pauses(max_backoff)
        self._ensured: set[str] = set()
        self._created: set[str] = set()
        self.overrun: dict[str, dict[str, int]] = {}
        self._locked: list[Leased] = []

    async def deliver(
        self, collection: str, rows: Sequence[Leased], *, taken: float
    ) -> Outcome:
        """Deliver rows of *collection*, taken at *taken* (``lease_clock()``).

        Raises:
            StorageError: PostgreSQL could not record the outcome; the rows come
                back when their lease ends.
        """
        outcome = Outcome(collection)
        await self._deliver(rows, taken, outcome)
        outcome.delivered += await self.settle()
        outcome.created, self._created = self._created, set()
        return outcome

    async def settle(self) -> int:
        """Do what had to wait: rows locked by writers, and overrun leases.

        Returns how many deliveries were recorded by it.
        """
        recorded = 0
        if self._locked:
            locked, self._locked = self._locked, []
            finished = await self._queue.finish(locked)
            self._counters.landed(finished.lags)
            recorded = len(finished.lags)
            self._locked += finished.locked
        while self.overrun:
            # Taken out first: another collection's batch may settle meanwhile.
            collection, late = self.overrun.popitem()
            try:
                healed = await self._queue.delete_again(collection, late)
            except BaseException:  # put back what was not done, then pass it on
                self.overrun[collection] = {
                    **late,
                    **self.overrun.get(collection, {}),
                }
                raise
            self._counters.healed += healed
        return recorded

    async def _deliver(
        self, rows: Sequence[Leased], taken: float, outcome: Outcome
    ) -> None:
        collection = outcome.collection
        bare = [row for row in rows if row.op == "u" and row.vectors is None]
        ready = [row for row in rows if row.op != "u" or row.vectors is not None]
        if bare and not self._embedder.knows(collection):
            # Another process may have the vectorizer: leave them to it.
            outcome.unserved = True
            await self._put_off(bare, unserved(collection))
        elif bare:
            filled, failed = await self._embed(collection, bare, outcome)
            for row, exc in failed:
                await self._set_aside(row, exc, outcome)
            ready += filled
        if ready:
            failed = await self._bisect(collection, ready, taken, outcome)
            landed = len(failed) < len(ready)
            if failed and not landed and not all(_is_poison(e) for _, e in failed):
                outcome.blocked = failed[0][1]
            await self._judge(failed, outcome, landed=landed)

    async def _judge(self, failed: _Failed, outcome: Outcome, *, landed: bool) -> None:
        """Set refused points aside, unless nothing else went through either."""
        for row, exc in failed:
            if landed or _is_poison(exc):
                await self._set_aside(row, exc, outcome)
            else:
                await self._put_off([row], describe(exc))

    async def _embed(
        self, collection: str, rows: list[Leased], outcome: Outcome
    ) -> tuple[list[Leased], _Failed]:
        """Embed rows, halving what fails; return the filled and those at fault.

        Where nothing can be embedded, the function is at fault and not the points:
        they wait, as after an outage. It is then called a few times more, on
        single points chosen by chance, before that is believed.
        """
        filled: list[Leased] = []
        refused: _Failed = []
        failed: _Failed = []
        parts = [random.sample(rows, len(rows))]
        while parts:
            part = parts.pop()
            try:
                some, also = await self._embedder.fill(collection, part)
            except TextsFailed as exc:
                if len(part) > 1 and not exc.common:
                    half = len(part) // 2
                    parts += [part[half:], part[:half]]
                    continue
                failed += [(row, exc) for row in part]
                left = [row for rest in parts for row in rest]
                tried = len(failed) >= ALONE or not left
                if exc.common or (tried and not filled):
                    outcome.failing = exc
                    await self._put_off([r for r, _ in failed] + left, describe(exc))
                    return filled, refused
            else:
                filled += some
                refused += also
                await self._give_back(part, some, also)
        self._counters.embedded += len(filled)
        outcome.embedded = len(filled)
        return filled, refused + failed

    async def _give_back(
        self, part: Sequence[Leased], filled: Sequence[Leased], refused: _Failed
    ) -> None:
        """Return rows that changed while they were embedded, or are locked."""
        kept = {row.point_id for row in filled} | {row.point_id for row, _ in refused}
        left = [row for row in part if row.point_id not in kept]
        await self._queue.postpone(left, delay=0.0, error=None)

    async def _bisect(
        self, collection: str, rows: list[Leased], taken: float, outcome: Outcome
    ) -> _Failed:
        """Send rows, halving what is refused; return those refused alone."""
        failed: _Failed = []
        while rows:
            if (outcome.outage or outcome.blocked) is not None:
                await self._queue.postpone(rows, delay=0.0, error=None)
                return failed
            if lease_clock() - taken > self.lease:
                return failed  # another drainer may have the rows by now
            try:
                await self.send(collection, rows)
            except Exception as exc:  # judged, never swallowed
                if await self._is_outage(collection, rows, outcome, exc):
                    return failed
                culprit = _named_by(exc, rows)
                if culprit is None:
                    half = len(rows) // 2
                    failed += await self._bisect(
                        collection, rows[:half], taken, outcome
                    )
                    rows = rows[half:]
                else:
                    failed.append((culprit, exc))
                    rows = [row for row in rows if row is not culprit]
            else:
                await self._record(rows, outcome)
                return failed
            finally:
                if lease_clock() - taken > self.lease:
                    # Another drainer may have deleted what this call wrote late.
                    late = {row.point_id: row.ver for row in rows if row.op == "u"}
                    self.overrun.setdefault(collection, {}).update(late)
        return failed

    async def _record(self, rows: list[Leased], outcome: Outcome) -> None:
        self._counters.batches += 1
        outcome.greatest = max(outcome.greatest, *(row.ver for row in rows))
        finished = await self._queue.finish(rows)
        self._counters.landed(finished.lags)
        self._locked += finished.locked
        outcome.delivered += len(finished.lags)

    async def _is_outage(
        self, collection: str, rows: list[Leased], outcome: Outcome, exc: Exception
    ) -> bool:
        """Postpone rows if the failure is no fault of any of them."""
        if isinstance(exc, CollectionNotFound | CollectionMismatch | CollectionDamaged):
            outcome.blocked = exc
            self._ensured.discard(collection)
        elif isinstance(exc, _OUTAGES) or _is_passing(exc):
            outcome.outage = exc
        else:
            return False
        await self._put_off(rows, describe(exc))
        return True

    async def send(self, collection: str, rows: list[Leased]) -> None:
        """Bring *rows* to the store: one call for points, one for deletions."""
        points = await points_of(
            [
                (row.point_id, row.ver, row.vectors or b"", row.payload)
                for row in rows
                if row.op == "u"
            ]
        )
        deleted: dict[int | str | UUID, int] = {
            decode_id(row.point_id): row.ver for row in rows if row.op == "d"
        }
        if points:
            await self._ensure(collection)
            await self._store.upsert_points(collection, points, newer_by=VERSION_KEY)
        if deleted:
            try:
                await self._store.delete_points(
                    collection, list(deleted), newer_by=VERSION_KEY, up_to=deleted
                )
            except CollectionNotFound:
                _log.debug("%s is gone, and its points with it", collection)
        unknown: dict[str, tuple[int, bytes]] = {}
        async for some in in_chunks(rows):
            for row in some:
                if row.op == "u" and row.payload_hash is None:
                    unknown[row.point_id] = (row.ver, payload_digest(row.payload))
        if unknown:
            await self._queue.keep_hashes(collection, unknown)

    async def _ensure(self, collection: str) -> None:
        spec = self._embedder.spec(collection)
        if spec is not None and collection not in self._ensured:
            if await self._store.ensure_collection_exists(collection, spec):
                self._created.add(collection)
            self._ensured.add(collection)

    async def _put_off(self, rows: Sequence[Leased], problem: str) -> None:
        self._counters.retried += len(rows)
        failures = max((row.attempts for row in rows), default=0)
        await self._queue.postpone(
            rows, delay=self._pauses.after(failures), error=problem
        )

    async def _set_aside(
        self, row: Leased, exc: BaseException, outcome: Outcome
    ) -> None:
        _log.warning(
            "point %s of %s is refused and set aside: %s",
            decode_id(row.point_id),
            row.collection,
            describe(exc),
        )
        self._counters.quarantined += 1
        outcome.quarantined += 1
        await self._queue.quarantine(row, error=describe(exc))


def _named_by(exc: BaseException, rows: Sequence[Leased]) -> Leased | None:
    """Return the row at fault, if it is alone or validation named it."""
    if len(rows) == 1:
        return rows[0]
    index = getattr(exc, "index", None)
    points = [row for row in rows if row.op == "u"]
    if isinstance(index, int) and 0 <= index < len(points):
        return points[index]
    return None


def _is_passing(exc: BaseException) -> bool:
    """Whether the same call may succeed later."""
    if isinstance(exc, StorageError):
        return exc.retryable
    return isinstance(exc, OSError | TimeoutError)


def _is_poison(exc: BaseException) -> bool:
    """Whether the point itself is at fault, whatever else goes through."""
    return isinstance(
        exc, InvalidVector | InvalidRecord | ValueError | TypeError | OverflowError
    )


def absent(collection: str) -> str:
    """Return that a collection is missing, and the remedy."""
    return (
        f"collection {collection!r} does not exist in the vector store; define it "
        "under qdrant.collections, or create it with ensure_collection_exists()"
    )


def unserved(collection: str) -> str:
    """Return why points without vectors wait, and the remedy."""
    return (
        f"points of {collection!r} have no vectors yet, and this process has no "
        "vectorizer for them; they wait for the application that registers it"
    )


def describe(exc: BaseException) -> str:
    """Return a failure as text that PostgreSQL can store; with the remedy."""
    if isinstance(exc, CollectionNotFound):
        text = absent(exc.collection)
    elif isinstance(exc, TextsFailed):
        text = str(exc)
    else:
        text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
    return text.replace("\0", "")[:_SHOWN].encode(errors="replace").decode()
