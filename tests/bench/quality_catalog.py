"""How good ``find_similar()`` is on real logs, beside trigrams and full text.

    python tests/bench/quality_catalog.py LOG [LOG …]

Every distinct message is an entry; entries are labelled by hand where the labels lie
beside the log (``LOG_structured.csv`` with Content and EventId, as loghub has them),
else by an independent method (Drain's fixed-depth tree, not our fingerprints). Each
question is one entry's message; a hit is right if it has the same label. *recall@5*
is the part of the five first places that is right (of as many as there are), *MRR*
the mean of one over the rank of the first right hit. The same entries and questions
go to PostgreSQL's ``pg_trgm`` similarity and to its full-text rank.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import os
import random
import re
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from fm_storage.catalog import ErrorManager
from fm_storage.catalog.logs.opening import open_log
from fm_storage.catalog.logs.reading import LogReader
from fm_storage.config import StorageConfig
from fm_storage.manager import StorageManager
from fm_storage.postgres import Pool
from fm_storage.repositories import ErrorEntry

Ask = Callable[[ErrorEntry], Awaitable[list[str]]]

_TRIGRAM = """SELECT id::text FROM project_errors WHERE id <> $2
ORDER BY similarity(message, $1) DESC, id LIMIT 10"""
_FULL_TEXT = """SELECT id::text FROM project_errors, (
  SELECT replace(plainto_tsquery('simple', $1)::text, '&', '|')::tsquery AS q) AS asked
