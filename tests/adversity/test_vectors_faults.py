"""A server that misbehaves: what is repeated, what is not, and until when."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from qdrant_client import grpc as messages
from qdrant_client.grpc import points_service_pb2_grpc as services

from fm_storage.config import QdrantConfig
from fm_storage.errors import (
    CollectionNotFound,
    InvalidRecord,
    RateLimited,
    VectorStoreUnavailable,
)
from fm_storage.testing import Fault, QdrantApp, QdrantTestServer
from fm_storage.vectors import Point, QdrantStore
from tests.support.inside import calls_of

MIB = 1024 * 1024

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


class Server(QdrantTestServer):
    """A server reached over REST, or over gRPC."""

    def config(self, **more: Any) -> QdrantConfig:
        """Return the configuration that leads to it."""
        if self.grpc_port:
            more |= {"prefer_grpc": True, "grpc_port": self.grpc_port}
        return QdrantConfig(url=self.url, **more)


@pytest.fixture(params=["rest", "grpc"])
async def server(request: pytest.FixtureRequest) -> AsyncIterator[Server]:
    """Give a server of one's own, with a collection ``a`` of size 4."""
    async with Server(grpc=request.param == "grpc") as server:
        async with QdrantStore(server.config()) as store:
            await store.ensure_collection_exists("a", 4)
        server.seen.clear()
        yield server


def points(count: int, size: int = 4) -> list[Point]:
    """Return points with distinct ids."""
    return [Point(i, [1.0 + i % 7] * size, {"n": i}) for i in range(count)]


@pytest.mark.parametrize(
    "fault",
    [
        Fault.too_many(),
        Fault.too_many(0),
        Fault.answer(500),
        Fault.answer(502),
        Fault.answer(503),
        Fault.answer(408),
        Fault.reset(),
        Fault.reset(after=True),
        Fault.half_close(),
    ],
    ids=lambda f: f"{f.kind}_{f.status}_{len(f.headers)}",
)
@pytest.mark.parametrize("operation", ["upsert", "search", "count", "delete"])
async def test_passing_fault_is_outlasted(
    server: Server, fault: Fault, operation: str
) -> None:
    """What fails for a passing reason is repeated, and succeeds."""
    async with QdrantStore(server.config(timeout=60)) as store:
        await store.upsert_points("a", points(3))
        server.faults.add(fault, times=2)
        if operation == "upsert":
            await store.upsert_points("a", points(5))
        elif operation == "search":
            assert len(await store.search("a", [1.0] * 4, 2)) == 2
        elif operation == "count":
            assert await store.count("a") == 3
        else:
            await store.delete_points("a", [0, 1])
        expected = {"upsert": 5, "delete": 1}.get(operation, 3)
        assert await store.count("a") == expected
        assert store.statistics().retries == 2


async def test_server_is_given_the_time_it_asks_for(server: Server) -> None:
    """Retry-After is kept, as a number and as a date."""
    async with QdrantStore(server.config(timeout=60)) as store:
        await store.count("a")
        for wish in (1, "date"):
            server.faults.add(Fault.too_many(wish))
            began = time.monotonic()
            assert await store.count("a") == 0
            # A date has whole seconds only, so it may be nearly now.
            assert time.monotonic() - began >= (1.0 if wish == 1 else 0.0)


async def test_more_patience_than_there_is_time_fails_at_once(
    server: Server,
) -> None:
    """A wish beyond the deadline is an error that tells it."""
    async with QdrantStore(server.config(timeout=10)) as store:
        await store.count("a")
        server.faults.add(Fault.too_many(60))
        with pytest.raises(RateLimited) as caught:
            await store.count("a")
        assert store.statistics().retries == 0  # not even one pause
        assert caught.value.retry_after == 60
        assert caught.value.retryable


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
async def test_refusal_is_never_repeated(server: Server, status: int) -> None:
    """What the caller did wrong is said once."""
    async with QdrantStore(server.config()) as store:
        await store.count("a")
        server.seen.clear()
        server.faults.add(Fault.answer(status), times=5)
        with pytest.raises(
            (InvalidRecord, VectorStoreUnavailable, CollectionNotFound)
        ) as caught:
            await store.count("a")
        assert not caught.value.retryable
        assert len(server.seen) == 1


