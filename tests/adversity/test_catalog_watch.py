"""Functions that are called for new and regressed groups, in processes that die."""

from __future__ import annotations

import asyncio
import logging
import signal
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query import tail
from fm_storage.concurrency.backoff import Backoff
from fm_storage.config import StorageConfig
from fm_storage.errors import InvalidRecord
from fm_storage.manager import StorageManager
from tests.support.waiting import until

pytestmark = pytest.mark.timeout(240)

# Prints what it is called with; on request waits for a line before it returns.
WATCHING = """
import asyncio, os, sys
from fm_storage import ErrorManager, StorageConfig, StorageManager
dsn, folder, waits, timeout = sys.argv[1:]

async def notify(notice):
    print("begun", notice.key, flush=True)
    if waits == "yes":
        await asyncio.to_thread(sys.stdin.readline)
    print("ended", notice.key, flush=True)

async def main():
    config = StorageConfig(
        postgres={"dsn": dsn, "max_size": 3}, qdrant=None, data_dir=folder
    )
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        watch = errors.watch(new=notify, regressed=notify, timeout=float(timeout))
        print("watching", flush=True)
        await watch

asyncio.run(main())
"""


@pytest.fixture
async def errors(dsn, tmp_path):
    """Give an error manager without vectors."""
    config = StorageConfig(
        postgres={"dsn": dsn, "max_size": 4}, qdrant=None, data_dir=tmp_path / "own"
    )
    async with StorageManager(config) as storage, ErrorManager(storage) as manager:
        yield manager


@pytest.fixture(autouse=True)
def _hasty(monkeypatch):
    """Let watchers look twenty times a second."""
    monkeypatch.setattr(tail, "BACKSTOP", 0.05)


async def begun(errors, name="default"):
    """Wait until somebody watches under that name."""
    await until(lambda: _watches(errors, name))


async def _watches(errors, name):
    return name in {one.watcher for one in await errors.watchers()}


