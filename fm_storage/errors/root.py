"""The root of the tree, and the one error that every room raises."""

from __future__ import annotations

from typing import Any


class StorageError(Exception):
    """Root of the tree.

    Attributes:
        retryable: Whether the same call, made again later and unchanged, may
            succeed. For a transaction that means the whole body.
        sqlstate: PostgreSQL's five-character code, where the server gave one.
        constraint: Name of the violated constraint, where the server gave one.
        table: Name of the table concerned, where the server gave one.
        column: Name of the column concerned, where the server gave one.
    """

    retryable: bool = False
    sqlstate: str | None = None
    constraint: str | None = None
    table: str | None = None
    column: str | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel between processes whole, whatever the constructor asks for."""
        return _rebuilt, (type(self), self.args, self.__dict__)


def _rebuilt(
    kind: type[StorageError], args: tuple[Any, ...], state: dict[str, Any]
) -> StorageError:
    made = kind.__new__(kind)
    made.args = args
    made.__dict__.update(state)
    return made


class ConfigurationInvalid(StorageError, ValueError):
    """A setting is missing, unknown or wrong.

    Attributes:
        key: Dotted key of the first wrong setting (``postgres.max_size``).
        problems: Every wrong setting as ``(key, what is wrong and the remedy)``.
        section: The keys' common start, which a surrounding section replaces.
    """

    def __init__(self, key: str, problem: str, *more: tuple[str, str]) -> None:
        self.key = key
        self.problems = ((key, problem), *more)
        self.section = ""
        super().__init__("; ".join(f"{k}: {p}" for k, p in self.problems))