@pytest.mark.parametrize("fault", [Fault.stall(30), Fault.answer(503), Fault.reset()])
async def test_deadline_is_kept(server: Server, fault: Fault) -> None:
    """However the server fails, the call ends with its deadline."""
    async with QdrantStore(server.config(timeout=0.5)) as store:
        server.faults.add(fault, times=1000)
        for call in (
            lambda: store.count("a"),
            lambda: store.upsert_points("a", points(10)),
        ):
            began = time.monotonic()
            with pytest.raises(VectorStoreUnavailable) as caught:
                await call()
            assert time.monotonic() - began < 10
            assert caught.value.retryable
            assert caught.value.collection == "a"


async def test_server_that_is_not_there_is_named() -> None:
    """A refused connection says what was tried."""
    config = QdrantConfig(url="http://127.0.0.1:9", timeout=2)
    async with QdrantStore(config) as store:
        with pytest.raises(VectorStoreUnavailable, match="ConnectError"):
            await store.count("a")


async def test_server_comes_back(server: Server) -> None:
    """A call that began while the server was away succeeds once it is back."""
    async with QdrantStore(server.config(timeout=60)) as store:
        await store.upsert_points("a", points(3))
        await server.aclose()
        call = asyncio.create_task(store.count("a"))
        await asyncio.sleep(0.2)
        assert not call.done()
        await server.open()
        assert await call == 3


async def test_requests_stay_below_the_limit(server: Server) -> None:
    """Batches are split by bytes, whatever their number of points."""
    async with QdrantStore(server.config()) as store:
        await store.ensure_collection_exists("big", 1536)
        many = [Point(i, [0.123456] * 1536, {"t": "x" * 3000}) for i in range(500)]
        await store.upsert_points("big", many)
        sizes = [seen.size for seen in server.seen if seen.size > 99_999]
        assert len(sizes) >= 4
        assert max(sizes) <= 4 * MIB
        assert await store.count("big") == 500


async def test_connections_are_kept(server: Server) -> None:
    """Two hundred calls do not leave two hundred sockets behind."""
    async with QdrantStore(server.config()) as store:
        for _ in range(50):
            await store.count("a")
        # The client's gRPC side keeps three channels and takes turns.
        kept = 3 if server.grpc_port else 1
        assert len({seen.connection for seen in server.seen}) <= kept


async def test_bulk_call_through_a_faulty_server_stores_all_once(
    server: Server,
) -> None:
    """Five thousand points, one request in three goes wrong: all there, once."""
    server.faults.every(
        3,
        Fault.too_many(0),
        Fault.answer(503),
        Fault.reset(),
        Fault.reset(after=True),
        Fault.half_close(),
    )
    config = server.config(timeout=90, max_batch_points=200)
    async with QdrantStore(config) as store:
        assert await store.upsert_points("a", points(5000)) == 5000
        server.faults.clear()
        assert await store.count("a") == 5000
        assert store.statistics().retries > 5
    assert all(seen.size <= 4 * MIB for seen in server.seen)


async def test_too_large_request_is_refused_by_the_server() -> None:
    """The double keeps Qdrant's limit; the store says which setting to lower."""
    async with (
        QdrantTestServer(QdrantApp(max_body=20_000)) as server,
        QdrantStore(QdrantConfig(url=server.url)) as store,
    ):
        await store.ensure_collection_exists("a", 4)
        with pytest.raises(InvalidRecord, match="larger than allowed"):
            await store.upsert_points("a", points(1000))


async def test_api_key_is_sent_and_a_wrong_one_refused() -> None:
    """Access needs the key; without it the remedy is named."""
    app = QdrantApp(api_key="secret")
    async with QdrantTestServer(app) as server:
        right = QdrantConfig(url=server.url, api_key="secret")
        async with QdrantStore(right) as store:
            assert await store.list_collections() == []
        async with QdrantStore(QdrantConfig(url=server.url)) as store:
            with pytest.raises(VectorStoreUnavailable, match="api_key") as caught:
                await store.list_collections()
            assert not caught.value.retryable
            assert "secret" not in str(caught.value)


