"""The queue behind log handlers: it waits for the loop a little, then for nobody."""

from __future__ import annotations

import asyncio
import gc
import threading
from functools import partial
from types import SimpleNamespace

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.record import queue as background
from fm_storage.catalog.record.drafts import Draft, draft_of
from fm_storage.catalog.record.queue import Background
from fm_storage.catalog.record.row import Prepared, prepare
from fm_storage.catalog.record.spool import Spool
from tests.support.inside import recorder_of
from tests.support.waiting import until

FOREVER = 600.0


class Sink:
    """A loop's side that stores on request."""

    def __init__(self):
        self.go = asyncio.Event()
        self.stored = []

    async def store(self, errors):
        """Take a batch, once it may land."""
        await self.go.wait()
        self.stored += errors


class Recorder:
    """The queue's view of a recorder: a spool, and whether the server is away."""

    def __init__(self, folder):
        self.spool = Spool(folder / "data" / "spool" / "one")
        self.away = False
        self.woken = 0

    def wake_replay(self):
        """Count."""
        self.woken += 1

    def spooled(self):
        """Return what lies on disk."""
        found = [entry for part in self.spool.take() for entry in part.entries()]
        return [entry.message for entry in found]


@pytest.fixture
async def queue(tmp_path, monkeypatch):
    """Give a function that makes a queue; all end with the test, small and patient."""
    monkeypatch.setattr(background, "BATCH", 10)
    monkeypatch.setattr(background, "PATIENCE", FOREVER)
    made = []

    def make(**options):
        sink, recorder = Sink(), Recorder(tmp_path)
        one = Background(recorder, sink.store, asyncio.get_running_loop(), **options)
        made.append((one, sink))
        return SimpleNamespace(queue=one, sink=sink, recorder=recorder)

    yield make
    for one, sink in made:
        sink.go.set()
        await asyncio.to_thread(one.close, 20)


def given(name):
    """Return what makes the draft of an error."""
    return partial(draft_of, name, module="m")


async def test_the_queue_waits_for_the_loop_and_spools_nothing(queue):
    """A database that is merely busy needs no disk."""
    made = queue()
    for n in range(100):
        made.queue.put(given(f"error {n}"))
    await until(lambda: made.queue.in_flight == background.IN_FLIGHT)
    assert made.queue.spilled == 0
    made.sink.go.set()
    assert await asyncio.to_thread(made.queue.flush, 20)
    assert [row.message for row in made.sink.stored] == [
        f"error {n}" for n in range(100)
    ]
    assert (made.queue.taken, made.queue.spilled) == (100, 0)


async def test_full_collections_leave_out_what_was_loaded_before(queue):
    """Until it closes; what the application itself has frozen is left alone."""
    gc.unfreeze()
    held = queue()
    try:
        assert gc.get_freeze_count() > 10_000
        queue().queue.close(5)
        assert gc.get_freeze_count() > 10_000
    finally:
        held.queue.close(5)
    assert gc.get_freeze_count() == 0


async def test_a_loop_that_takes_too_long_is_not_waited_for(queue, monkeypatch):
    """After a second the disk is the safer place, and the next batch tries again."""
    monkeypatch.setattr(background, "PATIENCE", 0.01)
    made = queue()
    for n in range(50):
        made.queue.put(given(f"error {n}"))
    await until(lambda: made.queue.spilled == 30)
    made.sink.go.set()
    assert await asyncio.to_thread(made.queue.flush, 20)
    stored = {row.message for row in made.sink.stored}
    spooled = made.recorder.spooled()
    assert (len(stored), len(spooled)) == (20, 30)
    assert stored.isdisjoint(spooled)
    await until(lambda: made.recorder.woken)


async def test_a_queue_that_is_half_full_does_not_wait(queue):
    """What comes next still finds room, so no caller has to write to the disk."""
    made = queue(capacity=40)
    for n in range(20):
        made.queue.put(given(f"early {n}"))
    await until(lambda: made.queue.in_flight == background.IN_FLIGHT)
    for n in range(21):
        made.queue.put(given(f"late {n}"))
    await until(lambda: made.queue.spilled)
    await until(lambda: len(made.queue.waiting) <= 20)
    assert made.queue.spilled <= 10
    made.sink.go.set()
    assert await asyncio.to_thread(made.queue.flush, 20)
    assert len(made.sink.stored) + made.queue.spilled == 41


