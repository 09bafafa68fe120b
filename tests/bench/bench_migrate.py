"""What migrations cost a start that has nothing to apply, and one that has all.

``python tests/bench/bench_migrate.py``. The first is paid at every start of every
process; the second once in a database's life.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent.parent))

from fm_storage.config import PostgresConfig
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool, Sql
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from tests.bench.harness import Peer, Table, arguments, finish, measure

# The whole of a cold start: a process that opens a pool and looks, or only opens.
_COLD = """
import asyncio, sys, time
from fm_storage.config import MigrationsConfig, PostgresConfig
from fm_storage.migrate import Migrator
from fm_storage.postgres import Pool
async def main():
    async with Pool(PostgresConfig(dsn=sys.argv[1])) as pool:
        await pool.fetchval("SELECT 1")
        started = time.perf_counter()
        await Migrator(sys.argv[1]).ensure(pool if sys.argv[2] == "pool" else None)
        print(time.perf_counter() - started)
asyncio.run(main())
"""


async def look(dsn: str) -> Table:
    """Compare a start's look with one plain query."""
    async with Pool(PostgresConfig(dsn=dsn)) as pool:
        migrator = Migrator(dsn)
        return await measure(
            "a start with nothing pending, warm",
            {
                "SELECT 1": Peer(lambda: pool.fetch(Sql("SELECT 1"))),
                "ensure(pool)": Peer(lambda: migrator.ensure(pool)),
                "ensure()": Peer(migrator.ensure),
            },
            baseline="SELECT 1",
            block=5,
            cycles=20,
        )


async def cold(dsn: str, how: str) -> float:
    """Return the least of five first looks, each in a fresh process."""
    took = []
    for _ in range(5):
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-c", _COLD, dsn, how],
            capture_output=True,
            check=True,
        )
        took.append(float(done.stdout))
    return min(took)


async def main() -> int:
    """Run it all on a server of its own."""
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory(prefix="fm-bench-") as folder:
        data = Path(folder)
        data.chmod(0o755)  # noqa: ASYNC240 - nothing else runs yet
        async with EmbeddedPostgres(data / "pg") as dsn:
            await Migrator(dsn).status()
            started = time.perf_counter()
            done = await Migrator(dsn).apply()
            took = (time.perf_counter() - started) * 1000
            lines = [f"{len(done)} migrations on an empty database: {took:.0f} ms"]
            for how, said in (("pool", "ensure(pool)"), ("own", "ensure()")):
                took = await cold(dsn, how) * 1000
                lines.append(f"first {said} of a process: {took:.1f} ms")
            table = await look(dsn)
    sys.stdout.write("\n".join([*lines, table.text()]) + "\n")
    return finish([table], options)


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
