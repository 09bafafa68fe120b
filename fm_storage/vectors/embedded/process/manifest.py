"""The manifest of the embedded engine: which collection lives in which folder.

One JSON file beside the shards, replaced atomically and synced, so that after
any crash it names exactly the shards that count; folders it does not name are
left-overs and are removed. Nothing else is
believed about them.
"""

from __future__ import annotations

import copy
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson

_FORMAT = 1


def sync_folder(folder: Path) -> None:
    """Make renames and new names inside *folder* survive a power cut."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class Manifest:
    """Collections, aliases, identity and marker of one data folder.

    Attributes:
        identity: Stable id of this vector store.
        marker: What the outbox last noted here.
        collections: ``{name: {"folder": …, "spec": …}}``.
        aliases: ``{alias: name}``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.shards_folder = folder / "shards"
        self._file = folder / "catalogue.json"
        self.identity = ""
        self.marker: dict[str, Any] = {}
        self.collections: dict[str, dict[str, Any]] = {}
        self.aliases: dict[str, str] = {}

    def load(self) -> None:
        """Read the file, or write a first one; remove folders it does not name.

        Raises:
            ValueError: The file is damaged or was written by a newer version.
        """
        self.shards_folder.mkdir(mode=0o700, exist_ok=True)
        if self._file.exists():
            data = self._read()
            if data.get("format") != _FORMAT:
                message = (
                    f"{self._file}: format {data.get('format')!r}, not {_FORMAT}; "
                    "it was written by another version"
                )
                raise ValueError(message)
            try:
                self.identity = data["identity"]
                self.marker = data["marker"]
                self.collections = data["collections"]
                self.aliases = data["aliases"]
            except KeyError as exc:
                raise ValueError(f"{self._file}: it has no {exc}; restore it") from exc
        else:
            if any(self.shards_folder.iterdir()):
                message = (
                    f"{self.folder}: it holds shards but no catalogue.json; "
                    "restore the file, or empty the folder"
                )
                raise ValueError(message)
            self.identity = str(uuid.uuid4())
            self.save()
        named = {entry["folder"] for entry in self.collections.values()}
        for left in self.shards_folder.iterdir():
            if left.name not in named:
                shutil.rmtree(left, ignore_errors=True)

    def _read(self) -> dict[str, Any]:
        problem = "it holds no object"
        try:
            data = orjson.loads(self._file.read_bytes())
        except orjson.JSONDecodeError as exc:
            data, problem = None, str(exc)
        if isinstance(data, dict):
            return data
        raise ValueError(
            f"{self._file}: it is damaged ({problem}); restore it from a backup"
        )

    def save(self) -> None:
        """Write the file; after a crash the old or the new one is there, whole."""
        data = {
            "format": _FORMAT,
            "identity": self.identity,
            "marker": self.marker,
            "collections": self.collections,
            "aliases": self.aliases,
        }
        temporary = self._file.with_suffix(".new")
        with temporary.open("wb") as out:
            out.write(orjson.dumps(data, option=orjson.OPT_INDENT_2))
            out.flush()
            os.fsync(out.fileno())
        temporary.replace(self._file)
        sync_folder(self.folder)

    @contextmanager
    def changing(self) -> Iterator[None]:
        """Save at the end; undo the change in memory when that fails."""
        before = copy.deepcopy((self.marker, self.collections, self.aliases))
        try:
            yield
            self.save()
        except BaseException:  # what was not saved did not happen; passed on
            self.marker, self.collections, self.aliases = before
            raise

    def resolve(self, name: str) -> str | None:
        """Return the collection that *name*, an alias or its own, stands for."""
        if name in self.collections:
            return name
        target = self.aliases.get(name)
        return target if target in self.collections else None

    def aliases_of(self, name: str) -> list[str]:
        """Return the aliases of a collection, sorted."""
        return sorted(a for a, target in self.aliases.items() if target == name)
