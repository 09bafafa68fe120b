"""A process that rebuilds a collection and kills itself at a given point.

``python -m tests.torture.outbox_rebuilder DSN URL FOLDER COLLECTION POINT``: POINT is
``CALL:NUMBER:before`` or ``…:after`` of a call on the vector store (SIGKILL, so
nothing is tidied up), ``exchange:NUMBER:between`` the two requests that exchange
the name of a server's plain collection, or ``none``. Apart from the test, which
goes on.
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
from fm_storage.vectors.store.call import Calls


class DoomedCalls(Calls):
    """The real calls; the process dies right before or after one of them."""

    point = "none"
    made: ClassVar[Counter[str]] = Counter()

    async def run(
        self,
        operation: str,
        collection: str | None,
        work: Callable[[], Awaitable[Any]],
        *,
        timeout: float | None = None,
    ) -> Any:
        """Run one public call, unless this is where the process ends."""
        self.made[operation] += 1
        here = f"{operation}:{self.made[operation]}"
        if self.point == f"{here}:before":
            _die()
        if self.point == f"{here}:between":
            # A server takes two requests: the first deletes, the second names.
            server: Any = self.backend
            server._collections._set_aliases = _dying
        result = await super().run(operation, collection, work, timeout=timeout)
        if self.point == f"{here}:after":
            _die()
        return result


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def _dying(*_: Any) -> None:
    _die()


async def main() -> None:
    """Rebuild, or die."""
    dsn, url, folder, collection, DoomedCalls.point = sys.argv[1:]
    config = QdrantConfig(url=url, durability="process")
    doomed = QdrantStore(config, folder=Path(folder))
    doomed._calls = DoomedCalls(config, doomed.folder)
    async with Pool(PostgresConfig(dsn=dsn)) as pool, doomed as store:
        outbox = Outbox(pool, store, OutboxConfig(drain=False))
        report = await outbox.rebuild(collection)
        print(report.copied, report.resumed)


if __name__ == "__main__":
    asyncio.run(main())
