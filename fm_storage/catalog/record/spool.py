"""Errors on disk while PostgreSQL is away: private files, replayed by id.

One file per process at a time, locked by its owner; what a dead process left
behind is taken over by the next one. A line is an entry; a torn last line was
never confirmed to anyone.
"""

from __future__ import annotations

import os
import stat
import threading
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

from fm_storage.catalog.record.row import Prepared
from fm_storage.concurrency.pacing import yielding_gil
from fm_storage.concurrency.posix import NOFOLLOW, lock_file, owned
from fm_storage.errors import PermissionDenied

_SUFFIX = ".spool"
_REJECTED = "rejected.jsonl"
_MAX_SEGMENT = 16 * 1024 * 1024


def spool_folder(data_dir: Path, address: str) -> Path:
    """Return the folder for one database, so that no other one is given its errors."""
    digest = blake2b(address.encode(), digest_size=6).hexdigest()
    return data_dir / "spool" / digest


class Segment:
    """One file of the spool, locked while this object holds it open."""

    def __init__(self, path: Path, descriptor: int) -> None:
        self.path = path
        self._descriptor = descriptor

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return os.fstat(self._descriptor).st_size

    def append(self, data: bytes, *, sync: bool) -> None:
        """Write whole lines at the end.

        Raises:
            OSError: The disk is full or broken; a part may have been written,
                which the reader takes for a torn line.
        """
        view = memoryview(data)
        while view:
            view = view[os.write(self._descriptor, view) :]
        if sync:
            os.fsync(self._descriptor)

    def entries(self) -> list[Prepared]:
        """Return what can be read, in order."""
        found: list[Prepared] = []
        for line in yielding_gil(self.path.read_bytes().split(b"\n")):
            try:
                found.append(Prepared.from_json(line))
            except ValueError:
                continue  # torn, or the empty text behind the last line
        return found

    def remove(self) -> None:
        """Delete the file: every entry of it is in the database."""
        self.path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Give the file back; another process may take it over."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


class Spool:
    """A folder of segments. Every method blocks; all are safe in any thread.

    Args:
        folder: Made with mode 0700 at the first write.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()
        self._own: Segment | None = None  # under _lock
        self._late: Path | None = None  # written after close(); under _lock
        self._closed = False  # under _lock

    def append(self, rows: Sequence[Prepared], *, sync: bool = True) -> None:
        """Keep *rows*; with *sync* they survive a power cut when this returns.

        Raises:
            OSError: They could not be written.
            PermissionDenied: The folder belongs to someone else, or others may
                look into it.
        """
        lines = b"".join([row.to_json() + b"\n" for row in yielding_gil(rows)])
        with self._lock:
            if self._own is not None and self._own.size > _MAX_SEGMENT:
                self._own.close()
                self._own = None
            if self._own is None:
                self._own = self._reopened() or self._create()
            self._own.append(lines, sync=sync)
            if self._closed:
                # Nobody here replays any more: leave it to the next start, perhaps
                # in this process, which a lock of ours would keep out.
                self._late = self._own.path
                self._own.close()
                self._own = None

    def has_any(self) -> bool:
        """Return whether there may be something to replay, of any process."""
        try:
            return any(path.suffix == _SUFFIX for path in self.folder.iterdir())
        except FileNotFoundError:
            return False

    def has_own(self) -> bool:
        """Return whether this process has written something that awaits replay."""
        with self._lock:
            return self._own is not None

    def take(self) -> Iterator[Segment]:
        """Yield segments that nobody writes to, ours (sealed first) and orphans.

        The caller removes or closes each.
        """
        with self._lock:
            own, self._own = self._own, None
        if own is not None:
            yield own
        if not self.has_any():
            return
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            segment = self._adopt(path)
            if segment is not None:
                yield segment

    def reject(self, row: Prepared, reason: str) -> Path:
        """Set aside an entry that the database refuses, for a person to look at."""
        path = self.folder / _REJECTED
        descriptor = os.open(
            path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | NOFOLLOW, 0o600
        )
        try:
            os.write(descriptor, row.to_json() + b"\n")
            os.write(descriptor, f"# {reason}\n".encode("utf-8", "replace"))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        return path

    def close(self) -> None:
        """Give the own segment back; what is appended later is left unlocked."""
        with self._lock:
            self._closed = True
            own, self._own = self._own, None
        if own is not None:
            own.close()

    def _reopened(self) -> Segment | None:
        """Go on with the file of the latest call after ``close()``, if it is there."""
        segment = None if self._late is None else self._adopt(self._late)
        if segment is not None and segment.size > _MAX_SEGMENT:
            segment.close()
            return None
        return segment

    def _create(self) -> Segment:
        self._make_folder()
        while True:
            path = self.folder / f"{os.getpid()}-{uuid4().hex}{_SUFFIX}"
            descriptor = os.open(
                path,
                os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | NOFOLLOW,
                0o600,
            )
            lock_file(descriptor, wait=True)
            # Between the two calls another process may have locked the empty
            # file, found nothing in it and removed it: then take a new one.
            if os.fstat(descriptor).st_nlink:
                return Segment(path, descriptor)
            os.close(descriptor)

    def _adopt(self, path: Path) -> Segment | None:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_APPEND | NOFOLLOW)
        except OSError:
            return None
        try:
            lock_file(descriptor, wait=False)
            mine = owned(os.fstat(descriptor))
            gone = os.fstat(descriptor).st_nlink == 0
        except OSError:
            os.close(descriptor)  # its owner lives
            return None
        if gone or not mine:
            os.close(descriptor)
            return None
        return Segment(path, descriptor)

    def _make_folder(self) -> None:
        # The data folder itself may be shared with a database server that runs
        # as another user; only what lies below is private.
        self.folder.parent.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        for folder in (self.folder.parent, self.folder):
            folder.mkdir(mode=0o700, exist_ok=True)
            found = folder.lstat()
            if not stat.S_ISDIR(found.st_mode) or not owned(found):
                raise PermissionDenied(
                    f"spool {str(folder)!r}: it is not a folder of this user; "
                    "remove it, or choose another data_dir"
                )
            if found.st_mode & 0o077 and hasattr(os, "geteuid"):
                raise PermissionDenied(
                    f"spool {str(folder)!r}: others may enter it (mode "
                    f"{stat.S_IMODE(found.st_mode):o}); chmod 700 it"
                )
