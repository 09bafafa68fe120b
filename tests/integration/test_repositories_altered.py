"""A column changes its type while connections hold statements prepared for the old."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated

import pytest

from fm_storage.errors import InvalidRecord
from fm_storage.postgres import Pool
from fm_storage.repositories import Column, Repository
from fm_storage.repositories.rows.batches import COPY_ABOVE

BIG = 3_000_000_000


@dataclass(slots=True)
class Reading:
    """A row whose number has outgrown its column."""

    id: int
    amount: int


@dataclass(slots=True)
class Label:
    """The same rows after the number became text."""

    id: int
    amount: str


@pytest.fixture
async def table(pool: Pool) -> Pool:
    """Give a pool on a database with a table of small numbers."""
    await pool.execute("CREATE TABLE reading (id bigint PRIMARY KEY, amount int4)")
    return pool


@asynccontextmanager
async def executor_of(kind: str, pool: Pool):
    """Give one of the three kinds of executor."""
    if kind == "pool":
        yield pool
    elif kind == "connection":
        async with pool.acquire() as connection:
            yield connection
    else:
        async with pool.transaction() as transaction:
            yield transaction


@pytest.mark.parametrize("kind", ["pool", "connection", "transaction"])
async def test_a_widened_column_takes_what_it_now_can(table, kind):
    """The statement prepared for int4 does not make a bigint a bad record."""
    async with executor_of(kind, table) as executor:
        readings: Repository[Reading] = Repository(executor, Reading)
        await readings.create(Reading(1, 1))
        with pytest.raises(InvalidRecord, match="amount"):
            await readings.create(Reading(2, BIG))
        await executor.execute("ALTER TABLE reading ALTER COLUMN amount TYPE bigint")

        await readings.create(Reading(2, BIG))
        assert (await readings.update(1, {"amount": BIG})).amount == BIG
        assert await readings.count() == 2


async def test_a_widened_column_takes_a_large_batch(table):
    """COPY sends the binary form of what the column is now."""
    async with table.acquire() as connection:
        readings: Repository[Reading] = Repository(connection, Reading)
        count = COPY_ABOVE + 1
        await readings.create_many([Reading(n, 1) for n in range(count)])
        await connection.execute("ALTER TABLE reading ALTER COLUMN amount TYPE bigint")
        await connection.execute("TRUNCATE reading")

        await readings.create_many([Reading(n, BIG + n) for n in range(count)])

        assert await readings.get_by_id(7) == Reading(7, BIG + 7)


@pytest.mark.parametrize("kind", ["pool", "connection"])
async def test_a_column_that_became_text_is_prepared_anew(table, kind):
    """So is a statement that the server refuses for its old parameters."""
    async with executor_of(kind, table) as executor:
        readings: Repository[Reading] = Repository(executor, Reading)
        labels: Repository[Label] = Repository(executor, Label, table="reading")
        await readings.create(Reading(1, 1))
        await executor.execute("ALTER TABLE reading ALTER COLUMN amount TYPE text")

        await labels.create(Label(2, "two"))
        assert await labels.get_by_id(2) == Label(2, "two")
        with pytest.raises(InvalidRecord, match="amount"):
            await readings.create(Reading(3, 3))


@dataclass(slots=True)
class Wide:
    """A row that says more than its column holds."""

    id: int
    amount: Annotated[int, Column(type="int8")]


async def test_looking_again_leaves_no_lock_behind(table):
    """A refused value asks the server once more; nobody waits for that later."""
    async with table.acquire() as connection, table.acquire() as other:
        wide: Repository[Wide] = Repository(connection, Wide, table="reading")
        await wide.create(Wide(1, 1))
        with pytest.raises(InvalidRecord, match="amount"):
            await wide.create(Wide(2, BIG))

        await other.execute("SET lock_timeout = '5s'")
        await other.execute("ALTER TABLE reading ADD COLUMN note text")


async def test_refusal_in_an_ended_transaction_is_the_callers_answer(table):
    """Where the server can no longer be asked, the first error stands."""
    async with table.acquire() as connection:
        readings: Repository[Reading] = Repository(connection, Reading)
        await readings.create(Reading(1, 1))
        await connection.execute("BEGIN")
        with pytest.raises(Exception, match="zero"):
            await connection.execute("SELECT 1 / 0")
        with pytest.raises(InvalidRecord, match="amount"):
            await readings.create(Reading(2, BIG))
        await connection.execute("ROLLBACK")