async def test_old_server_is_refused_when_ready_is_asked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Conditional updates need 1.16: ``ready()`` says so."""
    monkeypatch.setattr("fm_storage.testing.app.VERSION", "1.15.4")
    async with QdrantStore(server.config()) as store:
        with pytest.raises(VectorStoreUnavailable, match=r"1\.15\.4"):
            await store.ready()


class SlowPoints(services.PointsServicer):
    """Takes its time, and notes the deadline it was given."""

    def __init__(self) -> None:
        self.deadlines: list[float] = []
        self.answer: grpc.StatusCode | None = None

    async def Upsert(self, request: Any, context: Any) -> Any:  # noqa: N802 - gRPC's name
        """Sleep longer than the client's own default deadline would be."""
        self.deadlines.append(context.time_remaining())
        if self.answer is not None:
            code, self.answer = self.answer, None
            await context.abort(code, "not now")
        await asyncio.sleep(6 if request.points[0].id.num == 1 else 0)
        return messages.PointsOperationResponse(
            result=messages.UpdateResult(
                operation_id=1, status=messages.UpdateStatus.Completed
            )
        )


class Collections(services.PointsServicer):
    """Never called; the definition is known to the store already."""


@pytest.fixture
async def slow_grpc() -> AsyncIterator[tuple[SlowPoints, QdrantConfig]]:
    """Give a gRPC server whose upserts take six seconds."""
    service = SlowPoints()
    server = grpc.aio.server()
    services.add_PointsServicer_to_server(service, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield (
        service,
        QdrantConfig(
            url="http://127.0.0.1:1", prefer_grpc=True, grpc_port=port, timeout=60
        ),
    )
    await server.stop(None)


SPEC = {
    "vectors": {"": {"size": 4, "distance": "Cosine"}},
    "sparse_vectors": {},
    "payload_indexes": {},
}


@pytest.mark.slow
async def test_grpc_write_gets_the_whole_deadline(
    slow_grpc: tuple[SlowPoints, QdrantConfig],
) -> None:
    """A write of six seconds succeeds; the client's own deadline would be five."""
    service, config = slow_grpc
    async with QdrantStore(config) as store:
        calls_of(store).specs["a"] = SPEC
        await store.upsert_points("a", [Point(1, [1.0] * 4)])
    assert service.deadlines[0] > 7


async def test_grpc_faults_are_outlasted(
    slow_grpc: tuple[SlowPoints, QdrantConfig],
) -> None:
    """UNAVAILABLE and RESOURCE_EXHAUSTED are repeated, INVALID_ARGUMENT is not."""
    service, config = slow_grpc
    async with QdrantStore(config) as store:
        calls_of(store).specs["a"] = SPEC
        for code in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED):
            service.answer = code
            await store.upsert_points("a", [Point(2, [1.0] * 4)])
        assert store.statistics().retries == 2
        service.answer = grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(InvalidRecord):
            await store.upsert_points("a", [Point(2, [1.0] * 4)])
        calls_of(store).specs["a"] = SPEC
        service.answer = grpc.StatusCode.NOT_FOUND
        with pytest.raises(CollectionNotFound):
            await store.upsert_points("a", [Point(2, [1.0] * 4)])


