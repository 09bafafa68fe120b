"""A process to be killed: it writes notes, delivers them, or both.

``python -m tests.torture.outbox_victim RECIPE ROLES DSN FOLDER LEDGER SEED``: ROLES is
``write``, ``drain`` or ``write+drain``. Before each write the intent is appended
to the ledger; after the commit was acknowledged, the acknowledgement, fsynced.
"""

from __future__ import annotations

import asyncio
import os
import random
import sys
import time
from pathlib import Path

from fm_storage.config import PostgresConfig, QdrantConfig
from fm_storage.errors import StorageError
from fm_storage.postgres import Pool
from tests.torture.outbox_recipes import RECIPES, Recipe, SlowStore

WRITERS = 4
FIRST = int(os.environ.get("FM_TORTURE_FIRST", "1"))
"""Processes that write at the same time need notes of their own: only then does
the order of acknowledgements say which write was the last."""

NOTES_EACH = int(os.environ.get("FM_TORTURE_NOTES", "250"))


async def write(recipe: Recipe, ledger: int, part: int, dice: random.Random) -> None:
    """Write and delete the notes of one part for ever, keeping the ledger."""
    while True:
        note = FIRST + part + WRITERS * dice.randrange(NOTES_EACH)
        rev = time.time_ns()
        kind = "d" if dice.random() < 0.25 else "u"
        os.write(ledger, f"i {note} {rev} {kind}\n".encode())
        try:
            if kind == "d":
                await recipe.remove(note)
            else:
                await recipe.write(note, rev)
        except StorageError:
            await asyncio.sleep(0.02)  # the server is being restarted
            continue
        os.write(ledger, f"a {note} {rev} {kind}\n".encode())
        os.fsync(ledger)
        await asyncio.sleep(dice.random() * 0.004)


async def main() -> None:
    """Do what the arguments say until killed."""
    name, roles, dsn, folder, ledger, seed = sys.argv[1:]
    dice = random.Random(seed)
    postgres = PostgresConfig(dsn=dsn, connect_timeout=2)
    vectors = QdrantConfig(durability="process", timeout=1.5)
    async with (
        Pool(postgres) as pool,
        SlowStore(vectors, folder=Path(folder)) as store,
        asyncio.TaskGroup() as tasks,
    ):
        recipe = RECIPES[name](pool, store)
        if "write" in roles:
            file = os.open(ledger, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            for part in range(WRITERS):
                tasks.create_task(
                    write(recipe, file, part, random.Random(dice.random()))
                )
        if "drain" in roles:
            tasks.create_task(recipe.work())
        print("up", flush=True)


if __name__ == "__main__":
    asyncio.run(main())
