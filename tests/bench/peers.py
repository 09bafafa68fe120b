"""Other libraries doing what a repository does, as their documentation shows.

One file each, ``peers_….py``, loaded when it is asked for: they are installed for
measuring only, and one that is absent is named and left out.
"""

from __future__ import annotations

import importlib
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from fm_storage.repositories import ErrorEntry

__all__ = ["NAMES", "Library", "others", "server_of"]

NAMES = (
    "message, module, error_code, severity, stack_trace, manager_context, timestamp, id"
)

_OTHERS = {
    "psycopg 3": ("psycopg", "psycopg"),
    "SQLAlchemy ORM": ("sqlalchemy", "sqlalchemy"),
    "advanced-alchemy": ("advanced_alchemy", "alchemy"),
    "sqlspec": ("sqlspec", "sqlspec"),
    "Piccolo": ("piccolo", "piccolo"),
    "Tortoise": ("tortoise", "tortoise"),
}
"""Package, and end of the name of the file that uses it, by the name shown."""


class Library(Protocol):
    """What is measured of each."""

    async def create(self, one: ErrorEntry) -> object:
        """Write one row."""
        ...

    async def get(self, key: uuid.UUID) -> object:
        """Read one row by key."""
        ...

    async def recent(self) -> Sequence[object]:
        """Read the newest 1,000 rows."""
        ...


def server_of(dsn: str) -> dict[str, Any]:
    """Return what *dsn* says, for libraries that take no socket's folder in one."""
    parts = urlsplit(dsn)
    query = {name: values[0] for name, values in parse_qs(parts.query).items()}
    return {
        "user": parts.username,
        "password": parts.password,
        "host": query.get("host", parts.hostname),
        "port": int(query.get("port", parts.port or 5432)),
        "database": parts.path.removeprefix("/"),
    }


@asynccontextmanager
async def others(dsn: str) -> AsyncIterator[tuple[Mapping[str, Library], list[str]]]:
    """Give the other libraries, connected to *dsn*, and the names of absent ones."""
    found: dict[str, Library] = {}
    absent: list[str] = []
    async with AsyncExitStack() as stack:
        for shown, (package, end) in _OTHERS.items():
            try:
                importlib.import_module(package)
            except ModuleNotFoundError as exc:
                if exc.name != package:
                    raise
                absent.append(shown)
                continue
            module = importlib.import_module(f"tests.bench.peers_{end}")
            found[shown] = await stack.enter_async_context(module.opened(dsn))
        yield found, absent
