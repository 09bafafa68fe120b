"""A log of 200 MB: read to its end, with memory that does not grow."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from fm_storage.catalog import ErrorManager

pytestmark = pytest.mark.timeout(1200)

SIZE = 200 * 1024 * 1024
MEGABYTE = 1024 * 1024


def resident(pid: int) -> int:
    """Return the bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def children() -> list[int]:
    """Return the processes that this one has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            fields = (path / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == os.getpid():
            found.append(int(path.name))
    return found


async def test_a_log_of_200_megabytes_is_read_with_bounded_memory(storage, tmp_path):
    """Neither this process nor the one that reads grows with the log."""
    path = tmp_path / "large.log"
    lines = 0
    with path.open("w") as file:
        while file.tell() < SIZE:
            # Most of it lies below the severity asked for, as in real logs.
            file.writelines(
                f"2024-01-02 03:04:05,{n % 1000:03} "
                f"{'ERROR' if n % 40 == 0 else 'INFO'} [worker-{n % 16}] "
                f"org.shop.Cart{n % 50}: item {lines + n} of order {n * 7} failed at "
                f"10.0.0.{n % 255}:{n % 65_535}, to be tried again in a moment\n"
                for n in range(10_000)
            )
            lines += 10_000
    async with ErrorManager(storage) as errors:
        await errors.ingest(["2024-01-02 03:04:05 ERROR x"], source="warm")
        base = resident(os.getpid())
        before = set(children())
        most = {"here": 0, "there": 0}
        done = asyncio.Event()

        async def watch() -> None:
            while not done.is_set():
                most["here"] = max(most["here"], resident(os.getpid()) - base)
                for pid in set(children()) - before:
                    try:
                        most["there"] = max(most["there"], resident(pid))
                    except OSError:
                        continue
                await asyncio.sleep(0.25)

        watching = asyncio.create_task(watch())
        report = await errors.ingest(path, severity="error")
        done.set()
        await watching
        assert (report.lines, report.entries) == (lines, lines)
        assert report.added == lines // 40
        assert most["here"] < 150 * MEGABYTE
        assert 0 < most["there"] < 250 * MEGABYTE
        print(f"{lines / report.seconds:,.0f} lines/s, {most}")
