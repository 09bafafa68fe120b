"""Index builds as the engine sees them: when one begins, what it waits for.

A build goes through copy, index, replay, swap. Until the swap is in the manifest
the old shard counts, and after a crash the copy is a folder that it does not name.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.boot import command
from fm_storage.vectors.embedded.process.shard import Shard

_QUIET = 1.0
_PATIENCE = 60.0
_REPLAY_TURN = 0.03
_JOURNAL_LIMIT = 512 * 1024 * 1024
_TOUCHED = 256 * 1024 * 1024  # bytes: some 50 ms
_INDEXER = "fm_storage.vectors.embedded.process.indexer"


def wants_index(shard: Shard, threshold: int) -> bool:
    """Whether enough vectors lie outside the index, and the writers are calm."""
    if not shard.spec["vectors"]:
        return False
    if shard.outside_index() < threshold:
        shard.due_since = None
        return False
    now = time.monotonic()
    if shard.due_since is None:
        shard.due_since = now
    # In the middle of a bulk load a build would soon be out of date.
    return now - shard.last_write >= _QUIET or now - shard.due_since >= _PATIENCE


def touch(shard: edge.EdgeShard, spec: dict[str, Any]) -> None:
    """Look at every vector once, so that the first searches need not fault it in.

    The files are in memory, but not in this process's page tables: a search by the
    graph would take twice as long until each vector had been seen by some search.
    Whatever is larger than a short scan's worth is left to them.
    """
    points = shard.info().points_count
    for name, params in spec["vectors"].items():
        size = params["size"]
        if 4 * size * points > _TOUCHED:
            continue
        shard.query(
            edge.QueryRequest(
                limit=1,
                query=edge.Query.Nearest([1.0] * size, using=name),
                params=edge.SearchParams(exact=True),
            )
        )


class Build:
    """One index build of one collection.

    Attributes:
        paused: Whether the shard must not be written to (it is being copied).
        out: The pipe on which the process reports; readable when it does.
    """

    def __init__(self, shard: Shard, shards: Path) -> None:
        self.shard = shard
        self.folder = uuid.uuid4().hex
        self.target = shards / self.folder
        self.paused = True
        self.ready = False
        shard.flush()
        shard.journal = []
        shard.journal_bytes = 0
        self._fresh: edge.EdgeShard | None = None
        self._process = self._start()
        assert self._process.stdout is not None
        self.out: IO[bytes] = self._process.stdout

    def _start(self) -> subprocess.Popen[bytes]:
        argument = json.dumps(
            {
                "source": str(self.shard.folder),
                "target": str(self.target),
                "spec": self.shard.spec,
            }
        )
        return subprocess.Popen(
            command(_INDEXER, argument),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            env={**os.environ, "RAYON_NUM_THREADS": "1"},
        )

    def report(self) -> bool:
        """Read what the process says; False when the build has failed."""
        report = os.read(self.out.fileno(), 4096)
        if not report:
            return self.ready
        for line in report.decode().split():
            if line == "copied":
                self.paused = False
            elif line == "done":
                self.ready = True
        return True

    def step(self, commit: Callable[[Shard, str], None]) -> bool:
        """Replay a slice of what was written meanwhile; True once swapped.

        Args:
            commit: Puts the new folder into the manifest, durably.
        """
        shard = self.shard
        if self._fresh is None:
            self._fresh = edge.EdgeShard.load(str(self.target))
            touch(self._fresh, shard.spec)
        until = time.monotonic() + _REPLAY_TURN
        journal = shard.journal
        assert journal is not None
        while journal and time.monotonic() < until:
            self._fresh.update(journal.pop(0))
        if journal:
            return False
        self._fresh.flush()
        old_shard, old_folder = shard.edge_shard, shard.folder
        commit(shard, self.folder)
        shard.edge_shard, shard.folder = self._fresh, self.target
        shard.journal = None
        self._fresh = None
        old_shard.close()
        shutil.rmtree(old_folder, ignore_errors=True)
        self._end()
        return True

    def too_long(self) -> bool:
        """Whether more was written meanwhile than is kept in memory."""
        return self.shard.journal_bytes > _JOURNAL_LIMIT

    def give_up(self) -> None:
        """End the build and leave the collection as it is."""
        self.shard.journal = None
        if self._fresh is not None:
            self._fresh.close()
            self._fresh = None
        self._process.kill()
        self._end()
        shutil.rmtree(self.target, ignore_errors=True)

    def _end(self) -> None:
        self.out.close()
        self._process.wait()