WHERE id <> $2 AND to_tsvector('simple', message) @@ q
ORDER BY ts_rank(to_tsvector('simple', message), q) DESC, id LIMIT 10"""


@dataclass
class _Node:
    below: dict[object, _Node] = field(default_factory=dict)
    templates: list[list[str]] = field(default_factory=list)


class Drain:
    """The log parser of He et al. (ICWS 2017): depth 4, similarity 0.5."""

    def __init__(self) -> None:
        self._root = _Node()
        self._labels: dict[int, str] = {}

    def learn(self, message: str) -> list[str]:
        """Add a message; return its template, which may still become more general."""
        # As its authors do: words with digits are variable before anything else.
        words = ["*" if re.search(r"\d", w) else w for w in message.split()] or [""]
        node = self._root.below.setdefault(len(words), _Node())
        for word in words[:2]:
            node = node.below.setdefault(word, _Node())
        best = max(node.templates, key=lambda t: self._alike(t, words), default=None)
        if best is None or self._alike(best, words) < 0.5:
            best = list(words)
            node.templates.append(best)
        for at, word in enumerate(words):
            if best[at] != word:
                best[at] = "*"
        return best

    @staticmethod
    def _alike(template: list[str], words: list[str]) -> float:
        pairs = list(zip(template, words, strict=True))
        fixed = [pair for pair in pairs if pair[0] != "*"]
        if not fixed:
            return 1.0
        return sum(a == b for a, b in fixed) / len(pairs)


def events_of(paths: list[Path]) -> dict[str, str]:
    """Return the true event of each message whose log was taken apart by hand."""
    found: dict[str, str] = {}
    for path in paths:
        table = path.with_name(path.name + "_structured.csv")
        if table.exists():
            with table.open(encoding="utf-8") as file:
                found.update(
                    (" ".join(row["Content"].split()), f"{path.stem} {row['EventId']}")
                    for row in csv.DictReader(file)
                )
    return found


def label(entries: list[ErrorEntry], events: dict[str, str]) -> dict[str, int]:
    """Return the label of each entry, by id: its event, or module and template."""
    drains: defaultdict[str, Drain] = defaultdict(Drain)
    found = [
        (str(e.id), e.module, drains[e.module].learn(e.message.split("\n")[0]))
        for e in entries
    ]
    names: dict[tuple[str, str], int] = {}
    known = {str(e.id): events.get(" ".join(e.message.split())) for e in entries}
    return {
        key: names.setdefault(
            ("", str(known[key])) if known[key] else (module, " ".join(template)),
            len(names),
        )
        for key, module, template in found
    }


def distinct(path: Path) -> list[ErrorEntry]:
    """Return one entry for each distinct message of a log."""
    opened = open_log(path)
    reader = LogReader(opened.lines(), source=path.name)
    rows = [row for batch in reader.batches(1000) for row in batch]
    opened.close()
    return list({(row.module, row.message): row.entry for row in rows}.values())


async def judge(
    ask: Ask, questions: list[ErrorEntry], labels: dict[str, int]
) -> tuple[float, float]:
    """Return recall@5 and MRR of one way to search."""
    sizes = Counter(labels.values())
    recall = ranks = 0.0
    for entry in questions:
        own = labels[str(entry.id)]
        hits = [labels.get(key) == own for key in await ask(entry)]
        recall += sum(hits[:5]) / min(5, sizes[own] - 1)
        ranks += 1 / (hits.index(True) + 1) if True in hits else 0.0
    return recall / len(questions), ranks / len(questions)


async def measure(
    name: str, entries: list[ErrorEntry], count: int, events: dict[str, str]
) -> None:
    """Store *entries* in fresh engines, ask all three, print a line for each."""
    labels = label(entries, events)
    sizes = Counter(labels.values())
    able = [entry for entry in entries if sizes[labels[str(entry.id)]] > 1]
    by_label: defaultdict[int, list[ErrorEntry]] = defaultdict(list)
    for entry in able:
        by_label[labels[str(entry.id)]].append(entry)
    chance = random.Random(7)
    # Every template is asked for equally often, or the commonest decides all.
    each = max(1, count // max(1, len(by_label)))
    questions = [
        entry
        for group in by_label.values()
        for entry in chance.sample(group, min(each, len(group)))
    ]
    with tempfile.TemporaryDirectory(prefix="fm_quality_") as folder:
        os.chmod(folder, 0o755)  # noqa: PTH101, S103 - the database runs as another user
        config = StorageConfig(data_dir=Path(folder) / "data")
        async with StorageManager(config) as storage, ErrorManager(storage) as errors:
            for entry in entries:
                await errors.record(entry)
            await storage.outbox.drain(timeout=600)
            pool = storage.pool
            await pool.execute("CREATE EXTENSION IF NOT EXISTS pg_trgm")

            async def similar(entry: ErrorEntry) -> list[str]:
                return [str(h.entry.id) for h in await errors.find_similar(entry, 10)]

            ways: dict[str, Ask] = {
                "find_similar()": similar,
                "pg_trgm": _sql(pool, _TRIGRAM),
                "full text": _sql(pool, _FULL_TEXT),
            }
            print(
                f"{name}: {len(entries)} messages, {len(by_label)} templates with "
                f"two or more, {len(questions)} questions"
            )
            for way, ask in ways.items():
                recall, ranks = await judge(ask, questions, labels)
                print(f"  {way:<16} recall@5 {recall:.3f}   MRR {ranks:.3f}")


def _sql(pool: Pool, statement: str) -> Ask:
    async def ask(entry: ErrorEntry) -> list[str]:
        rows = await pool.fetch(statement, entry.message, entry.id)
        return [row[0] for row in rows]

    return ask


async def main() -> None:
    """Measure each log, then all of them in one catalogue."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("logs", nargs="+", type=Path)
    parser.add_argument("--questions", type=int, default=300)
    options = parser.parse_args()
    found = {path.stem: distinct(path) for path in options.logs}
    events = events_of(options.logs)
    for name, entries in found.items():
        await measure(name, entries, options.questions, events)
    if len(found) > 1:
        everything = [entry for entries in found.values() for entry in entries]
        await measure("all together", everything, options.questions, events)


if __name__ == "__main__":
    asyncio.run(main())
