"""The embedded engine: collections of one folder, and the operations on them.

qdrant-edge holds the interpreter's lock through every call and hangs in a
forked child, so all this runs in a process of its own, behind the Unix socket
of ``main.py``, and no event loop of an application ever waits for it.
"""

from __future__ import annotations

import os
import re
import shutil
import time
import traceback
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import qdrant_edge as edge

from fm_storage.vectors.embedded.frames import PROTOCOL
from fm_storage.vectors.embedded.opening import noted
from fm_storage.vectors.embedded.process.edge_types import BadRequest
from fm_storage.vectors.embedded.process.index_build import Build, wants_index
from fm_storage.vectors.embedded.process.manifest import Manifest, sync_folder
from fm_storage.vectors.embedded.process.shard import PointNotFound, Shard, WrongVector
from fm_storage.vectors.embedded.process.vector_bytes import Raw

OPEN = 48
IDLE = 300.0
_KEPT_FREE = 64 * 1024 * 1024
# What does not say that a file is damaged: it may open another time.
_ELSEWHERE = re.compile(
    r"no space left|too many open files|cannot allocate|wouldblock|permission denied"
    r"|read-only file system|input/output error|os error (5|12|13|24|28|30)\b",
    re.IGNORECASE,
)
_BAD = (BadRequest, ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
_REFUSED = re.compile(
    r"index for|appropriate index|bad (request|input)|validation (failed|error)"
    r"|wrong input|not found|cannot (apply|have)|malformed|unsupported|no point with"
    r"|process cancelled by service",  # a formula misses a value
    re.IGNORECASE,
)
_UNREADABLE = re.compile(
    r"failed to (decode|deserialize|decompress|flush|load segment)|not readable"
    r"|corrupt|checksum|inconsistent storage|out of bounds",
    re.IGNORECASE,
)
REST = 60.0
"""Seconds between two attempts to build an index that failed."""


class _Missing(Exception):
    """The collection does not exist."""


class Damaged(Exception):
    """The files of a collection cannot be read: its name, a file, the reason."""

    @classmethod
    def found(cls, shard: str, folder: Path, exc: BaseException) -> Damaged:
        """Name the file where the engine's text does."""
        text = str(exc)
        file = re.search(rf"{re.escape(str(folder))}[^\s:\"',]*", text)
        return cls(shard, file[0] if file else str(folder), text[:300])


class _DiskFull(Exception):
    """Too little space is left to write safely."""


class _Taken(Exception):
    """An alias would hide the collection of this name."""


class Engine:
    """Collections of one folder, and the operations on them.

    Answers are ``{"ok": …}`` or ``{"err": kind, "text": …}``; what a client does
    wrong never ends the process.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest(folder)
        self.shards: dict[str, Shard] = {}
        self.builds: dict[str, Build] = {}
        self.index_threshold = 20_000
        self._rest_until: dict[str, float] = {}
        # Called before a build's pipe is closed: the selector must drop it first.
        self.forget: Callable[[Build], None] = lambda _build: None
        self.to_flush: set[str] = set()
        self._reads: dict[str, Callable[[dict[str, Any], Raw], Any]] = {
            "hello": lambda request, _out: self._hello(request),
            "collections": lambda _request, _out: {
                "names": sorted(self.manifest.collections),
                "aliases": self.manifest.aliases,
            },
            "info": lambda request, _out: self._info(request["c"]),
            "spec": lambda request, _out: self.manifest.collections[
                self._name(request["c"])
            ]["spec"],
            "retrieve": lambda request, out: self._shard(request).retrieve(
                request, out
            ),
            "scroll": lambda request, out: self._shard(request).scroll(request, out),
            "count": lambda request, _out: self._shard(request).count(
                request.get("filter")
            ),
            "facet": lambda request, _out: self._shard(request).facet(request),
            "marker": lambda _request, _out: self.manifest.marker,
        }
        self._writes: dict[str, Callable[[dict[str, Any], memoryview], Any]] = {
            "upsert": lambda request, raw: self._shard(request).upsert(request, raw),
            "update_vectors": lambda request, raw: self._shard(request).update_vectors(
                request, raw
            ),
            "delete_vectors": lambda request, _raw: self._shard(request).delete_vectors(
                request
            ),
            "delete": lambda request, _raw: self._shard(request).delete(request),
            "set_payload": lambda request, _raw: self._shard(request).set_payload(
                request
            ),
            "delete_payload": lambda request, _raw: self._shard(request).delete_payload(
                request
            ),
            "create": lambda request, _raw: self._create(request),
            "drop": lambda request, _raw: self._drop(request),
            "set_aliases": lambda request, _raw: self._aliases(request),
            "exchange": lambda request, _raw: self._exchange(request),
            "create_index": lambda request, _raw: self._create_index(request),
            "delete_index": lambda request, _raw: self._delete_index(request),
            "set_marker": lambda request, _raw: self._set_marker(request),
            "flush": lambda request, _raw: self._flush_one(request),
        }

    def is_read(self, operation: str) -> bool:
        """Whether an operation changes nothing."""
        return operation == "query" or operation in self._reads

    def open(self) -> None:
        """Read the manifest; shards are opened when they are asked for."""
        self.manifest.load()

    def close(self) -> None:
        """Sync and close every shard."""
        for name in list(self.builds):
            self.end_build(name)
        for shard in self.shards.values():
            with suppress(BaseException):
                shard.close()
        self.shards.clear()

    # Index builds

    def start_builds(self) -> list[Build]:
        """Begin the build that is due, if there is one; one runs at a time."""
        now = time.monotonic()
        if self.builds:
            return []
        for name, shard in self.shards.items():
            if self._rest_until.get(name, 0.0) > now:
                continue
            try:
                if not wants_index(shard, self.index_threshold):
                    continue
                self._check_space(0)
                self.builds[name] = Build(shard, self.manifest.shards_folder)
            except BaseException:  # no process or space just now, or it is damaged
                traceback.print_exc()
                shard.journal = None
                self._rest_until[name] = now + REST
                continue
            return [self.builds[name]]
        return []

    def paused(self, request: dict[str, Any]) -> bool:
        """Whether a write has to wait until its shard has been copied."""
        if not self.builds:
            return False
        name = self.manifest.resolve(request.get("c") or "")
        build = self.builds.get(name or "")
        return build is not None and build.paused

    def end_build(self, name: str) -> None:
        """Give a build up; it may begin again after a rest."""
        build = self.builds.pop(name, None)
        if build is not None:
            self.forget(build)
            build.give_up()
            self._rest_until[name] = time.monotonic() + REST

    def step_builds(self) -> None:
        """Bring finished builds a slice nearer to their swap."""
        for name, build in list(self.builds.items()):
            try:
                if build.too_long():
                    self.end_build(name)
                elif build.ready and build.step(self._swap):
                    del self.builds[name]
            except BaseException:  # a panic, too, ends the build only
                traceback.print_exc()
                self.end_build(name)

    def _swap(self, shard: Shard, folder: str) -> None:
        sync_folder(self.manifest.shards_folder)
        with self.manifest.changing():
            self.manifest.collections[shard.name]["folder"] = folder

    # Answers

    def read(self, request: dict[str, Any]) -> tuple[Any, bytes]:
        """Answer one read that is not a query."""
        out = Raw()
        with self._watched(request):
            answer = self._reads[request["op"]](request, out)
        return answer, bytes(out.floats)

    @contextmanager
    def _watched(self, request: dict[str, Any]) -> Iterator[None]:
        """Let damage and panics stop only the collection in which they are met."""
        try:
            yield
        except Damaged:
            raise
        except BaseException as exc:  # a panic of the engine is no Exception
            panicked = not isinstance(exc, Exception)
            if not panicked and (
                not _UNREADABLE.search(str(exc)) or _ELSEWHERE.search(str(exc))
            ):
                raise
            name = self.manifest.resolve(str(request.get("c") or "")) or ""
            shard = self._dismiss(name)
            if panicked or shard is None:
                # Opened anew by the next call, which finds out what is left of it.
                raise RuntimeError(f"the engine panicked: {exc}") from exc
            raise Damaged.found(name, shard.folder, exc) from exc

    def _dismiss(self, name: str) -> Shard | None:
        """Close a shard that cannot be trusted, as far as it can be closed."""
        shard = self.shards.pop(name, None)
        if shard is not None:
            self.end_build(name)
            with suppress(BaseException):
                shard.edge_shard.close()
        return shard

    def query(self, requests: list[tuple[dict[str, Any], memoryview]]) -> list[Any]:
        """Answer queries on one collection together.

        Returns an ``(answer, raw)`` pair or the exception for each.
        """
        answers: list[Any] = [None] * len(requests)
        ready: list[tuple[int, edge.QueryRequest]] = []
        for position, (request, raw) in enumerate(requests):
            try:
                with self._watched(request):
                    shard = self._shard(request)
                    if shard.diversifies(request):
                        out = Raw()
                        hits = shard.diverse(request, raw, out)
                        answers[position] = (hits, bytes(out.floats))
                        continue
                    ready.append((position, shard.query_request(request, raw)))
            except Exception as exc:  # becomes the answer
                answers[position] = exc
        if len(ready) > 1:
            # One at fault fails a batch; then they are asked one by one.
            with suppress(BaseException):
                shard = self._shard(requests[0][0])
                batch = edge.QueryBatchRequest([query for _, query in ready])
                many = shard.edge_shard.query_batch(batch)
                for (position, _), found in zip(ready, many, strict=True):
                    out, (request, _) = Raw(), requests[position]
                    made = shard.hits(found, out, request.get("with_vector"))
                    answers[position] = (made, bytes(out.floats))
                return answers
        for position, query in ready:  # a batch of one takes a seventh longer
            request, out = requests[position][0], Raw()
            try:
                with self._watched(request):
                    shard = self._shard(request)
                    found = shard.edge_shard.query(query)
                    made = shard.hits(found, out, request.get("with_vector"))
                    answers[position] = (made, bytes(out.floats))
            except Exception as exc:  # becomes the answer
                answers[position] = exc
        return answers

    def write(self, request: dict[str, Any], raw: memoryview) -> Any:
        """Apply one write; it is durable after the flush that may follow."""
        if request["op"] not in {"delete", "drop"}:
            self._check_space(len(raw))
        with self._watched(request):
            answer = self._writes[request["op"]](request, raw)
        name = self.manifest.resolve(request.get("c") or "")
        if name is not None and request.get("sync"):
            self.to_flush.add(name)
        return answer

    def _check_space(self, size: int) -> None:
        # Its files are sparse and mapped: a page that finds no block on the disk
        # would end the process, so it stops writing before that.
        disk = os.statvfs(self.folder)
        free = disk.f_bavail * disk.f_frsize
        if free < _KEPT_FREE + 4 * size:
            raise _DiskFull(
                f"{free >> 20} MB are left on the disk of {self.folder}, and "
                f"{_KEPT_FREE >> 20} MB are kept free"
            )

    def flush(self) -> dict[str, Exception]:
        """Sync the shards that were written to and whose writers asked for it.

        Returns what went wrong, by collection.
        """
        names, self.to_flush = self.to_flush, set()
        failed: dict[str, Exception] = {}
        for name in names:
            shard = self.shards.get(name)
            if shard is not None and shard.dirty:
                try:
                    with self._watched({"c": name}):
                        shard.flush()
                except Exception as exc:  # that collection alone has failed
                    failed[name] = exc
        return failed

    def _hello(self, request: dict[str, Any]) -> dict[str, Any]:
        self.index_threshold = int(request.get("index_threshold", 20_000))
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "identity": self.manifest.identity,
        }

    def _name(self, name: str) -> str:
        found = self.manifest.resolve(name)
        if found is None:
            raise _Missing(name)
        return found

    def _shard(self, request: dict[str, Any]) -> Shard:
        name = self._name(request["c"])
        shard = self.shards.get(name)
        if shard is None:
            entry = self.manifest.collections[name]
            folder = self.manifest.shards_folder / entry["folder"]
            try:
                with noted(folder):
                    shard = Shard.load(name, folder, entry["spec"])
            except BaseException as exc:  # a panic of the engine is no Exception
                if _ELSEWHERE.search(str(exc)) or isinstance(exc, MemoryError):
                    raise
                raise Damaged.found(name, folder, exc) from exc
            self.shards[name] = shard
            self.close_idle()
        shard.last_use = time.monotonic()
        return shard

    def close_idle(self) -> None:
        """Close shards unused for long, and the longest unused of too many.

        An open shard has two threads; it is opened anew by the next call.
        """
        since = time.monotonic() - IDLE
        longest = sorted(self.shards.values(), key=lambda shard: shard.last_use)
        for position, shard in enumerate(longest):
            many = len(longest) - position > OPEN
            if not many and shard.last_use >= since:
                return
            if shard.name not in self.builds and shard.name not in self.to_flush:
                try:
                    shard.close()
                except BaseException:  # logged; the engine goes on
                    traceback.print_exc()
                del self.shards[shard.name]

    def _info(self, asked: str) -> dict[str, Any]:
        name = self._name(asked)
        known = {"name": name, "aliases": self.manifest.aliases_of(name)}
        status = "yellow" if name in self.builds else "green"
        try:
            return {**known, "status": status, **self._shard({"c": name}).info()}
        except Damaged:
            spec = self.manifest.collections[name]["spec"]
            sizes = {"points": 0, "indexed": 0, "total": 0}
            return {**known, "status": "red", "spec": spec, **sizes}

    def _create(self, request: dict[str, Any]) -> bool:
        name, spec = request["c"], request["spec"]
        if self.manifest.resolve(name) is not None:
            return False
        folder = uuid.uuid4().hex
        shard = Shard.create(name, self.manifest.shards_folder / folder, spec)
        sync_folder(self.manifest.shards_folder)
        with self.manifest.changing():
            self.manifest.collections[name] = {"folder": folder, "spec": spec}
        self.shards[name] = shard
        self.close_idle()
        return True

    def _drop(self, request: dict[str, Any]) -> bool:
        name = request["c"]
        if name not in self.manifest.collections:
            return False
        self.end_build(name)
        self._rest_until.pop(name, None)  # another collection of this name may come
        with self.manifest.changing():
            entry = self.manifest.collections.pop(name)
            for alias in self.manifest.aliases_of(name):
                del self.manifest.aliases[alias]
        shard = self.shards.pop(name, None)
        if shard is not None:
            with suppress(Exception):  # it may be damaged
                shard.edge_shard.close()
        shutil.rmtree(self.manifest.shards_folder / entry["folder"], ignore_errors=True)
        return True

    def _exchange(self, request: dict[str, Any]) -> None:
        """Let a collection's own name mean another one; the old one is renamed."""
        name, target, retired = request["c"], request["target"], request["retired"]
        if name in self.manifest.collections:
            if self.manifest.resolve(retired) is not None:
                raise _Taken(retired)
            self.end_build(name)
            self._rest_until.pop(name, None)
        with self.manifest.changing():
            if name in self.manifest.collections:
                entry = self.manifest.collections.pop(name)
                self.manifest.collections[retired] = entry
                for alias in self.manifest.aliases_of(name):
                    self.manifest.aliases[alias] = self._name(target)
            self.manifest.aliases[name] = self._name(target)
        shard = self.shards.pop(name, None)
        if shard is not None:
            shard.name = retired
            self.shards[retired] = shard

    def _aliases(self, request: dict[str, Any]) -> None:
        with self.manifest.changing():
            for alias, target in request["targets"].items():
                if target is None:
                    self.manifest.aliases.pop(alias, None)
                    continue
                if alias in self.manifest.collections:
                    raise _Taken(alias)
                self.manifest.aliases[alias] = self._name(target)

    def _create_index(self, request: dict[str, Any]) -> None:
        shard = self._shard(request)
        shard.create_index(request["field"], request["schema"])
        shard.flush()
        indexes = {**shard.spec["payload_indexes"], request["field"]: request["schema"]}
        self._respecify(shard, indexes)

    def _delete_index(self, request: dict[str, Any]) -> None:
        shard = self._shard(request)
        shard.delete_index(request["field"])
        shard.flush()
        indexes = dict(shard.spec["payload_indexes"])
        indexes.pop(request["field"], None)
        self._respecify(shard, indexes)

    def _respecify(self, shard: Shard, indexes: dict[str, Any]) -> None:
        spec = {**shard.spec, "payload_indexes": indexes}
        with self.manifest.changing():
            self.manifest.collections[shard.name]["spec"] = spec
        shard.spec = spec

    def _set_marker(self, request: dict[str, Any]) -> None:
        with self.manifest.changing():
            self.manifest.marker = request["marker"]

    def _flush_one(self, request: dict[str, Any]) -> None:
        self._shard(request).flush()


def refusal(exc: Exception) -> dict[str, Any]:
    """Return the answer that stands for an exception."""
    text = str(exc)
    if isinstance(exc, _Missing):
        return {"err": "missing", "text": text}
    if isinstance(exc, _Taken):
        return {"err": "taken", "text": text}
    if isinstance(exc, Damaged):
        name, file, reason = exc.args
        return {"err": "damaged", "text": reason, "c": name, "file": file}
    if isinstance(exc, _DiskFull):
        return {"err": "full", "text": text}
    if isinstance(exc, WrongVector):
        return {"err": "vector", "text": f"{exc.args} does not fit it"}
    if isinstance(exc, PointNotFound):
        return {"err": "no_point", "text": text}
    if isinstance(exc, _BAD):
        return {"err": "bad", "text": f"{type(exc).__name__}: {text}"}
    if re.search("dimension|vector name", text, re.IGNORECASE):
        return {"err": "vector", "text": text}
    kind = "bad" if _REFUSED.search(text) else "internal"
    return {"err": kind, "text": text}
