"""A transaction on a connection that somebody else opened.

Nothing here is ours: the connection comes with its own codecs and perhaps its own
transaction, and leaves exactly as it came.
"""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg

from fm_storage.errors import ConfigurationInvalid
from fm_storage.postgres.arguments import of_kind
from fm_storage.postgres.connect.codecs import foreign_codecs
from fm_storage.postgres.connection.classifier import Classifier
from fm_storage.postgres.connection.connection import Connection
from fm_storage.postgres.connection.entry import PoolEntry
from fm_storage.postgres.connection.statements import Rules, Statements
from fm_storage.postgres.connection.transaction import (
    Transaction,
    begin_sql,
    savepoint_on,
    transaction_on,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def adopted(made: object, *, purpose: str) -> Connection:
    """Return what a function of the caller's gave, as a connection to be closed.

    Raises:
        ConfigurationInvalid: It is no connection.
    """
    if isinstance(made, Connection):
        return made
    raw = getattr(made, "_con", made)  # what the driver's pool hands out is a proxy
    if not isinstance(raw, asyncpg.Connection):
        raise ConfigurationInvalid(
            "provider",
            f"it gave a {type(made).__name__}; return a connection, of "
            "asyncpg.connect() or Pool.connect()",
        )
    rules = Rules(purpose, 60.0, None, Transaction, Classifier())
    return Connection(Statements(PoolEntry(raw), rules), dedicated=True)


@asynccontextmanager
async def join(
    raw: asyncpg.Connection[Any],
    rules: Rules,
    *,
    isolation: str | None,
    readonly: bool,
    deferrable: bool,
) -> AsyncIterator[Any]:
    """Run the block in a transaction, or a savepoint, on *raw*.

    If the block fails and the rollback does too, *raw* is closed: it could
    otherwise go on inside a transaction that its owner believes to be over.

    Raises:
        ConfigurationInvalid: *raw* is no connection of the driver's, or is in a
            transaction already and options of one were given.
    """
    begin = begin_sql(isolation=isolation, readonly=readonly, deferrable=deferrable)
    raw = getattr(raw, "_con", raw)  # what the driver's pool hands out is a proxy
    remedy = "give a connection of asyncpg's, or leave it out to borrow one"
    of_kind(raw, asyncpg.Connection, "connection", f"{remedy} of the pool's")
    outer = Statements(PoolEntry(raw, foreign=True), rules)
    with foreign_codecs(raw):
        if not raw.is_in_transaction():
            async with transaction_on(outer, begin) as transaction:
                yield transaction
            return
        if begin != "BEGIN":
            raise ConfigurationInvalid(
                "transaction",
                "isolation, readonly and deferrable are set by the outermost "
                "transaction, which the connection is already in; leave them out",
            )
        async with savepoint_on(outer) as transaction:
            yield transaction
