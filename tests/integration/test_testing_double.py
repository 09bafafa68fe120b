"""The test double as a user of ``fm_storage.testing`` sees it, over both wires."""

from __future__ import annotations

from collections.abc import AsyncIterator
from importlib import import_module
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from qdrant_client import AsyncQdrantClient, models
from qdrant_client.http.exceptions import UnexpectedResponse

from fm_storage.testing import Fault, QdrantApp, QdrantTestServer

PROTOBUF = import_module("google.protobuf.message")  # it has no types

# A loaded machine may be slow, but not wrong.
pytestmark = pytest.mark.timeout(120)


@pytest.fixture(params=["rest", "grpc"])
async def client(request: pytest.FixtureRequest) -> AsyncIterator[AsyncQdrantClient]:
    """Give Qdrant's own client, on a double with a collection of three points."""
    async with QdrantTestServer(grpc=True) as server:
        client = AsyncQdrantClient(
            url=server.url,
            prefer_grpc=request.param == "grpc",
            grpc_port=server.grpc_port,
            check_compatibility=False,
        )
        await client.create_collection(
            "docs",
            vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT),
        )
        await client.upsert(
            "docs",
            points=[
                models.PointStruct(id=i, vector=[1.0, float(i)], payload={"n": i})
                for i in range(3)
            ],
        )
        yield client
        await client.close()


async def test_client_finds_what_it_wrote(client: AsyncQdrantClient) -> None:
    """Calls that our own store never makes are answered as a server would."""
    assert await client.collection_exists("docs")
    assert not await client.collection_exists("others")
    asked = [models.QueryRequest(query=[0.0, 1.0], limit=n) for n in (1, 2)]
    found = await client.query_batch_points("docs", requests=asked)
    assert [[hit.id for hit in one.points] for one in found] == [[2], [2, 1]]
    await client.clear_payload("docs", points_selector=[1])
    (point,) = await client.retrieve("docs", ids=[1])
    assert not point.payload
    alias = models.CreateAlias(collection_name="docs", alias_name="d")
    await client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=alias)]
    )
    shown = await client.get_collection_aliases("docs")
    assert [item.alias_name for item in shown.aliases] == ["d"]
    assert await client.delete_collection("docs")


async def test_update_mode_is_kept(client: AsyncQdrantClient) -> None:
    """``insert_only`` leaves the points alone that are there."""
    await client.upsert(
        "docs",
        points=[
            models.PointStruct(id=i, vector=[9.0, 9.0], payload={"n": "new"})
            for i in (2, 3)
        ],
        update_mode=models.UpdateMode.INSERT_ONLY,
    )
    found = await client.retrieve("docs", ids=[2, 3])
    assert [point.payload for point in found] == [{"n": 2}, {"n": "new"}]


async def test_texts_and_formulas_are_answered_as_by_a_server(
    client: AsyncQdrantClient,
) -> None:
    """A text index knows stems and stop words, phrases their order, formulas decay."""
    texts = ["the pools are exhausted", "a pool of exhausted people", "people exhaust"]
    for number, text in enumerate(texts):
        await client.set_payload("docs", payload={"t": text}, points=[number])
    options = models.TextIndexParams(
        type=models.TextIndexType.TEXT,
        tokenizer=models.TokenizerType.WORD,
        stemmer=models.SnowballParams(
            type=models.Snowball.SNOWBALL, language=models.SnowballLanguage.ENGLISH
        ),
        stopwords=models.Language.ENGLISH,
        phrase_matching=True,
    )
    await client.create_payload_index("docs", "t", options)

    async def matching(match: Any) -> list[Any]:
        condition = models.FieldCondition(key="t", match=match)
        found, _ = await client.scroll("docs", models.Filter(must=[condition]))
        return [record.id for record in found]

    assert await matching(models.MatchText(text="pool")) == [0, 1]
    assert await matching(models.MatchText(text="the exhausting")) == [0, 1, 2]
    assert await matching(models.MatchTextAny(text_any="pool nothing")) == [0, 1]
    assert await matching(models.MatchPhrase(phrase="exhausted people")) == [1]
    decay = models.GaussDecayExpression(
        gauss_decay=models.DecayParamsExpression(x="n", target=1.0, scale=1.0)
    )
    found = await client.query_points(
        "docs",
        prefetch=models.Prefetch(query=[1.0, 0.0], limit=3),
        query=models.FormulaQuery(
            formula=models.SumExpression(sum=["$score", decay]), defaults={"n": 0}
        ),
    )
    scores = {hit.id: round(hit.score, 3) for hit in found.points}
    assert scores == {0: 1.5, 1: 2.0, 2: 1.5}


async def test_points_outlive_the_server(tmp_path: Path) -> None:
    """A server that is opened again has its collections, as one that restarted."""
    server = QdrantTestServer(QdrantApp(folder=tmp_path / "engine"))
    for round_ in range(2):
        async with server:
            client = AsyncQdrantClient(url=server.url, check_compatibility=False)
            if not round_:
                size = models.VectorParams(size=1, distance=models.Distance.DOT)
                await client.create_collection("a", vectors_config=size)
                point = models.PointStruct(id=1, vector=[1.0], payload={})
                await client.upsert("a", [point])
            assert (await client.count("a")).count == 1
            await client.close()


