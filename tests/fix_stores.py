"""Vector stores on every engine, for tests that must hold on all of them.

These tests are multiplied: once per engine, each with collections of its own and
everything else shared. A given server may serve several runs at once: each process
of a run deletes what it has made, and nothing else.
"""

from __future__ import annotations

import fcntl
import socket
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest

from fm_storage.config import QdrantConfig
from tests.support import servers

if TYPE_CHECKING:
    from fm_storage.vectors import QdrantStore

__all__ = [
    "alone_with_the_marker",
    "any_store",
    "engine_folder",
    "name",
    "pytest_generate_tests",
]

# Of this process: another run, and another worker of this one, have others.
_PREFIX = f"t_{uuid4().hex[:8]}_"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run what uses ``any_store`` once per engine; on a server where one is given."""
    if "any_store" not in metafunc.fixturenames:
        return
    engines = ["embedded", "rest", "grpc", "memory"]
    kind = metafunc.config.stash[servers.CHOICE].qdrant
    if kind != "embedded":
        engines.append("server-rest")
    if kind == "given":  # of a container only one port is known
        engines.append("server-grpc")
    metafunc.parametrize("any_store", engines, indirect=True)


@pytest.fixture(scope="module")
def engine_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Give a folder whose embedded engine lives as long as the module's tests."""
    from fm_storage.vectors.embedded import launch

    folder = tmp_path_factory.mktemp("engine")
    home = folder / "qdrant"
    launch.prepare_folder(home)
    launch.start(home)
    keeper: socket.socket | None = launch.try_connect(home)
    assert keeper is not None
    try:
        yield folder
    finally:
        keeper.shutdown(socket.SHUT_WR)
        keeper.settimeout(10)
        while keeper.recv(1024):
            pass
        keeper.close()


@pytest.fixture
async def any_store(
    request: pytest.FixtureRequest, engine_folder: Path
) -> AsyncIterator[QdrantStore]:
    """Give an open store on one of the engines."""
    from fm_storage.testing import QdrantApp, QdrantTestServer
    from fm_storage.vectors import QdrantStore

    kind: str = request.param
    home = engine_folder / "qdrant"
    async with AsyncExitStack() as stack:
        if kind == "embedded":
            config = QdrantConfig(durability="process")
        elif kind == "memory":
            config = QdrantConfig(url=":memory:")
        elif kind == "rest":
            server = await stack.enter_async_context(
                QdrantTestServer(QdrantApp(folder=home))
            )
            config = QdrantConfig(url=server.url)
        elif kind == "grpc":
            server = await stack.enter_async_context(
                QdrantTestServer(QdrantApp(folder=home), grpc=True)
            )
            config = QdrantConfig(
                url=server.url, prefer_grpc=True, grpc_port=server.grpc_port
            )
        else:
            config = QdrantConfig(
                url=request.getfixturevalue("qdrant_server"),
                prefer_grpc=kind == "server-grpc",
            )
        store = QdrantStore(config, folder=engine_folder)
        await stack.enter_async_context(store)
        yield store
        for alias in await store.list_aliases():
            if alias.startswith(_PREFIX):
                await store.set_aliases({alias: None})
        for collection in await store.list_collections():
            if collection.startswith(_PREFIX):
                await store.delete_collection(collection)


@pytest.fixture
def alone_with_the_marker() -> Iterator[None]:
    """Hold the marker of a given server, of which there is one for all runs."""
    with (Path(tempfile.gettempdir()) / "fm_storage_marker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture
def name() -> str:
    """Give a name that no other test uses."""
    return f"{_PREFIX}{uuid4().hex[:12]}"
