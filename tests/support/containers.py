"""Containers for the servers under test, published on 127.0.0.1 alone.

Apart from the fixtures that use them: the client is heavy and is loaded only
where a Docker engine answered.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

__all__ = ["started"]


@contextmanager
def started(
    image: str, port: int, *, command: list[str] | None = None, **environment: str
) -> Iterator[tuple[str, int]]:
    """Run *image*; give the host and port where its *port* is reached.

    The container is removed at the end of the block.
    """
    # Ryuk would be one more image to pull; the block's end removes what it made.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    os.environ.setdefault("TESTCONTAINERS_CONNECTION_MODE", "docker_host")
    from testcontainers.core.container import (
        DockerContainer,
    )

    container = DockerContainer(image)
    # Typed for a port alone; the client below takes an address with it.
    ports: dict[str, Any] = container.ports
    ports[f"{port}/tcp"] = ("127.0.0.1", None)
    if command is not None:
        container.with_command(command)
    for name, value in environment.items():
        container.with_env(name, value)
    with container:
        host = container.get_container_host_ip()
        yield (
            "127.0.0.1" if host == "localhost" else host,
            int(container.get_exposed_port(port)),
        )
