"""The loop of the engine's process: sockets on one side, the engine on the other.

Reads that have arrived together are answered in one batch; writes that have
arrived together share one flush. The process is the only one that touches the
folder (a lock file says so) and leaves when its last client has gone, however
that client went.
"""

from __future__ import annotations

import fcntl
import os
import selectors
import signal
import socket
import struct
import sys
import tempfile
import time
import traceback
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson

from fm_storage.vectors.embedded.frames import (
    HEADER,
    MAX_REPLY,
    MAX_REQUEST,
    FrameError,
    pack,
    split_header,
)
from fm_storage.vectors.embedded.process.engine import REST, Engine, refusal
from fm_storage.vectors.embedded.process.index_build import Build

_SOCKET_PATH_LIMIT = 100
_FIRST_CLIENT = 15.0
_LOCK_WAIT = 30.0
_TURN = 0.05
_LOOK = 0.5
_IDLE_LOOK = 30.0
_CREDENTIALS = struct.Struct("3i")


class _Client:
    """One connection: bytes that arrived, bytes that still have to leave."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.incoming = bytearray()
        self.outgoing: deque[memoryview] = deque()
        self.waits = False  # for the socket to take more
        self.gone = False

    def frames(self) -> list[tuple[int, dict[str, Any], memoryview]]:
        """Cut whole frames off what has arrived."""
        found = []
        while len(self.incoming) >= HEADER.size:
            number, meta, raw = split_header(
                bytes(self.incoming[: HEADER.size]), MAX_REQUEST
            )
            end = HEADER.size + meta + raw
            if len(self.incoming) < end:
                break
            body = bytes(memoryview(self.incoming)[HEADER.size : end])
            del self.incoming[:end]
            request = orjson.loads(body[:meta])
            if not isinstance(request, dict):
                message = "a request must be an object"
                raise FrameError(message)
            found.append((number, request, memoryview(body)[meta:]))
        return found


class Server:
    """The loop: sockets on one side, the engine on the other."""

    def __init__(self, engine: Engine, listener: socket.socket) -> None:
        self.engine = engine
        self.listener = listener
        self.clients: set[_Client] = set()
        self.reads: deque[tuple[_Client, int, dict[str, Any], memoryview]] = deque()
        self.writes: deque[tuple[_Client, int, dict[str, Any], memoryview]] = deque()
        self.selector = selectors.DefaultSelector()
        self.selector.register(listener, selectors.EVENT_READ)
        self.leaving = False
        # Filled by one recv() at a time: to make it anew costs more than a small one.
        self.received = memoryview(bytearray(1024 * 1024))
        engine.forget = self._forget
        # Sockets of clients that left; closed only once it is known whether the
        # last one did, so that it sees the end after everything is on the disk.
        self.held: list[socket.socket] = []
        # When builds were last thought of; None while nothing can be due.
        self.looked_at: float | None = 0.0
        self.last_write = time.monotonic()
        self.looked_for_idle = time.monotonic()

    def run(self) -> None:
        """Serve until the last client has gone."""
        first_by = time.monotonic() + _FIRST_CLIENT
        served = False
        while not self.leaving:
            for key, events in self.selector.select(self._patience()):
                if key.fileobj is self.listener:
                    served = self._accept() or served
                    continue
                if isinstance(key.data, Build):
                    self._hear(key.data)
                    continue
                client: _Client = key.data
                if events & selectors.EVENT_READ:
                    self._receive(client)
                if events & selectors.EVENT_WRITE and not client.gone:
                    self._send(client)
            self._answer_reads()
            self._apply_writes()
            self._look_after_builds()
            if not self.clients and (served or time.monotonic() > first_by):
                self.leaving = True
            else:
                self.let_go()

    def _patience(self) -> float | None:
        """Return how long to wait for something to happen."""
        builds = self.engine.builds.values()
        if self.reads or any(build.ready for build in builds):
            return 0.0
        if self.writes and not any(build.paused for build in builds):
            return 0.0
        if not self.clients:
            return 0.05
        if self.looked_at is not None:
            return _LOOK
        return _IDLE_LOOK if self.engine.shards else None

    def _hear(self, build: Build) -> None:
        if not build.report():
            self.engine.end_build(build.shard.name)
        if build.ready:
            self._forget(build)

    def _forget(self, build: Build) -> None:
        """Listen to a build no more; harmless when that is so already."""
        with suppress(KeyError, ValueError):
            self.selector.unregister(build.out)

    def _look_after_builds(self) -> None:
        self.engine.step_builds()
        now = time.monotonic()
        if now - self.looked_for_idle > _IDLE_LOOK:
            self.looked_for_idle = now
            self.engine.close_idle()
        if self.looked_at is None or now - self.looked_at < _LOOK:
            return
        self.looked_at = now
        for build in self.engine.start_builds():
            self.selector.register(build.out, selectors.EVENT_READ, build)
        # Looking goes on while something may become due, and then stops.
        if not self.engine.builds and now - self.last_write > 2 * REST:
            self.looked_at = None

    def let_go(self) -> None:
        """Close the sockets of clients that left."""
        for sock in self.held:
            sock.close()
        self.held.clear()

    def _accept(self) -> bool:
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return False  # it hung up again before its turn came
        if not _same_user(sock):
            sock.close()
            return False
        sock.setblocking(False)
        client = _Client(sock)
        self.clients.add(client)
        self.selector.register(sock, selectors.EVENT_READ, client)
        return True

    def _drop(self, client: _Client) -> None:
        if client.gone:
            return
        client.gone = True
        self.clients.discard(client)
        self.selector.unregister(client.sock)
        self.held.append(client.sock)

    def _receive(self, client: _Client) -> None:
        try:
            size = client.sock.recv_into(self.received)
        except BlockingIOError:
            return
        except OSError:
            size = 0
        if not size:
            self._drop(client)
            return
        client.incoming += self.received[:size]
        try:
            found = client.frames()
        except (FrameError, ValueError):
            self._drop(client)
            return
        for number, request, raw in found:
            operation = request.get("op")
            queue = (
                self.reads
                if isinstance(operation, str) and self.engine.is_read(operation)
                else self.writes
            )
            queue.append((client, number, request, raw))

    def _reply(
        self,
        client: _Client,
        number: int,
        answer: dict[str, Any],
        raw: bytes = b"",
    ) -> None:
        if client.gone:
            return
        frame = pack(number, answer, raw)
        if len(frame) > MAX_REPLY:
            text = f"the answer has {len(frame)} bytes, {MAX_REPLY} are allowed"
            frame = pack(number, {"err": "bad", "text": text})
        client.outgoing.append(memoryview(frame))
        self._send(client)

    def _send(self, client: _Client) -> None:
        try:
            while client.outgoing:
                head = client.outgoing[0]
                sent = client.sock.send(head)
                if sent == len(head):
                    client.outgoing.popleft()
                else:
                    client.outgoing[0] = head[sent:]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        if client.waits != bool(client.outgoing):
            client.waits = not client.waits
            more = selectors.EVENT_WRITE if client.waits else 0
            self.selector.modify(client.sock, selectors.EVENT_READ | more, client)

    def _answer_reads(self) -> None:
        until = time.monotonic() + _TURN
        while self.reads and time.monotonic() < until:
            client, number, request, raw = self.reads.popleft()
            if request["op"] != "query":
                try:
                    answer, vectors = self.engine.read(request)
                    self._reply(client, number, {"ok": answer}, vectors)
                except Exception as exc:  # becomes the answer
                    self._reply(client, number, refusal(exc))
                continue
            batch = [(client, number, request, raw)]
            while (
                self.reads
                and len(batch) < 16
                and self.reads[0][2]["op"] == "query"
                and self.reads[0][2].get("c") == request.get("c")
            ):
                batch.append(self.reads.popleft())
            answers = self.engine.query([(item[2], item[3]) for item in batch])
            for (who, asked, _, _), answer in zip(batch, answers, strict=True):
                if isinstance(answer, Exception):
                    self._reply(who, asked, refusal(answer))
                else:
                    self._reply(who, asked, {"ok": answer[0]}, answer[1])

    def _apply_writes(self) -> None:
        until = time.monotonic() + _TURN
        done: list[tuple[_Client, int, str | None, dict[str, Any]]] = []
        waiting: list[tuple[_Client, int, dict[str, Any], memoryview]] = []
        while self.writes and time.monotonic() < until:
            client, number, request, raw = self.writes.popleft()
            if self.engine.paused(request):
                waiting.append((client, number, request, raw))
                continue
            try:
                answer = {"ok": self.engine.write(request, raw)}
            except Exception as exc:  # becomes the answer
                answer = refusal(exc)
            name = self.engine.manifest.resolve(str(request.get("c") or ""))
            done.append((client, number, name, answer))
        self.writes.extendleft(reversed(waiting))
        if not done:
            return
        self.last_write = time.monotonic()
        if self.looked_at is None:
            self.looked_at = self.last_write
        failed = self.engine.flush()
        for client, number, name, answer in done:
            lost = failed.get(name or "") if "ok" in answer else None
            self._reply(client, number, answer if lost is None else refusal(lost))


def _same_user(sock: socket.socket) -> bool:
    """Whether the peer is this user, or root, who could do everything anyway."""
    if not hasattr(socket, "SO_PEERCRED"):
        return True  # the folder of the socket is closed to others (0700)
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, uid, _ = _CREDENTIALS.unpack(raw)
    return uid in {0, os.geteuid()}


def _lock(folder: Path) -> int:
    handle = os.open(folder / "engine.lock", os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + _LOCK_WAIT
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > until:
                raise
            time.sleep(0.01)
        else:
            return handle


def _listen(folder: Path) -> tuple[socket.socket, Path]:
    path = folder / "engine.sock"
    if len(os.fsencode(path)) > _SOCKET_PATH_LIMIT:
        # Too long for a socket address: a fresh private folder of random name.
        path = Path(tempfile.mkdtemp(prefix="fm_storage-")) / "engine.sock"
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(before)
    listener.listen(128)
    listener.setblocking(False)
    address = folder / "engine.addr"
    fresh = folder / "engine.addr.new"
    fresh.write_text(str(path), encoding="utf-8")
    fresh.replace(address)
    return listener, path


def main(folder_name: str) -> None:
    """Serve *folder_name* until the last client has gone.

    Says ``ready`` on standard output once clients may connect, or ``failed``
    and the reason.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    folder = Path(folder_name)
    engine = Engine(folder)
    try:
        handle = _lock(folder)
        engine.open()
        listener, path = _listen(folder)
    except Exception as exc:  # reported to the one who started us
        traceback.print_exc()
        sys.stdout.write(f"failed {type(exc).__name__}: {exc}\n")
        sys.stdout.flush()
        return
    server = Server(engine, listener)

    def leave(_signal: int, _frame: object) -> None:
        server.leaving = True

    signal.signal(signal.SIGTERM, leave)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    # The starting process reads no further: nothing may be written there again.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 1)
    os.close(silence)
    try:
        server.run()
    finally:
        with suppress(OSError):
            path.unlink()
            if path.parent != folder:
                path.parent.rmdir()
        listener.close()
        engine.close()
        os.close(handle)
        server.let_go()
