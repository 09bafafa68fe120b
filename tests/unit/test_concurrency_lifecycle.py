"""The process and the loop an object belongs to, and its state."""

from __future__ import annotations

import asyncio
import os

import pytest

from fm_storage.concurrency.lifecycle import Home, Life, Lifecycle
from fm_storage.errors import ForkedProcess, StorageClosed, WrongLoop


@pytest.mark.parametrize("life", [life for life in Life if life is not Life.OPEN])
async def test_only_an_open_object_may_be_used(life: Life):
    """The error names the object, its state and the remedy."""
    home = Home("vector store")
    home.enter()
    home.life = life
    with pytest.raises(StorageClosed, match=f"vector store: it is {life.value}; use"):
        home.require_open()
    home.require_open(life)
    home.life = Life.OPEN
    home.require_open()


def test_another_loop_is_refused_and_no_loop_is_not():
    """A snapshot may be taken after the loop has ended; nothing may be awaited."""
    home = Home("vector store")

    async def enter() -> None:
        assert home.enter() is asyncio.get_running_loop()
        home.check()

    async def use() -> None:
        with pytest.raises(WrongLoop, match="vector store: it was opened on another"):
            home.check()

    home.check()
    asyncio.run(enter())
    asyncio.run(use())
    home.check()
    with pytest.raises(WrongLoop, match="no event loop of asyncio runs here"):
        home.enter()


def test_a_forked_child_is_refused():
    """Its sockets are the parent's."""
    home = Home("vector store")
    assert not home.forked
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            asyncio.run(_refused(home))
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


async def _refused(home: Home) -> None:
    assert home.forked
    for use in (home.enter, home.check):
        with pytest.raises(ForkedProcess, match="vector store"):
            use()


async def test_a_lifecycle_opens_by_await_and_by_block():
    """Both give the object itself, and the block closes it."""

    class Door(Lifecycle):
        def __init__(self) -> None:
            self.state = Life.NEW

        async def _opened(self) -> Door:
            self.state = Life.OPEN
            return self

        async def aclose(self) -> None:
            self.state = Life.CLOSED

    door = Door()
    async with door as same:
        seen = [same is door, door.state]
    assert [*seen, door.state] == [True, Life.OPEN, Life.CLOSED]
    assert (await Door()).state is Life.OPEN
