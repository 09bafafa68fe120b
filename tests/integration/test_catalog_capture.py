"""Capture, logging and the middleware: every error passes, none waits or is lost."""

# Raising and catching is what is tested here.

from __future__ import annotations

import asyncio
import logging
import threading
import time

import httpx
import pytest

from fm_storage.catalog import CatalogMiddleware, ErrorManager
from fm_storage.catalog.record.drafts import draft_of
from fm_storage.catalog.record.queue import Background
from fm_storage.errors import ConfigurationInvalid
from tests.support.inside import recorder_of

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


class Refused(Exception):
    """An error of the application."""


class Unprintable:
    """A value that has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no text")


@pytest.fixture
async def errors(storage):
    """Give an error manager on fresh engines."""
    async with ErrorManager(storage) as manager:
        yield manager


@pytest.fixture
def log():
    """Give a logger that reaches only what a test attaches."""
    logger = logging.getLogger("shop.catalog_test")
    logger.propagate = False
    logger.setLevel(logging.DEBUG)
    yield logger
    logger.handlers.clear()


async def stored(errors):
    """Return what is stored, once everything handed in has arrived."""
    assert await errors.flush()
    return [group.example for group in await errors.groups(limit=100)]


async def test_a_block_is_recorded_once_and_its_error_passes(errors):
    """However many captures an exception passes, it is one error."""
    outer = errors.capture(module="outer")
    with pytest.raises(Refused):
        async with outer, errors.capture(module="inner", context={"a": 1}) as inner:
            raise Refused("no")
    assert inner.recorded.durable
    assert outer.recorded is None
    [entry] = await stored(errors)
    assert (entry.module, entry.manager_context) == ("inner", {"a": 1})
    async with errors.capture():
        pass


async def test_functions_of_every_kind_are_wrapped(errors):
    """Coroutine functions, asynchronous generators and plain functions."""

    @errors.capture(module="coroutine")
    async def coroutine(x):
        """Say why."""
        raise Refused(x)

    @errors.capture(module="generator")
    async def generator():
        yield 1
        raise Refused("b")

    @errors.capture(module="plain", severity="critical")
    def plain(*, fine=False):
        if fine:
            return 7
        raise Refused("c")

    assert coroutine.__doc__ == "Say why."
    with pytest.raises(Refused):
        await coroutine("a")
    with pytest.raises(Refused):
        assert [number async for number in generator()] == []
    with pytest.raises(Refused):
        await asyncio.to_thread(plain)
    assert plain(fine=True) == 7
    assert {e.module for e in await stored(errors)} == {
        "coroutine",
        "generator",
        "plain",
    }


async def test_the_end_of_work_is_no_error(errors):
    """Cancellation, exit and interrupts pass unrecorded; a mixed group does not."""
    for end in (asyncio.CancelledError(), SystemExit(1), KeyboardInterrupt()):
        with pytest.raises(type(end)):
            async with errors.capture():
                raise end
    with pytest.raises(BaseExceptionGroup):
        async with errors.capture():
            raise BaseExceptionGroup("g", [SystemExit(1)])
    assert await stored(errors) == []
    with pytest.raises(BaseExceptionGroup):
        async with errors.capture():
            raise BaseExceptionGroup("g", [SystemExit(1), ValueError("v")])
    assert len(await stored(errors)) == 1


async def test_a_failure_to_record_does_not_hide_the_error(storage, caplog):
    """The exception goes on as it was; that it is lost is logged."""
    errors = await ErrorManager(storage)
    await errors.aclose()
    with pytest.raises(Refused):
        async with errors.capture():
            raise Refused("no")
    assert "could not be recorded" in caplog.text

    class Slotted(Exception):
        __slots__ = ()

        def __setattr__(self, name, value):
            raise AttributeError(name)

    with pytest.raises(Slotted):
        async with errors.capture():
            raise Slotted


@pytest.mark.lengthy
async def test_a_plain_function_before_the_storage_opens_is_spooled(storage_config):
    """A decorator works at import time; what it catches is replayed at the start."""
    from fm_storage.manager import StorageManager

    storage = StorageManager(storage_config)
    errors = ErrorManager(storage)

    @errors.capture(module="early")
    def work():
        raise Refused("before")

    with pytest.raises(Refused):
        await asyncio.to_thread(work)
    async with storage, errors:
        await errors.flush()
        [entry] = await stored(errors)
        assert entry.module == "early"


async def test_log_records_are_stored_with_their_trace(errors, log):
    """Level, logger, extras and trace; what is below the level stays out."""
    log.addHandler(errors.handler("WARNING"))
    log.info("quiet")
    log.warning("disk %s full", 7, extra={"disk": "sda"})
    try:
        raise Refused("no")
    except Refused:
        log.exception("payment failed")
    entries = {entry.message: entry for entry in await stored(errors)}
    assert set(entries) == {"disk 7 full", "payment failed"}
    assert entries["disk 7 full"].manager_context["disk"] == "sda"
    assert "Refused: no" in entries["payment failed"].stack_trace
    assert entries["payment failed"].module == "shop.catalog_test"


async def test_records_of_the_storage_itself_are_left_out(errors):
    """Storing an error logs; that must not become an error to be stored."""
    handler = errors.handler(logging.DEBUG)
    own = logging.getLogger("fm_storage.pool")
    own.addHandler(handler)
    try:
        own.error("internal")
    finally:
        own.removeHandler(handler)
    assert await stored(errors) == []


async def test_what_neither_the_queue_nor_the_disk_takes_is_said_in_the_log(
    errors, log, caplog
):
    """The log is the last place that is left; nothing is raised into the caller."""
    background = errors._queue()
    folder = recorder_of(errors).spool.folder
    folder.parent.mkdir(parents=True)
    folder.write_text("a file in the way")
    background.capacity = 0
    log.addHandler(errors.handler())
    log.error("no place for this")
    assert "could not be kept: shop.catalog_test: no place for this" in caplog.text
    folder.unlink()
    background.capacity = 100

    def broken():
        raise Refused

    background.put(broken)
    log.error("a place for this")
    assert [entry.message for entry in await stored(errors)] == ["a place for this"]
    assert "could not be rendered" in caplog.text


async def test_a_batch_that_the_loop_cannot_store_goes_to_the_spool(errors):
    """Whatever stops it: the disk is still there, and is replayed."""

    async def refuse(_drafts):
        raise Refused

    background = Background(recorder_of(errors), refuse, asyncio.get_running_loop())
    background.put(lambda: draft_of("kept", module="m"))
    assert await asyncio.to_thread(background.flush, 20)
    assert background.spilled == 1
    await asyncio.to_thread(background.close, 5)
    [entry] = await stored(errors)
    assert entry.message == "kept"


async def test_what_is_logged_after_the_end_is_kept_for_the_next_start(storage, log):
    """Applications go on logging while they end; those lines were dropped."""
    errors = await ErrorManager(storage)
    log.addHandler(errors.handler("warning"))
    log.error("before the end")
    await errors.aclose()
    for n in range(3):
        log.error("after the end %d", n)
    folder = recorder_of(errors).spool.folder
    assert len(list(folder.iterdir())) == 1  # one file, however many records
    async with ErrorManager(storage) as following:
        assert await following.flush()
        groups = await following.groups()
    assert {group.template: group.count for group in groups} == {
        "before the end": 1,
        "after the end <n>": 3,
    }
    assert list(folder.iterdir()) == []
    log.error("after all of them")
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize("level", ["LOUDLY", None, "", 3.5])
async def test_an_unknown_level_is_refused_with_the_names_of_the_others(errors, level):
    """A plain ValueError of logging named none."""
    with pytest.raises(ConfigurationInvalid, match=r"use one of .*WARNING"):
        errors.handler(level)


async def test_a_record_with_wrong_arguments_is_stored_as_it_is(errors):
    """A mistake in a log call does not lose what it wanted to say."""
    handler = errors.handler()
    handler.handle(
        logging.LogRecord("x", logging.ERROR, "p", 1, "%d left", ("none",), None)
    )
    handler.handle(
        logging.LogRecord("x", logging.ERROR, "p", 1, "%s", (Unprintable(),), None)
    )
    messages = {entry.message for entry in await stored(errors)}
    assert messages == {"'%d left' with ('none',)", "%s with <unprintable Unprintable>"}


@pytest.mark.slow
async def test_a_full_queue_spills_to_the_spool_and_nothing_is_dropped(
    errors, storage, log
):
    """A burst beyond the queue lies on disk, then in the database: all of it, once."""
    handler = errors.handler()
    errors._background = Background(
        recorder_of(errors),
        errors._store_handed_in,
        asyncio.get_running_loop(),
        capacity=50,
    )
    log.addHandler(handler)
    for n in range(2000):
        log.error("burst %d", n)
    assert await errors.flush(60)
    assert errors._background.spilled > 0
    assert await storage.error_entries.count() == 2000


@pytest.mark.slow
async def test_handing_in_never_stalls_the_loop(errors, storage, log):
    """While two thousand records pass through, the loop goes on breathing."""
    log.addHandler(errors.handler())
    gaps: list[float] = []
    done = asyncio.Event()

    async def breathe():
        last = time.perf_counter()
        while not done.is_set():
            await asyncio.sleep(0.001)
            now = time.perf_counter()
            gaps.append(now - last)
            last = now

    task = asyncio.create_task(breathe())
    for n in range(40):
        for m in range(50):
            log.error("record %d of %d", m, n)
        await asyncio.sleep(0.005)
    assert await errors.flush(60)
    done.set()
    await task
    assert await storage.error_entries.count() == 2000
    assert sorted(gaps)[len(gaps) // 2] < 0.25


@pytest.mark.slow
async def test_what_is_queued_is_stored_before_the_storage_closes(storage_config, log):
    """The shutdown hook flushes, also without closing the error manager."""
    from fm_storage.manager import StorageManager

    async with StorageManager(storage_config) as storage:
        errors = ErrorManager(storage)
        log.addHandler(errors.handler())
        for n in range(300):
            log.error("late %d", n)
    log.error("too late for this one")
    async with (
        StorageManager(storage_config) as storage,
        ErrorManager(storage) as again,
    ):
        assert await again.flush()
        assert await storage.error_entries.count() == 301


async def test_hooks_see_what_is_handed_in(errors, log):
    """Records and decorated functions pass the same hooks as ``record()``."""
    seen: list[str] = []
    errors.before_record(lambda entry: setattr(entry, "module", "hooked"))
    errors.after_record(lambda recorded: seen.append(recorded.entry.module))
    log.addHandler(errors.handler())
    log.error("x")
    [entry] = await stored(errors)
    assert (entry.module, seen) == ("hooked", ["hooked"])


async def test_a_draft_that_cannot_be_made_is_logged(errors, caplog):
    """One unrenderable record does not take the others with it."""

    def broken():
        raise RuntimeError("no draft")

    errors._in_background(broken)
    errors.note_internal("pool", "fine")
    assert len(await stored(errors)) == 1
    assert "could not be rendered" in caplog.text


@pytest.mark.lengthy
async def test_internal_failures_are_recorded_seldom_and_never_recurse(errors, storage):
    """The same failure once a minute; watching the storage's log finds it too."""
    for n in range(50):
        errors.note_internal("outbox", ConnectionError(f"lost {n}"))
    errors.watch_internal()
    errors.watch_internal()
    logger = logging.getLogger("fm_storage.sessions.reaper")
    logger.warning("reap failed")
    logging.getLogger("fm_storage.catalog").warning("not this one")
    threads = [
        threading.Thread(target=errors.note_internal, args=("pool", "thread"))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        await asyncio.to_thread(thread.join)
    found = {entry.module: entry for entry in await stored(errors)}
    assert set(found) >= {"fm_storage.outbox", "fm_storage.sessions", "fm_storage.pool"}
    assert "fm_storage.catalog" not in found
    assert found["fm_storage.outbox"].manager_context["internal"] == "outbox"
    assert await storage.error_entries.count() == len(found)


@pytest.mark.lengthy
async def test_the_middleware_records_what_an_application_raises(errors):
    """Path, method, route and client; nothing where secrets live; it is re-raised."""

    async def app(scope, _receive, send):
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.startup.complete"})
            return
        raise Refused("card 12 refused")

    for given in (errors, lambda: errors):
        wrapped = CatalogMiddleware(app, errors=given, module="web")
        transport = httpx.ASGITransport(app=wrapped, raise_app_exceptions=True)
        async with httpx.AsyncClient(
            transport=transport, base_url="http://t"
        ) as client:
            with pytest.raises(Refused):
                await client.post(
                    "/pay?token=hunter2", headers={"Cookie": "sid=hunter2"}
                )
    [entry] = await stored(errors)
    assert entry.module == "web"
    assert entry.manager_context["request"]["path"] == "/pay"
    assert entry.manager_context["request"]["method"] == "POST"
    assert "hunter2" not in str(entry)

    sent = []

    async def send(message):
        sent.append(message)

    await CatalogMiddleware(app, errors=errors)({"type": "lifespan"}, send, send)
    assert sent == [{"type": "lifespan.startup.complete"}]


async def test_a_middleware_that_cannot_record_still_re_raises(caplog):
    """The client sees the application's error, not ours."""

    async def app(_scope, _receive, _send):
        raise Refused("no")

    def nothing():
        raise LookupError("not open yet")

    wrapped = CatalogMiddleware(app, errors=nothing)
    with pytest.raises(Refused):
        await wrapped({"type": "http", "path": "/"}, nothing, nothing)
    assert "could not be recorded" in caplog.text
