"""The plans of the catalogue's daily questions, at a million rows."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from fm_storage.repositories import ErrorEntryRepository, Severity

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
ROWS = 1_000_000
FILL = """
INSERT INTO project_errors
    (id, timestamp, message, module, error_code, severity)
SELECT gen_random_uuid(),
    $1::timestamptz + make_interval(secs => n / 10), 'message ' || n,
    'module_' || n % 500, 'E' || n % 2000,
    (ARRAY['DEBUG','INFO','WARNING','ERROR','ERROR','CRITICAL'])[1 + n % 6]
FROM generate_series(1, $2::int) AS n
"""


class Recorder:
    """Passes calls on, and keeps each statement with its parameters."""

    def __init__(self, executor: Any) -> None:
        self._executor = executor
        self.seen: list[tuple[str, tuple[Any, ...]]] = []

    async def fetch(self, sql: str, *args: Any) -> Any:
        """Run and remember."""
        self.seen.append((sql, args))
        return await self._executor.fetch(sql, *args)

    async def plan(self) -> str:
        """Return the plan of the last statement."""
        sql, args = self.seen[-1]
        rows = await self._executor.fetch(f"EXPLAIN (ANALYZE, BUFFERS) {sql}", *args)
        return "\n".join(row[0] for row in rows)


def buffers(plan: str) -> int:
    """Return how many pages the whole statement touched."""
    found = re.search(r"Buffers: shared(?: hit=(\d+))?(?: read=(\d+))?", plan)
    assert found is not None
    return sum(int(number or 0) for number in found.groups())


@pytest.mark.slow
@pytest.mark.timeout(240)
async def test_daily_questions_use_their_indexes_at_a_million_rows(pool):
    """None reads the table: each touches a few hundred pages at most."""
    await pool.execute(FILL, NOON, ROWS, timeout=200)
    await pool.execute("VACUUM ANALYZE project_errors", timeout=200)
    recorder = Recorder(pool)
    errors = ErrorEntryRepository(recorder)
    since, until = NOON + timedelta(hours=5), NOON + timedelta(hours=6)
    page = await errors.page(order_by="-timestamp", size=50)
    questions: dict[str, list[Any]] = {
        "project_errors_timestamp_idx": [
            errors.get_recent_errors(100),
            errors.get_recent_errors(100, since=since, until=until),
            errors.page(order_by="-timestamp", cursor=page.next_cursor),
            errors.count_by_hour(since=since, until=since + timedelta(minutes=3)),
        ],
        "project_errors_module_idx": [
            errors.find_by_module("module_7", limit=100),
            errors.find_by_module("module_7", since=since, until=until, limit=100),
            errors.find_by_module("module_none"),
        ],
        "project_errors_error_code_idx": [
            errors.find_by_code("E7", limit=100),
            errors.find_by_code("E7", since=since, until=until, limit=100),
        ],
        "project_errors_severity_idx": [
            errors.find_by_severity(Severity.CRITICAL, limit=100),
            errors.find_by_severity(Severity.DEBUG, since=since, limit=100),
        ],
    }
    for index, calls in questions.items():
        for call in calls:
            await call
            plan = await recorder.plan()
            assert index in plan, plan
            assert "Seq Scan" not in plan, plan
            assert buffers(plan) < 600, plan
