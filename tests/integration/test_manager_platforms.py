"""Systems without POSIX: everything that talks to servers works, the rest says so."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

PROGRAM = """
import asyncio, os, sys

for name in ("fcntl", "pwd", "grp", "resource", "termios"):
    sys.modules[name] = None
if sys.argv[2] == "bare":  # what os itself lacks on Windows
    for name in ("geteuid", "getuid", "fork", "register_at_fork", "O_NOFOLLOW"):
        delattr(os, name)

import fm_storage
from fm_storage.config import StorageConfig

for name in fm_storage.__all__:
    getattr(fm_storage, name)


async def main():
    config = StorageConfig(
        postgres={"dsn": sys.argv[1]}, qdrant=None, data_dir=sys.argv[3]
    )
    async with fm_storage.StorageManager(config) as storage:
        async with fm_storage.ErrorManager(storage) as errors:
            recorded = await errors.record("on a desktop", module="plugin")
            assert recorded.durable
        async with storage.session() as session:
            view = await session.create_view("SELECT 7 AS n")
            assert await storage.pool.fetchval(f"SELECT n FROM {view}") == 7
        print((await storage.health()).status)
    away = StorageConfig(
        postgres={"dsn": "postgresql://127.0.0.1:1/d", "connect_timeout": 0.2},
        qdrant=None,
        data_dir=sys.argv[3],
    )
    try:
        await fm_storage.IntegratedManager(Settings(away))
    except fm_storage.ConnectionFailed:
        print("spooled", len(list(config.data_dir.glob("spool/*/*.spool"))))
    vectors = {"url": "embedded:", "collections": {"a": {"size": 1}}}
    for parts in (
        {"postgres": {"dsn": "embedded:"}, "qdrant": None},
        {"postgres": None, "qdrant": vectors},
    ):
        config = StorageConfig(**parts, data_dir=sys.argv[3])
        try:
            await fm_storage.StorageManager(config)
        except fm_storage.EmbeddedFailed as exc:
            print(exc)


class Settings:
    def __init__(self, config):
        self.config = config

    def get(self, key, default=None):
        values = self.config.model_dump(exclude_unset=True)
        for part in key.split("."):
            if not isinstance(values, dict) or part not in values:
                return default
            values = values[part]
        return values


asyncio.run(main())
"""


@pytest.mark.slow
@pytest.mark.parametrize("system", ["modules", "bare"])
async def test_servers_are_used_without_posix_and_engines_say_so(
    dsn: str, system: str, tmp_path: Path
):
    """As on Windows: import, record, view, spool; the engines name the remedy."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM),
        *(dsn, system, str(tmp_path)),
        env={**os.environ, "USERNAME": "somebody", "USER": "somebody"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    health, spooled, postgres, qdrant = out.decode().splitlines()
    assert health == "ok"
    assert spooled == "spooled 1"
    assert postgres.startswith("embedded PostgreSQL: it runs on Linux and macOS")
    assert postgres.endswith("set postgres.dsn to a server")
    assert qdrant.startswith("vector engine: it runs on Linux and macOS")
    assert qdrant.endswith("set qdrant.url to a server")
