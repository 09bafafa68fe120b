"""The note of a collection's files: how often the engine ended while it read them.

The engine makes it, and the process that started the engine corrects it. It is a file
of as many bytes as the ends weigh, so that either side changes it in one call.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_NAME = "opening"
_WEIGHT = 10  # of an end
_KILLED = 1  # of one by SIGKILL, which is nearly always another's doing
_MOST = 3 * _WEIGHT


@contextmanager
def noted(folder: Path) -> Iterator[None]:
    """Give up after attempts that ended the process: a damaged file can do that.

    Raises:
        RuntimeError: There were too many; the message names the note.
    """
    note = folder / _NAME
    with suppress(OSError):  # a full disk is still read
        if note.exists() and note.stat().st_size >= _MOST:
            message = (
                f"{note}: the engine ended again and again while it read the files "
                "beside; to have it try again remove this one"
            )
            raise RuntimeError(message)
        with note.open("a") as attempts:
            attempts.write(_WEIGHT * "x")
    try:
        yield
    finally:
        with suppress(OSError):
            note.unlink(missing_ok=True)


def weigh_as_killed(shards: Path) -> None:
    """Let the end of the engine of *shards* count as one by SIGKILL."""
    for note in shards.glob(f"*/{_NAME}"):
        with suppress(OSError):
            os.truncate(note, max(0, note.stat().st_size - _WEIGHT + _KILLED))
