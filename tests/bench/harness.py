"""Interleaved measurements: the one way in which this project compares speeds.

Peers take turns in blocks of at most 40 operations, in random order, many
cycles long; a figure is the median of the ratios *within one cycle*. Blocks of a
second gave ratios off by 30 % on a shared machine, because load drifts more
slowly than that; wall time is noisier than CPU time, so both are shown.
"""

from __future__ import annotations

import argparse
import gc
import json
import random
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

__all__ = ["Bar", "Measured", "Peer", "Table", "arguments", "finish", "measure"]

MAX_BLOCK = 40
"""Operations in a block; longer ones let the machine's load drift inside it."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One way to do the operation under test.

    Attributes:
        run: The timed operation.
        prepare: Called before each block, untimed, with the operations to come.
        check: Called after each block, untimed; raises when the work was not done.
        operations: Operations that one call of *run* stands for (bulk calls).
    """

    run: Callable[[], Awaitable[object]]
    prepare: Callable[[int], Awaitable[object]] | None = None
    check: Callable[[], Awaitable[object]] | None = None
    operations: int = 1


@dataclass(frozen=True, slots=True)
class Bar:
    """An upper limit that a peer's ratio must keep."""

    peer: str
    wall: float | None = None
    cpu: float | None = None


@dataclass(frozen=True, slots=True)
class Measured:
    """What one peer cost; ratios are medians of per-cycle ratios."""

    peer: str
    wall_us: float
    cpu_us: float
    wall: float
    cpu: float
    wall_quartiles: tuple[float, float]
    per_second: float


@dataclass(slots=True)
class Table:
    """The figures of one operation, and which bars they keep."""

    title: str
    baseline: str
    cycles: int
    block: int
    rows: dict[str, Measured]
    broken: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return the table as text, one line a peer, cheapest first."""
        width = max(len(name) for name in self.rows)
        turns = f"{self.cycles} cycles x {self.block}"
        head = ("µs/op", "wall", "CPU", "quartiles", "op/s")
        lines = [
            f"{self.title} ({turns}, baseline {self.baseline})",
            "  {:{}}  {:>10}  {:>6}  {:>6}  {:>11}  {:>10}".format("", width, *head),
        ]
        lines += [
            f"  {row.peer:{width}}  {row.wall_us:10.1f}  {row.wall:6.2f}  "
            f"{row.cpu:6.2f}  {row.wall_quartiles[0]:5.2f} – "
            f"{row.wall_quartiles[1]:5.2f}  {row.per_second:10.0f}"
            for row in sorted(self.rows.values(), key=lambda row: row.wall)
        ]
        lines += [f"  BROKEN {what}" for what in self.broken]
        return "\n".join(lines)


async def measure(
    title: str,
    peers: Mapping[str, Peer],
    *,
    baseline: str,
    block: int = MAX_BLOCK,
    cycles: int = 80,
    warmup: int = 3,
    bars: Sequence[Bar] = (),
    seed: int = 20,
) -> Table:
    """Run *peers* against each other and compare each with *baseline*.

    Args:
        title: What is measured; printed above the figures.
        peers: The contestants by name, the baseline among them.
        baseline: Name of the peer that counts as 1.00.
        block: Operations in a row before the next peer has its turn (1 for bulk).
        cycles: Turns of each peer that count.
        warmup: Turns before those.
        bars: Limits; the broken ones are listed in the table.
        seed: Of the random order.

    Raises:
        ValueError: *block* is above 40, or *baseline* is not among the peers.
    """
    if not 1 <= block <= MAX_BLOCK:
        raise ValueError(f"harness: a block has 1 to {MAX_BLOCK} operations")
    if baseline not in peers:
        raise ValueError(f"harness: no peer {baseline!r}")
    order = list(peers)
    shuffle = random.Random(seed).shuffle
    walls: dict[str, list[float]] = {name: [] for name in peers}
    cpus: dict[str, list[float]] = {name: [] for name in peers}
    for cycle in range(warmup + cycles):
        shuffle(order)
        for name in order:
            wall, cpu = await _turn(peers[name], block)
            if cycle >= warmup:
                walls[name].append(wall)
                cpus[name].append(cpu)
    table = Table(
        title,
        baseline,
        cycles,
        block,
        {name: _summary(name, walls, cpus, baseline) for name in peers},
    )
    table.broken = [said for bar in bars for said in _judge(bar, table.rows)]
    return table


async def _turn(peer: Peer, block: int) -> tuple[float, float]:
    """Run one block; return wall and CPU microseconds per operation."""
    if peer.prepare is not None:
        await peer.prepare(block)
    gc.collect()
    run = peer.run
    cpu = time.process_time_ns()
    wall = time.perf_counter_ns()
    for _ in range(block):
        await run()
    wall = time.perf_counter_ns() - wall
    cpu = time.process_time_ns() - cpu
    if peer.check is not None:
        await peer.check()
    count = block * peer.operations * 1000
    return wall / count, cpu / count


def _summary(
    name: str,
    walls: Mapping[str, Sequence[float]],
    cpus: Mapping[str, Sequence[float]],
    baseline: str,
) -> Measured:
    ratios = [
        mine / base for mine, base in zip(walls[name], walls[baseline], strict=True)
    ]
    cpu_ratios = [
        mine / max(base, 1e-3)
        for mine, base in zip(cpus[name], cpus[baseline], strict=True)
    ]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    wall = statistics.median(walls[name])
    return Measured(
        peer=name,
        wall_us=wall,
        cpu_us=statistics.median(cpus[name]),
        wall=statistics.median(ratios),
        cpu=statistics.median(cpu_ratios),
        wall_quartiles=(low, high),
        per_second=1e6 / wall,
    )


def _judge(bar: Bar, rows: Mapping[str, Measured]) -> list[str]:
    row = rows[bar.peer]
    said = []
    if bar.wall is not None and row.wall > bar.wall:
        said.append(f"{bar.peer}: wall {row.wall:.2f} above {bar.wall:.2f}")
    if bar.cpu is not None and row.cpu > bar.cpu:
        said.append(f"{bar.peer}: CPU {row.cpu:.2f} above {bar.cpu:.2f}")
    return said


def arguments(description: str) -> argparse.ArgumentParser:
    """Return a parser with the options every benchmark has."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--dsn", help="PostgreSQL server (default: embedded)")
    parser.add_argument("--cycles", type=int, default=80, help="turns of each peer")
    parser.add_argument("--only", default="", help="run titles holding this text")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--check", action="store_true", help="end with status 1 on a broken bar"
    )
    return parser


def finish(tables: Sequence[Table], options: argparse.Namespace) -> int:
    """Write the figures where *options* say; return the exit status."""
    if options.json is not None:
        figures = [asdict(table) for table in tables]
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")
    broken = sum(len(table.broken) for table in tables)
    return 1 if options.check and broken else 0
