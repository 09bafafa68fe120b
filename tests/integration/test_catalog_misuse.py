"""Mistakes with an error manager: each is told with what to do, and harms nothing."""

from __future__ import annotations

import asyncio
from datetime import datetime

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.errors import ConfigurationInvalid, InvalidRecord, WrongLoop

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def errors(storage):
    """Give an error manager on fresh engines."""
    async with ErrorManager(storage) as manager:
        yield manager


async def test_a_manager_is_closed_on_its_own_loop(errors):
    """From another one it was marked as closed, and what ran went on running."""
    await errors.record("x", module="m")

    def elsewhere():
        asyncio.run(errors.aclose())

    with pytest.raises(WrongLoop, match="error manager"):
        await asyncio.to_thread(elsewhere)
    assert (await errors.record("y", module="m")).durable


@pytest.mark.parametrize("storage", [None, 5, "postgresql://localhost"])
def test_an_error_manager_says_what_it_needs(storage):
    """It was an AttributeError about something inside."""
    with pytest.raises(ConfigurationInvalid, match="give a StorageManager"):
        ErrorManager(storage)


@pytest.mark.parametrize("ask", ["groups", "find_similar", "report"])
async def test_a_question_that_asks_for_nothing_or_no_known_time_is_refused(
    errors, ask
):
    """A naive time meant another moment on each machine; a limit of 0, no answer."""
    question = getattr(errors, ask)
    given = ("x",) if ask == "find_similar" else ()
    for limit in (0, -1):
        with pytest.raises(InvalidRecord, match=rf"limit is {limit}; give"):
            await question(*given, limit=limit)
    with pytest.raises(InvalidRecord, match="since is 2024-01-02") as caught:
        await question(*given, since=datetime(2024, 1, 2))  # noqa: DTZ001 - the fault
    assert caught.value.field == "since"
