"""The demonstration and the README's example, run as a user runs them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from pathlib import Path

import pytest

from fm_storage.config import StorageConfig

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def environment(storage_config: StorageConfig, tmp_path: Path) -> dict[str, str]:
    """Give variables that lead a new process to this test's servers."""
    assert storage_config.postgres is not None
    assert storage_config.qdrant is not None
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FM_STORAGE_")}
    return kept | {
        "FM_STORAGE_POSTGRES__DSN": storage_config.postgres.dsn,
        "FM_STORAGE_QDRANT__URL": storage_config.qdrant.url,
        "FM_STORAGE_DATA_DIR": str(tmp_path / "data"),
    }


async def _run(
    *argv: str, environment: dict[str, str], cwd: Path
) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *argv,
        env=environment,
        cwd=cwd,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
@pytest.mark.timeout(90)
async def test_the_demo_tells_the_whole_story_twice(
    environment: dict[str, str], tmp_path: Path
):
    """Errors recorded, grouped, found again; views gone; the second run too."""
    for _ in range(2):
        code, out, err = await _run(
            "-m", "fm_storage", "demo", environment=environment, cwd=tmp_path
        )

        assert code == 0, err
        assert "34 errors recorded" in out
        assert "The commonest groups" in out
        assert "0 of 2 views remain" in out
        assert str(tmp_path / "data") in out
        assert "Try next:" in out
        page = tmp_path / "data" / "report.html"
        assert str(page) in out
        assert page.read_text("utf-8").startswith("<!doctype html>")
        long = [line for line in out.splitlines() if len(line) > 80]
        assert all(str(tmp_path) in line or sys.executable in line for line in long)
        groups = out.partition("The commonest groups")[2].partition("most similar")[0]
        assert groups.count("shop.") <= 4  # logged work only
        assert groups.count("payment") + groups.count("Connect call failed") == 1
        assert "Traceback" not in out + err


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_the_demo_takes_a_log_of_yours(
    environment: dict[str, str], tmp_path: Path
):
    """Hostile text in it is shown as text."""
    log = tmp_path / "server.log"
    log.write_text(
        "2026-01-02 03:04:05,678 ERROR shop.cart [bold]boom[/] \x1b[31mred\n"
        * 40
        + "Traceback (most recent call last):\n"
        '  File "cart.py", line 3, in add\n'
        "ValueError: no such product: 17\n" + "%% nothing known %%\n" * 2
    )

    code, out, err = await _run(
        "-m", "fm_storage", "demo", str(log), environment=environment, cwd=tmp_path
    )

    assert code == 0, err
    assert "Ingest server.log" in out
    assert "[bold]boom[/]" in out
    assert "errors recorded" not in out  # your log, nothing else
    asked = out.partition("asked: ")[2].splitlines()[0]
    assert "boom" in asked
    assert "\x1b[31m" not in out


@pytest.mark.slow
@pytest.mark.timeout(60)
async def test_the_readme_example_runs(environment: dict[str, str], tmp_path: Path):
    """The first Python block of the README, unchanged."""
    match = re.search(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert match is not None

    code, out, err = await _run(
        "-c", match.group(1), environment=environment, cwd=tmp_path
    )

    assert code == 0, err
    assert "billing" in out
    assert "prices.csv" in out
    assert "2 errors in filtermate_temp.fm_view_" in out


@pytest.mark.parametrize("arguments", [[], ["--json"]])
@pytest.mark.lengthy
async def test_health_answers_people_and_probes(
    arguments: list[str], environment: dict[str, str], tmp_path: Path
):
    """A table, or JSON; exit code 0 when all is well."""
    code, out, err = await _run(
        "-m",
        "fm_storage",
        "health",
        *arguments,
        environment=environment,
        cwd=tmp_path,
    )

    assert code == 0, err
    for part in ("postgres", "replica", "migrations", "qdrant", "outbox", "sessions"):
        assert part in out


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_health_names_what_is_down_and_asks_the_rest(
    environment: dict[str, str], tmp_path: Path
):
    """A manager that cannot open is an answer, too, for a probe as JSON."""
    code, out, err = await _run(
        "-m",
        "fm_storage",
        *("health", "--json"),
        environment=environment
        | {"FM_STORAGE_POSTGRES__DSN": "postgresql://me:s3cret@127.0.0.1:1/db"},
        cwd=tmp_path,
    )

    assert (code, err) == (1, "")
    shown = json.loads(out)
    assert shown["status"] == "down"
    parts = {part["name"]: part for part in shown["parts"]}
    assert "is the server running" in parts["postgres"]["detail"]
    assert parts["qdrant"]["status"] == "ok"
    assert "postgres is down" in parts["outbox"]["detail"]
    assert "s3cret" not in out


@pytest.mark.slow
async def test_health_shows_a_part_s_remedy_whole(
    environment: dict[str, str], tmp_path: Path
):
    """A detail is folded, not cut: what to do comes last."""
    (tmp_path / "file").write_text("in the way")
    code, out, err = await _run(
        "-m",
        "fm_storage",
        "health",
        environment=environment | {"FM_STORAGE_POSTGRES__DSN": "embedded:file"},
        cwd=tmp_path,
    )

    assert (code, err) == (1, "")
    assert "Not a directory; choose a folder" in " ".join(out.split())
    assert "…" not in out


@pytest.mark.slow
@pytest.mark.timeout(120)
async def test_a_vector_store_that_is_away_is_named_within_seconds(
    environment: dict[str, str], tmp_path: Path
):
    """An observer is not kept through every retry of a call."""
    away = environment | {"FM_STORAGE_QDRANT__URL": "http://127.0.0.1:1"}
    code, out, err = await _run(
        "-m", "fm_storage", "vectors", "list", environment=away, cwd=tmp_path
    )

    assert (code, out) == (1, "")
    assert "is a Qdrant server running at http://127.0.0.1:1" in err

    code, out, err = await _run(
        "-m", "fm_storage", "health", "--json", environment=away, cwd=tmp_path
    )

    assert (code, err) == (1, "")
    parts = {part["name"]: part for part in json.loads(out)["parts"]}
    assert parts["postgres"]["status"] == "ok"
    assert "connection attempts failed" in parts["qdrant"]["detail"]


@pytest.mark.slow
async def test_an_unreachable_server_is_one_line(
    environment: dict[str, str], tmp_path: Path
):
    """A user's mistake shows no traceback, and no password."""
    code, out, err = await _run(
        "-m",
        "fm_storage",
        *("errors", "list"),
        environment=environment
        | {"FM_STORAGE_POSTGRES__DSN": "postgresql://me:s3cret@127.0.0.1:1/db"},
        cwd=tmp_path,
    )

    assert code == 1
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert "s3cret" not in err


@pytest.mark.slow
@pytest.mark.timeout(90)
@pytest.mark.parametrize("step", ["1. Open", "2. Let", "6. One page", "8. Close"])
async def test_the_demo_is_interrupted_in_order(
    step: str, environment: dict[str, str], tmp_path: Path
):
    """Ctrl-C at any step: exit code 130, one line, no traceback."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-u", "-m", "fm_storage", "demo"),
        env=environment,
        cwd=tmp_path,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    while step not in (await process.stdout.readline()).decode():
        pass
    process.send_signal(signal.SIGINT)
    _, err = await process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in err.decode()
    assert err.decode().count("interrupted") == 1