async def test_while_the_server_is_away_all_goes_to_the_spool(queue):
    """Also what was waiting for a place when the server went."""
    made = queue()
    for n in range(30):
        made.queue.put(given(f"error {n}"))
    await until(lambda: made.queue.in_flight == background.IN_FLIGHT)
    made.recorder.away = True
    await until(lambda: made.queue.spilled == 10)
    made.queue.put(given("afterwards"))
    found: list[str] = []

    def all_there() -> bool:
        found.extend(made.recorder.spooled())  # counted before they are written
        return len(found) >= 11

    await until(all_there)
    assert len(found) == 11
    assert "afterwards" in found  # of two batches either may be first


async def test_what_cannot_be_rendered_leaves_no_file_behind(queue, caplog):
    """A batch of nothing else: it is logged, and the queue is idle again."""
    made = queue()
    made.recorder.away = True

    def broken():
        raise RuntimeError("no draft")

    made.queue.put(broken)
    assert await asyncio.to_thread(made.queue.flush, 20)
    assert "could not be rendered" in caplog.text
    assert not made.recorder.spool.folder.exists()


async def test_closing_ends_the_wait_and_keeps_what_waited(queue):
    """Nobody waits out a hanging statement: the rest is on disk when it returns."""
    made = queue()
    for n in range(50):
        made.queue.put(given(f"error {n}"))
    await until(lambda: made.queue.in_flight == background.IN_FLIGHT)
    await asyncio.to_thread(made.queue.close, 0.2)
    assert made.recorder.spooled() == [f"error {n}" for n in range(20, 50)]
    made.queue.put(given("too late"))
    assert made.recorder.spooled() == ["too late"]


async def test_closing_takes_over_from_a_thread_that_hangs(queue):
    """What it holds cannot be had; what waits behind it is kept."""
    made = queue()
    held = threading.Event()

    begun = threading.Event()

    def hang():
        begun.set()
        held.wait(20)
        return draft_of("held", module="m")

    made.queue.put(hang)
    for n in range(15):
        made.queue.put(given(f"error {n}"))
    await asyncio.to_thread(begun.wait, 20)
    await asyncio.to_thread(made.queue.close, 0.1)
    assert made.recorder.spooled() == [f"error {n}" for n in range(9, 15)]
    held.set()
    made.sink.go.set()
    await until(made.queue.idle.is_set)
    assert made.recorder.spooled() == ["held", *(f"error {n}" for n in range(9))]


async def test_a_loop_that_closes_at_the_last_moment_loses_nothing(queue, monkeypatch):
    """It was open when the batch was made, and no more when it was handed over."""
    made = queue()

    class Closing:
        """A loop that looks open."""

        def is_closed(self):
            """Say no."""
            return False

        def call_soon_threadsafe(self, *_args):
            """Refuse, as a closed loop does."""
            raise RuntimeError("Event loop is closed")

    monkeypatch.setattr(made.queue, "_loop", Closing())
    made.queue.put(given("at the end"))
    assert await asyncio.to_thread(made.queue.flush, 20)
    assert made.recorder.spooled() == ["at the end"]


async def test_a_forked_child_writes_to_the_spool(queue):
    """It has the queue, but not the thread."""
    made = queue()
    made.queue._home.pid += 1
    made.queue.put(given("in the child"))
    assert made.recorder.spooled() == ["in the child"]


async def test_a_closed_loop_takes_nothing_and_nothing_is_lost(tmp_path):
    """A handler outlives the loop of its manager."""
    loop = asyncio.new_event_loop()
    loop.close()
    recorder = Recorder(tmp_path)
    queue = Background(recorder, Sink().store, loop)
    queue.put(given("after the loop"))
    assert await asyncio.to_thread(queue.flush, 20)
    await asyncio.to_thread(queue.close, 20)
    assert recorder.spooled() == ["after the loop"]


@pytest.mark.parametrize(("hooked", "kind"), [(True, Draft), (False, Prepared)])
async def test_only_a_hook_is_given_what_the_application_gave(queue, hooked, kind):
    """Without one, drafts are let go one by one, as rows are made of them."""
    made = queue(hooked=lambda: hooked)
    made.sink.go.set()
    made.queue.put(given("error"))
    assert await asyncio.to_thread(made.queue.flush, 20)
    assert [type(error) for error in made.sink.stored] == [kind]


@pytest.mark.timeout(120)
async def test_a_burst_on_disk_makes_no_other_error_less_durable(storage):
    """Entries waited in the spool, and ``record()`` took the server for away."""
    async with ErrorManager(storage) as errors:
        recorder_of(errors).spool.append([prepare(f"burst {n}") for n in range(50)])
        recorder_of(errors).wake_replay()
        assert recorder_of(errors).behind
        assert (await errors.record("beside it", module="m")).durable
        assert await errors.flush(60)
        assert await storage.error_entries.count() == 51