async def ended(task):
    """Cancel a task and wait for its end."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_group_is_notified_of_once_and_again_when_it_comes_back(errors):
    """New, not new any more, resolved, regressed, resolved, regressed."""
    await errors.record("older than the watch", module="m")
    seen = []

    async def note(notice):
        seen.append((notice.event, notice.group.template, notice.key, notice.attempt))

    task = asyncio.create_task(errors.watch(new=note, regressed=note))
    for n in range(3):
        await errors.record(f"order {n} refused", module="shop")
    await until(lambda: seen)
    [group] = await errors.groups(module="shop")
    for turn in (2, 3):
        await errors.resolve(group)
        for n in range(3):
            await errors.record(f"order {n} refused", module="shop")
        await until(lambda turn=turn: len(seen) == turn)
    await errors.record("one more", module="shop")
    await until(lambda: len(seen) == 4)
    events = [one[0] for one in seen]
    assert events == ["new", "regressed", "regressed", "new"]
    assert len({one[2] for one in seen}) == 4
    assert {one[3] for one in seen} == {1}
    assert seen[0][2] == f"new-{group.fingerprint}-0"
    assert "older" not in str(seen)
    await ended(task)


async def test_an_old_log_is_no_news_and_what_happened_meanwhile_is(errors):
    """New is what happened since the name began to watch, also while nobody did."""
    seen = []

    async def note(notice):
        seen.append(notice.group.template)

    task = asyncio.create_task(errors.watch(new=note))
    await begun(errors)
    await ended(task)
    await errors.ingest(
        ["2019-01-02 03:04:05 ERROR [shop.cart] long ago\n"], source="a"
    )
    await errors.record("meanwhile", module="m")
    task = asyncio.create_task(errors.watch(new=note))
    await until(lambda: seen)
    other = []

    async def for_another(notice):
        other.append(notice.group.template)

    since = datetime.now(UTC) - timedelta(hours=1)
    second = asyncio.create_task(
        errors.watch(new=for_another, name="another", since=since)
    )
    await until(lambda: other)
    assert (seen, other) == (["meanwhile"], ["meanwhile"])
    await ended(task)
    await ended(second)


async def test_a_function_that_fails_is_called_again_and_holds_up_nothing(
    errors, monkeypatch, caplog
):
    """Others go on; the failure is logged and shown, without its secrets."""
    from fm_storage.catalog import watch

    monkeypatch.setattr(watch, "_RETRY", Backoff(0.05, 0.1))
    calls = []

    async def fail_twice(notice):
        calls.append((notice.group.template, notice.attempt, notice.key))
        if notice.group.template == "a" and notice.attempt < 3:
            raise ValueError("password=hunter2\0\udcff")
        if notice.group.template == "b" and notice.attempt == 1:
            await asyncio.sleep(60)
        if notice.group.template == "c" and notice.attempt == 1:
            raise asyncio.CancelledError

    task = asyncio.create_task(errors.watch(new=fail_twice, timeout=0.2))
    await begun(errors)
    with caplog.at_level(logging.WARNING, "fm_storage.catalog"):
        for name in "abcd":
            await errors.record(name, module="m")
        await until(lambda: len(calls) == 3 + 2 + 2 + 1)
    for name, attempts in zip("abcd", (3, 2, 2, 1), strict=True):
        mine = [one for one in calls if one[0] == name]
        assert [one[1] for one in mine] == list(range(1, attempts + 1))
        assert len({one[2] for one in mine}) == 1
    assert "hunter2" not in caplog.text
    assert "ValueError: password=***" in caplog.text
    await until(lambda: _idle(errors))
    await ended(task)


async def _idle(errors):
    [status] = await errors.watchers()
    return (status.waiting, status.failing, status.last_error) == (0, 0, None)


async def test_what_fails_is_visible_while_it_fails(errors):
    """``watchers()`` names the failure and when the next attempt is."""

    async def fail(_):
        raise OSError("no pager")

    task = asyncio.create_task(errors.watch(new=fail))
    await begun(errors)
    await errors.record("x", module="m")

    async def failing():
        [status] = await errors.watchers()
        return status.failing and status

    await until(failing)
    status = await failing()
    assert status.last_error == "OSError: no pager"
    assert status.due > datetime.now(UTC) - timedelta(seconds=30)
    assert (status.waiting, status.delivered) == (1, 0)
    await ended(task)


async def test_a_sibling_of_a_known_group_is_not_new_and_a_merge_repeats_nothing(
    errors,
):
    """What joins a group is no news; a regression stays one notice in a merge."""
    seen = []

    async def note(notice):
        seen.append((notice.event, notice.group.template))

    task = asyncio.create_task(errors.watch(new=note, regressed=note))
    await begun(errors)
    for text in ("volume is gone", "queue stops here"):
        await errors.record(text, module="m")
    await until(lambda: len(seen) == 2)
    first, second = await errors.groups(order="first_seen")
    await errors.resolve(second)
    await errors.record("volume is gone", module="m")
    await until(lambda: len(seen) == 3)
    pool = errors.storage.pool
    kept, merged = first.group_id, second.group_id
    async with pool.transaction() as tx:
        await tx.execute(
            "UPDATE fm_storage.group_members SET group_id = $1 WHERE group_id = $2",
            kept,
            merged,
        )
        await tx.execute(
            "INSERT INTO fm_storage.group_merges (kept, merged, members) "
            "VALUES ($1::bigint, $2::bigint, ARRAY[$2::bigint])",
            kept,
            merged,
        )
    assert [group.state for group in await errors.groups()] == ["regressed"]
    await errors.record("no route to that host", module="m")
    await until(lambda: len(seen) == 4)
    assert [one[0] for one in seen] == ["new", "new", "regressed", "new"]
    await ended(task)


async def test_functions_that_cannot_be_awaited_are_refused(errors):
    """At the call, before anything runs."""

    async def fine(notice):
        return notice

    for wrong in (
        {},
        {"new": print},
        {"new": fine, "timeout": 0},
        {"new": fine, "name": ""},
    ):
        with pytest.raises(InvalidRecord):
            errors.watch(**wrong)
    with pytest.raises(InvalidRecord, match="without a zone"):
        errors.watch(new=fine, since=datetime(2024, 1, 1))
    errors.watch(new=partial(fine)).close()


@pytest.fixture
def watching(child, dsn, tmp_path):
    """Give a starter of processes that watch."""

    async def start(number, *, waits, timeout=60):
        process = await child(
            *(WATCHING, dsn, tmp_path / f"p{number}"),
            *("yes" if waits else "no", timeout),
        )
        assert await process.line() == "watching"
        return process

    return start


async def test_the_work_of_a_killed_process_is_taken_over_by_another(errors, watching):
    """SIGKILL in the middle of a call: the same key, in the next process, at once."""
    first = await watching(1, waits=True)
    await begun(errors)
    await errors.record("volume is gone", module="m")
    said = await first.line()
    assert said.startswith("begun new-")
    others = [await watching(n, waits=False) for n in (2, 3)]
    lines = [asyncio.create_task(one.line()) for one in others]
    # One at a time: while the first is in its call, no other begins one.
    done, _ = await asyncio.wait(lines, timeout=1.0)
    assert not done
    await first.kill()
    done, _ = await asyncio.wait(lines, return_when=asyncio.FIRST_COMPLETED)
    [winner] = done
    assert winner.result() == said
    assert await others[lines.index(winner)].line() == said.replace("begun", "ended")
    await until(lambda: _idle(errors))
    [loser] = {*lines} - done
    assert not loser.done()
    loser.cancel()


async def test_a_process_that_is_frozen_loses_its_turn(errors, watching):
    """SIGSTOP instead of SIGKILL: the server ends its turn after the timeout."""
    first = await watching(1, waits=True, timeout=2)
    await begun(errors)
    await errors.record("volume is gone", module="m")
    said = await first.line()
    first.signal(signal.SIGSTOP)
    second = await watching(2, waits=False)
    assert await second.line(60) == said
    assert await second.line() == said.replace("begun", "ended")
    first.signal(signal.SIGCONT)
    await first.say()
    await until(lambda: _idle(errors))


async def test_many_groups_and_kills_leave_none_out(errors, watching):
    """Processes come and go; each group is delivered by one of them at least."""
    given = set()
    seen = set()
    for turn in range(3):
        process = await watching(turn, waits=False)
        for n in range(15):
            name = "kind " + "abcdefghijklmno"[n] * (turn + 1)
            await errors.record(name, module="m")
            given.add(name)
        for _ in range(7 + turn):
            seen.add((await process.line()).split()[-1])
        await process.kill()
    last = await watching(9, waits=False)
    await until(lambda: _idle(errors))
    groups = await errors.groups(limit=100)
    assert {group.template for group in groups} == given
    [status] = await errors.watchers()
    assert status.delivered == len(given)
    assert {f"new-{group.fingerprint}-0" for group in groups} >= seen
    await last.kill()