async def test_span_lasts_as_long_as_the_call(server: Server) -> None:
    """A slow call has a long span, a failing one an error in its span."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    before = trace._TRACER_PROVIDER
    trace._TRACER_PROVIDER = provider
    try:
        async with QdrantStore(server.config()) as store:
            server.faults.add(Fault.stall(0.3))
            await store.count("a")
            with pytest.raises(CollectionNotFound):
                await store.count("missing")
    finally:
        trace._TRACER_PROVIDER = before
        provider.shutdown()
    slow, failing = exporter.get_finished_spans()
    assert slow.name == "count a"
    assert slow.attributes is not None
    assert slow.attributes["db.collection.name"] == "a"
    assert slow.attributes["server.address"] == "127.0.0.1"
    assert slow.attributes["server.port"] == urlsplit(server.config().url).port
    assert slow.end_time is not None
    assert slow.start_time is not None
    assert slow.end_time - slow.start_time > 0.25e9
    assert not failing.status.is_ok


async def test_server_double_runs_in_a_process_of_its_own() -> None:
    """``python -m fm_storage.testing`` says its address and serves."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "fm_storage.testing", "--grpc"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    url = (await process.stdout.readline()).decode().strip()
    async with QdrantStore(QdrantConfig(url=url)) as store:
        assert await store.ready() == "Qdrant 1.17.0"
    port = int(await process.stdout.readline())
    by_grpc = QdrantConfig(url=url, prefer_grpc=True, grpc_port=port)
    async with QdrantStore(by_grpc) as store:
        assert await store.ready() == "Qdrant 1.17.0"
    await process.communicate(b"")
    assert process.returncode == 0


async def test_limit_of_strict_mode_is_the_request_s_fault(server: Server) -> None:
    """Some versions forbid what strict mode limits: no matter of a key."""
    text = 'Forbidden: Limit exceeded 20 > 10 for "limit". Help: Reduce it to 10.'
    async with QdrantStore(server.config()) as store:
        await store.count("a")
        server.faults.add(Fault("status", 403, text=text))
        with pytest.raises(InvalidRecord, match="20 > 10"):
            await store.count("a")
        server.faults.add(Fault("status", 403, text="Global access is required"))
        with pytest.raises(
            VectorStoreUnavailable, match="access is required"
        ) as denied:
            await store.count("a")
        assert "api_key" in str(denied.value)
        assert not denied.value.retryable


async def test_answer_of_another_server_is_named() -> None:
    """A redirect, or JSON of another form, is no answer of Qdrant's."""
    async with Server() as server, QdrantStore(server.config()) as store:
        await store.ensure_collection_exists("a", 4)
        elsewhere = (("Location", "https://vectors.example/x"),)
        server.faults.add(Fault("status", 307, elsewhere))
        with pytest.raises(VectorStoreUnavailable, match="leads to https") as led:
            await store.count("a")
        server.faults.add(Fault("status", 200))
        with pytest.raises(VectorStoreUnavailable, match="none of Qdrant") as other:
            await store.count("a")
        assert not led.value.retryable
        assert not other.value.retryable
        assert await store.count("a") == 0


async def test_old_server_gets_no_conditional_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It would not see the condition: refused before the first one is sent."""
    monkeypatch.setattr("fm_storage.testing.app.VERSION", "1.15.5")
    async with Server() as server, QdrantStore(server.config()) as store:
        await store.ensure_collection_exists("a", 4)
        await store.upsert_points("a", points(2))
        conditions: list[dict[str, Any]]
        conditions = [{"newer_by": "n"}, {"update_filter": {"n": 1}}]
        for condition in conditions:
            with pytest.raises(VectorStoreUnavailable, match="older than") as refused:
                await store.upsert_points("a", points(3), **condition)
            assert not refused.value.retryable
        with pytest.raises(VectorStoreUnavailable, match="older than"):
            await store.update_vectors("a", points(1), update_filter={"n": 0})
        assert await store.count("a") == 2


async def test_many_ids_go_in_several_requests(server: Server) -> None:
    """A list of ids is as long as its caller likes."""
    async with QdrantStore(server.config()) as store:
        await store.upsert_points("a", points(3))
        server.seen.clear()
        await store.set_payload("a", {"m": 1}, range(1, 25_000))
        assert len(server.seen) == 3
        assert await store.count("a", {"m": 1}) == 2
        bounds = dict.fromkeys(range(25_000), 1)
        await store.delete_points("a", range(25_000), newer_by="n", up_to=bounds)
        assert [p.id async for p in store.iter_points("a")] == [2]