@pytest.mark.lengthy
async def test_local_mode_answers_where_the_engine_is_not_installed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The client is enough for a double, though a slower one."""
    monkeypatch.setattr("fm_storage.testing.double.find_spec", lambda _name: None)
    async with QdrantTestServer() as server:
        client = AsyncQdrantClient(url=server.url, check_compatibility=False)
        size = models.VectorParams(size=1, distance=models.Distance.DOT)
        await client.create_collection("a", vectors_config=size)
        await client.create_payload_index("a", "n", models.PayloadSchemaType.INTEGER)
        await client.upsert("a", [models.PointStruct(id=1, vector=[1.0], payload={})])
        [hit] = (await client.query_points("a", query=[1.0])).points
        assert (hit.id, hit.score) == (1, 1.0)
        await client.close()


async def test_payload_too_deep_is_refused(client: AsyncQdrantClient) -> None:
    """What the parser of a server does not take."""
    deep: Any = 1
    for _ in range(110):
        deep = [deep]
    point = models.PointStruct(id=9, vector=[1.0, 1.0], payload={"a": deep})
    # The client itself does not write such a message of gRPC: protobuf's error.
    with pytest.raises((UnexpectedResponse, PROTOBUF.DecodeError)):
        await client.upsert("docs", [point])
    assert (await client.count("docs")).count == 3


async def test_wrong_requests_are_refused(client: AsyncQdrantClient) -> None:
    """Bad sizes, unknown vectors, missing collections: a status, never a crash."""
    bad: list[Any] = [
        client.query_points("docs", query=[1.0]),
        client.query_points("docs", query=[1.0, 1.0], using="other"),
        client.upsert("docs", points=[models.PointStruct(id=1, vector=[1.0])]),
        client.upsert(
            "docs", points=[models.PointStruct(id=1, vector={"x": [1.0, 2.0]})]
        ),
        client.get_collection("missing"),
        client.create_collection(
            "docs",
            vectors_config=models.VectorParams(size=2, distance=models.Distance.DOT),
        ),
        client.scroll("docs", order_by="n"),
    ]
    for call in bad:
        with pytest.raises((UnexpectedResponse, grpc.RpcError)):
            await call
    assert (await client.count("docs")).count == 3


async def test_unknown_method_is_unimplemented() -> None:
    """What the double does not know is said as a server of old would."""
    async with QdrantTestServer(grpc=True) as server:
        client = AsyncQdrantClient(
            url=server.url,
            prefer_grpc=True,
            grpc_port=server.grpc_port,
            check_compatibility=False,
        )
        with pytest.raises(grpc.RpcError) as caught:
            await client.search_matrix_pairs("docs")
        assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
        await client.close()


async def test_key_is_asked_for_over_grpc() -> None:
    """The key of the application holds on both wires."""
    async with QdrantTestServer(QdrantApp(api_key="secret"), grpc=True) as server:
        client = AsyncQdrantClient(
            url=server.url,
            prefer_grpc=True,
            grpc_port=server.grpc_port,
            check_compatibility=False,
        )
        with pytest.raises(grpc.RpcError) as caught:
            await client.get_collections()
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        await client.close()


async def test_application_can_be_mounted() -> None:
    """The double is an ASGI application: it answers inside another one's tests."""
    app = QdrantApp(max_body=1000)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://q") as http:
        assert (await http.get("/")).json()["version"]
        assert (await http.get("/readyz")).text == "healthz check passed"
        assert (await http.get("/nothing")).status_code == 404
        made = await http.put(
            "/collections/a", json={"vectors": {"size": 2, "distance": "Dot"}}
        )
        assert made.json()["result"] is True
        points = {"points": [{"id": 1, "vector": [1, 2], "payload": {"n": 1}}]}
        assert (await http.put("/collections/a/points", json=points)).is_success
        one = (await http.get("/collections/a/points/1")).json()["result"]
        assert one["payload"] == {"n": 1}
        assert (await http.get("/collections/a/points/2")).status_code == 404
        assert (await http.get("/collections/a/exists")).json()["result"]["exists"]
        aliases = (await http.get("/collections/a/aliases")).json()["result"]
        assert aliases == {"aliases": []}
        for body, status in ((b"{", 400), (b'{"points": 5}', 400), (b"x" * 1001, 400)):
            answer = await http.put("/collections/a/points", content=body)
            assert answer.status_code == status
            assert answer.json()["status"]["error"]
    assert (await app.client.count("a")).count == 1


async def test_lifespan_is_answered() -> None:
    """A host that sends ASGI's lifespan messages gets its answers."""
    sent: list[str] = []
    events = iter(["lifespan.startup", "lifespan.shutdown"])

    async def receive() -> dict[str, str]:
        return {"type": next(events)}

    async def send(message: dict[str, str]) -> None:
        sent.append(message["type"])

    await QdrantApp()({"type": "lifespan"}, receive, send)
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_fault_of_one_wire_leaves_the_other_alone() -> None:
    """Faults choose by path, and gRPC's paths are its methods."""
    async with QdrantTestServer(grpc=True) as server:
        server.faults.add(Fault.answer(503), times=9, path="/qdrant.Collections/")
        by_rest, by_grpc = (
            AsyncQdrantClient(
                url=server.url,
                prefer_grpc=grpc_first,
                grpc_port=server.grpc_port,
                check_compatibility=False,
            )
            for grpc_first in (False, True)
        )
        assert (await by_rest.get_collections()).collections == []
        with pytest.raises(grpc.RpcError):
            await by_grpc.get_collections()
        assert [seen.status for seen in server.seen] == [200, 503]
        await by_rest.close()
        await by_grpc.close()
