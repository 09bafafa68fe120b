"""Migration files: where they lie and what they contain.

Separate from the engine, so that a start with nothing pending reads a handful of
small files and does not load yoyo.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

from fm_storage.errors import ConfigurationInvalid, MigrationFailed

PROJECT = "fm_storage"
"""Name of the source that holds the toolkit's own migrations."""

_ROOM = Path(__file__).resolve().parent
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_PACKAGE_SOURCE = re.compile(r"package:([^\s/:]+):(.+)")
_HEAD = re.compile(r"(?:[^\S\n]*(?:--[^\n]*)?(?:\n|\Z))*")
_DEPENDS = re.compile(r"^\s*--\s*depends\s*:\s*(.*)$", re.MULTILINE)
_TRANSACTIONAL = re.compile(
    r"^\s*--\s*transactional\s*:\s*(\S+)\s*$", re.MULTILINE | re.IGNORECASE
)
_ROLLBACK = ".rollback.sql"
_LONGEST_ID = 255


@dataclass(frozen=True, slots=True)
class Source:
    """A folder of migrations.

    Attributes:
        name: What the database remembers: ``fm_storage``, ``package:NAME:FOLDER``,
            the name it was given, or the last two parts of a folder's path. It is
            the same on every machine, so that two applications in one database do
            not take each other's migrations for deleted ones.
        folder: Where the files are.
        named: Whether it was given a name, which then begins each identifier.
    """

    name: str
    folder: Path
    named: bool = False


@dataclass(frozen=True, slots=True)
class MigrationFile:
    """One migration as it is on disk.

    Attributes:
        id: File name without its ending; behind ``NAME:`` in a source with a name.
        path: The file.
        source: Name of its source.
        checksum: SHA-256 of the content, line ends normalised.
        depends: Identifiers it must come after.
        transactional: False for ``-- transactional: false``.
    """

    id: str
    path: Path
    source: str
    checksum: str
    depends: tuple[str, ...]
    transactional: bool

    @property
    def rollback_path(self) -> Path:
        """Where the statements that undo it are, if it has any."""
        return rollback_path(self.path)

    @property
    def can_roll_back(self) -> bool:
        """Whether someone wrote how to undo it."""
        return is_python(self.path) or self.rollback_path.is_file()

    def read(self) -> str:
        """Return the SQL (or Python) text."""
        return read_text(self.path)


def read_text(path: Path) -> str:
    """Return the text of a file, as psql reads it: without a byte order mark.

    Raises:
        MigrationFailed: It is no UTF-8, or has a zero byte.
    """
    return _text_of(path, _content(path))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes().replace(b"\r\n", b"\n")
    except OSError as exc:
        raise MigrationFailed(
            f"migration {path.stem!r}: {path.name} cannot be read ({exc.strerror}); "
            "correct its rights, or the link",
            migration=path.stem,
        ) from exc


def _text_of(path: Path, content: bytes) -> str:
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        wrong = exc.start
    else:
        wrong = content.find(b"\0")
        if wrong < 0:
            return text
    raise MigrationFailed(
        f"migration {path.stem!r}: byte {wrong} is not UTF-8 text; save the file as "
        "UTF-8",
        migration=path.stem,
    )


def is_python(path: Path) -> bool:
    """Whether a migration is written in Python, not in SQL."""
    return path.suffix == ".py"


def rollback_path(path: Path) -> Path:
    """Return where the statements that undo the SQL file *path* are."""
    found = path.with_name(f"{path.stem}.rollback{path.suffix}")
    return found if found.is_file() else path.with_name(path.stem + _ROLLBACK)


def project_folder() -> Path:
    """Folder of the toolkit's own migrations: in the wheel, or the checkout."""
    for folder in (_ROOM / "sql", _ROOM.parents[1] / "migrations"):
        if folder.is_dir():
            return folder
    message = (
        "migrations: the toolkit's own files are missing from the installation; "
        "reinstall fm-storage"
    )
    raise MigrationFailed(message)


