"""The pages of errors as they are served: who may look, what is answered, how it looks.

The browser's pictures lie in build/artefacts afterwards.
"""

from __future__ import annotations

import asyncio
import base64
from contextlib import asynccontextmanager

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, HTTPException

from fm_storage.catalog import ErrorManager
from fm_storage.config import StorageConfig
from fm_storage.errors import ConfigurationInvalid
from fm_storage.manager import StorageManager

pytestmark = pytest.mark.timeout(180)

TOKEN = "correct horse battery staple ä"
TRACE = """Traceback (most recent call last):
  File "/srv/shop/cart.py", line 12, in charge
    client.send(order)
  File "/srv/venv/lib/python3.12/site-packages/httpx/_client.py", line 914, in send
    raise exc from None
httpx.ConnectError: refused"""
HOSTILE = "<script>document.title='taken'</script><form action=//127.0.0.1:9>"


@pytest.fixture
async def errors(storage):
    """Give a manager with a handful of errors."""
    async with ErrorManager(storage) as manager:
        for n in range(5):
            await manager.record(f"gateway refused order {n}", module="billing")
        await manager.record(f"volume is gone {HOSTILE}", severity="CRITICAL")
        await manager.record("item page took long", severity="INFO", module="web")
        await manager.storage.outbox.drain(timeout=30)
        yield manager


def client(app, **options):
    """Return a client of *app*."""
    transport = httpx.ASGITransport(app=app)
    return httpx.AsyncClient(transport=transport, base_url="http://errors", **options)


def basic(user, password):
    """Return the header of HTTP Basic."""
    made = base64.b64encode(f"{user}:{password}".encode()).decode()
    return {"authorization": f"Basic {made}"}


async def test_without_a_guard_there_are_no_pages(errors):
    """Exactly one of token, guard and unguarded; the error says which there are."""
    for wrong in (
        {},
        {"token": ""},
        {"token": " "},
        {"guard": "x"},
        {"token": "x", "unguarded": True},
        {"token": "x", "guard": print},
    ):
        with pytest.raises(ConfigurationInvalid, match=r"give|token_urlsafe"):
            errors.web(**wrong)


async def test_the_token_is_asked_for_whatever_the_path_and_method(errors):
    """As password or bearer; a wrong one, a doubled header or none is 401."""
    async with client(errors.web(token=TOKEN)) as web:
        for headers in (
            {},
            basic("me", "wrong"),
            basic(TOKEN, ""),
            {"authorization": "Bearer " + "x" * 100_000},
            {"authorization": "Basic %%%"},
            {"authorization": f"Digest {TOKEN}".encode()},
        ):
            for method, path in (("GET", "/"), ("POST", "/"), ("GET", "/nowhere")):
                answer = await web.request(method, path, headers=headers)
                assert answer.status_code == 401
                assert answer.headers["www-authenticate"].startswith("Basic realm=")
                assert "gateway" not in answer.text
        twice = [("authorization", f"Bearer {TOKEN}".encode())] * 2
        assert (await web.get("/", headers=twice)).status_code == 401
        for headers in (
            basic("anyone", TOKEN),
            {"authorization": f"bearer {TOKEN}".encode()},
        ):
            answer = await web.get("/", headers=headers)
            assert answer.status_code == 200
            assert "gateway refused order" in answer.text


async def test_a_guard_of_ones_own_decides(errors):
    """Plain or async, by the scope; what it raises goes on to the framework."""
    scopes = []

    def plain(scope):
        scopes.append(scope["path"])
        return scope["query_string"] == b"yes=1"

    async def slow(scope):
        return plain(scope)

    for guard in (plain, slow):
        async with client(errors.web(guard=guard)) as web:
            assert (await web.get("/?yes=1")).status_code == 200
            refused = await web.get("/")
            assert refused.status_code == 403
            assert "gateway" not in refused.text
    assert scopes == ["/"] * 4

    def raises(_):
        raise HTTPException(418)

    app = FastAPI()
    app.mount("/errors", errors.web(guard=raises))
    async with client(app) as web:
        assert (await web.get("/errors/")).status_code == 418


