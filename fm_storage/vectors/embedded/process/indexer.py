"""The process that builds an HNSW index on a copy of a shard.

qdrant-edge builds an index inside one call that holds the interpreter's lock for
minutes; the engine would answer nothing meanwhile. So the engine has a copy of
the shard indexed here, at low priority and on one thread, and swaps it in.

Says ``copied`` when the original may be written to again, and ``done``.
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

_DIE_WITH_PARENT = 1
_CHUNK = 8 * 1024 * 1024


def main(argument: str) -> None:
    """Copy a shard and index the copy: ``{"source", "target", "spec"}`` as JSON."""
    _die_with_parent()
    os.nice(10)
    given: dict[str, Any] = json.loads(argument)
    source, target = Path(given["source"]), Path(given["target"])
    copy_sparse(source, target)
    _say("copied")
    # Loaded late: the copy is what the writers wait for.
    import qdrant_edge as edge

    from fm_storage.vectors.embedded.process.edge_types import index_config

    shard = edge.EdgeShard.load(str(target), index_config(given["spec"]))
    shard.optimize()
    shard.flush()
    shard.close()
    _say("done")


def _die_with_parent() -> None:
    """Ask the kernel to end this process when the engine ends, however it does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)


def _say(word: str) -> None:
    sys.stdout.write(f"{word}\n")
    sys.stdout.flush()


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a folder without filling the holes of its sparse files.

    An empty shard takes 98 MB on paper and 40 kB on the disk.
    """
    target.mkdir(mode=0o700)
    for entry in sorted(source.iterdir()):
        into = target / entry.name
        if entry.is_dir():
            copy_sparse(entry, into)
        else:
            _copy_file(entry, into)


def _copy_file(source: Path, target: Path) -> None:
    read = os.open(source, os.O_RDONLY)
    try:
        write = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            size = os.fstat(read).st_size
            os.ftruncate(write, size)
            at = 0
            while at < size:
                try:
                    begin = os.lseek(read, at, os.SEEK_DATA)
                except OSError:
                    break  # nothing but a hole is left
                end = os.lseek(read, begin, os.SEEK_HOLE)
                _copy_range(read, write, begin, end)
                at = end
        finally:
            os.close(write)
    finally:
        os.close(read)


def _copy_range(read: int, write: int, begin: int, end: int) -> None:
    while begin < end:
        data = os.pread(read, min(_CHUNK, end - begin), begin)
        if not data:
            return
        os.pwrite(write, data, begin)
        begin += len(data)
