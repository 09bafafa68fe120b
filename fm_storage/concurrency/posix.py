"""POSIX where there is POSIX: its modules are None elsewhere, with substitutes.

Everything that talks to servers works without them, as on Windows; the embedded
engines do not, and ``require_posix()`` says so.
"""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from fm_storage.errors import EmbeddedFailed


def _optional(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


fcntl: Any = _optional("fcntl")
pwd: Any = _optional("pwd")
_msvcrt: Any = _optional("msvcrt")

NOFOLLOW: int = getattr(os, "O_NOFOLLOW", 0)
_FAR = 0x7FFF_0000
"""Where Windows' lock lies: it is mandatory, so no byte that is read or written."""


def lock_file(descriptor: int, *, wait: bool) -> None:
    """Lock an open file until it is closed, or the process ends.

    Raises:
        OSError: Without *wait*, another one holds the lock.
    """
    if fcntl is not None:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    elif _msvcrt is not None:
        os.lseek(descriptor, _FAR, os.SEEK_SET)
        mode = _msvcrt.LK_LOCK if wait else _msvcrt.LK_NBLCK
        _msvcrt.locking(descriptor, mode, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)


def owned(found: os.stat_result) -> bool:
    """Whether a file belongs to this user; elsewhere the folder's rights decide."""
    return not hasattr(os, "geteuid") or found.st_uid == os.geteuid()


def require_posix(engine: str, setting: str) -> None:
    """Refuse to run *engine* on a system that lacks what it needs.

    Raises:
        EmbeddedFailed: This is such a system.
    """
    if fcntl is None or pwd is None:
        raise EmbeddedFailed(
            f"{engine}: it runs on Linux and macOS, not here ({sys.platform}); set "
            f"{setting} to a server"
        )
