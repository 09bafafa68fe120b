"""The embedded engine when things go wrong: crashes, races, strangers, bad frames."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import orjson
import pytest

from fm_storage.config import QdrantConfig
from fm_storage.errors import (
    CollectionNotFound,
    EmbeddedFailed,
    ForkedProcess,
    InvalidVector,
    VectorStoreUnavailable,
    WrongLoop,
)
from fm_storage.vectors import Point, QdrantStore
from fm_storage.vectors.embedded import boot, frames
from tests.fix_process import Child
from tests.torture.vectors_kills import CLIENT, kill_engine_sweep

FAST = QdrantConfig(durability="process")

# Processes are started here, which takes its time on a loaded machine.
pytestmark = pytest.mark.timeout(120)


def pid_of(store: QdrantStore) -> int:
    """Return the process of the engine that the store is connected to."""
    pid = store.statistics().engine_pid
    assert pid is not None
    return pid


def _state(pid: int) -> str:
    """Return the kernel's letter for a process, "" when there is none."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""


async def gone(pid: int, within: float = 60.0) -> bool:
    """Wait until a process has ended."""
    until = time.monotonic() + within
    while time.monotonic() < until:
        if _state(pid) in {"", "Z"}:
            return True
        await asyncio.sleep(0.01)
    return False


async def test_engine_leaves_with_its_last_client(vector_folder: Path) -> None:
    """One store, one engine; closing the store ends it and its socket."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        pid = pid_of(store)
    assert await gone(pid)
    assert not (vector_folder / "qdrant" / "engine.sock").exists()


async def test_engine_loads_nothing_heavy(
    child: Callable[..., Awaitable[Child]],
) -> None:
    """Its process knows neither pydantic, nor numpy, nor a client: it starts fast."""
    heavy = {"pydantic", "qdrant_client", "grpc", "numpy", "asyncio", "asyncpg"}
    module = "fm_storage.vectors.embedded.process.main"
    start, given = boot.command(module, "nowhere")[-2:]
    start = start.replace(
        ".main(argument)", f"; print(sorted({heavy} & set(sys.modules)), flush=True)"
    )
    process = await child(start, given)
    assert await process.line(60) == "[]"


async def test_two_stores_share_one_engine(vector_folder: Path) -> None:
    """The second store is served by the first one's engine, and keeps it alive."""
    async with QdrantStore(FAST, folder=vector_folder) as one:
        await one.ensure_collection_exists("a", 2)
        async with QdrantStore(FAST, folder=vector_folder) as two:
            await two.upsert_points("a", [Point(1, [1.0, 0.0])])
            assert pid_of(one) == pid_of(two)
            assert await one.count("a") == 1
            await one.aclose()
            assert await two.count("a") == 1


