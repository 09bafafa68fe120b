"""One connection to the engine: frames in pieces, large answers, a line that ends."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterable

import orjson
import pytest

from fm_storage.vectors.embedded.connection import EngineConnection, Gone
from fm_storage.vectors.embedded.frames import HEADER, MAX_REQUEST, pack, split_header
from tests.support.waiting import until


@pytest.fixture
async def ends() -> AsyncIterator[tuple[EngineConnection, socket.socket]]:
    """Give a connection, and the socket at its other end."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_unix_connection(EngineConnection, sock=ours)
    yield connection, theirs
    connection.transport.abort()
    theirs.close()


async def asked(theirs: socket.socket) -> tuple[int, dict[str, object]]:
    """Receive one whole request."""
    loop = asyncio.get_running_loop()
    data = b""
    while True:
        data += await loop.sock_recv(theirs, 1 << 20)
        if len(data) < HEADER.size:
            continue
        number, meta, raw = split_header(data[: HEADER.size], MAX_REQUEST)
        if len(data) >= HEADER.size + meta + raw:
            return number, orjson.loads(data[HEADER.size : HEADER.size + meta])


async def test_answer_may_come_in_pieces(
    ends: tuple[EngineConnection, socket.socket],
) -> None:
    """Bytes one by one, two answers at once, an answer nobody waits for: all fine."""
    connection, theirs = ends
    loop = asyncio.get_running_loop()
    call = asyncio.create_task(connection.call({"op": "count"}))
    number, request = await asked(theirs)
    assert request == {"op": "count"}
    nobody = pack(number + 1, {"ok": "for nobody"})
    for byte in nobody + pack(number, {"ok": 7}, b"raw"):
        await loop.sock_sendall(theirs, bytes([byte]))
    answer, raw = await call
    assert (answer, bytes(raw)) == ({"ok": 7}, b"raw")


async def test_loop_rests_once_a_request_is_sent(
    ends: tuple[EngineConnection, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The socket is not watched for writing, and no empty part is written."""
    connection, theirs = ends
    written: list[int] = []

    def writelines(parts: Iterable[bytes]) -> None:
        given = list(parts)
        written.extend(map(len, given))
        connection.transport.write(b"".join(given))

    begun = time.process_time()
    call = asyncio.create_task(connection.call({"op": "count"}))
    number, _ = await asked(theirs)
    await asyncio.sleep(0.5)
    assert time.process_time() - begun < 0.25
    await asyncio.get_running_loop().sock_sendall(theirs, pack(number, {"ok": 1}))
    await call
    monkeypatch.setattr(connection.transport, "writelines", writelines)
    again = asyncio.create_task(connection.call({"op": "count"}))
    number, _ = await asked(theirs)
    assert all(written)
    await asyncio.get_running_loop().sock_sendall(theirs, pack(number, {"ok": 1}))
    await again


async def test_large_answer_is_read_beside_the_loop(
    ends: tuple[EngineConnection, socket.socket],
) -> None:
    """An answer of megabytes comes through whole."""
    connection, theirs = ends
    call = asyncio.create_task(connection.call({"op": "scroll"}))
    number, _ = await asked(theirs)
    long = ["x" * 100] * 20_000
    await asyncio.get_running_loop().sock_sendall(theirs, pack(number, {"ok": long}))
    answer, _ = await call
    assert answer["ok"] == long


async def test_bytes_of_a_stranger_end_the_line(
    ends: tuple[EngineConnection, socket.socket],
) -> None:
    """What is no frame of ours ends the connection, and every waiter is notified."""
    connection, theirs = ends
    call = asyncio.create_task(connection.call({"op": "count"}))
    await asked(theirs)
    await asyncio.get_running_loop().sock_sendall(theirs, b"HTTP/1.1 200 OK\r\n" * 5)
    with pytest.raises(Gone):
        await call
    assert not connection.open
    with pytest.raises(Gone):
        await connection.call({"op": "count"})


async def test_slow_reader_holds_requests_back(
    ends: tuple[EngineConnection, socket.socket],
) -> None:
    """Requests wait while the engine does not read, and end with the line."""
    connection, theirs = ends
    calls = [
        asyncio.create_task(connection.call({"op": "upsert"}, b"x" * 2_000_000))
        for _ in range(4)
    ]
    await until(lambda: bool(connection.waiting) and not connection.may_write.is_set())
    theirs.close()
    for found in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(found, Gone)


async def test_reader_that_catches_up_lets_requests_through(
    ends: tuple[EngineConnection, socket.socket],
) -> None:
    """Once the engine reads again, what was held back is sent."""
    connection, theirs = ends
    loop = asyncio.get_running_loop()
    first = asyncio.create_task(connection.call({"op": "a"}, b"x" * 4_000_000))
    await until(lambda: bool(connection.waiting) and not connection.may_write.is_set())
    second = asyncio.create_task(connection.call({"op": "b"}))
    numbers: list[int] = []
    data = b""
    while len(numbers) < 2:
        data += await loop.sock_recv(theirs, 1 << 20)
        while len(data) >= HEADER.size:
            number, meta, raw = split_header(data[: HEADER.size], MAX_REQUEST)
            if len(data) < HEADER.size + meta + raw:
                break
            numbers.append(number)
            data = data[HEADER.size + meta + raw :]
    for number in numbers:
        await loop.sock_sendall(theirs, pack(number, {"ok": number}))
    assert (await first)[0] == {"ok": numbers[0]}
    assert (await second)[0] == {"ok": numbers[1]}
