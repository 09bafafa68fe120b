"""How PostgreSQL answers the analyzer: each question reads every error once.

What is checked is the plan, not the time: it holds on a busy machine, and for a
million errors as for the few here.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from fm_storage.catalog.query import analyzer_sql
from fm_storage.postgres import Sql

# Each starts a whole storage, which takes its time on a busy machine.
pytestmark = pytest.mark.timeout(120)

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
FILL = """WITH made AS (
  INSERT INTO fm_storage.error_fingerprints
  SELECT gen_random_uuid(), n % 50, '2024-01-01T00:00Z'::timestamptz
    + n * interval '1 second', 20 + n % 3 * 10
  FROM generate_series(1, 20000) AS n RETURNING 1
), named AS (
  INSERT INTO fm_storage.fingerprints
  SELECT n, 'module ' || n % 5, 'E' || n, 'template ' || n
  FROM generate_series(0, 49) AS n RETURNING 1
) SELECT count(*) FROM made"""
PERIOD = (None, None, 0)
ONE_PASS = {
    "totals": (analyzer_sql.TOTALS, PERIOD),
    "patterns": (analyzer_sql.PATTERNS, (*PERIOD, 20)),
    "timeline": (analyzer_sql.TIMELINE, (*PERIOD, timedelta(minutes=5))),
    "heat": (analyzer_sql.HEAT, (*PERIOD, 10)),
    "growing": (
        analyzer_sql.GROWTH,
        (BEGIN, BEGIN + timedelta(hours=2), BEGIN + timedelta(hours=4), 0, 10),
    ),
    "sparks": (analyzer_sql.SPARKS, (*PERIOD, [BEGIN], [1, 2])),
    "correlations": (analyzer_sql.CORRELATIONS, (*PERIOD, timedelta(minutes=1), 20)),
    **{
        f"by {name}": (statement, (*PERIOD, 50))
        for name, statement in {**analyzer_sql.BY_NAME, **analyzer_sql.BY_PART}.items()
    },
}


def nodes(plan):
    """Yield every node of a plan."""
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


async def explained(pool, statement, values):
    """Return the nodes of the plan that answers, with what they really did."""
    [top] = await pool.fetchval(
        Sql(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}"), *values
    )
    return list(nodes(top["Plan"]))


@pytest.fixture
async def filled(storage):
    """Give the pool of a catalogue of 20,000 errors in 50 groups."""
    await storage.pool.execute(FILL)
    await storage.pool.execute("ANALYZE fm_storage.error_fingerprints")
    await storage.pool.execute("ANALYZE fm_storage.fingerprints")
    return storage.pool


def reads(found):
    """Return the nodes that read errors."""
    return [n for n in found if n.get("Relation Name") == "error_fingerprints"]


async def test_every_question_reads_every_error_once(filled):
    """One scan, started once: no join of all errors with all errors."""
    for name, (statement, values) in ONE_PASS.items():
        [read] = reads(await explained(filled, statement, values))
        workers = read.get("Actual Loops", 1)
        assert workers <= 3, name
        assert read["Actual Rows"] * workers <= 20_000 + workers, name


async def test_correlations_pair_a_bounded_number_of_groups(filled):
    """What is joined with itself are the busiest groups: forty a slot, not errors."""
    found = await explained(filled, *ONE_PASS["correlations"])
    joins = [
        n for n in found if "Join" in n["Node Type"] or n["Node Type"] == "Nested Loop"
    ]
    slots = 20_000 // 60 + 1
    assert joins
    assert max(n["Actual Rows"] * n["Actual Loops"] for n in joins) <= slots * 40 * 40


async def test_what_is_new_costs_one_probe_a_group(filled):
    """The first error of each group comes from the index, the rest is not read."""
    found = await explained(filled, analyzer_sql.NEW, (BEGIN, None, 0, 20))
    [probe] = reads(found)
    assert probe["Index Name"] == "error_fingerprints_group_idx"
    assert probe["Actual Rows"] * probe["Actual Loops"] <= 50
