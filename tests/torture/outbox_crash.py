"""Kill processes at random instants, then compare PostgreSQL and Qdrant.

``python -m tests.torture.outbox_crash`` (``make torture-outbox``) runs Qdrant's
guide and this project's outbox side by side and prints the table of the figures'
page, ``tests/bench/README.md``.
A fsynced ledger of acknowledged writes decides what must be there. Each write to
the vector store takes some milliseconds longer than on this machine, for both,
as it does over a network: a worker is at a call when it is killed, not asleep.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from fm_storage.config import MigrationsConfig, PostgresConfig, QdrantConfig
from fm_storage.errors import CollectionNotFound
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.vectors import QdrantStore
from tests.torture.outbox_recipes import COLLECTION, RECIPES, SIZE, TABLES, Ours

_ROOT = Path(__file__).parent.parent.parent
_DELAY = os.environ.get("FM_TORTURE_DELAY", "0.004")
"""Longest pause, in seconds, before and after each write to the vector store."""

__all__ = ["Comparison", "Ledger", "Victim", "compare", "prepared", "trial"]


@dataclass
class Ledger:
    """What was begun and what was acknowledged, by note."""

    path: Path

    def clear(self) -> None:
        """Begin anew."""
        self.path.unlink(missing_ok=True)

    def permitted(self) -> dict[int, set[int | None]]:
        """Return the revisions each note may have (None: deleted).

        The last acknowledged one, or one that was begun later and may or may not
        have been committed when its process was killed.
        """
        found: dict[int, list[int | None]] = defaultdict(lambda: [None])
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                what, note, rev, kind = line.split()
                state = None if kind == "d" else int(rev)
                if what == "a":
                    found[int(note)] = [state]
                else:
                    found[int(note)].append(state)
        return {note: set(states) for note, states in found.items()}

    def acknowledged(self) -> int:
        """Count the acknowledged writes."""
        if not self.path.exists():
            return 0
        return sum(line[0] == "a" for line in self.path.read_text().splitlines())


@dataclass
class Comparison:
    """How far the two stores, and the ledger, are apart."""

    lost: list[int] = field(default_factory=list)
    missing: int = 0
    orphans: int = 0
    stale: int = 0
    stuck: int = 0
    acknowledged: int = 0

    @property
    def diverged(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.lost or self.missing or self.orphans or self.stale)


class Victim:
    """One process under the knife; it is started again under the same roles."""

    def __init__(
        self,
        recipe: str,
        roles: str,
        dsn: str,
        folder: Path,
        ledger: Path,
        **environment: str,
    ) -> None:
        self._arguments = (recipe, roles, dsn, str(folder), str(ledger))
        self._environment = environment
        self._process: asyncio.subprocess.Process | None = None

    @property
    def pid(self) -> int:
        """Its process."""
        assert self._process is not None
        return self._process.pid

    async def start(self, seed: object) -> None:
        """Start it and wait until it is at work."""
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.torture.outbox_victim"),
            *(*self._arguments, str(seed)),
            stdout=asyncio.subprocess.PIPE,
            cwd=_ROOT,
            env={**os.environ, "PYTHONPATH": str(_ROOT), **self._environment},
        )
        assert self._process.stdout is not None
        assert await self._process.stdout.readline() == b"up\n"

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        with suppress(ProcessLookupError):
            self._process.send_signal(number)

    async def kill(self) -> None:
        """SIGKILL it."""
        if self._process is not None:
            self.signal(signal.SIGCONT)
            self.signal(signal.SIGKILL)
            await self._process.communicate()


@asynccontextmanager
async def prepared(dsn: str, folder: Path) -> AsyncIterator[tuple[Pool, QdrantStore]]:
    """Open both stores on empty tables and an empty collection."""
    config = QdrantConfig(durability="process", timeout=10)
    async with (
        Pool(PostgresConfig(dsn=dsn)) as pool,
        QdrantStore(config, folder=folder) as store,
    ):
        await pool.execute("DROP TABLE IF EXISTS notes, sync_outbox")
        await pool.execute(TABLES)
        await pool.execute("TRUNCATE fm_storage.vector_state, fm_storage.vector_queue")
        await store.delete_collection(COLLECTION)
        await store.ensure_collection_exists(COLLECTION, SIZE)
        yield pool, store


async def compare(pool: Pool, store: QdrantStore, ledger: Ledger) -> Comparison:
    """Compare the ledger with PostgreSQL, and PostgreSQL with the vector store."""
    found = Comparison(acknowledged=ledger.acknowledged())
    rows = {r["id"]: r["rev"] for r in await pool.fetch("SELECT id, rev FROM notes")}
    for note, permitted in ledger.permitted().items():
        if rows.get(note) not in permitted:
            found.lost.append(note)
    points: dict[object, object] = {}
    with suppress(CollectionNotFound):
        async for point in store.iter_points(COLLECTION):
            points[point.id] = point.payload["rev"]
    found.missing = len(rows.keys() - points.keys())
    found.orphans = len(points.keys() - rows.keys())
    found.stale = sum(
        points[note] != rev for note, rev in rows.items() if note in points
    )
    return found


async def trial(
    recipe: str, dsn: str, folder: Path, ledger: Path, dice: random.Random
) -> Comparison:
    """Run writers and a drainer in one process, SIGKILL it, go on, compare."""
    Ledger(ledger).clear()
    async with prepared(dsn, folder) as (pool, store):
        victim = Victim(
            recipe, "write+drain", dsn, folder, ledger, FM_TORTURE_DELAY=_DELAY
        )
        await victim.start(dice.random())
        # By work, not by the clock: a busy machine would kill before anything is done.
        enough = dice.randrange(80, 400)
        while Ledger(ledger).acknowledged() < enough:
            await asyncio.sleep(dice.uniform(0.005, 0.05))
        await victim.kill()
        # The restart: what is left is delivered by a process that knows nothing.
        after = RECIPES[recipe](pool, store)
        stuck = await after.finish()
        found = await compare(pool, store, Ledger(ledger))
        found.stuck = stuck
        if isinstance(after, Ours):
            verified = await after.outbox.verify()
            assert verified.agrees or found.diverged, verified.samples
        return found


_HEAD = """\
| recipe | acknowledged writes | diverged | lost | missing | orphans | stale | stuck |
|---|---|---|---|---|---|---|---|"""


async def table(base: Path, trials: int, seed: int) -> int:
    """Run both recipes and print the table; return the trials of ours that failed."""
    _print(f"{trials} trials each: SIGKILL at a random instant, restart, compare;")
    _print(f"a write to Qdrant takes up to {2000 * float(_DELAY):g} ms longer\n")
    _print(_HEAD)
    failed = 0
    async with EmbeddedPostgres(base / "data") as dsn:
        await Migrator(dsn, MigrationsConfig()).apply()
        for name, recipe in RECIPES.items():
            dice = random.Random(seed)
            folder = base / f"vectors-{name}"
            results = [
                await trial(name, dsn, folder, base / "ledger", dice)
                for _ in range(trials)
            ]
            diverged = sum(result.diverged for result in results)
            failed = diverged  # of the last recipe, which is ours
            cells = [
                recipe.name,
                sum(r.acknowledged for r in results),
                f"{diverged} of {trials}",
                sum(len(r.lost) for r in results),
                sum(r.missing for r in results),
                sum(r.orphans for r in results),
                sum(r.stale for r in results),
                sum(r.stuck for r in results),
            ]
            _print("| " + " | ".join(map(str, cells)) + " |")
    return failed


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Read the options, run, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=8)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-torture-") as base:
        Path(base).chmod(0o755)  # the server runs as another user
        for name in RECIPES:
            (Path(base) / f"vectors-{name}").mkdir()
        return 1 if asyncio.run(table(Path(base), options.trials, options.seed)) else 0


if __name__ == "__main__":
    sys.exit(main())
