"""Importing the package is cheap and without effect."""

from __future__ import annotations

import subprocess
import sys

HEAVY = (
    "qdrant_client",
    "grpc",
    "numpy",
    "qdrant_edge",
    "yoyo",
    "psycopg",
    "rich",
    "jinja2",
)


def test_import_loads_no_heavy_module():
    """qdrant_client alone costs 1.4 s and 70 MB; the first use pays, not the import."""
    script = (
        "import sys, fm_storage\n"
        f"print(*[name for name in {HEAVY!r} if name in sys.modules])"
    )

    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )

    assert done.stdout.split() == []
    assert done.stderr == ""
