"""The logging handler alone: what logging itself does with it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

import pytest

from fm_storage.catalog.record.drafts import Draft
from fm_storage.catalog.record.logging_handler import CatalogHandler


@pytest.fixture
def logger():
    """Give a logger of the host; its handlers go with the test."""
    made = logging.getLogger("host")
    made.propagate = False
    yield made
    made.propagate = True
    for handler in list(made.handlers):
        made.removeHandler(handler)


class HandlerOfPython313(CatalogHandler):
    """Handles a record as logging does from Python 3.13 on, on any version."""

    def handle(self, record):
        """Filter, lock, emit: the lines of logging.Handler.handle()."""
        if rv := self.filter(record):
            with self.lock:
                self.emit(record)
        return rv


@pytest.mark.parametrize("kind", [CatalogHandler, HandlerOfPython313])
def test_a_record_is_handed_in_under_the_lock_of_any_python(logger, kind):
    """Python 3.13 enters the handler's lock; earlier ones acquire and release it."""
    drafts: list[Callable[[], Draft]] = []
    logger.addHandler(kind(drafts.append, logging.ERROR))
    logger.error("disk %s is full", "/dev/sda")
    logger.info("below the level")
    assert [make().entry.message for make in drafts] == ["disk /dev/sda is full"]


@pytest.mark.parametrize("kind", [CatalogHandler, HandlerOfPython313])
def test_a_record_in_one_thread_waits_for_none_in_another(logger, kind):
    """The handler's lock excludes nobody: the queue behind it has its own."""
    inside, go = threading.Event(), threading.Event()
    drafts = []

    def hand_in(make):
        message = make().entry.message
        if message == "first":
            inside.set()
            assert go.wait(20)
        drafts.append(message)

    logger.addHandler(kind(hand_in, logging.ERROR))
    first = threading.Thread(target=logger.error, args=("first",))
    first.start()
    assert inside.wait(20)
    second = threading.Thread(target=logger.error, args=("second",))
    second.start()
    second.join(20)
    go.set()
    first.join(20)
    assert drafts == ["second", "first"]


def test_logging_shuts_down_with_the_handler_in_place():
    """At exit logging acquires, flushes, closes and releases each handler."""
    handler = CatalogHandler(lambda _: None, logging.ERROR)
    handler.acquire()
    handler.release()
    with handler.lock:
        handler.flush()
    handler.close()
