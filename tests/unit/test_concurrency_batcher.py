"""Group commit: who travels with whom, and what each call is answered."""

from __future__ import annotations

import asyncio
import time

import pytest

from fm_storage.concurrency.batcher import Batcher
from fm_storage.errors import ConnectionFailed, InvalidRecord, WrongLoop


class Disk:
    """Writes when it is let to, and remembers what it was given together."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.done: list[str] = []
        self.tasks: list[object] = []
        self.free = asyncio.Event()
        self.bad: dict[str, Exception] = {}

    async def write(self, items):
        """Write all of them, or raise what one of them is bad for."""
        self.batches.append(list(items))
        self.tasks.append(asyncio.current_task())
        await self.free.wait()
        await turns(3)  # no disk answers in the turn in which it is asked
        for item in items:
            if item in self.bad:
                raise self.bad[item]
        self.done += items
        return len(items)


@pytest.fixture
def disk():
    """Give something to write to that waits."""
    return Disk()


@pytest.fixture
def batcher(disk):
    """Give a batcher on it."""
    return Batcher(disk.write, owner="test")


def call(batcher, item, key=None, group=None):
    """Write in a task of its own."""
    return asyncio.create_task(batcher.add(item, [key or item], group))


async def turns(count: int = 4) -> None:
    """Let the loop go round."""
    for _ in range(count):
        await asyncio.sleep(0)


async def test_a_lone_call_is_written_at_once_in_its_own_task(batcher, disk):
    """Nothing is put between it and what it waits for."""
    disk.free.set()
    assert await batcher.add("a", ["a"]) == 1
    assert await batcher.add("b", ["b"]) == 1
    assert disk.tasks == [asyncio.current_task()] * 2


async def test_calls_that_wait_travel_together_in_order(batcher, disk):
    """One is under way; those that came meanwhile are one batch."""
    first = call(batcher, "a")
    await turns()
    others = [call(batcher, item) for item in "bcdef"]
    await turns()
    assert disk.batches == [["a"]]
    disk.free.set()
    assert await asyncio.gather(first, *others) == [1, 5, 5, 5, 5, 5]
    assert disk.batches == [["a"], ["b", "c", "d", "e", "f"]]


async def test_those_that_return_together_go_on_together(batcher, disk):
    """The first that comes back does not go alone while the others follow."""
    disk.free.set()

    async def work(name):
        for n in range(5):
            await batcher.add(f"{name}{n}", [name])

    await asyncio.gather(*(work(name) for name in "abcdefgh"))
    assert sum(map(len, disk.batches)) == 40
    assert len(disk.batches) <= 15


async def test_a_key_is_never_twice_in_a_batch_nor_beside_itself(batcher, disk):
    """The second write of a key begins when the first has ended, in their order."""
    first = call(batcher, "a1", "a")
    await turns()
    first.cancel()  # leaves its write where it is: it was in the caller's own task
    await turns()
    called = [call(batcher, "b1", "b"), call(batcher, "x", "x")]
    await turns()
    called += [call(batcher, f"b{n}", "b") for n in (2, 3)]
    await turns()
    called[0].cancel()  # under way: goes on
    disk.free.set()
    await asyncio.gather(*called, return_exceptions=True)
    for batch in disk.batches:
        assert len({item[0] for item in batch}) == len(batch)
    assert [item for item in disk.done if item[0] == "b"] == sorted(
        item for item in disk.done if item[0] == "b"
    )
    assert disk.done[-1] == "b3"


async def test_a_cancelled_call_leaves_the_others_alone(batcher, disk):
    """One that waits is not written; one under way is, and nobody notices."""
    first = call(batcher, "a")
    await turns()
    waiting = [call(batcher, item) for item in "bcd"]
    await turns()
    waiting[1].cancel()
    await turns()
    disk.free.set()
    assert await first == 1
    await turns(1)
    disk.free.clear()
    more = [call(batcher, item) for item in "efg"]
    await turns(8)
    more[0].cancel()
    disk.free.set()
    results = await asyncio.gather(*waiting, *more, return_exceptions=True)
    assert [isinstance(one, asyncio.CancelledError) for one in results] == [
        False, True, False, True, False, False,
    ]  # fmt: skip
    assert "c" not in disk.done
    assert set("abdfg") <= set(disk.done)


async def test_what_is_refused_fails_alone(batcher, disk):
    """Halved until one is left; the others are written and answered."""
    disk.bad["d"] = InvalidRecord("no", field="x")
    first = call(batcher, "a")
    await turns()
    others = [call(batcher, item) for item in "bcdefghi"]
    await turns()
    disk.free.set()
    results = await asyncio.gather(first, *others, return_exceptions=True)
    assert [one for one in results if isinstance(one, Exception)] == [disk.bad["d"]]
    assert isinstance(results[3], InvalidRecord)
    assert sorted(disk.done) == list("abcefghi")


async def test_a_lost_connection_is_answered_to_all_and_not_repeated(batcher, disk):
    """Whether it was written is unknown: *write* decides what that means."""
    disk.bad["c"] = ConnectionFailed("gone")
    first = call(batcher, "a")
    await turns()
    others = [call(batcher, item) for item in "bc"]
    disk.free.set()
    assert await first == 1
    for other in others:
        with pytest.raises(ConnectionFailed):
            await other
    assert disk.batches == [["a"], ["b", "c"]]
    disk.bad.clear()
    assert await batcher.add("c", ["c"]) == 1


async def test_only_calls_of_one_group_travel_together(batcher, disk):
    """Those of another go with the next batch, and stay in their order."""
    first = call(batcher, "a")
    await turns()
    rest = [
        call(batcher, "u1", "p", "u"),
        call(batcher, "d1", "p", "d"),
        call(batcher, "u2", "p", "u"),
        call(batcher, "u3", "q", "u"),
    ]
    await turns()
    disk.free.set()
    await asyncio.gather(first, *rest)
    assert disk.batches == [["a"], ["u1", "u3"], ["d1"], ["u2"]]


async def test_a_blocked_write_is_not_waited_for(disk):
    """A statement that waits for somebody's lock holds up only itself."""

    async def write(items):
        if "blocked" in items:
            await disk.free.wait()
        return len(items)

    batcher = Batcher(write, owner="test")
    blocked = call(batcher, "blocked")
    await turns()
    async with asyncio.timeout(5):
        for n in range(10):
            await batcher.add(f"{n}", [f"{n}"])
    assert not blocked.done()
    disk.free.set()
    assert await blocked == 1


