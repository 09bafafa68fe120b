"""Whatever payload is accepted can be read again, after kill -9 and reopening."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from fm_storage.config import QdrantConfig
from fm_storage.errors import InvalidRecord
from fm_storage.testing import QdrantTestServer
from fm_storage.vectors import Point, QdrantStore

text = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
scalar = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | text
)
value = st.recursive(
    scalar,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(text, inner, max_size=4)
    ),
    max_leaves=12,
)


def nested(levels: int, *, array: bool) -> Any:
    """Return a value of so many levels."""
    made: Any = 1
    for _ in range(levels):
        made = [made] if array else {"a": made}
    return made


deep = st.builds(nested, st.integers(0, 140), array=st.booleans())
payloads = st.dictionaries(
    text.filter(lambda key: key != "x"), value | deep, max_size=5
)


def comparable(value: Any) -> Any:
    """Return *value* without the last digit of floats: Qdrant's parser drops it."""
    if isinstance(value, float):
        return f"{value:.14g}"
    if isinstance(value, dict):
        return {key: comparable(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [comparable(inner) for inner in value]
    return value


@settings(
    max_examples=8,
    phases=[Phase.explicit, Phase.generate],  # an engine is killed for each
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(given_payloads=st.lists(payloads, min_size=1, max_size=12))
async def test_accepted_payload_survives_a_kill(
    tmp_path: Path, given_payloads: list[dict[str, Any]]
) -> None:
    """Point by point: either it is refused as InvalidRecord, or it is there again."""
    folder = tmp_path / uuid4().hex
    folder.mkdir()
    taken: dict[int, dict[str, Any]] = {}
    async with QdrantStore(QdrantConfig(durability="process"), folder=folder) as store:
        await store.ensure_collection_exists("a", 2)
        for number, payload in enumerate(given_payloads):
            try:
                await store.upsert_points("a", [Point(number, [1.0, 0.0], payload)])
            except InvalidRecord:
                continue
            taken[number] = payload
            with suppress(InvalidRecord):  # three levels more may be too many
                await store.set_payload("a", {"again": payload}, [number], key="x.y")
                taken[number] = {**payload, "x": {"y": {"again": payload}}}
        pid = store.statistics().engine_pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        found = await store.retrieve("a", taken)
        read = {point.id: comparable(point.payload) for point in found}
        assert read == {
            number: comparable(payload) for number, payload in taken.items()
        }
        await store.delete_points("a", list(taken))
        assert await store.count("a") == 0


@pytest.mark.parametrize("array", [False, True])
@pytest.mark.parametrize("engine", ["embedded", "rest", "grpc", "memory"])
async def test_depth_is_bounded_alike(
    tmp_path: Path, engine: str, *, array: bool
) -> None:
    """A hundred levels are taken and read again, one more is refused by name."""
    async with QdrantTestServer(grpc=True) as server:
        config = {
            "embedded": QdrantConfig(),
            "memory": QdrantConfig(url=":memory:"),
            "rest": QdrantConfig(url=server.url),
            "grpc": QdrantConfig(
                url=server.url, prefer_grpc=True, grpc_port=server.grpc_port
            ),
        }[engine]
        # A message of gRPC may be nested a hundred times, and a level takes several.
        most = (47 if array else 31) if engine == "grpc" else 99
        async with QdrantStore(config, folder=tmp_path) as store:
            await store.ensure_collection_exists("a", 2)
            payload = {"d": nested(most, array=array)}
            await store.upsert_points("a", [Point(1, [1.0, 0.0], payload)])
            await store.set_payload("a", {"e": nested(most - 2, array=array)}, [1])
            [point] = await store.retrieve("a", [1])
            assert point.payload["d"] == payload["d"]
            worse = {"d": nested(most + 1, array=array)}
            with pytest.raises(InvalidRecord, match="nested deeper"):
                await store.upsert_points("a", [Point(2, [1.0, 0.0], worse)])
            with pytest.raises(InvalidRecord, match="nested deeper"):
                await store.set_payload("a", payload, [1], key="x.y[0].z")
            assert await store.count("a") == 1
