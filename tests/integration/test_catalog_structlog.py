"""Errors that an application writes with structlog, in the catalogue."""

# How an application logs is what is tested here.
# ruff: noqa: LOG014, TRY400

from __future__ import annotations

import logging

import pytest
import structlog

from fm_storage.catalog import ErrorManager

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture
async def errors(storage):
    """Give an error manager on fresh engines."""
    async with ErrorManager(storage) as manager:
        yield manager


@pytest.fixture
def written():
    """Give the events that reached the end of the chain."""
    return []


def logger_of(processor, written, *before, **context):
    """Return a real structlog logger with *processor* in its chain."""

    def end(_logger, _method, event):
        written.append(dict(event))
        raise structlog.DropEvent

    return structlog.wrap_logger(
        structlog.PrintLogger(),
        processors=[structlog.processors.add_log_level, *before, processor, end],
        wrapper_class=structlog.make_filtering_bound_logger(0),
        context_class=dict,
        **context,
    )


async def stored(errors):
    """Return what is stored, by message."""
    assert await errors.flush()
    entries = await errors.storage.error_entries.get_recent_errors(limit=100)
    return {entry.message: entry for entry in entries}


async def test_events_are_stored_with_their_context_and_go_on_unchanged(
    errors, written
):
    """Level, module, bound values; what is below the level stays out."""
    log = logger_of(errors.structlog_processor("warning"), written).bind(order=7)
    log.info("quiet")
    log.warning("disk full", disk="sda", password="hunter2")
    log.critical("gone")
    found = await stored(errors)
    assert set(found) == {"disk full", "gone"}
    assert found["gone"].severity == "CRITICAL"
    entry = found["disk full"]
    assert (entry.severity, entry.module) == ("WARNING", "structlog")
    assert entry.manager_context == {"order": 7, "disk": "sda", "password": "***"}
    assert [event["event"] for event in written] == ["quiet", "disk full", "gone"]
    assert written[1]["password"] == "hunter2"


async def test_exceptions_come_with_their_trace_in_every_form(errors, written):
    """The one at hand, a given one, a tuple, and one that is text already."""
    log = logger_of(errors.structlog_processor(module="shop"), written)
    plain = logger_of(
        errors.structlog_processor(), written, structlog.processors.format_exc_info
    )
    try:
        raise KeyError("cart")
    except KeyError as exc:
        log.exception("at hand")
        log.error("given", exc_info=exc)
        log.error("tuple", exc_info=(KeyError, exc, exc.__traceback__))
        plain.exception("as text")
    log.error("none", exc_info=True)
    log.error("empty", exc_info=(None,))
    found = await stored(errors)
    assert len(found) == 6
    for message in ("at hand", "given", "tuple", "as text"):
        assert "KeyError: 'cart'" in found[message].stack_trace
        assert found[message].error_code == "KeyError"
    assert found["at hand"].module == "shop"
    assert found["none"].stack_trace is None
    assert found["empty"].stack_trace is None


async def test_the_storages_own_events_stay_out_and_nothing_is_raised(errors, caplog):
    """A processor must never break a log call."""
    processor = errors.structlog_processor("ERROR")
    own = {"event": "internal", "level": "error", "logger": "fm_storage.pool"}
    assert processor(None, "error", own) is own
    odd = {"event": "", "level": "loud"}
    assert processor(logging.getLogger("x"), "error", odd) is odd
    assert processor(logging.getLogger("x.y"), "error", {}) == {}

    class Hostile(dict[str, object]):
        def get(self, *_):
            raise RuntimeError("no")

    hostile = Hostile()
    assert processor(None, "error", hostile) is hostile
    assert "could not be recorded" in caplog.text
    found = await stored(errors)
    assert {message: entry.module for message, entry in found.items()} == {
        "(no event)": "x.y"
    }
