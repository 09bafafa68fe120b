"""How well errors are grouped, against logs that were taken apart by hand.

    python tests/bench/quality_grouping.py FOLDER

FOLDER has ``NAME.log`` and ``NAME.log_structured.csv`` (Content, EventId), as loghub
has them. *GA* is the share of lines whose group holds exactly the lines of their
event, *FGA* the F1 over groups that equal an event, *mixed* the share of lines in a
group of another event. "text" groups the messages of the table, "ingest" the raw
file through ``ErrorManager.ingest()`` and ``fm_storage.error_groups``; an entry that
is not read counts as a group of its own.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Hashable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.query.siblings import pieces_of, shape_of, siblings
from fm_storage.catalog.record.fingerprint import normalise
from fm_storage.config import StorageConfig
from fm_storage.manager import StorageManager

_VIEW = """SELECT (e.manager_context->>'line')::bigint AS line, g.group_id
FROM fm_storage.error_groups AS g JOIN project_errors AS e ON e.id = g.error_id"""


def events_of(log: Path) -> tuple[list[str], list[str]]:
    """Return the messages and the events of a log's lines."""
    with log.with_name(log.name + "_structured.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return [row["Content"] for row in rows], [row["EventId"] for row in rows]


def judge(true: Sequence[str], found: Sequence[Hashable]) -> tuple[float, float, float]:
    """Return GA, FGA and the share of mixed lines."""
    events: defaultdict[Hashable, set[int]] = defaultdict(set)
    groups: defaultdict[Hashable, set[int]] = defaultdict(set)
    for at, (event, group) in enumerate(zip(true, found, strict=True)):
        events[event].add(at)
        groups[group].add(at)
    exact = set(map(frozenset, events.values()))
    right = [group for group in groups.values() if frozenset(group) in exact]
    mixed = sum(
        len(group) - max(Counter(true[at] for at in group).values())
        for group in groups.values()
    )
    fga = 2 * len(right) / (len(groups) + len(events))
    return sum(map(len, right)) / len(true), fga, mixed / len(true)


def by_text(messages: Sequence[str]) -> list[Hashable]:
    """Return the group of each message, by both stages."""
    templates = list(map(normalise, messages))
    by_shape: defaultdict[tuple[str, ...], list[str]] = defaultdict(list)
    for template in dict.fromkeys(templates):
        by_shape[shape_of(template)].append(template)
    group: dict[str, Hashable] = {}
    for shape, ours in by_shape.items():
        pieces = [pieces_of(one) for one in ours]
        firsts = siblings([words for words, _ in pieces], pieces[0][1])
        group |= {
            template: (shape, first)
            for template, first in zip(ours, firsts, strict=True)
        }
    return [group[template] for template in templates]


async def by_ingest(log: Path, lines: int) -> list[Hashable]:
    """Return the group of each line of the raw file."""
    with tempfile.TemporaryDirectory(prefix="fm_quality_") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - the database runs as another user
        config = StorageConfig(data_dir=Path(folder) / "data", qdrant=None)
        async with StorageManager(config) as storage, ErrorManager(storage) as errors:
            await errors.ingest(log)
            await errors.groups()
            rows = await storage.pool.fetch(_VIEW)
    found: list[Hashable] = [("not read", at) for at in range(lines)]
    for row in rows:
        found[row["line"] - 1] = row["group_id"]
    return found


async def main() -> None:
    """Judge each log, and print the means."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    sums: Counter[str] = Counter()
    logs = sorted(options.folder.glob("*.log"))
    for log in logs:
        messages, true = events_of(log)
        ways = {"text": by_text(messages), "ingest": await by_ingest(log, len(true))}
        for way, found in ways.items():
            ga, fga, mixed = judge(true, found)
            sums.update({f"{way} GA": ga, f"{way} FGA": fga, f"{way} mixed": mixed})
            print(
                f"{log.stem:<16}{way:<8}GA {ga:.3f}  FGA {fga:.3f}  mixed {mixed:.4f}"
            )
    for name, total in sums.items():
        print(f"mean {name}: {total / len(logs):.3f}")


if __name__ == "__main__":
    asyncio.run(main())
