"""A state machine drives sessions against a real server and a model.

The model is a set of names; the server is asked after every step. Rules create,
refresh, drop, have a DROP refused, cancel, close, kill and reap, in any order.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from fm_storage.config import PostgresConfig, SessionConfig
from fm_storage.postgres import Pool
from fm_storage.sessions import PostgresSessionManager, SessionService, TempView
from tests.support.inside import cut_lease, owner_of, views_of

T = TypeVar("T")

CONFIG = SessionConfig(grace=0.01, reap_interval=0, lock_timeout=0.2)
THERE = (
    "SELECT n.nspname || '.' || c.relname FROM pg_class c"
    " JOIN pg_namespace n ON n.oid = c.relnamespace"
    " WHERE n.nspname = 'filtermate_temp' AND c.relkind IN ('v', 'm')"
)
NAMED = "SELECT schema_name || '.' || name FROM fm_storage.session_objects"
MADE = "SELECT name, kind, oid FROM fm_storage.session_objects WHERE session_id = $1"
BLOCKER = "CREATE VIEW public.blocker AS SELECT * FROM {}"


@dataclass
class Process:
    """A process as far as the server can tell: a pool, a service, one session."""

    pool: Pool
    service: SessionService
    session: PostgresSessionManager
    views: list[TempView] = field(default_factory=list)


class Sessions(RuleBasedStateMachine):
    """Sessions of several processes, and what must be there after each step.

    What a cancelled step has done differs from run to run, so no precondition looks at
    views.
    """

    dsn = ""

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.alive: list[Process] = []
        self.orphaned: set[str] = set()  # of dead processes, not reaped yet
        self.left: list[tuple[Process, str]] = []  # refused when it closed
        self.blocked: str | None = None
        self.pool = self.run(self._open_pool())
        self.run(self._clear())

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run *work* on the machine's loop."""
        return self.loop.run_until_complete(asyncio.wait_for(work, 20))

    async def _open_pool(self) -> Pool:
        pool = Pool(PostgresConfig(dsn=self.dsn, max_size=3))
        await pool.open()
        return pool

    async def _clear(self) -> None:
        await self.pool.execute(
            "DROP VIEW IF EXISTS public.blocker;"
            "DROP SCHEMA IF EXISTS filtermate_temp CASCADE;"
            "DELETE FROM fm_storage.session_objects;"
            "DELETE FROM fm_storage.session_owners"
        )

    def pick(self, index: int) -> Process:
        """Return one of the processes."""
        return self.alive[index % len(self.alive)]

    @rule()
    @precondition(lambda self: len(self.alive) < 3)
    def start(self) -> None:
        """A process opens a session."""

        async def work() -> Process:
            pool = await self._open_pool()
            service = SessionService(pool, CONFIG)
            await service.open()
            return Process(pool, service, await service.session())

        self.alive.append(self.run(work()))

    @rule(which=st.integers(0, 2), materialized=st.booleans(), value=st.text())
    @precondition(lambda self: self.alive)
    def create(self, which: int, value: str, *, materialized: bool) -> None:
        """A view is there afterwards, holding the very value."""
        process = self.pick(which)
        if "\0" in value:
            value = value.replace("\0", "0")
        value = value.encode("utf-8", "replace").decode()

        async def work() -> TempView:
            view = await process.session.create_view(
                "SELECT $1 AS value", value, materialized=materialized
            )
            assert await self.pool.fetchval(f"SELECT value FROM {view}") == value
            return view

        process.views.append(self.run(work()))

    @rule(which=st.integers(0, 2), after=st.floats(0, 0.02))
    @precondition(lambda self: self.alive)
    def create_cancelled(self, which: int, after: float) -> None:
        """A cancelled creation either happened, or is cleaned up with the rest."""
        process = self.pick(which)

        async def work() -> TempView | None:
            task = asyncio.ensure_future(process.session.create_view("SELECT 1 AS v"))
            await asyncio.sleep(after)
            task.cancel()
            await asyncio.wait({task})
            await views_of(process.session).settle(owner_of(process.service))
            return None if task.cancelled() else task.result()

        view = self.run(work())
        if view is not None:
            process.views.append(view)
        else:
            # Cancelled while it was just committing: known by its row alone.
            rows = self.run(self.pool.fetch(MADE, process.session.id))
            made = [TempView("filtermate_temp", row["name"], *row[1:]) for row in rows]
            process.views += [each for each in made if each not in process.views]

    @rule(which=st.integers(0, 2), what=st.integers(0, 9))
    @precondition(lambda self: self.alive)
    def refresh(self, which: int, what: int) -> None:
        """Refreshing changes nothing about what is there."""
        process = self.pick(which)
        filled = [v for v in process.views if v.kind == "materialized view"]
        if filled:
            self.run(process.session.refresh_view(filled[what % len(filled)]))

    @rule(which=st.integers(0, 2), what=st.integers(0, 9))
    @precondition(lambda self: self.alive)
    def drop(self, which: int, what: int) -> None:
        """A view is dropped, or refused because something depends on it."""
        process = self.pick(which)
        if not process.views:
            return
        view = process.views[what % len(process.views)]
        dropped = self.run(process.session.drop_view(view))
        assert dropped is (str(view) != self.blocked)
        if dropped:
            process.views.remove(view)

    @rule(which=st.integers(0, 2))
    @precondition(lambda self: self.alive)
    def block(self, which: int) -> None:
        """Somebody makes a view of their own on a temporary one."""
        process = self.pick(which)
        if process.views and self.blocked is None:
            self.blocked = str(process.views[-1])
            self.run(self.pool.execute(BLOCKER.format(self.blocked)))

    @rule()
    def unblock(self) -> None:
        """They drop it; what was refused is retried without anybody's help."""
        if self.blocked is None:
            return

        async def work() -> None:
            await self.pool.execute("DROP VIEW public.blocker")
            for process, _ in self.left:
                for leftover in owner_of(process.service).leftovers:
                    leftover.at = 0
                await owner_of(process.service).retry()

        self.run(work())
        self.blocked = None
        self.left.clear()

    @rule(which=st.integers(0, 2))
    @precondition(lambda self: self.alive)
    def close(self, which: int) -> None:
        """A session closes and opens anew; a refused view is reported and kept."""
        process = self.pick(which)

        async def work() -> None:
            await process.session.aclose()
            report = process.session.last_cleanup
            assert {*report.dropped} == {str(v) for v in process.views} - {self.blocked}
            for refusal in report.refused:
                assert (refusal.view, refusal.sqlstate) == (self.blocked, "2BP01")
                self.left.append((process, refusal.view))
            process.session = await process.service.session()

        self.run(work())
        process.views.clear()

    @rule(which=st.integers(0, 2))
    @precondition(lambda self: self.alive)
    def kill(self, which: int) -> None:
        """A process ends without a word: its connections close, nothing else."""
        process = self.pick(which)
        self.alive.remove(process)
        self.orphaned |= {str(view) for view in process.views}
        self.orphaned |= {name for owner, name in self.left if owner is process}
        self.left = [each for each in self.left if each[0] is not process]

        async def work() -> None:
            await cut_lease(process.service)
            await process.pool.aclose()

        self.run(work())

    @rule()
    def reap(self) -> None:
        """Reaping takes what dead processes left, and nothing else."""
        report = self.run(SessionService(self.pool, CONFIG).reap())
        assert {*report.dropped} == self.orphaned - {self.blocked}
        self.orphaned -= {*report.dropped}

    @invariant()
    def a_view_exists_if_and_only_if_its_row_does(self) -> None:
        """The server holds exactly what the model says, and so does the registry."""

        async def look() -> tuple[set[str], set[str]]:
            there = {name for (name,) in await self.pool.fetch(THERE)}
            named = {name for (name,) in await self.pool.fetch(NAMED)}
            return there, named

        there, named = self.run(look())
        expected = set(self.orphaned) | {name for _, name in self.left}
        for process in self.alive:
            expected |= {str(view) for view in process.views}
        assert there == named == expected

    def teardown(self) -> None:
        """End what is alive."""

        async def work() -> None:
            for process in self.alive:
                await process.service.aclose()
                await process.pool.aclose()
            await self._clear()
            await self.pool.aclose()

        self.run(work())
        self.loop.close()


@pytest.mark.slow
@pytest.mark.timeout(120)
def test_sessions_follow_the_model(dsn: str):
    """Whatever happens in whatever order: a view exists as long as it should."""
    run(dsn, examples=6, steps=15)


def run(dsn: str, *, examples: int, steps: int) -> None:
    """Run the machine on a database."""
    machine = type("Machine", (Sessions,), {"dsn": dsn})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            print_blob=True,
            database=None,
        ),
    )