def find_sources(sources: Iterable[str] = ()) -> list[Source]:
    """Return the project's source, then the application's in the order given.

    Args:
        sources: Folders, or ``package:NAME:FOLDER``; with a name ``NAME=FOLDER``.

    Raises:
        ConfigurationInvalid: A folder or package does not exist.
    """
    found = [Source(PROJECT, project_folder())]
    for given in sources:
        name, text = named(given)
        package = _PACKAGE_SOURCE.fullmatch(text)
        if package is None:
            folder = Path(text).expanduser().resolve()
            usual = source_name(folder)
        else:
            folder, usual = _package_folder(*package.groups()), text
        if not folder.is_dir():
            raise ConfigurationInvalid(
                "migrations.sources",
                f"{text!r} is no folder; name an existing one, or package:NAME:FOLDER",
            )
        if folder not in (source.folder for source in found):
            found.append(Source(name or usual, folder, bool(name)))
    return found


def named(source: str) -> tuple[str, str]:
    """Return the name that a source was given, or "", and where it is."""
    name, equals, place = source.partition("=")
    if equals and _NAME.fullmatch(name):
        return name, place
    return "", source


def _package_folder(package: str, folder: str) -> Path:
    try:
        root = resources.files(package)
    except ModuleNotFoundError:
        raise ConfigurationInvalid(
            "migrations.sources",
            f"package {package!r} is not installed; install it or remove the source",
        ) from None
    place = root.joinpath(folder)
    if not isinstance(place, Path):
        raise ConfigurationInvalid(
            "migrations.sources",
            f"package {package!r} lies in an archive; install it unpacked",
        )
    return place


def read_files(sources: Iterable[Source]) -> list[MigrationFile]:
    """Read every migration of *sources*, in order of source, then of name.

    Raises:
        MigrationFailed: Two files have one identifier, or a file depends on a
            migration that is in none of the sources.
    """
    found: dict[str, MigrationFile] = {}
    for source in sources:
        for path in migration_paths(source.folder):
            file = read_file(path, source.name)
            if source.named:
                file = replace(file, id=f"{source.name}:{file.id}")
            twin = found.setdefault(file.id, file)
            if twin is not file:
                message = (
                    f"migration {file.id!r}: {twin.path} and {path} have the same "
                    "name; rename the one that no database has applied"
                )
                raise MigrationFailed(message, migration=file.id)
    for file in found.values():
        # In a source with a name, its own files are meant first.
        prefix, colon, _ = file.id.rpartition(":")
        own = [f"{prefix}{colon}{needed}" for needed in file.depends]
        depends = tuple(
            near if near in found else far
            for near, far in zip(own, file.depends, strict=True)
        )
        found[file.id] = replace(file, depends=depends)
        for needed in depends:
            if needed not in found:
                message = (
                    f"migration {file.id!r}: it depends on {needed!r}, which is in "
                    "none of the sources; add the source or correct '-- depends:'"
                )
                raise MigrationFailed(message, migration=file.id)
    return list(found.values())


def read_file(path: Path, source: str) -> MigrationFile:
    """Read one migration file."""
    content = _content(path)
    identifier = path.stem
    if len(identifier) > _LONGEST_ID:
        message = (
            f"migration {identifier[:40]!r}…: the name has {len(identifier)} "
            f"characters, more than {_LONGEST_ID}; shorten it"
        )
        raise MigrationFailed(message, migration=identifier)
    text = _text_of(path, content)
    # Like the engine: directives count only above the first statement.
    head = _HEAD.match(text.replace("\r", "\n"))
    directives = head.group() if head and not is_python(path) else ""
    depends = " ".join(_DEPENDS.findall(directives)).split()
    transactional = _TRANSACTIONAL.search(directives)
    word = transactional[1].lower() if transactional else "true"
    if word not in {"true", "false"}:
        raise MigrationFailed(
            f"migration {identifier!r}: '-- transactional: {word}' is unclear; write "
            "true or false",
            migration=identifier,
        )
    return MigrationFile(
        id=identifier,
        path=path,
        source=source,
        checksum=hashlib.sha256(content).hexdigest(),
        depends=tuple(dict.fromkeys(depends)),
        transactional=word == "true",
    )


def migration_paths(folder: Path) -> list[Path]:
    """Files of *folder* that are migrations, sorted; no ``post-apply`` hooks."""
    return [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in {".sql", ".SQL", ".py"}
        and not path.name.lower().endswith(_ROLLBACK)
        and not path.name.startswith(("post-apply", "_", "."))
        and (path.is_file() or (path.is_symlink() and not path.exists()))
    ]


def source_name(folder: Path) -> str:
    """Name of an application's folder: the end of its path, same everywhere."""
    return "/".join(folder.parts[-2:]).lstrip("/")
