"""Failures of the storage itself, recorded without ever leading to another one."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from fm_storage.catalog.record.drafts import Draft, draft_of
from fm_storage.catalog.record.recorder import spool_of
from fm_storage.catalog.record.row import Prepared

if TYPE_CHECKING:
    from pathlib import Path

    from fm_storage.config import StorageConfig

logger = logging.getLogger("fm_storage.catalog")

_ROOT = "fm_storage"
_QUIET = "fm_storage.catalog"  # says why an error could not be stored
_INTERVAL = 60.0
_KINDS = 1000


class InternalFailures:
    """Notes failures of the parts, each kind at most once a minute.

    Args:
        hand_in: Takes a function that makes the draft; must not block.
    """

    def __init__(self, hand_in: Callable[[Callable[[], Draft]], None]) -> None:
        self._hand_in = hand_in
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], tuple[float, int]] = {}  # under _lock
        self._busy = threading.local()
        self._watcher: logging.Handler | None = None

    def note(self, part: str, error: BaseException | str) -> None:
        """Record a failure of *part*; from any thread, never raises."""
        if getattr(self._busy, "now", False):
            return
        self._busy.now = True
        try:
            held_back = self._admit(part, error)
            if held_back is None:
                return
            context = {"internal": part}
            if held_back:
                context["held_back"] = str(held_back)
            self._hand_in(
                partial(draft_of, error, module=f"{_ROOT}.{part}", context=context)
            )
        except Exception:  # to record it must not be the next failure
            logger.exception("a failure of %s could not be recorded", part)
        finally:
            self._busy.now = False

    def _admit(self, part: str, error: BaseException | str) -> int | None:
        """Return how many equal ones were held back, or None to hold this one back."""
        kind = type(error).__qualname__ if isinstance(error, BaseException) else error
        key = (part, kind[:200])
        now = time.monotonic()
        with self._lock:
            last, held_back = self._seen.get(key, (-_INTERVAL, 0))
            if now - last < _INTERVAL:
                self._seen[key] = (last, held_back + 1)
                return None
            if len(self._seen) >= _KINDS:
                self._seen.clear()
            self._seen[key] = (now, 0)
            return held_back

    def watch(self, level: int) -> None:
        """Note what the parts log from *level* on; the catalogue's own is left out."""
        if self._watcher is None:
            self._watcher = _Watcher(self.note, level)
            logging.getLogger(_ROOT).addHandler(self._watcher)

    def unwatch(self) -> None:
        """Note nothing more from the log."""
        if self._watcher is not None:
            logging.getLogger(_ROOT).removeHandler(self._watcher)
            self._watcher = None


class _Watcher(logging.Handler):
    def __init__(
        self, note: Callable[[str, BaseException | str], None], level: int
    ) -> None:
        super().__init__(level)
        self._note = note

    def emit(self, record: logging.LogRecord) -> None:
        if record.name == _QUIET or record.name.startswith(f"{_QUIET}."):
            return
        part = record.name.removeprefix(f"{_ROOT}.").split(".", 1)[0]
        exc = record.exc_info[1] if record.exc_info else None
        self._note(part, exc if exc is not None else record.getMessage())


def spool_failed_start(config: StorageConfig, error: BaseException) -> Path | None:
    """Keep the failure of a start on disk, so that the next start records it.

    Blocks for one short write; never raises. Returns the folder, or None if
    nothing could be written.
    """
    try:
        row: Prepared = draft_of(
            error, module=f"{_ROOT}.start", severity="CRITICAL"
        ).prepared()
        spool = spool_of(config)
        spool.append([row])
        spool.close()
    except Exception:  # the start's own failure is what must be raised
        logger.exception("the failure of the start could not be spooled")
        return None
    return spool.folder
