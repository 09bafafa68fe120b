"""Probes, the waiting command, and the manager of a web application."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import httpx
import pytest
from click.testing import CliRunner
from fastapi import Depends, FastAPI, WebSocket
from starlette.requests import Request
from starlette.testclient import TestClient

from fm_storage import storage_of
from fm_storage.cli import cli
from fm_storage.config import MigrationsConfig, StorageConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.manager import StorageManager
from fm_storage.migrate import Migrator
from tests.fix_proxy import TcpProxy


async def ask(app: Any, path: str, method: str = "GET") -> tuple[int, dict[str, str]]:
    """Return the status and the parts that *app* answers with."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        answer = await client.request(method, path)
        return answer.status_code, answer.json()["parts"] if answer.content else {}


async def test_ready_is_an_open_manager_on_a_migrated_server(dsn: str, tmp_path: Path):
    """Live all along; ready neither before it opens nor once it has closed."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    storage = StorageManager(config)
    app = storage.probes()
    assert await ask(app, "/readyz") == (503, {"manager": "down"})
    assert await ask(app, "/livez") == (200, {"loop": "ok"})
    async with storage:
        ready = {"postgres": "ok", "migrations": "ok"}
        assert await ask(app, "/readyz") == (200, ready)
        assert await ask(app, "/health/readyz") == (200, ready)
        assert await ask(app, "/readyz", "HEAD") == (200, {})
        assert (await ask(app, "/readyz", "POST"))[0] == 405
        assert (await ask(app, "/"))[0] == 404
        latest = "(SELECT max(seq) FROM fm_storage.migrations)"
        await storage.pool.execute(
            f"DELETE FROM fm_storage.migrations WHERE seq = {latest}"
        )
        assert await ask(app, "/readyz") == (503, {**ready, "migrations": "down"})
    assert await ask(app, "/readyz") == (503, {"manager": "down"})
    assert await ask(app, "/livez") == (200, {"loop": "ok"})


async def test_migrations_of_another_application_are_well(dsn: str, tmp_path: Path):
    """Two share the database: neither's health is worse for what the other applied."""
    (tmp_path / "0001_other.sql").write_text("CREATE TABLE other (id int)")
    theirs = MigrationsConfig(sources={"other": str(tmp_path)})
    await Migrator(dsn, theirs).apply()

    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    async with StorageManager(config) as storage:
        assert (await storage.health())["migrations"].status == "ok"
        assert (await ask(storage.probes(), "/readyz"))[0] == 200


async def test_a_server_that_is_away_is_not_ready(
    dsn: str, tcp_proxy: Callable[[str], TcpProxy], tmp_path: Path
):
    """Within the timeout, and ready again as soon as it is back."""
    proxy = tcp_proxy(dsn)
    config = StorageConfig(
        postgres={"dsn": proxy.dsn(dsn)}, qdrant=None, data_dir=tmp_path
    )
    async with StorageManager(config) as storage:
        app = storage.probes(timeout=0.5)
        assert (await ask(app, "/readyz"))[0] == 200
        proxy.black_hole()
        assert await ask(app, "/readyz") == (503, {"postgres": "down"})
        assert (await ask(app, "/livez"))[0] == 200
        proxy.heal()
        while (await ask(app, "/readyz"))[0] != 200:
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_vectors_count_when_asked_for(dsn: str, tmp_path: Path):
    """A store that is away delays deliveries; that stops no traffic by itself."""
    config = StorageConfig(
        postgres={"dsn": dsn},
        qdrant={"url": "http://127.0.0.1:1", "timeout": 0.3},
        data_dir=tmp_path,
    )
    async with StorageManager(config) as storage:
        assert (await ask(storage.probes(), "/readyz"))[0] == 200
        status, parts = await ask(storage.probes(vectors=True), "/readyz")
        assert (status, parts["qdrant"]) == (503, "down")


def application(storage: StorageManager | None) -> FastAPI:
    """Return an application with a handler and a socket that use the manager."""
    app = FastAPI(lifespan=None if storage is None else storage.lifespan)

    @app.get("/one")
    async def one(it: Annotated[StorageManager, Depends(storage_of)]) -> int:
        return int(await it.pool.fetchval("SELECT 1"))

    @app.websocket("/socket")
    async def talk(
        socket: WebSocket, it: Annotated[StorageManager, Depends(storage_of)]
    ) -> None:
        await socket.accept()
        await socket.send_json(await it.pool.fetchval("SELECT 2"))
        await socket.close()

    return app


@pytest.mark.parametrize("way", ["lifespan", "asgi"])
def test_handlers_get_the_manager_of_their_application(
    dsn: str, way: str, tmp_path: Path
):
    """In requests and sockets; the probes are mounted beside them."""
    storage = StorageManager(
        StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    )
    app: Any = application(storage if way == "lifespan" else None)
    app.mount("/health", storage.probes())
    if way == "asgi":
        app = storage.asgi(app)
    with TestClient(app) as client:
        assert client.get("/one").json() == 1
        with client.websocket_connect("/socket") as socket:
            assert socket.receive_json() == 2
        assert client.get("/health/readyz").status_code == 200


def test_an_application_without_a_manager_says_how_to_give_it_one():
    """The error names the attribute and the one-liner."""
    app = FastAPI()
    request = Request({"type": "http", "app": app, "headers": []})
    with pytest.raises(ConfigurationInvalid, match=r"lifespan=storage\.lifespan"):
        storage_of(request)
    app.state.fm_storage = storage = StorageManager(
        StorageConfig(postgres=None, qdrant=None)
    )
    assert storage_of(request) is storage


@pytest.mark.parametrize("goal", ["ready", "migrated"])
@pytest.mark.lengthy
def test_the_command_waits_until_somebody_has_migrated(
    empty_dsn: str, goal: str, monkeypatch: pytest.MonkeyPatch
):
    """It creates nothing itself; 0 when it is so, 1 when the time is over."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", empty_dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT", "none")
    found = CliRunner().invoke(cli, ["wait", "--for", goal, "--timeout", "0"])
    assert found.exit_code == 1
    assert "0001_create_project_errors is pending" in found.output
    migrator = Migrator(empty_dsn, MigrationsConfig())
    assert {one.state for one in asyncio.run(migrator.status())} == {"pending"}
    asyncio.run(migrator.apply())
    found = CliRunner().invoke(cli, ["wait", "--for", goal])
    assert (found.exit_code, found.output) == (0, f"{goal}\n")


def test_the_command_waits_for_a_server_that_is_away(monkeypatch: pytest.MonkeyPatch):
    """The last failure is shown; an embedded server is nothing to wait for."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", "postgresql://127.0.0.1:1/d")
    monkeypatch.setenv("FM_STORAGE_QDRANT", "none")
    found = CliRunner().invoke(cli, ["wait", "--timeout", "0.2"])
    assert found.exit_code == 1
    assert "not ready within 0.2 s" in found.output
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", "embedded:")
    refused = CliRunner().invoke(cli, ["wait"])
    assert isinstance(refused.exception, ConfigurationInvalid)
