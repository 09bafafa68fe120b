"""No part of a password is in any message, log or repr, wherever it was given."""

from __future__ import annotations

import asyncio
import io
import logging
import re
import socket
import traceback
from urllib.parse import quote

from hypothesis import given, settings
from hypothesis import strategies as st

from fm_storage.config import MigrationsConfig, PostgresConfig, StorageConfig, mask_dsn
from fm_storage.errors import StorageError
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool

# No word of a message is made of these letters.
WORDS = st.text("QZXJ", min_size=3, max_size=6)
SEPARATORS = st.text("#/?[]@%:&=+ '\"\\,;$é\n", max_size=3)
PASSWORDS = st.tuples(SEPARATORS, WORDS, SEPARATORS, WORDS, SEPARATORS).map("".join)
PLACES = {
    "raw": "postgresql://us:{raw}@127.0.0.1:{port}/d",
    "encoded": "postgresql://us:{encoded}@127.0.0.1:{port}/d",
    "no host": "postgresql://us:{encoded}",
    "parameter": "postgresql://us@127.0.0.1:{port}/d?password={encoded}",
    "raw parameter": "postgresql://us@127.0.0.1:{port}/d?password={raw}",
    "key": "postgresql://us@127.0.0.1:{port}/d?sslmode=require&sslpassword={encoded}",
    "sqlalchemy": "postgresql+asyncpg://us:{raw}@127.0.0.1:{port}/d?ssl=true",
    "setting": "postgresql://us@127.0.0.1:{port}/d",
}


def closed_port() -> int:
    """Return a port on which nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


async def opened(config: PostgresConfig) -> None:
    """Open a pool where no server is."""
    async with Pool(config):
        pass


@settings(deadline=None)
@given(password=PASSWORDS, place=st.sampled_from(sorted(PLACES)))
def test_a_password_shows_nowhere(password: str, place: str):
    """Neither in an error and its causes, nor in a log, nor in a repr."""
    dsn = PLACES[place].format(
        raw=password, encoded=quote(password, safe=""), port=closed_port()
    )
    given_apart = password if place == "setting" else None
    log, shown = io.StringIO(), [mask_dsn(dsn)]
    handler = logging.StreamHandler(log)
    root = logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    try:
        for use in (_pool, _manager, _migrator):
            try:
                use(dsn, given_apart, shown)
            except StorageError as exc:
                shown += [repr(exc), *traceback.format_exception(exc)]
    finally:
        root.removeHandler(handler)
        root.setLevel(level)
    text = "\n".join([*shown, log.getvalue()])
    for part in re.findall("[QZXJ]{3,}", password):
        assert part not in text


def _pool(dsn: str, password: str | None, shown: list[str]) -> None:
    config = PostgresConfig(
        dsn=dsn, password=password, connect_timeout=0.2, acquire_timeout=0.2
    )
    shown += [repr(config), str(config), config.safe_dsn]
    shown.append(repr(Pool(config)))
    asyncio.run(opened(config))


def _manager(dsn: str, password: str | None, shown: list[str]) -> None:
    postgres = {"dsn": dsn, "password": password}
    config = StorageConfig(postgres=postgres, qdrant=None)
    shown += [repr(config), str(config)]
    StorageConfig(postgres={**postgres, "max_size": "x"}, qdrant=None)


def _migrator(dsn: str, password: str | None, shown: list[str]) -> None:
    if password is None:
        migrator = Migrator(dsn, MigrationsConfig(wait_timeout=0.1))
        shown.append(repr(migrator))
        asyncio.run(migrator.status())
