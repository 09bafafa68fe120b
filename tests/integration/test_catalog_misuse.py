"""Mistakes with an error manager: each error names the remedy, and harms nothing."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

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


@pytest.mark.lengthy
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
    for limit in (0, -1, "3", 1.5):
        with pytest.raises(InvalidRecord, match=rf"limit is {limit!r}; give"):
            await question(*given, limit=limit)
    with pytest.raises(InvalidRecord, match="since is yesterday"):
        await question(*given, since="yesterday")
    with pytest.raises(InvalidRecord, match="since is 2024-01-02") as caught:
        await question(*given, since=datetime(2024, 1, 2))
    assert caught.value.field == "since"


@pytest.mark.parametrize(
    ("call", "named"),
    [
        (lambda e: e.ingest(["x"], zone="UTC"), "zone: is a str; give a tzinfo"),
        (lambda e: e.ingest(["x"], source=3), "source: is a int; give text"),
        (lambda e: e.ingest(["x"], module=3), "module: is a int; give text"),
        (lambda e: e.ingest(["x"], format=3), "format: is a int; give a regular"),
        (lambda e: e.ingest(["x"], progress=3), "progress: is a int; give a function"),
        (lambda e: e.ingest(None), "log: is a NoneType; give a path, or lines"),
        (lambda e: e.ingest([1, 2]), "log: a line is a int; give text"),
        (lambda e: e.find_similar(None), "error: is a NoneType; give a message"),
        (lambda e: e.watch(new=e.ingest, timeout="5"), "timeout: is a str; give"),
    ],
    ids=[
        "zone",
        "source",
        "module",
        "format",
        "progress",
        "log",
        "line",
        "error",
        "timeout",
    ],
)
async def test_what_is_of_another_type_is_named(errors, call, named):
    """Each failed somewhere inside."""
    with pytest.raises((ConfigurationInvalid, InvalidRecord), match=named):
        await call(errors)


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        (lambda a: a.patterns(limit=0), "limit is 0; give"),
        (lambda a: a.timeline(since=datetime(2026, 1, 1)), "since is 2026"),
        (lambda a: a.new_since(datetime(2026, 1, 1)), "moment is 2026"),
        (lambda a: a.growing(timedelta()), "window is .* above 0"),
        (lambda a: a.correlations("a minute"), "window is 'a minute'"),
        (lambda a: a.frequencies("colour"), "by is 'colour'; give one of module"),
    ],
    ids=["limit", "since", "moment", "window", "span", "by"],
)
async def test_the_analyzer_says_what_is_unclear(errors, ask, said):
    """Each was an empty answer, or an error about something inside."""
    with pytest.raises(InvalidRecord, match=said):
        await ask(errors.analyzer)


@pytest.mark.lengthy
async def test_spans_are_given_in_seconds_too(errors):
    """As every other duration of the library."""
    for _ in range(5):
        await errors.record("x", module="m")
    assert await errors.analyzer.correlations(60.0) == []
    assert [one.now for one in await errors.analyzer.growing(60)] == [5]
    report = await errors.report(window=60)
    assert report.window == timedelta(minutes=1)
