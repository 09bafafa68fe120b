"""Starting the embedded engine and connecting to it.

Several processes race for one folder here: the first to find no engine starts one,
the others connect to it.
"""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import socket
import stat
import struct
import subprocess
import threading
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

from fm_storage.concurrency.posix import fcntl, require_posix
from fm_storage.errors import EmbeddedFailed
from fm_storage.vectors.embedded.boot import command
from fm_storage.vectors.embedded.opening import weigh_as_killed

_ENGINE = "fm_storage.vectors.embedded.process.main"
START_TIMEOUT = 45.0
CREDENTIALS = struct.Struct("3i")


def prepare_folder(folder: Path) -> None:
    """Make the data folder, closed to others; refuse one that is not ours.

    Raises:
        EmbeddedFailed: It cannot be made, is no folder, or belongs to another.
    """
    require_posix("vector engine", "qdrant.url")
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.lstat()
    except OSError as exc:
        raise EmbeddedFailed(
            f"vector engine: folder {str(folder)!r} cannot be made "
            f"({exc.strerror}); name another with qdrant.url=embedded:PATH"
        ) from exc
    if not stat.S_ISDIR(found.st_mode):
        raise EmbeddedFailed(
            f"vector engine: {str(folder)!r} is not a folder of its own; "
            "name another with qdrant.url=embedded:PATH"
        )
    if found.st_uid != os.geteuid() and os.geteuid() != 0:
        raise EmbeddedFailed(
            f"vector engine: folder {str(folder)!r} belongs to user "
            f"{found.st_uid}, not {os.geteuid()}; use a folder of your own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        folder.chmod(0o700)


async def connect(folder: Path) -> socket.socket:
    """Return a connected socket; an engine is started when none answers.

    Raises:
        EmbeddedFailed: The engine cannot be started, or does not answer.
    """
    deadline = time.monotonic() + START_TIMEOUT
    while True:
        sock = try_connect(folder)
        if sock is not None:
            return sock
        turn = take_turn(folder)
        if turn is not None:
            try:
                # Another may have started one between our two looks.
                sock = try_connect(folder)
                if sock is None:
                    await asyncio.to_thread(start, folder)
                    sock = try_connect(folder)
            finally:
                os.close(turn)
            if sock is not None:
                return sock
        if time.monotonic() > deadline:
            raise EmbeddedFailed(
                f"vector engine: none answered in {str(folder)!r} within "
                f"{START_TIMEOUT:.0f} s; see {folder / 'engine.log'}"
            )
        await asyncio.sleep(0.01)


def try_connect(folder: Path) -> socket.socket | None:
    """Connect to the engine that serves *folder*, or return None."""
    try:
        path = (folder / "engine.addr").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        # A Unix socket connects at once or not at all; a full backlog is EAGAIN.
        sock.setblocking(False)
        sock.connect(path)
        _check_peer(sock, folder)
    except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):
        sock.close()
        return None
    except OSError as exc:
        sock.close()
        # None: Python itself finds the path too long for a socket's address.
        if exc.errno in {None, errno.ENOTDIR, errno.ENAMETOOLONG}:
            return None
        raise EmbeddedFailed(
            f"vector engine: its socket {path!r} cannot be used ({exc.strerror}); "
            "end the process that holds it"
        ) from exc
    except BaseException:  # close the socket, then pass it on
        sock.close()
        raise
    return sock


def _check_peer(sock: socket.socket, folder: Path) -> None:
    if not hasattr(socket, "SO_PEERCRED"):
        return  # the folder is closed to others (0700)
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    _, uid, _ = CREDENTIALS.unpack(raw)
    if uid not in {0, os.geteuid(), folder.lstat().st_uid}:
        raise EmbeddedFailed(
            f"vector engine: the process behind {str(folder)!r} belongs to user "
            f"{uid}; end it, and look who may write there"
        )


def take_turn(folder: Path) -> int | None:
    """Return a handle when it is ours to start the engine."""
    handle = os.open(folder / "start.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _reap(process: subprocess.Popen[bytes], folder: Path) -> None:
    """Wait for the engine's end; being killed says little about what it just read."""
    if process.wait() == -signal.SIGKILL:
        weigh_as_killed(folder / "shards")


def start(folder: Path) -> None:
    """Start the engine's process and wait until it says that it is ready.

    Raises:
        EmbeddedFailed: It is not installed, or did not start.
    """
    if find_spec("qdrant_edge") is None:
        raise EmbeddedFailed(
            "vector engine: it is not installed; pip install 'fm-storage[embedded]', "
            "or set qdrant.url to a server"
        )
    with (folder / "engine.log").open("ab") as log:
        process = subprocess.Popen(
            command(_ENGINE, str(folder.resolve())),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,  # Ctrl-C is for the application only
            close_fds=True,
        )
    # The engine may outlive this process's interest in it; this thread only
    # keeps it from staying behind as a zombie.
    threading.Thread(
        target=_reap,
        args=(process, folder),
        name="fm_storage engine reaper",
        daemon=True,
    ).start()
    assert process.stdout is not None
    with process.stdout as out:
        line = out.readline().decode(errors="replace").strip()
    if line == "ready":
        return
    with suppress(ProcessLookupError):
        process.kill()
    reason = line.removeprefix("failed ") or "it ended at once"
    log_file = folder / "engine.log"
    raise EmbeddedFailed(f"vector engine: it did not start ({reason}); see {log_file}")
