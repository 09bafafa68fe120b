"""Logs into the catalogue: once, in batches, whatever interrupts."""

from __future__ import annotations

import asyncio
import gzip

import pytest

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.logs import ingest, reading_process
from fm_storage.errors import InvalidRecord, StorageError

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

LINES = [
    f"2024-01-02 03:{n // 60:02}:{n % 60:02} {'ERROR' if n % 3 else 'INFO'} "
    f"[shop.cart] item {n} of order {n * 7} failed\n"
    for n in range(500)
]
TRACE = (
    'Traceback (most recent call last):\n  File "a.py", line 1, in f\nValueError: no\n'
)


@pytest.fixture
async def errors(storage):
    """Give an error manager on fresh engines."""
    async with ErrorManager(storage) as manager:
        yield manager


@pytest.mark.lengthy
async def test_the_same_log_again_adds_nothing_and_a_grown_one_only_the_rest(
    errors, storage, tmp_path
):
    """Also renamed and packed by rotation, and under a progress callback."""
    path = tmp_path / "shop.log"
    path.write_text("".join(LINES[:400]))
    seen: list[tuple[int, int | None]] = []
    report = await errors.ingest(
        path, batch_size=150, progress=lambda done, total: seen.append((done, total))
    )
    assert (report.lines, report.entries, report.added) == (400, 400, 400)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    again = await errors.ingest(path)
    assert (again.added, again.duplicates) == (0, 400)
    assert "400 known before" in str(again)
    path.write_text("".join(LINES))
    assert (await errors.ingest(path)).added == 100
    packed = tmp_path / "shop.log.1.gz"
    packed.write_bytes(gzip.compress("".join(LINES).encode()))
    assert (await errors.ingest(packed)).added == 0
    assert (await errors.ingest(packed, source="other host")).added == 500
    assert await storage.error_entries.count() == 1000
    groups = await errors.groups()
    assert sum(group.count for group in groups) == 1000
    assert groups[0].template == "item <n> of order <n> failed"
    assert groups[0].example.manager_context["source"] in {"shop.log", "other host"}


@pytest.mark.slow
async def test_a_large_file_is_read_by_another_process_with_the_same_result(
    errors, storage, tmp_path, monkeypatch
):
    """The ids are the same, so that the way it was read does not matter."""
    path = tmp_path / "shop.log"
    path.write_text("".join(LINES) + TRACE)
    assert (await errors.ingest(path)).added == 500
    monkeypatch.setattr(reading_process, "WORTH", 0)
    seen: list[tuple[int, int | None]] = []
    report = await errors.ingest(
        path, batch_size=150, progress=lambda done, total: seen.append((done, total))
    )
    assert (report.lines, report.entries, report.added) == (503, 500, 0)
    assert seen[-1] == (path.stat().st_size, path.stat().st_size)
    assert (await errors.ingest(path, source="other", severity="error")).added == 333
    assert await storage.error_entries.count() == 833


