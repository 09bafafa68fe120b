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


def test_the_program_takes_over_ctrl_c_before_it_loads_anything():
    """Until then Python answers Ctrl-C with a traceback, so that must be short."""
    script = (
        "import sys, fm_storage.__main__\n"
        "print(*[n for n in ('typing', 're', 'enum', 'click') if n in sys.modules])"
    )

    done = subprocess.run(
        [
            sys.executable,
            "-S",
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}\n{script}",
        ],
        capture_output=True,
        text=True,
        check=True,
    )

    assert done.stdout.split() == []
