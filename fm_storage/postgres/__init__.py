"""PostgreSQL over asyncpg: pool, connections, transactions, errors."""

from __future__ import annotations

from fm_storage.postgres.connection.connection import Connection
from fm_storage.postgres.connection.transaction import Transaction
from fm_storage.postgres.copy.records import Encoded
from fm_storage.postgres.executor import CopyProgress, Executor, Record
from fm_storage.postgres.pool.listen import Notification
from fm_storage.postgres.pool.pool import Pool
from fm_storage.postgres.sql import Sql, quote_ident, quote_qualified
from fm_storage.postgres.statistics import PoolStatistics

__all__ = [
    "Connection",
    "CopyProgress",
    "Encoded",
    "Executor",
    "Notification",
    "Pool",
    "PoolStatistics",
    "Record",
    "Sql",
    "Transaction",
    "quote_ident",
    "quote_qualified",
]
