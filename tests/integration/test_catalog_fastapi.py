"""The page's example application, under uvicorn."""

from __future__ import annotations

import asyncio
import re
import sys
import types
from pathlib import Path

import httpx
import pytest
import uvicorn

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

PAGE = Path(__file__).parents[2] / "fm_storage" / "catalog" / "README.md"


def example():
    """Return the application that the page shows."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL)
    [found] = [block for block in blocks if "CatalogMiddleware" in block]
    return found


@pytest.mark.slow
async def test_a_fastapi_application_catalogues_and_reports_its_errors(
    monkeypatch, dsn, vector_folder, tmp_path
):
    """A failing endpoint answers 500, its error is on the report page."""
    monkeypatch.setenv("FM_STORAGE_POSTGRES__DSN", dsn)
    monkeypatch.setenv("FM_STORAGE_QDRANT__URL", f"embedded:{vector_folder}")
    monkeypatch.setenv("FM_STORAGE_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("ERRORS_TOKEN", "s3cret")
    module = types.ModuleType("shop_example")
    monkeypatch.setitem(sys.modules, "shop_example", module)
    exec(compile(example(), "shop_example.py", "exec"), module.__dict__)  # noqa: S102 - our own example
    config = uvicorn.Config(module.app, port=0, log_level="critical", ws="none")
    server = uvicorn.Server(config)
    serving = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.02)
    [listener] = server.servers[0].sockets
    base = f"http://127.0.0.1:{listener.getsockname()[1]}"
    # uvicorn closes the connection of a request whose application raised.
    limits = httpx.Limits(max_keepalive_connections=0)
    async with httpx.AsyncClient(base_url=base, limits=limits) as client:
        for number in range(3):
            answer = await client.post(f"/orders/{number}/pay", timeout=20)
            assert answer.status_code == 500
        refused = await client.get("/errors/", timeout=20)
        auth = httpx.BasicAuth("me", "s3cret")
        page = await client.get("/errors/", auth=auth, timeout=20)
    server.should_exit = True
    await serving
    assert refused.status_code == 401
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "default-src &#x27;none&#x27;" in page.text
    assert "3×" in page.text
    assert "gateway refused order <i>&lt;n&gt;</i>" in page.text
    assert "/orders/" not in page.headers.get("location", "")
