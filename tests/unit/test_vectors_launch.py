"""Finding, starting and refusing the embedded engine."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fm_storage.errors import EmbeddedFailed
from fm_storage.vectors.embedded import launch
from fm_storage.vectors.embedded.process.manifest import Manifest


def test_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """Below a file there is no folder: the message says where, and what to set."""
    (tmp_path / "file").write_text("")
    with pytest.raises(EmbeddedFailed, match=r"qdrant\.url"):
        launch.prepare_folder(tmp_path / "file" / "qdrant")


def test_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Data of another user is not touched."""
    stranger = os.geteuid() + 4711
    monkeypatch.setattr(os, "geteuid", lambda: stranger)
    with pytest.raises(EmbeddedFailed, match=str(stranger)):
        launch.prepare_folder(tmp_path)


def test_open_folder_is_closed_to_others(tmp_path: Path) -> None:
    """A folder that others may read is closed."""
    folder = tmp_path / "qdrant"
    folder.mkdir(mode=0o755)
    launch.prepare_folder(folder)
    assert folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    "address", ["{}/none.sock", "{}/file/x.sock", "{}/" + "x" * 200]
)
def test_address_that_leads_nowhere_is_nobody(tmp_path: Path, address: str) -> None:
    """A stale, impossible or over-long address means that no engine runs."""
    (tmp_path / "file").write_text("")
    (tmp_path / "engine.addr").write_text(address.format(tmp_path))
    assert launch.try_connect(tmp_path) is None


def test_address_that_may_not_be_used_is_reported(tmp_path: Path) -> None:
    """A socket of another kind is an error that names it."""
    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.bind(str(path))
        (tmp_path / "engine.addr").write_text(str(path))
        with pytest.raises(EmbeddedFailed, match="cannot be used"):
            launch.try_connect(tmp_path)


def test_engine_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process that listens must be this user, root, or the owner of the folder."""

    class Stranger:
        size = struct.calcsize("3i")

        def unpack(self, _: bytes) -> Sequence[int]:
            return 1, 4711, 4711

    path = tmp_path / "engine.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        (tmp_path / "engine.addr").write_text(str(path))
        monkeypatch.setattr(launch, "CREDENTIALS", Stranger())
        with pytest.raises(EmbeddedFailed, match="4711"):
            launch.try_connect(tmp_path)


def test_only_one_has_the_turn(tmp_path: Path) -> None:
    """While one process starts the engine, another one waits."""
    with (tmp_path / "start.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert launch.take_turn(tmp_path) is None
    turn = launch.take_turn(tmp_path)
    assert turn is not None
    os.close(turn)


async def test_engine_that_never_answers_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody else is starting it, for ever: the log is named."""
    monkeypatch.setattr(launch, "START_TIMEOUT", 0.1)
    with (tmp_path / "start.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(EmbeddedFailed, match=r"engine\.log"):
            await launch.connect(tmp_path)


def test_an_engine_that_is_not_installed_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is started; the message says what to install."""
    monkeypatch.setitem(sys.modules, "qdrant_edge", None)
    with pytest.raises(EmbeddedFailed, match=r"fm-storage\[embedded\]"):
        launch.start(tmp_path)


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        ("failed ValueError: damaged", "engine.log"),
        ("", "it ended at once"),
    ],
)
def test_engine_that_does_not_start_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, remedy: str
) -> None:
    """The first line that it says decides, and names the remedy."""
    real = subprocess.Popen

    def speaking(_: Sequence[str], **options: Any) -> Any:
        return real([sys.executable, "-c", f"print({said!r})"], **options)

    monkeypatch.setattr(subprocess, "Popen", speaking)
    with pytest.raises(EmbeddedFailed) as caught:
        launch.start(tmp_path)
    assert remedy in str(caught.value)


def test_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    """A newer format is not guessed at, and shards without a manifest are kept."""
    (tmp_path / "catalogue.json").write_text('{"format": 99}')
    with pytest.raises(ValueError, match="99"):
        Manifest(tmp_path).load()
    (tmp_path / "catalogue.json").unlink()
    (tmp_path / "shards" / "one").mkdir()
    with pytest.raises(ValueError, match="restore"):
        Manifest(tmp_path).load()
    assert (tmp_path / "shards" / "one").is_dir()


def test_change_that_fails_is_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What could not be saved is not in memory either."""
    manifest = Manifest(tmp_path)
    manifest.load()
    spec: dict[str, Any] = {"payload_indexes": {}}
    manifest.collections["c"] = {"folder": "f", "spec": spec}

    def full() -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(manifest, "save", full)

    def change() -> None:
        with manifest.changing():
            manifest.marker["at"] = 5
            manifest.aliases["a"] = "b"
            manifest.collections["c"]["spec"]["payload_indexes"]["n"] = "integer"

    with pytest.raises(OSError, match="space"):
        change()
    assert manifest.marker == {}
    assert manifest.aliases == {}
    assert manifest.collections["c"]["spec"]["payload_indexes"] == {}