@pytest.mark.slow
async def test_a_cancelled_ingest_ends_its_process(errors, tmp_path, monkeypatch):
    """What was stored stays, and no child is left."""
    monkeypatch.setattr(reading_process, "WORTH", 0)
    path = tmp_path / "shop.log"
    path.write_text("".join(LINES * 40))
    reached = asyncio.Event()
    children = []
    made = reading_process.ReadingProcess

    def noted(task):
        children.append(made(task))
        return children[-1]

    monkeypatch.setattr(ingest, "ReadingProcess", noted)
    task = asyncio.create_task(
        errors.ingest(path, batch_size=50, progress=lambda *_: reached.set())
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    [child] = children
    assert child.child.returncode is not None
    assert (await errors.ingest(path)).duplicates >= 50


async def test_lines_are_taken_from_any_iterable(errors):
    """Text or bytes, from a list or an asynchronous source, with their traces."""
    report = await errors.ingest([*LINES[:3], TRACE.rstrip("\n").encode()], source="a")
    assert (report.entries, report.added) == (3, 3)

    async def stream():
        for line in LINES:
            yield line.rstrip("\n")
            await asyncio.sleep(0)
        for line in TRACE.splitlines():
            yield line.encode()

    report = await errors.ingest(stream(), source="b", batch_size=100)
    assert (report.entries, report.added) == (500, 500)
    [group] = [g for g in await errors.groups() if g.example.stack_trace]
    assert group.error_code == "ValueError"

    async def nothing():
        return
        yield ""

    assert (await errors.ingest(nothing())).entries == 0
    assert (await errors.ingest([])).lines == 0


@pytest.mark.lengthy
async def test_lines_that_arrive_slowly_are_stored_before_the_last_has_come(
    errors, storage, monkeypatch
):
    """A stream of lines may never end; what has come is stored in batches."""
    monkeypatch.setattr(ingest, "ASYNC_CHUNK", 50)
    stored = asyncio.Event()
    done: list[int] = []

    def progress(read, total):
        assert total is None
        done.append(read)
        stored.set()

    async def arriving():
        for line in LINES[:400]:
            yield line
        await asyncio.wait_for(stored.wait(), 60)
        assert await storage.error_entries.count() >= 100
        for line in LINES[400:]:
            yield line

    report = await errors.ingest(arriving(), batch_size=100, progress=progress)
    assert (report.entries, report.added, report.unparsed) == (500, 500, 0)
    assert done[-1] == report.bytes == len("".join(LINES).encode())
    assert len(done) >= 4
    assert (await errors.ingest(LINES)).added == 0


async def test_a_line_without_end_is_cut_and_counted(errors, tmp_path):
    """A file of one line must not fill the memory; the report says what was done."""
    path = tmp_path / "endless.log"
    path.write_text(LINES[1].rstrip("\n") + "x" * 3_000_000 + "\n" + LINES[2])
    report = await errors.ingest(path)
    assert report.truncated
    assert f"{report.truncated} lines cut" in str(report)
    assert report.added == report.entries >= 2


async def test_what_is_asked_for_is_kept_and_the_rest_counted(errors):
    """A least severity, a module for nameless lines."""
    report = await errors.ingest([*LINES, "ERROR:plain:x\n"], severity="error")
    assert report.skipped == 167
    assert report.added == 334
    with pytest.raises(InvalidRecord, match="severity"):
        await errors.ingest(LINES, severity="odd")
    await errors.ingest(["2024-01-02 03:04:05 ERROR nameless\n"], module="mine")
    assert (await errors.groups(module="mine"))[0].count == 1


async def test_a_cancelled_ingest_keeps_what_it_has(errors, storage):
    """Batches stored before stay; the next run adds the rest, no line twice."""
    reached = asyncio.Event()

    def progress(_done, _total):
        reached.set()

    def slowly():
        yield from LINES[:300]
        asyncio.run_coroutine_threadsafe(reached.wait(), loop).result(10)
        yield from LINES[300:]

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(
        errors.ingest(slowly(), source="s", batch_size=50, progress=progress)
    )
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    kept = await storage.error_entries.count()
    assert 50 <= kept <= 500
    report = await errors.ingest(LINES, source="s")
    assert report.added == 500 - await _count_before(report)
    assert await storage.error_entries.count() == 500


async def _count_before(report):
    return report.duplicates


async def test_what_is_no_log_is_refused_and_nothing_is_stored(
    errors, storage, tmp_path
):
    """Empty, binary, missing: typed errors that name the file."""
    empty, binary = tmp_path / "empty.log", tmp_path / "binary.log"
    empty.touch()
    binary.write_bytes(bytes(range(256)) * 100)
    for path, problem in ((empty, "empty"), (binary, "not text")):
        with pytest.raises(InvalidRecord, match=problem):
            await errors.ingest(path)
    with pytest.raises(FileNotFoundError):
        await errors.ingest(tmp_path / "missing.log")
    assert await storage.error_entries.count() == 0


async def test_a_log_whose_batch_fails_stops_and_keeps_what_was_stored(errors, storage):
    """Not the values but the table is in the way: the caller learns why."""
    await storage.pool.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        "IF NEW.message LIKE 'item 300 %' THEN RAISE SQLSTATE '53100'; END IF; "
        "RETURN NEW; END $$"
    )
    await storage.pool.execute(
        "CREATE TRIGGER full_disk BEFORE INSERT ON project_errors "
        "FOR EACH ROW EXECUTE FUNCTION full_disk()"
    )
    with pytest.raises(StorageError):
        await errors.ingest(LINES, batch_size=100)
    assert await storage.error_entries.count() == 300


async def test_deleting_errors_forgets_their_groups(errors, storage):
    """No matter who deletes or truncates: the groups follow at once."""
    await errors.ingest(LINES[:10])
    await storage.pool.execute("DELETE FROM project_errors WHERE severity = 'INFO'")
    assert sum(group.count for group in await errors.groups()) == 6
    await storage.pool.execute("TRUNCATE project_errors")
    assert await errors.groups() == []
