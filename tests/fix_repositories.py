"""The tables of ``repository_models``, and the repository most tests look at."""

from __future__ import annotations

import pytest

from fm_storage.postgres import Pool
from fm_storage.repositories import Repository
from tests.support.repository_models import TABLES, Invoice

__all__ = ["invoices", "tables"]


@pytest.fixture
async def tables(pool: Pool) -> Pool:
    """Give a pool on a database with the models' tables."""
    await pool.execute(TABLES)
    return pool


@pytest.fixture
def invoices(tables: Pool) -> Repository[Invoice]:
    """Give the invoices, with their optimistic lock."""
    return Repository(tables, Invoice, table="billing.invoice", version="version")
