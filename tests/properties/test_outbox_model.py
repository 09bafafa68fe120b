"""A model of dual write: whatever the order of events, both stores end equal.

The rules do what writers, drainers and misfortune do, one at a time and in any
order: writing, deleting, delivering in part, delivering late with an old batch
(a drainer that lost its lease), losing an answer, refusing a point. The model
is a dictionary.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    rule,
    run_state_machine_as_test,
)

from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.errors import VectorStoreUnavailable
from fm_storage.outbox import Outbox
from fm_storage.outbox.delivery.delivery import Outcome, lease_clock
from fm_storage.outbox.delivery.queue import Leased
from fm_storage.postgres import Pool
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import queue_of, side_of

T = TypeVar("T")
IDS = st.integers(1, 4)


class Flaky(QdrantStore):
    """The real store, which does not answer although it did, on request."""

    silent = False

    async def upsert_points(self, *arguments: Any, **options: Any) -> int:
        """Write, and say so or not."""
        written = await super().upsert_points(*arguments, **options)
        if self.silent:
            self.silent = False
            raise VectorStoreUnavailable("no answer", operation="upsert_points")
        return written


class Stores:
    """Both stores on a loop of their own, for rules that are not coroutines."""

    def __init__(self, dsn: str, folder: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.pool = Pool(PostgresConfig(dsn=dsn))
        self.store = Flaky(QdrantConfig(durability="process"), folder=folder)
        self.do(self.pool.open())
        self.do(self.store.open())

    def do(self, job: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine and return its result."""
        return asyncio.run_coroutine_threadsafe(job, self._loop).result(30)

    def close(self) -> None:
        """Close both."""
        self.do(self.store.aclose())
        self.do(self.pool.aclose())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


class Model(RuleBasedStateMachine):
    """What should be there is a dictionary; the rest is what happens."""

    stores: Stores  # of the test

    def __init__(self) -> None:
        super().__init__()
        self.desired: dict[int, int] = {}
        self.turn = 0
        self.stale: list[Leased] = []
        self.stores.do(self._reset())

    async def _reset(self) -> None:
        await self.stores.pool.execute(
            "TRUNCATE fm_storage.vector_state, fm_storage.vector_queue"
        )
        await self.stores.store.delete_collection("model")
        await self.stores.store.ensure_collection_exists("model", 2)
        self.stores.store.silent = False
        # No grace and no lease to speak of: time is not what is modelled.
        self.outbox = Outbox(
            self.stores.pool,
            self.stores.store,
            OutboxConfig(drain=False, lease=0.001, max_backoff=0.001),
        )
        await side_of(self.outbox).check.ensure()

    async def _take(self, limit: int) -> list[Leased]:
        return await queue_of(self.outbox).claim(limit)

    async def _deliver(self, rows: list[Leased]) -> Outcome:
        delivery = side_of(self.outbox).delivery
        delivery.lease = 60.0
        return await delivery.deliver("model", rows, taken=lease_clock())

    async def _late(self, rows: list[Leased]) -> Outcome:
        delivery = side_of(self.outbox).delivery
        delivery.lease = 0.0
        self.stores.store.silent = False
        try:
            # As a process that was stopped between its check and its call.
            outcome = Outcome("model")
            groups = [row for row in rows if row.vectors or row.op == "d"]
            await delivery.send("model", groups)
            delivery.overrun["model"] = {
                row.point_id: row.ver for row in groups if row.op == "u"
            }
            await queue_of(self.outbox).finish(groups)
            await delivery.settle()
            return outcome
        finally:
            delivery.lease = 60.0

    @rule(number=IDS)
    def write(self, number: int) -> None:
        """Make a point desired."""
        self.turn += 1
        self.desired[number] = self.turn
        point = Point(number, [1.0, float(self.turn)], {"turn": self.turn})
        self.stores.do(self.outbox.upsert("model", [point]))

    @rule(number=IDS)
    def delete(self, number: int) -> None:
        """Make a point undesired."""
        self.desired.pop(number, None)
        self.stores.do(self.outbox.delete("model", [number]))

    @rule(limit=st.integers(1, 4))
    def deliver(self, limit: int) -> None:
        """Deliver some of what is due."""
        self.stores.do(self._deliver(self.stores.do(self._take(limit))))

    @rule(limit=st.integers(1, 4))
    def stop_with_a_batch(self, limit: int) -> None:
        """Take a batch and do nothing with it for now."""
        self.stale += self.stores.do(self._take(limit))

    @rule()
    def wake_up_late(self) -> None:
        """Deliver what was taken long ago."""
        rows, self.stale = self.stale, []
        if rows:
            self.stores.do(self._late(rows))

    @rule()
    def lose_an_answer(self) -> None:
        """Let the next write happen without an answer."""
        self.stores.store.silent = True

    @invariant()
    def never_ahead(self) -> None:
        """No point in the store was never written."""
        found = self.stores.do(self.stores.store.scroll("model", limit=10))[0]
        turns = [p.payload["turn"] for p in found]
        assert all(isinstance(turn, int) and turn <= self.turn for turn in turns)

    def teardown(self) -> None:
        """Let everything settle, then compare with the model."""
        self.stores.do(self._settle())
        found = self.stores.do(self.stores.store.scroll("model", limit=10))[0]
        assert {p.id: p.payload["turn"] for p in found} == self.desired
        assert self.stores.do(self.outbox.verify()).agrees

    async def _settle(self) -> None:
        if self.stale:
            await self._late(self.stale)
        async with asyncio.timeout(20):
            while await self.stores.pool.fetchval(
                "SELECT count(*) FROM fm_storage.vector_queue"
            ):
                await self._deliver(await self._take(10))


@pytest.mark.timeout(180)
@pytest.mark.slow
def test_both_stores_end_equal_whatever_the_order(dsn: str, vector_folder: Any):
    """Hypothesis looks for an order of events after which they differ."""
    Model.stores = stores = Stores(dsn, vector_folder)
    try:
        run_state_machine_as_test(
            Model,
            settings=settings(
                max_examples=25,
                stateful_step_count=20,
                deadline=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        stores.close()
