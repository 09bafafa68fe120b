"""A large log, read, masked and fingerprinted in a process of its own.

In a thread this work would share the interpreter with the loop: both cores are
used only by two processes, and a loop that serves meanwhile is not kept waiting.
The child inherits the open file, so that a rotation while it starts does not
matter, and sends batches through a pipe.
"""

from __future__ import annotations

import gc
import json
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime, timezone, tzinfo
from functools import partial
from typing import IO, Any, NamedTuple
from zoneinfo import ZoneInfo

from fm_storage.catalog.logs.entry import IngestReport
from fm_storage.catalog.logs.opening import open_log
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.catalog.record.frames import own_code
from fm_storage.catalog.record.row import columns_of
from fm_storage.repositories.severity import Severity

WORTH = 4 * 1024 * 1024
"""Bytes from which on the start of a process (half a second) is won back."""

# What a room offers to users (pool, models, pages) takes four fifths of a start, and
# no line waits for it: the child enters its rooms without their __init__.
BOOT = """
import json, sys, types
sys.path[:] = json.loads(sys.argv[1])
import fm_storage
for room in ("catalog", "repositories"):
    made = sys.modules[f"fm_storage.{room}"] = types.ModuleType(f"fm_storage.{room}")
    made.__path__ = [f"{fm_storage.__path__[0]}/{room}"]
from fm_storage.catalog.logs.reading_process import main
main()
"""
_READ_ONLY_FIELDS = (
    "lines", "bytes", "entries", "skipped", "unparsed", "truncated", "samples",
    "formats", "incomplete",
)  # fmt: skip


class Task(NamedTuple):
    """What the child is to do; the descriptor of the log is inherited."""

    descriptor: int
    source: str
    module: str | None
    least: Severity | None
    zone: tzinfo
    now: datetime
    size: int
    format: re.Pattern[str] | None = None
    own_code: tuple[str, ...] = ()


def worth_a_process(size: int, zone: tzinfo) -> bool:
    """Return whether a file of *size* bytes is read faster by another process.

    Not if the zone is an object of the application's, which a child could not
    know; nor where there is no interpreter to start.
    """
    return (
        size >= WORTH
        and isinstance(zone, timezone | ZoneInfo)
        and not getattr(sys, "frozen", False)
        and bool(sys.executable)
        and os.name == "posix"
    )


class ReadingProcess:
    """The child, and what it has sent. Every method blocks; for threads.

    Args:
        task: What to read; its descriptor stays the caller's.
    """

    def __init__(self, task: Task) -> None:
        self.report = IngestReport(source=task.source)
        # A session of its own: Ctrl-C at the terminal is for the parent, which
        # ends the child. Should the parent be killed, the child's next write
        # finds no reader and ends it.
        self.child = subprocess.Popen(
            [sys.executable, "-c", BOOT, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=(task.descriptor,),
            start_new_session=True,
        )
        assert self.child.stdin is not None
        try:
            with self.child.stdin as pipe:
                pickle.dump(task, pipe)
        except BrokenPipeError:
            pass  # it has ended already; next() says so

    def next(self) -> list[list[Any]] | None:
        """Return the columns of the next batch, or None behind the last one.

        Raises:
            EOFError: The child has ended before the log did.
            Exception: Whatever reading the log raised there.
        """
        assert self.child.stdout is not None
        try:
            columns, report = pickle.load(self.child.stdout)  # noqa: S301 - our own child
        except (EOFError, pickle.UnpicklingError) as exc:
            raise EOFError(
                f"log {self.report.source!r}: the process that read it ended early "
                f"(status {self.child.wait()}); ingest it again, what was stored stays"
            ) from exc
        if isinstance(report, BaseException):
            raise report
        for name, value in zip(_READ_ONLY_FIELDS, report, strict=True):
            setattr(self.report, name, value)
        found: list[list[Any]] | None = columns
        return found

    def close(self) -> None:
        """End the child, whatever it is doing."""
        self.child.kill()
        self.child.wait()
        assert self.child.stdout is not None
        self.child.stdout.close()


def main() -> None:
    """Be the child: read the task from standard input, write to standard output."""
    # Entries hold no cycles: looking for some would be a tenth of the work.
    gc.freeze()
    gc.set_threshold(1_000_000)
    # Nothing that is printed by mistake may get between the batches.
    with os.fdopen(os.dup(1), "wb") as out:
        os.dup2(2, 1)
        try:
            serve(pickle.load(sys.stdin.buffer), out)  # noqa: S301 - from our parent
        except BrokenPipeError:
            os._exit(1)  # nobody reads: the parent has gone, or wants no more


def serve(task: Task, out: IO[bytes]) -> None:
    """Read the log of *task* and write its batches to *out*."""
    send = partial(pickle.dump, file=out, protocol=pickle.HIGHEST_PROTOCOL)
    try:
        for columns, report in _batches(task):
            send((columns, [getattr(report, name) for name in _READ_ONLY_FIELDS]))
            out.flush()
    except BrokenPipeError:
        raise
    except Exception as exc:  # raised again in the parent
        send((None, exc))


def _batches(task: Task) -> Iterator[tuple[list[list[Any]] | None, IngestReport]]:
    own_code(task.own_code)
    os.lseek(task.descriptor, 0, os.SEEK_SET)  # shared with the parent's
    log = open_log(task.descriptor)
    try:
        reader = LogReader(
            log.lines(),
            source=task.source,
            module=task.module,
            least=task.least,
            zone=task.zone,
            now=task.now,
            format=task.format,
        )
        for batch in reader.batches(task.size):
            columns = columns_of(batch)
            # As text, identities are read back in a tenth of the time.
            columns[0] = [one.hex for one in columns[0]]
            yield columns, reader.report
        reader.report.incomplete = log.broken
        yield None, reader.report
    finally:
        log.close()
