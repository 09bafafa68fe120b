"""What may be shown of a statement: its operation, and its text without literals."""

from __future__ import annotations

import re
from functools import lru_cache

from fm_storage.errors import InvalidRecord
from fm_storage.postgres.tokens import tokens

QUERIES = frozenset(
    ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "TABLE", "WITH")
) | {"EXPLAIN"}
"""Operations whose statements take parameters."""
_UTILITY = re.compile(
    r"""
      ABORT | ALTER | ANALYZE | BEGIN | CALL | CHECKPOINT | CLOSE | CLUSTER | COMMENT
    | COMMIT | COPY | CREATE | DEALLOCATE | DECLARE | DISCARD | DO | DROP | END
    | EXECUTE | FETCH | GRANT | IMPORT | LISTEN | LOAD | LOCK | MOVE | NOTIFY | PREPARE
    | REASSIGN | REFRESH | REINDEX | RELEASE | RESET | REVOKE | ROLLBACK | SAVEPOINT
    | SECURITY | SET | SHOW | START | TRUNCATE | UNLISTEN | VACUUM
    """,
    re.VERBOSE,
)
_AFTER_WITH = QUERIES - {"WITH", "EXPLAIN"}


@lru_cache(maxsize=1024)
def described(sql: str) -> tuple[str, str]:
    """Return the operation of *sql*, one of the server's commands, and its text.

    Strings become ``?``. So do numbers in statements that take no parameters, in
    which values can only stand as literals: a view's definition, for example.
    """
    shown: list[str] = []
    operation, depth, at = "", 0, 0
    try:
        for token in tokens(sql):
            word = token.text.upper() if token.kind == "word" else ""
            if not operation and word:
                known = word in QUERIES or _UTILITY.fullmatch(word)
                operation = word if known else "OTHER"
            elif operation == "WITH" and not depth and word in _AFTER_WITH:
                operation = word
            depth += (token.text == "(") - (token.text == ")")
            if token.kind in {"string", "dollar"} or (
                token.kind == "number" and operation not in QUERIES
            ):
                shown += (sql[at : token.start], "?")
                at = token.end
    except InvalidRecord:  # the server will refuse it; its end may be anything
        return operation or "OTHER", "?"
    return operation or "EMPTY", "".join((*shown, sql[at:]))
