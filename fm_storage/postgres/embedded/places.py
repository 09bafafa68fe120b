"""Where an embedded server keeps its data and its socket, and whose they are.

Only the permissions of folders made here are changed, and a private folder is
checked with ``lstat`` before it is trusted.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
import tempfile
from pathlib import Path

from fm_storage.errors import EmbeddedFailed
from fm_storage.postgres.embedded.programs import ServiceUser, service_account

PORT = 5432
# sun_path holds 108 bytes, the last of them zero.
_LONGEST_SOCKET = 107


def prepare_folder(folder: Path) -> ServiceUser:
    """Make the folder if needed, check whose it is, and choose the account."""
    make_folders(folder)
    found = folder.stat()
    us = ServiceUser.current()
    if us is None:
        # root serves the folder's owner, or an account made for the purpose.
        return ServiceUser.of(found.st_uid) if found.st_uid else service_account()
    if found.st_uid != us.uid:
        raise EmbeddedFailed(
            f"embedded PostgreSQL: {folder} belongs to user id "
            f"{found.st_uid}, and this process runs as {us.uid} ({us.name}); "
            "start it as the owner, or name another folder"
        )
    return us


def find_home(folder: Path, user: ServiceUser, state_root: Path) -> Path:
    """Return the folder for the data: ours, unless *user* cannot reach it."""
    pointer = folder / "home"
    with contextlib.suppress(FileNotFoundError):
        return Path(pointer.read_text(encoding="utf-8").strip())
    if user.can_enter(folder):
        return folder
    home = state_root / secrets.token_hex(8)
    make_folders(home)
    (home / "origin").write_text(f"{folder}\n", encoding="utf-8")
    pointer.write_text(f"{home}\n", encoding="utf-8")
    return home


def make_folders(folder: Path) -> None:
    """Make *folder* and the missing ones above it, open to pass through.

    Folders that were there already keep their permissions, whatever they are.
    """
    missing = [f for f in (folder, *folder.parents) if not f.exists()]
    for path in reversed(missing):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            path.chmod(0o711)


def socket_folder(home: Path, user: ServiceUser) -> Path:
    """Return a private folder for the socket whose path is short enough."""
    inside = home / "run"
    if _fits(inside):
        with contextlib.suppress(FileExistsError):
            inside.mkdir(mode=0o700)
            user.owns(inside)
        return _checked(inside, user)
    with contextlib.suppress(FileNotFoundError, EmbeddedFailed):
        # Left by a server whose users were killed.
        return _checked(Path((home / "socket").read_text("utf-8").strip()), user)
    runtime = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    usable = user.is_us and runtime.is_absolute() and os.access(runtime, os.W_OK)
    base = runtime if usable and _fits(runtime / "fm-storage-12345678") else None
    # An unpredictable name: nobody can have made it before us.
    made = Path(tempfile.mkdtemp(prefix="fm-storage-", dir=base))
    if not _fits(made):
        made.rmdir()
        raise EmbeddedFailed(
            f"embedded PostgreSQL: no place for a socket: {made} is too long "
            f"({_LONGEST_SOCKET} bytes with its name at most); set TMPDIR to a "
            "shorter folder"
        )
    user.owns(made)
    (home / "socket").write_text(f"{made}\n", encoding="utf-8")
    return _checked(made, user)


def remove_socket_folder(home: Path) -> None:
    """Remove the folder that stood in for one with too long a path."""
    pointer = home / "socket"
    with contextlib.suppress(OSError):
        Path(pointer.read_text(encoding="utf-8").strip()).rmdir()
        pointer.unlink()


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder / f".s.PGSQL.{PORT}.lock")) <= _LONGEST_SOCKET


def _checked(folder: Path, user: ServiceUser) -> Path:
    found = folder.lstat()
    private = stat.S_ISDIR(found.st_mode) and not found.st_mode & 0o077
    if not private or found.st_uid != user.uid:
        raise EmbeddedFailed(
            f"embedded PostgreSQL: {folder} is not a folder of user {user.name} "
            "closed to others (0700); remove it and try again"
        )
    return folder