async def test_processes_share_one_engine(
    vector_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """Three processes that start at once make one engine and one collection."""
    code = """
import asyncio, sys
from pathlib import Path
from fm_storage.config import QdrantConfig
from fm_storage.vectors import Point, QdrantStore

async def main():
    async with QdrantStore(QdrantConfig(), folder=Path(sys.argv[1])) as store:
        made = await asyncio.gather(
            *(store.ensure_collection_exists("c", 2) for _ in range(7))
        )
        await store.upsert_points("c", [Point(int(sys.argv[2]), [1.0, 0.0])])
        print(store.statistics().engine_pid, sum(made), flush=True)
        sys.stdin.readline()

asyncio.run(main())
"""
    children = await asyncio.gather(*(child(code, vector_folder, i) for i in range(3)))
    said = [(await process.line(60)).split() for process in children]
    assert len({pid for pid, _ in said}) == 1
    assert sum(int(made) for _, made in said) == 1
    async with QdrantStore(FAST, folder=vector_folder) as store:
        assert await store.count("c") == 3
    for process in children:
        await process.say()
        assert await process.wait(60) == 0
    assert await gone(int(said[0][0]))


async def test_engine_leaves_after_a_killed_client(
    vector_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """A client that dies by SIGKILL takes its engine along, and its writes stay."""
    process = await child(CLIENT, vector_folder, 1, "process")
    acked = [int(await process.line(60)) for _ in range(4)]
    await process.kill()
    async with QdrantStore(FAST, folder=vector_folder) as store:
        found = {p.id async for p in store.iter_points("ledger")}
    expected = {i + k for i in acked if i > 0 for k in range(7)}
    expected -= {-i for i in acked if i < 0}
    assert expected - {i for i in expected if i % 3 == 0} <= found


async def test_crashed_engine_is_started_again(vector_folder: Path) -> None:
    """The next call starts a new one; what was written is there."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        await store.upsert_points("a", [Point(1, [1.0, 0.0])])
        first = pid_of(store)
        os.kill(first, signal.SIGKILL)
        assert await gone(first)
        assert await store.count("a") == 1
        assert pid_of(store) != first
        assert store.statistics().restarts == 1


async def test_call_in_flight_fails_typed(vector_folder: Path) -> None:
    """A call that the crash interrupts says so, and may be repeated."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        os.kill(pid_of(store), signal.SIGSTOP)
        calls = [
            asyncio.create_task(store.upsert_points("a", [Point(i, [1.0, 0.0])]))
            for i in range(5)
        ]
        await asyncio.sleep(0.05)
        os.kill(pid_of(store), signal.SIGKILL)
        for outcome in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(outcome, VectorStoreUnavailable)
            assert outcome.retryable
            assert (outcome.operation, outcome.collection) == ("upsert_points", "a")
        assert await store.upsert_points("a", [Point(9, [1.0, 0.0])]) == 1


async def test_few_kills_of_the_engine_lose_nothing(vector_folder: Path) -> None:
    """The short form of the torture: four kills among writes and builds."""
    found = await kill_engine_sweep(vector_folder, kills=4)
    assert found["wrong"] == []
    assert found["restarts"] >= 2


async def test_frozen_engine_is_given_up_at_the_deadline(vector_folder: Path) -> None:
    """A call ends with its deadline, whatever the engine does."""
    config = QdrantConfig(durability="process", timeout=1.0)
    async with (
        QdrantStore(FAST, folder=vector_folder) as first,
        QdrantStore(config, folder=vector_folder) as store,
    ):
        await first.ensure_collection_exists("a", 2)
        assert await store.count("a") == 0
        pid = pid_of(store)
        os.kill(pid, signal.SIGSTOP)
        try:
            began = time.monotonic()
            with pytest.raises(VectorStoreUnavailable) as caught:
                await store.count("a")
            assert time.monotonic() - began < 10
            assert caught.value.retryable
        finally:
            os.kill(pid, signal.SIGCONT)
        assert await first.count("a") == 0


async def test_cancelled_call_leaves_the_connection_whole(vector_folder: Path) -> None:
    """Answers that nobody waits for any more are dropped; the next call is right."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        for i in range(100):
            call = asyncio.create_task(
                store.upsert_points("a", [Point(i, [1.0, float(i)])])
            )
            for _ in range(i % 7):
                await asyncio.sleep(0)
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)
        await store.upsert_points("a", [Point(1000, [1.0, 0.0])])
        assert [p.id for p in await store.retrieve("a", [1000])] == [1000]


async def test_stale_socket_and_address_do_no_harm(vector_folder: Path) -> None:
    """What a killed engine left behind is taken over."""
    home = vector_folder / "qdrant"
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        pid = pid_of(store)
        os.kill(pid, signal.SIGKILL)
        await gone(pid)
    assert (home / "engine.sock").exists()
    async with QdrantStore(FAST, folder=vector_folder) as store:
        assert await store.list_collections() == ["a"]


async def test_folder_may_be_deep(vector_folder: Path) -> None:
    """A path too long for a socket address is no obstacle."""
    deep = vector_folder / ("d" * 60) / ("e" * 60)
    async with QdrantStore(FAST, folder=deep) as store:
        await store.ensure_collection_exists("a", 2)
        address = Path((deep / "qdrant" / "engine.addr").read_text())
        assert stat.S_IMODE(address.parent.stat().st_mode) == 0o700
        pid = pid_of(store)
    assert await gone(pid)
    assert not address.parent.exists()


async def test_folder_and_socket_are_closed_to_others(vector_folder: Path) -> None:
    """The folder has mode 0700, the socket 0600."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ready()
        home = vector_folder / "qdrant"
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        assert stat.S_IMODE((home / "engine.sock").stat().st_mode) == 0o600


async def test_link_in_place_of_the_folder_is_refused(vector_folder: Path) -> None:
    """A link that somebody planted is not followed."""
    (vector_folder / "elsewhere").mkdir()
    (vector_folder / "qdrant").symlink_to(vector_folder / "elsewhere")
    async with QdrantStore(FAST, folder=vector_folder) as store:
        with pytest.raises(EmbeddedFailed):
            await store.ready()


async def test_damaged_catalogue_is_named(vector_folder: Path) -> None:
    """An unreadable catalogue stops the engine with the reason, not the data."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
    catalogue = vector_folder / "qdrant" / "catalogue.json"
    whole = catalogue.read_bytes()
    catalogue.write_bytes(whole.replace(b'"format": 1', b'"format": 99'))
    async with QdrantStore(FAST, folder=vector_folder) as store:
        with pytest.raises(EmbeddedFailed, match="format 99"):
            await store.ready()
    catalogue.unlink()
    async with QdrantStore(FAST, folder=vector_folder) as store:
        with pytest.raises(EmbeddedFailed, match=r"no catalogue\.json"):
            await store.ready()
    catalogue.write_bytes(whole)
    async with QdrantStore(FAST, folder=vector_folder) as store:
        assert await store.list_collections() == ["a"]


async def test_shard_without_a_name_is_removed(vector_folder: Path) -> None:
    """What a crash left half-made is gone at the next start."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
    left = vector_folder / "qdrant" / "shards" / "leftover"
    left.mkdir()
    async with QdrantStore(FAST, folder=vector_folder) as store:
        assert await store.count("a") == 0
        assert not left.exists()


def _talk(folder: Path, data: bytes) -> bytes:
    """Send bytes to the engine as a stranger would; return what comes back."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect((folder / "qdrant" / "engine.addr").read_text())
        sock.sendall(data)
        received = b""
        while part := sock.recv(65536):
            received += part
            if len(received) >= frames.HEADER.size:
                _, meta, raw = frames.split_header(
                    received[: frames.HEADER.size], frames.MAX_REPLY
                )
                if len(received) >= frames.HEADER.size + meta + raw:
                    break
        return received


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x80\x04\x95" + b"x" * 40,
        struct.pack("<4sIII", b"FMV1", 1, 2**31, 2**31),
        struct.pack("<4sIII", b"FMV1", 1, 2, 0) + b"[]",
        struct.pack("<4sIII", b"FMV1", 1, 5, 0) + b"nojso",
    ],
    ids=["http", "pickle", "too_long", "no_object", "no_json"],
)
async def test_foreign_bytes_end_their_connection_only(
    vector_folder: Path, data: bytes
) -> None:
    """A peer that does not speak the protocol is hung up on; the others go on."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        assert await asyncio.to_thread(_talk, vector_folder, data) == b""
        assert await store.count("a") == 0
        assert store.statistics().restarts == 0


@pytest.mark.parametrize(
    "request_",
    [
        {"op": "nothing"},
        {},
        {"op": "count"},
        {"op": "count", "c": 7},
        {"op": "upsert", "c": "a"},
        {
            "op": "upsert",
            "c": "a",
            "ids": [1],
            "payloads": [{}],
            "dense": [{"name": "", "size": 2, "rows": None}],
            "sparse": [],
        },
        {"op": "query", "c": "a", "query": {"@d": [0, 1000]}},
        {"op": "query", "c": "a", "query": {"nonsense": 1}},
        {"op": "scroll", "c": "a", "limit": "x"},
        {"op": "create", "c": "b", "spec": {}},
    ],
    ids=str,
)
async def test_wrong_request_is_answered(
    vector_folder: Path, request_: dict[str, object]
) -> None:
    """A request that makes no sense gets an error, and the engine lives."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 2)
        frame = frames.pack(7, request_)
        answer = await asyncio.to_thread(_talk, vector_folder, frame)
        number, meta, _ = frames.split_header(answer[:16], frames.MAX_REPLY)
        assert number == 7
        assert "err" in orjson.loads(answer[16 : 16 + meta])
        assert await store.count("a") == 0
        assert store.statistics().restarts == 0


async def test_other_users_are_not_served(vector_folder: Path) -> None:
    """Even where the modes would let a stranger through, its uid does not.

    Only root can play the stranger; anyone else is no stranger and is served.
    """
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ready()
        home = vector_folder / "qdrant"
        for place in (vector_folder, home, home / "engine.sock"):
            place.chmod(0o777)
        hello = frames.pack(1, {"op": "collections"})
        code = """
import os, socket, sys
os.geteuid() or os.setuid(65534)
sock = socket.socket(socket.AF_UNIX)
sock.connect(sys.argv[1])
try:
    sock.sendall(bytes.fromhex(sys.argv[2]))
    print(len(sock.recv(16)))
except (BrokenPipeError, ConnectionResetError):
    print(0)
"""
        arguments = [sys.executable, "-I", "-c", code]
        arguments += [str(home / "engine.sock"), hello.hex()]
        stranger = await asyncio.create_subprocess_exec(
            *arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        said, problem = await stranger.communicate()
        expected = b"0" if os.geteuid() == 0 else b"16"
        assert said.strip() == expected, problem
        assert await store.list_collections() == []


async def test_store_of_another_loop_says_so(vector_folder: Path) -> None:
    """Used from another event loop, the store names the remedy."""
    async with QdrantStore(FAST, folder=vector_folder) as store:
        await store.ready()

        def elsewhere() -> None:
            async def use() -> None:
                await store.count("a")

            asyncio.run(use())

        with pytest.raises(WrongLoop):
            await asyncio.to_thread(elsewhere)


async def test_store_in_a_forked_child_says_so(
    vector_folder: Path, child: Callable[..., Awaitable[Child]]
) -> None:
    """A forked child is asked to open a store of its own; the parent's lives on."""
    code = """
import asyncio, os, sys
from pathlib import Path
from fm_storage.config import QdrantConfig
from fm_storage.errors import ForkedProcess
from fm_storage.vectors import QdrantStore

async def main():
    async with QdrantStore(QdrantConfig(), folder=Path(sys.argv[1])) as store:
        await store.ready()
        pid = os.fork()
        if not pid:
            try:
                await store.count("a")
            except ForkedProcess:
                await store.aclose()
                os._exit(7)
            os._exit(1)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
        print(await store.list_collections(), flush=True)

asyncio.run(main())
"""
    assert issubclass(ForkedProcess, Exception)
    process = await child(code, vector_folder)
    assert await process.line(60) == "7"
    assert await process.line(60) == "[]"


async def test_deleted_and_remade_collection_is_seen_anew(vector_folder: Path) -> None:
    """Another client changed the dimension: the next call knows."""
    async with (
        QdrantStore(FAST, folder=vector_folder) as one,
        QdrantStore(FAST, folder=vector_folder) as two,
    ):
        await one.ensure_collection_exists("a", 2)
        await one.upsert_points("a", [Point(1, [1.0, 0.0])])
        await two.delete_collection("a")
        with pytest.raises(CollectionNotFound):
            await one.upsert_points("a", [Point(1, [1.0, 0.0])])
        await two.ensure_collection_exists("a", 3)
        await one.upsert_points("a", [Point(1, [1.0, 0.0, 0.0])])
        await two.delete_collection("a")
        await two.ensure_collection_exists("a", 4)
        with pytest.raises(InvalidVector):
            await one.upsert_points("a", [Point(1, [1.0, 0.0, 0.0])])
        assert len(await one.search("a", [1.0] * 4)) == 0


async def test_index_is_built_beside_and_swapped_in(vector_folder: Path) -> None:
    """Writes during a build are in the new shard; the old one is gone."""
    config = QdrantConfig(durability="process", index_threshold=300)
    async with QdrantStore(config, folder=vector_folder) as store:
        await store.ensure_collection_exists("a", 4)
        await store.upsert_points(
            "a", [Point(i, [1.0, i / 500, 0.5, i % 7], {"n": i}) for i in range(1, 501)]
        )
        seen_yellow = False
        extra = 0
        async with asyncio.timeout(100):
            while True:
                info = await store.collection_info("a")
                seen_yellow |= info.status == "yellow"
                if info.indexed >= 500:
                    break
                if info.status == "yellow" and extra < 40:
                    extra += 1
                    await store.upsert_points("a", [Point(1000 + extra, [0.1] * 4)])
                    await store.delete_points("a", [extra])
                    await store.set_payload("a", {"late": True}, [400 + extra])
                await asyncio.sleep(0.02)
        assert seen_yellow
        shards = vector_folder / "qdrant" / "shards"
        assert len(list(shards.iterdir())) == 1
        expected = {*range(extra + 1, 501), *range(1001, 1001 + extra)}
        assert {p.id async for p in store.iter_points("a")} == expected
        assert await store.count("a", {"late": True}) == extra
    async with QdrantStore(config, folder=vector_folder) as store:
        assert await store.count("a") == 500
        assert (await store.collection_info("a")).indexed >= 500


async def test_collection_may_go_while_it_is_indexed(vector_folder: Path) -> None:
    """Deleting, or exchanging, a collection ends its build and harms nobody."""
    config = QdrantConfig(durability="process", index_threshold=100)
    points = [Point(i, [1.0, i / 500, 0.5, i % 7]) for i in range(1, 301)]
    async with QdrantStore(config, folder=vector_folder) as store:
        for turn in range(4):
            await store.ensure_collection_exists("a", 4)
            await store.upsert_points("a", points)
            async with asyncio.timeout(60):
                while (await store.collection_info("a")).status != "yellow":
                    await asyncio.sleep(0.02)
            if turn % 2:
                await store.ensure_collection_exists(f"b{turn}", 4)
                await store.exchange("a", f"b{turn}", retired=f"old{turn}")
                assert await store.count(f"old{turn}") == 300
                await store.set_aliases({"a": None})
                await store.delete_collection(f"old{turn}")
            else:
                await store.delete_collection("a")
            # New connections take the numbers of the pipes that were closed.
            async with QdrantStore(config, folder=vector_folder) as other:
                assert "a" not in await other.list_collections()
        assert store.statistics().restarts == 0
