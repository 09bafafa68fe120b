"""A new migration: both files, numbered, with the conventions written in them."""

from __future__ import annotations

import re
from pathlib import Path

from fm_storage.errors import MigrationFailed
from fm_storage.migrate.files import migration_paths

_APPLY = """\
-- {title}: describe the purpose here.
{depends}
-- The runner opens and commits the transaction: no BEGIN, no COMMIT. What cannot
-- run in one (CREATE INDEX CONCURRENTLY) goes into a file of its own with the line
--     -- transactional: false
-- at the top. Expand now, contract in a later release: old processes still run.
-- COMMENT ON every table and column; GRANT what applications need.

"""

_ROLLBACK = """\
-- Undoes {name}: plain DROPs in reverse order. If there is nothing to
-- undo, leave a comment that says so; without this file rollback is refused.

"""


def write(name: str, folder: Path) -> tuple[Path, Path]:
    """Write ``NNNN_name.sql`` and its rollback file behind the last in *folder*.

    Raises:
        MigrationFailed: *name* has no letter or digit, or *folder* is no folder.
    """
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    if not slug:
        message = f"migrations: {name!r} is no name; use letters, digits and _"
        raise MigrationFailed(message)
    if not folder.is_dir():
        message = f"migrations: {str(folder)!r} is no folder; make it first"
        raise MigrationFailed(message)
    stems = [path.stem for path in migration_paths(folder)]
    numbers = [int(found.group()) for s in stems if (found := re.match(r"\d+", s))]
    identifier = f"{max(numbers, default=0) + 1:04d}_{slug}"
    depends = f"-- depends: {stems[-1]}\n" if stems else ""
    forward = folder / f"{identifier}.sql"
    backward = folder / f"{identifier}.rollback.sql"
    title = slug.replace("_", " ").capitalize()
    with forward.open("x", encoding="utf-8") as file:
        file.write(_APPLY.format(title=title, depends=depends))
    with backward.open("x", encoding="utf-8") as file:
        file.write(_ROLLBACK.format(name=identifier))
    return forward, backward
