"""``python -m fm_storage.testing``: the test server in a process of its own."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress

from fm_storage.testing.server import QdrantTestServer


async def _serve(port: int) -> None:
    async with QdrantTestServer(port=port) as server:
        sys.stdout.write(f"{server.url}\n")
        sys.stdout.flush()
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    """Serve until standard input ends; the first line said is the address."""
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(port))


if __name__ == "__main__":
    main()
