"""A log that is piped in.

A read that waits for a pipe cannot be interrupted from a thread: pipes and
terminals are read by the loop, so that Ctrl-C ends them.
"""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from collections.abc import AsyncIterator, Iterable
from io import UnsupportedOperation

_LINE = 1 << 26
"""Longest line of a pipe, in bytes; a longer one is taken for no text."""


async def read_stdin() -> Iterable[bytes] | AsyncIterator[bytes]:
    """Return the lines of standard input, as they come."""
    stream = sys.stdin.buffer
    try:
        mode = os.fstat(stream.fileno()).st_mode
        # Files and /dev/null never wait, and the loop cannot watch them.
        waits = stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stream.isatty()
    except (UnsupportedOperation, OSError):
        waits = False  # not a file at all: in memory
    if not waits:
        return stream
    reader = asyncio.StreamReader(limit=_LINE)
    await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), stream
    )
    return reader
