"""The shapes of log lines, as regular expressions with named groups."""

from __future__ import annotations

import re

from fm_storage.catalog.logs.timestamps import ZONE

__all__ = [
    "ACCESS",
    "APACHE",
    "BARE",
    "COMPOSE",
    "GO_PLACE",
    "IN_MESSAGE",
    "KLOG",
    "LOGFMT",
    "LOGFMT_START",
    "LOWER_RESTS",
    "PLAIN_STAMP",
    "RESTS",
    "SLASHED",
    "SOUNDS_BAD",
    "STAMP",
    "SYSLOG_3164",
    "SYSLOG_5424",
]

_LEVEL = (
    r"(?P<level>TRACE|VERBOSE|DEBUG|FINE(?:R|ST)?|INFO(?:RMATION)?|NOTICE|WARN(?:ING)?"
    r"|ERR(?:OR)?|SEVERE|CRIT(?:ICAL)?|FATAL|ALERT|EMERG(?:ENCY)?|D?PANIC|SUCCESS|AUDIT)"
)

RESTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.VERBOSE))
    for name, pattern in (
        (
            "openstack",
            rf"""(?P<pid>\d+)[ ]{_LEVEL}[ ](?P<module>[\w.]+)[ ]
                 (?:\[(?P<request>[^\]]*)\][ ]?)?(?P<message>.*)""",
        ),
        (
            "bracketed",
            rf"""{_LEVEL}\s+\[(?P<module>[A-Za-z_]\w*(?:\.\w+)+)\]\s+
                 (?P<message>(?![\w.$]+\s*[:-]\s).*)""",
        ),
        (
            "log4j",
            rf"""{_LEVEL}\s+\[(?P<thread>.*?)\]\s+(?P<module>[\w.$/-]+)\s*
                 (?::|-)\s?(?P<message>.*)""",
        ),
        (
            "zookeeper",
            rf"""-\s+{_LEVEL}\s+\[(?P<thread>.*?):{{1,2}}(?P<module>[\w$.]+)
                 @(?P<line>\d+)\]\s+-\s?(?P<message>.*)""",
        ),
        (
            "logback",
            rf"""\[(?P<thread>[^\]]*)\]\s+{_LEVEL}\s+(?P<module>[\w.$]+)\s+
                 [-:]\s?(?P<message>.*)""",
        ),
        (
            "spring",
            rf"""{_LEVEL}\s+(?P<pid>\d+)[ ]---[ ](?:\[[^\]]*\][ ])?
                 \[(?P<thread>[^\]]*)\]\s+(?P<module>\S+)\s*:\s?(?P<message>.*)""",
        ),
        (
            "loguru",
            rf"""\|\s*{_LEVEL}\s*\|\s*(?P<module>[\w.]+):(?P<function>[\w<>.]+):
                 (?P<line>\d+)\s+-\s?(?P<message>.*)""",
        ),
        (
            "python",
            rf"""[-|]\s*(?P<module>[\w./-]+)\s+[-|]\s*{_LEVEL}\s*
                 [-|]\s?(?P<message>.*)""",
        ),
        (
            "leveled",
            rf"""[-|]\s*{_LEVEL}\s*[-|]\s*(?P<module>[\w./-]+)\s*
                 [-|]\s?(?P<message>.*)""",
        ),
        (
            "postgres",
            r"""(?:[A-Z]{3,5}[ ])?\[(?P<pid>\d+)(?:-\d+)?\](?:[ ][\w@\[\]-]+)*?[ ]
                (?P<level>LOG|DETAIL|HINT|STATEMENT|CONTEXT|DEBUG\d?|INFO|NOTICE
                |WARNING|ERROR|FATAL|PANIC):\s+(?P<message>.*)""",
        ),
        ("flask", rf"{_LEVEL}[ ]in[ ](?P<module>[\w.]+):[ ](?P<message>.*)"),
        (
            "tracing",  # of Rust, with the spans that were open
            rf"""{_LEVEL}\s+(?:[\w-]+(?:\{{[^}}]*\}})?:)*?\s*
                 (?P<module>[A-Za-z_]\w*(?:::\w+)+):\s(?P<message>.*)""",
        ),
        (
            "env_logger",
            rf"""{_LEVEL}\s+(?P<module>[A-Za-z_]\w*(?:::\w+)*)\]\s(?P<message>.*)""",
        ),
        (
            "named",
            rf"""{_LEVEL}[\]:]?\s+(?:-\s+)?\[?
                 (?P<module>[A-Za-z_][\w$]*(?:[./][\w$-]+)*)\]?(?:\[\d+\])?\s*
                 (?::|\s-)\s(?P<message>.*)""",
        ),
        ("gunicorn", rf"\[(?P<pid>\d+)\][ ]\[?{_LEVEL}\]?:?\s+(?P<message>.*)"),
        (
            "plain",
            rf"""(?:[-|]\s*)?[\[(<]?{_LEVEL}[\])>]?(?:\s*[:|-])?(?:\s+|$)
                 (?P<message>.*)""",
        ),
        (
            "near",
            rf"""(?P<before>[^a-z]{{0,8}}\S{{0,48}}?(?:\s+\S{{1,48}}){{0,3}}?\s*)
                 [\[(<|]?\b{_LEVEL}\b[\])>|]?(?:\s*[:|-])?\s+(?P<message>.*)""",
        ),
    )
)
"""What follows an ISO timestamp, the more telling forms first."""

