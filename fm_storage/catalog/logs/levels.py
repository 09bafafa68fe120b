"""Severities of log lines: the levels of all logging systems, mapped to ours."""

from __future__ import annotations

from fm_storage.catalog.logs import patterns

SEVERITIES = {
    "trace": "DEBUG", "verbose": "DEBUG", "debug": "DEBUG", "fine": "DEBUG",
    "finer": "DEBUG", "finest": "DEBUG", "config": "DEBUG", "v": "DEBUG", "d": "DEBUG",
    "info": "INFO", "information": "INFO", "informational": "INFO", "notice": "INFO",
    "log": "INFO", "i": "INFO", "success": "INFO", "audit": "INFO", "hint": "INFO",
    "detail": "INFO", "statement": "INFO",
    "warn": "WARNING", "warning": "WARNING", "w": "WARNING",
    "err": "ERROR", "error": "ERROR", "severe": "ERROR", "e": "ERROR", "eror": "ERROR",
    "fatal": "CRITICAL", "crit": "CRITICAL", "critical": "CRITICAL", "f": "CRITICAL",
    "alert": "CRITICAL", "emerg": "CRITICAL", "emergency": "CRITICAL",
    "panic": "CRITICAL", "dpanic": "CRITICAL", "a": "CRITICAL", "any": "INFO",
    "vrb": "DEBUG", "dbg": "DEBUG", "inf": "INFO", "wrn": "WARNING", "ftl": "CRITICAL",
    "trce": "DEBUG", "dbug": "DEBUG", "fail": "ERROR", "failure": "ERROR",
    "erro": "ERROR", "fata": "CRITICAL", "debu": "DEBUG", "trac": "DEBUG",
    "pani": "CRITICAL", "note": "INFO", "system": "INFO", "failed": "ERROR",
    "c": "CRITICAL", "silly": "DEBUG", "http": "INFO",
    "unknown": "INFO", "default": "INFO",
    "fatal error": "CRITICAL", "parse error": "CRITICAL", "core error": "CRITICAL",
    "recoverable fatal error": "CRITICAL", "user error": "ERROR",
    "user warning": "WARNING", "user notice": "INFO", "deprecated": "WARNING",
    "internal server error": "ERROR", "service unavailable": "ERROR",
    "bad request": "WARNING", "not found": "WARNING", "forbidden": "WARNING",
    "unauthorized": "WARNING", "method not allowed": "WARNING",
    "#": "WARNING", "*": "INFO", "-": "INFO", ".": "DEBUG",
    "d1": "DEBUG", "d2": "DEBUG", "d3": "DEBUG", "d4": "DEBUG", "d5": "DEBUG",
}  # fmt: skip
"""Names and signs of levels, in lower case."""

SYSLOG = (
    "CRITICAL",
    "CRITICAL",
    "CRITICAL",
    "ERROR",
    "WARNING",
    "INFO",
    "INFO",
    "DEBUG",
)
"""The levels of syslog by number."""

_BUNYAN = ((60, "CRITICAL"), (50, "ERROR"), (40, "WARNING"), (30, "INFO"), (0, "DEBUG"))


def severity_of(level: object) -> str | None:
    """Return the ``Severity`` meant by the level of any logging system, or None."""
    if isinstance(level, str):
        known = SEVERITIES.get(level) or SEVERITIES.get(level.strip().lower())
        if known is not None or not level.strip().isdecimal():
            return known
        level = float(level)
    if isinstance(level, int | float) and not isinstance(level, bool):
        if 0 <= level < len(SYSLOG):
            return SYSLOG[int(level)]
        for least, name in _BUNYAN:
            if level >= least:
                return name
    return None


def severity_of_status(status: int) -> str:
    """Return the severity of an answer of HTTP."""
    return "ERROR" if status >= 500 else "WARNING" if status >= 400 else "INFO"


def guess_severity(message: str) -> str:
    """Return a severity for a line that names none, from its words."""
    named = patterns.IN_MESSAGE.match(message)
    if named is not None:
        return SEVERITIES.get(named["level"].lower(), "INFO")
    answer = patterns.HTTP_STATUS.search(message)
    if answer is not None:
        return severity_of_status(int(answer[1] or answer[2]))
    return "ERROR" if patterns.SOUNDS_BAD.search(message[:200]) else "INFO"
