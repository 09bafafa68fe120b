"""``python -m fm_storage.testing``: the test server in a process of its own."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
from contextlib import suppress

from fm_storage.testing.server import QdrantTestServer


async def _serve(port: int, *, grpc: bool) -> None:
    async with QdrantTestServer(port=port, grpc=grpc) as server:
        sys.stdout.write(f"{server.url}\n")
        if grpc:
            sys.stdout.write(f"{server.grpc_port}\n")
        sys.stdout.flush()
        if _is_held(sys.stdin.fileno()):
            await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
        else:  # nobody will close it: serve until a signal
            await asyncio.Event().wait()


def _is_held(stdin: int) -> bool:
    """Whether standard input is a pipe or terminal, whose end means to stop."""
    kind = os.fstat(stdin).st_mode
    return stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind) or os.isatty(stdin)


def main() -> None:
    """Serve until standard input (a pipe or a terminal) ends: ``[PORT] [--grpc]``.

    With any other, such as ``/dev/null``, it serves until a signal ends it.


    The first line printed is the address, with ``--grpc`` the second one gRPC's port.
    """
    port = next((int(given) for given in sys.argv[1:] if given.isdigit()), 0)
    with suppress(KeyboardInterrupt):
        asyncio.run(_serve(port, grpc="--grpc" in sys.argv))


if __name__ == "__main__":
    main()