LOWER_RESTS = re.compile(
    r"(?:\[(?P<level>trace|debug|info|notice|warn(?:ing)?|error|crit|alert|emerg|fatal)\]|"
    r"(?P<bare>trace|debug|info|warn(?:ing)?|error|fatal)\b:?)\s*"
    r"(?:(?P<pid>\d+)#\d+:\s*)?(?P<message>.*)"
)
STAMP = re.compile(
    r"(?:(?P<file>[^\s\[<{]\S*)(?P<bar>\s+\|)?\s+)?\[?"
    r"(?P<at>\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d(?:[.,]\d{1,9})?)?)"
    rf"\s?(?P<zone>{ZONE})?\]?:?\s*"
)
PLAIN_STAMP = re.compile(
    r"(?P<at>\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
    rf"(?!\s?{ZONE}|[.,\d\]:])\s*"
)
"""What ``STAMP`` finds in most logs, in a third of the time."""
SLASHED = re.compile(
    r"(?P<at>\d{4}/\d\d/\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,9})?)\s+(?P<rest>.*)", re.DOTALL
)
GO_PLACE = re.compile(r"(?P<place>[\w./-]+\.go:\d+): (?P<message>.*)", re.DOTALL)
APACHE = re.compile(
    r"\[(?P<at>[A-Z][a-z]{2} [A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)? \d{4})\] "
    r"\[(?:(?P<module>[\w-]+):)?(?P<level>[a-z]+\d?)\] ?"
    r"(?:\[pid (?P<pid>\d+)(?::tid (?P<tid>\d+))?\] )?"
    r"(?:\[client (?P<client>[^\]]+)\] )?(?P<message>.*)",
    re.DOTALL,
)
ACCESS = re.compile(
    r"(?P<client>\S+) \S+ \S+ "
    r"\[(?P<at>\d\d/[A-Z][a-z]{2}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4})\] "
    r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3}) (?P<size>\d+|-)(?P<more>.*)',
    re.DOTALL,
)
SYSLOG_5424 = re.compile(
    r"<(?P<priority>\d{1,3})>\d{1,2} (?P<at>\S+) (?P<host>\S+) (?P<app>\S+) "
    r"(?P<pid>\S+) (?P<id>\S+) "
    r"(?:-|(?P<data>(?:\[(?:[^\]\"\\]|\"(?:[^\"\\]|\\.)*\"|\\.)*\])+))"
    r"(?: \ufeff?(?P<message>.*))?$",
    re.DOTALL,
)
SYSLOG_3164 = re.compile(
    r"(?:<(?P<priority>\d{1,3})>)?(?:(?P<at>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d)"
    r"|(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d))) "
    r"(?P<host>[\w.:-]+) (?P<app>[\w./@() -]{1,64}?)(?:\[(?P<pid>\d+)\])?: "
    r"(?P<message>.*)",
    re.DOTALL,
)
KLOG = re.compile(
    r"(?P<level>[IWEF])(?P<month>\d\d)(?P<day>\d\d) (?P<at>\d\d:\d\d:\d\d(?:\.\d+)?)\s+"
    r"(?P<pid>\d+) (?P<place>[\w./-]+:\d+)\] ?(?P<message>.*)",
    re.DOTALL,
)
BARE = re.compile(
    rf"\[?(?:{_LEVEL})\]?(?:(?::(?P<module>[\w.-]+):)|:?\s+)(?P<message>\S.*)",
    re.DOTALL,
)
LOGFMT = re.compile(r'([\w.@/-]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?:\s+|$)')
LOGFMT_START = re.compile(r'(?:[\w.@/-]+=(?:"(?:[^"\\]|\\.)*"|[^\s"]*)\s+){2}')
COMPOSE = re.compile(r"[\w.-]+\s+\| ")
IN_MESSAGE = re.compile(rf"^\W*{_LEVEL}\b[\]:\s]", re.IGNORECASE)
SOUNDS_BAD = re.compile(
    r"\b(?:error|exception|fail(?:ed|ure|s)?|fatal|panic|cannot|unable|refused|denied"
    r"|traceback|segfault|out of memory)\b",
    re.IGNORECASE,
)