async def test_methods_paths_and_headers_are_those_of_http(errors):
    """HEAD as GET without a body, 404 before 405, the policy on every answer."""
    async with client(errors.web(unguarded=True)) as web:
        whole = await web.get("/")
        head = await web.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert abs(int(head.headers["content-length"]) - len(whole.content)) < 100
        [group] = await errors.groups(module="billing")
        answers = [whole, head]
        for method, path, status in (
            ("GET", "/nowhere", 404),
            ("POST", "/nowhere", 404),
            ("POST", "/", 405),
            ("DELETE", "/search", 405),
            ("OPTIONS", "/", 405),
            ("GET", "/group/0123456789abcdef", 404),
            ("GET", "/group/xyz", 404),
            ("GET", f"/group/{group.fingerprint}", 200),
            ("GET", f"/group/{group.fingerprint}/", 200),
            ("GET", "/search", 200),
            ("GET", "/?severity=nonsense", 400),
            ("GET", "/?since=nonsense", 400),
            ("GET", "/?since=999999w", 400),
            ("GET", "/?since=24h&severity=info", 200),
            ("GET", "/?since=2024-01-01", 200),
            ("GET", "/?" + "&".join(["a=1"] * 50), 400),
            ("GET", "/search?q=%ff%00", 200),
        ):
            answer = await web.request(method, path)
            assert answer.status_code == status, (method, path, answer.text[-300:])
            answers.append(answer)
        assert (await web.post("/")).headers["allow"] == "GET, HEAD"
    for answer in answers:
        policy = answer.headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "frame-ancestors 'none'" in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "<script" not in answer.text


async def test_the_page_is_live_and_searches_by_similarity(errors):
    """What was recorded since is there; hits come one a group, the nearest first."""
    async with client(errors.web(unguarded=True, title="Shop")) as web:
        assert "disk" not in (await web.get("/")).text
        await errors.record("disk of node is full", module="store")
        page = (await web.get("/")).text
        assert "disk of node is full" in page
        assert "<h1>Shop</h1>" in page
        assert "item page took" not in page
        assert "item page took" in (await web.get("/?severity=INFO")).text
        found = (await web.get("/search?q=gateway+refused+an+order")).text
        assert found.count('<details class="group') >= 1
        assert found.index("gateway refused order") < found.index("</details>")
        assert found.count("gateway refused order <i>") == 1
        assert 'value="gateway refused an order"' in found
        hostile = (await web.get("/search", params={"q": f'"{HOSTILE}'})).text
        assert "<script" not in hostile


async def test_the_page_of_a_group_says_what_one_asks_next(dsn, tmp_path):
    """Where it came from, its context, what was merged, how to call it resolved."""
    config = StorageConfig(
        postgres={"dsn": dsn},
        qdrant=None,
        data_dir=tmp_path,
        catalog={"release": "2.7", "environment": "staging"},
    )
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        for name in ("CartService", "MailService", "StockService"):
            await errors.record(f"cannot start {name} now", context={"node": "n7"})
        [group] = await errors.groups()
        async with client(errors.web(unguarded=True)) as web:
            page = (await web.get(f"/group/{group.fingerprint}")).text
    for text in ("staging", "2.7", "n7", f"errors resolve {group.fingerprint}"):
        assert text in page
    assert page.count("cannot start MailService now") >= 2  # an error, and a member
    assert group.error_code.startswith("M-")
    assert group.error_code not in page


async def test_without_vectors_there_is_no_search(dsn, tmp_path):
    """No field, no page; the report and the groups are there."""
    config = StorageConfig(postgres={"dsn": dsn}, qdrant=None, data_dir=tmp_path)
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        await errors.record("x", module="m")
        async with client(errors.web(unguarded=True)) as web:
            page = await web.get("/")
            assert 'role="search"' not in page.text
            assert (await web.get("/search?q=x")).status_code == 404


async def test_a_store_that_is_away_is_503(cluster, tmp_path):
    """With when to try again; the pages work again when it is back."""
    config = StorageConfig(
        postgres={"dsn": cluster.dsn, "acquire_timeout": 1.0},
        qdrant=None,
        data_dir=tmp_path,
    )
    async with StorageManager(config) as storage, ErrorManager(storage) as errors:
        await errors.record("x", module="m")
        async with client(errors.web(unguarded=True)) as web:
            assert (await web.get("/")).status_code == 200
            await cluster.stop()
            away = await web.get("/")
            assert (away.status_code, away.headers["retry-after"]) == (503, "5")
            await cluster.start()
            assert (await web.get("/")).status_code == 200


