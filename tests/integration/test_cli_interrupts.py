"""Ctrl-C at any moment of a command: exit code 130, at most a line, no traceback.

As a terminal sends it: to every process of the command.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import pytest

STARTS = (0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0, 1.3)
# What Python does before our first line is its own: the time runs from there.
PROGRAM = "import fm_storage.__main__ as it; print('up', flush=True); it.main()"
LINE = "2024-01-02 03:04:05 ERROR shop.cart: item {0} of {1:x} lost\n"


async def interrupted(
    folder: Path, *arguments: str, after: float, **environ: str
) -> tuple[int | None, str, str]:
    """Run a command, send SIGINT to its group; return its exit code and output."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", PROGRAM, *arguments),
        env={
            **os.environ,
            "FM_STORAGE_DATA_DIR": str(folder),
            "FM_STORAGE_QDRANT__URL": f"embedded:{folder / 'vectors'}",
            **environ,
        },
        cwd=folder,
        start_new_session=True,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    assert await process.stdout.readline() == b"up\n"
    await asyncio.sleep(after)
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGINT)
    out, err = await process.communicate()
    return process.returncode, out.decode(), err.decode()


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("arguments", [("errors", "list"), ("health",)])
async def test_in_the_first_second(
    arguments: tuple[str, ...], dsn: str, tmp_path: Path
):
    """While Python imports, connects or prints: it is 130, or was done already."""
    codes = set()
    for after in STARTS:
        code, _, err = await interrupted(
            tmp_path, *arguments, after=after, FM_STORAGE_POSTGRES__DSN=dsn
        )
        codes.add(code)
        assert code in {0, 1, 130}, (after, code, err)
        assert "Traceback" not in err, (after, err)
        assert "Exception ignored" not in err, (after, err)
    assert 130 in codes


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_while_a_log_is_read_stored_and_made_searchable(dsn: str, tmp_path: Path):
    """Nothing is left half done: the same command again stores the rest."""
    log = tmp_path / "shop.log"
    log.write_text("".join(LINE.format(n, n * 7919) for n in range(60_000)))
    settings = {"FM_STORAGE_POSTGRES__DSN": dsn}
    codes = []
    for after in (0.7, 1.0, 1.4, 1.8, 2.3, 3.0, 4.0, 5.0):
        code, _, err = await interrupted(
            tmp_path, "errors", "ingest", str(log), after=after, **settings
        )
        codes.append(code)
        assert code in {0, 130}, (after, code, err)
        assert "Traceback" not in err, (after, err)
        assert "Exception ignored" not in err, (after, err)
    assert 130 in codes
