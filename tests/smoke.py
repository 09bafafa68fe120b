"""What an installed wheel must do, outside the source tree.

Run by ``make smoke`` with ``python -I`` in an environment that holds the wheel
and nothing of the project's folder; not collected by pytest.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tempfile
from pathlib import Path

import fm_storage
from fm_storage import ErrorManager, StorageConfig, StorageManager
from fm_storage.migrate import Migrator

MOST_PACKAGES = 40
MOST_MEGABYTES = 112


async def use(folder: Path) -> None:
    """Open a manager on embedded engines, record an error and find it again."""
    config = StorageConfig(
        postgres={"dsn": f"embedded:{folder / 'postgres'}"},
        qdrant={"url": f"embedded:{folder / 'vectors'}"},
    )
    async with StorageManager(config) as storage:
        errors = ErrorManager(storage)
        recorded = await errors.record(ValueError("smoke without fire"), module="smoke")
        assert recorded.durable, recorded
        found = await errors.find_similar("smoke and fire", limit=1)
        assert found, "nothing similar was found"
        async with storage.session() as session:
            view = await session.create_view("SELECT * FROM project_errors")
            count = await storage.pool.fetchval(f"SELECT count(*) FROM {view}")
        assert count == 1, count
        applied = await storage.pool.fetchval(
            "SELECT count(*) FROM fm_storage.migrations"
        )
        assert applied >= 5, f"only {applied} migrations came with the wheel"


def size() -> None:
    """Hold what an installation without extras brings to its bounds."""
    folder = Path(fm_storage.__file__).parents[1]
    packages = len([*folder.glob("*.dist-info")])
    files = [path for path in folder.rglob("*") if path.suffix != ".pyc"]
    megabytes = sum(path.stat().st_size for path in files if path.is_file()) / 2**20
    print(f"without extras: {packages} packages, {megabytes:.0f} MiB")
    assert packages <= MOST_PACKAGES, "more packages: make what is new an extra"
    assert megabytes <= MOST_MEGABYTES, "larger: make what is new an extra"


def main() -> int:
    """Run every part of the smoke test."""
    if "--size" in sys.argv:
        size()
        return 0
    package = Path(fm_storage.__file__).parent
    assert "site-packages" in package.parts, f"not the installed wheel: {package}"
    assert (package / "py.typed").exists(), "py.typed is missing"
    assert Migrator.__module__.startswith("fm_storage.")
    program = Path(sys.executable).with_name("fm-storage")
    said = subprocess.run(
        [program, "--help"], capture_output=True, text=True, check=True
    ).stdout
    assert "demo" in said, said
    with tempfile.TemporaryDirectory(prefix="fm-smoke-") as folder:
        Path(folder).chmod(0o755)
        asyncio.run(use(Path(folder)))
    print(f"the wheel works: fm_storage from {package}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
