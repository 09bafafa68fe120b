"""A process that rebuilds a collection and kills itself at a given point.

``python -m tests.torture.outbox_rebuilder DSN URL FOLDER COLLECTION POINT``: POINT is
``CALL:NUMBER:before`` or ``…:after`` of a call on the vector store (SIGKILL, so
nothing is tidied up), or ``none``. Apart from the test, which goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, ClassVar

from fm_storage.config import OutboxConfig, PostgresConfig, QdrantConfig
from fm_storage.outbox import Outbox
from fm_storage.postgres import Pool
from fm_storage.vectors import QdrantStore


class Doomed(QdrantStore):
    """The real store; the process dies right before or after one of its calls."""

    point = "none"
    made: ClassVar[Counter[str]] = Counter()

    async def _call(self, operation: str, *arguments: Any, **options: Any) -> Any:
        """Run one public call, unless this is where the process ends."""
        self.made[operation] += 1
        here = f"{operation}:{self.made[operation]}"
        if self.point == f"{here}:before":
            os.kill(os.getpid(), signal.SIGKILL)
        run: Callable[..., Awaitable[Any]] = super()._call
        result = await run(operation, *arguments, **options)
        if self.point == f"{here}:after":
            os.kill(os.getpid(), signal.SIGKILL)
        return result


async def main() -> None:
    """Rebuild, or die."""
    dsn, url, folder, collection, Doomed.point = sys.argv[1:]
    config = QdrantConfig(url=url, durability="process")
    async with (
        Pool(PostgresConfig(dsn=dsn)) as pool,
        Doomed(config, folder=Path(folder)) as store,
    ):
        outbox = Outbox(pool, store, OutboxConfig(drain=False))
        report = await outbox.rebuild(collection)
        print(report.copied, report.resumed)  # noqa: T201 - the parent reads it


if __name__ == "__main__":
    asyncio.run(main())