async def test_waiting_for_a_key_costs_nothing(batcher, disk):
    """Many calls that must wait for one key do not turn the loop meanwhile."""
    first = call(batcher, "first", "k")
    await turns()
    others = [call(batcher, f"{n}", "k") for n in range(60)]
    await turns()
    begin = time.process_time()
    await asyncio.sleep(0.4)
    assert time.process_time() - begin < 0.2
    disk.free.set()
    await asyncio.gather(first, *others)
    assert disk.done == ["first", *map(str, range(60))]


async def test_the_batch_has_nothing_of_a_callers_context(disk):
    """The span or the hook of one caller is not that of the others."""
    from contextvars import ContextVar

    span: ContextVar[str] = ContextVar("span", default="")
    seen: list[str] = []

    async def write(items):
        seen.append(span.get())
        await disk.free.wait()
        return len(items)

    batcher = Batcher(write, owner="test")
    span.set("of a caller")
    called = [call(batcher, item) for item in "abc"]
    await turns()
    disk.free.set()
    await asyncio.gather(*called)
    assert seen == ["of a caller", ""]


async def test_waiting_until_empty_waits_for_all(batcher, disk):
    """Those under way and those that wait; cancelled ones do not count."""
    called = [call(batcher, item) for item in "abc"]
    await turns()
    called[2].cancel()
    empty = asyncio.create_task(batcher.wait_empty())
    await turns()
    assert not empty.done()
    disk.free.set()
    async with asyncio.timeout(5):
        await empty
    assert sorted(disk.done) == ["a", "b"]
    await batcher.wait_empty()
    await asyncio.gather(*called, return_exceptions=True)


def test_another_loop_is_refused():
    """It belongs to the loop in which it was first used."""

    async def write(items):
        return len(items)

    batcher = Batcher(write, owner="test")
    assert asyncio.run(batcher.add("a", ["a"])) == 1
    with pytest.raises(WrongLoop, match="test"):
        asyncio.run(batcher.add("b", ["b"]))