@pytest.fixture
async def served(errors):
    """Give the address of the pages below a prefix of a FastAPI application."""
    await errors.record("no route to gateway", module="billing.gateway")
    app = FastAPI()
    app.mount("/admin/errors", errors.web(token=TOKEN, title="The shop"))

    @asynccontextmanager
    async def running():
        config = uvicorn.Config(app, port=0, log_level="critical", ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.02)
        [listener] = server.servers[0].sockets
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/admin/errors"
        server.should_exit = True
        await serving

    async with running() as base:
        yield base


@pytest.fixture
async def looking(browser):
    """Give a browser that shows the token."""
    headers = basic("me", TOKEN)
    await browser.call(
        "Network.setExtraHTTPHeaders",
        headers={"Authorization": headers["authorization"]},
    )
    return browser


WIDEST = (
    "Math.max(document.documentElement.scrollWidth,"
    " ...[...document.querySelectorAll('main *, .bar *')]"
    ".filter(e => !e.closest('svg') && !e.closest('.scroll'))"
    ".map(e => Math.ceil(e.getBoundingClientRect().right)))"
)


async def test_the_pages_fit_a_telephone_and_a_desk_in_light_and_dark(
    looking, served, errors, artefacts
):
    """Report, group, search and refusal, each without a wider part or a request."""
    [group] = await errors.groups(module="billing.gateway")
    for path in ("/", f"/group/{group.fingerprint}", "/search?q=gateway", "/nowhere"):
        pictures = set()
        for width in (390, 1200):
            for dark in (False, True):
                await looking.open(served + path, width=width, dark=dark)
                await looking.evaluate(
                    "document.querySelectorAll('details').forEach(e => e.open = true)"
                )
                name = path.strip("/").partition("/")[0].partition("?")[0] or "report"
                shade = "dark" if dark else "light"
                file = artefacts / f"web-{name}-{width}-{shade}.png"
                pictures.add(await looking.shoot(file))
                assert await looking.evaluate(WIDEST) <= width, path
                assert looking.requests() == [served + path]
                assert looking.refused() == 0
        assert len(pictures) == 4


async def test_everything_is_reached_by_keyboard(looking, served):
    """The skip link comes first; search, a group and back again, by Tab and Enter."""
    await looking.open(served + "/", width=1200)
    order = [await looking.press_tab() for _ in range(7)]
    assert order[0].startswith("A Skip")
    assert [one.split()[0] for one in order[1:]] == [
        *("A", "INPUT", "BUTTON"),
        *("SELECT", "SELECT", "BUTTON"),
    ]
    await looking.open(served + "/", width=1200)
    await looking.press_tab()
    await looking.press_enter()
    assert await looking.evaluate("document.activeElement.id") == "main"
    await looking.open(served + "/", width=1200)
    focused = [await looking.press_tab() for _ in range(3)]
    assert focused[-1] == "INPUT q"
    await looking.type("gateway has no route")
    looking.events.clear()
    await looking.press_enter()
    await looking.loaded()
    assert "/admin/errors/search?q=gateway" in await looking.evaluate("location.href")
    assert await looking.evaluate("document.querySelectorAll('details').length") >= 1
    await looking.evaluate("document.querySelector('summary').focus()")
    await looking.press_enter()
    assert await looking.evaluate("document.querySelector('details').open")
    links = "[...document.querySelectorAll('.body a')].map(e => e.getAttribute('href'))"
    [link, *_] = await looking.evaluate(links)
    assert link.startswith("/admin/errors/group/")
    await looking.open(served.removesuffix("/admin/errors") + link, width=1200)
    assert "The latest" in await looking.evaluate("document.body.innerText")


async def test_hostile_text_does_nothing_on_a_served_page(looking, served):
    """No script runs, no form but ours is there."""
    await looking.open(served + "/", width=1200)
    assert await looking.evaluate("document.title") == "The shop"
    forms = "[...document.forms].map(e => e.getAttribute('action'))"
    assert await looking.evaluate(forms) == [
        "/admin/errors/search",
        "/admin/errors/",
    ]
    assert "<script>" in await looking.evaluate("document.body.innerText")
