"""The process that stops an embedded server whose users were all killed.

It outlives them, and is small, because one runs beside every embedded server: it is
started as a script and imports nothing but the standard library, and of that only
what is light (no pathlib). It sleeps in the kernel until nobody holds a shared lock on
``users``.

Called as ``keeper.py FOLDER DATA PG_CTL [UID GID]``.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import time

# Time for a restarted application to come back before its server is stopped.
_GRACE = 2.0


def main(arguments: list[str]) -> int:
    """Go into the background, and stay while the server runs."""
    folder, data, pg_ctl = arguments[:3]
    account = [int(word) for word in arguments[3:5]]
    if os.fork():
        return 0
    mutex = os.open(f"{folder}/lock", os.O_RDWR)
    users = os.open(f"{folder}/users", os.O_RDWR)
    keeper = os.open(f"{folder}/keeper", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    fcntl.flock(mutex, fcntl.LOCK_EX)
    # Under the mutex: another keeper either stays for good or has gone.
    if not _try_lock(keeper):
        return 0
    fcntl.flock(mutex, fcntl.LOCK_UN)
    pid_file = f"{data}/postmaster.pid"
    while True:
        fcntl.flock(users, fcntl.LOCK_EX)
        fcntl.flock(users, fcntl.LOCK_UN)
        if os.access(pid_file, os.F_OK):
            time.sleep(_GRACE)
        fcntl.flock(mutex, fcntl.LOCK_EX)
        if _try_lock(users):
            if os.access(pid_file, os.F_OK):
                _stop(data, pg_ctl, account)
            fcntl.flock(keeper, fcntl.LOCK_UN)
            return 0
        fcntl.flock(mutex, fcntl.LOCK_UN)


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _stop(data: str, pg_ctl: str, account: list[int]) -> None:
    command = [pg_ctl, "stop", "-D", ".", "-m", "fast", "-w", "-s"]
    if account:
        subprocess.run(
            command,
            cwd=data,
            check=False,
            user=account[0],
            group=account[1],
            extra_groups=[],
        )
    else:
        subprocess.run(command, cwd=data, check=False)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
