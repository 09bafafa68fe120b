"""The shapes of log lines, as regular expressions with named groups."""

from __future__ import annotations

import re
from typing import NamedTuple

from fm_storage.catalog.logs.timestamps import ZONE

_LEVEL = (
    r"(?P<level>TRACE|VERBOSE|DEBUG|FINE(?:R|ST)?|INFO(?:RMATION)?|NOTICE|WARN(?:ING)?"
    r"|ERR(?:OR)?|SEVERE|CRIT(?:ICAL)?|FATAL|ALERT|EMERG(?:ENCY)?|D?PANIC|SUCCESS|AUDIT"
    r"|VRB|DBG|INF|WRN|FTL)"
)

_REQUEST = r'"(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d{3})\b'

RESTS: tuple[tuple[str, re.Pattern[str]], ...] = tuple(
    (name, re.compile(pattern, re.VERBOSE))
    for name, pattern in (
        ("celery", rf"{_LEVEL}/(?P<thread>[\w-]+)\][ ](?P<message>.*)"),
        ("scrapy", rf"\[(?P<module>[A-Za-z_][\w.]*)\][ ]{_LEVEL}:[ ](?P<message>.*)"),
        (
            "zap",
            rf"""{_LEVEL}\t(?:(?P<module>[\w.-]+)\t)?(?P<place>[\w./-]+\.go:\d+)\t
                 (?P<message>.*)""",
        ),
        ("lambda", rf"(?P<request>[0-9a-f-]{{36}})\t{_LEVEL}\t(?P<message>.*)"),
        (
            "elasticsearch",
            rf"\[{_LEVEL}\s*\]\[(?P<module>[\w.$]+)\s*\]\s*(?P<message>.*)",
        ),
        (
            "logcat",
            r"""(?P<pid>\d+)\s+(?P<tid>\d+)[ ](?P<level>[VDIWEFA])[ ]
                (?P<module>[^:]*?)\s*:[ ](?P<message>.*)""",
        ),
        (
            "actions",  # of GitHub
            r"\#\#\[(?P<level>error|warning|debug|notice)\](?P<message>.*)",
        ),
        (
            "servicing",  # of Windows
            r",\s+(?P<level>Info|Warning|Error)\s+(?P<module>\w+)\s+(?P<message>.*)",
        ),
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
            "kafka",
            rf"{_LEVEL}[ ](?P<message>.*)[ ]\((?P<module>[A-Za-z_]\w*(?:\.[\w$]+)+)\)$",
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
    r"(?:\[(?P<level>trace|debug|info|notice|warn(?:ing)?|error|crit|alert|emerg|fatal)\]:?|"
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
BARE = re.compile(
    rf"\[?(?:{_LEVEL})\]?(?:(?::(?P<module>[\w.-]+):)|:?\s+)(?P<message>\S.*)",
    re.DOTALL,
)
LOGFMT = re.compile(r'([\w.@/-]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?:\s+|$)')
LOGFMT_START = re.compile(r'(?:[\w.@/-]+=(?:"(?:[^"\\]|\\.)*"|[^\s"]*)\s+){2}')
COMPOSE = re.compile(r"[\w.-]+\s+\| ")
IN_MESSAGE = re.compile(rf"^\W*{_LEVEL}\b[\]:\s]", re.IGNORECASE)
HTTP_STATUS = re.compile(
    r'"(?:[A-Z]{3,7}) [^"]* HTTP/[\d.]+" (\d{3})\b|(?: -?\d+(?:/[+-]?\d+){4}) (\d{3}) '
)
"""The status in the line of a web server or proxy."""
SOUNDS_BAD = re.compile(
    r"\b(?:error|exception|fail(?:ed|ure|s)?|fatal|panic|cannot|unable|refused|denied"
    r"|traceback|segfault|out of memory)\b",
    re.IGNORECASE,
)


class Format(NamedTuple):
    """A layout of log lines.

    Attributes:
        name: Its name, as in ``IngestReport.formats``.
        pattern: Matches a whole first line. Groups *at* (ISO 8601), or *year*,
            *month*, *day* with *clock* or *hour*, *minute*, *second*, or *epoch*
            are its time, *zone* the zone; *level*, *priority* (of syslog) or
            *status* (of HTTP) are its severity; *module* and *message* speak for
            themselves; all other groups go into the context.
        example: A line that it matches.
    """

    name: str
    pattern: re.Pattern[str]
    example: str


_CLOCK = r"(?P<clock>\d{1,2}:\d\d:\d\d(?:[.,]\d{1,9})?)"
_MONTH = r"(?P<month>[A-Z][a-z]{2})"
_AT = r"(?P<at>\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)"
_WEEKDAY = r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)"


def _format(name: str, pattern: str, example: str) -> Format:
    return Format(name, re.compile(pattern, re.DOTALL), example)


FORMATS = (
    _format(
        "access",
        r"(?:(?:[\w.-]+:\d+ )?(?P<client>\S+) \S+ \S+ )?"
        rf"\[(?P<day>\d\d)/{_MONTH}/(?P<year>\d{{4}})[: ]{_CLOCK}"
        rf"(?: (?P<zone>[+-]\d{{4}}))?\] {_REQUEST} (?:\d+|-).*",
        '10.0.0.7 - - [02/Jan/2026:10:11:12 +0100] "GET / HTTP/1.1" 500 157',
    ),
    _format(
        "envoy",
        rf"\[{_AT}(?P<zone>Z)\] {_REQUEST}.*",
        '[2026-01-02T10:11:12.345Z] "GET /api HTTP/1.1" 503 UF 0 91 10 -',
    ),
    _format(
        "haproxy",
        rf"(?P<client>[\da-fA-F.:]+) \[(?P<day>\d\d)/{_MONTH}/(?P<year>\d{{4}}):"
        rf"{_CLOCK}\] (?P<module>\S+) (?P<backend>\S+) [\d/+-]+ "
        r"(?P<status>\d{3}) "
        r".*?(?:\"(?P<request>[^\"]*)\")?",
        "10.0.0.7:51 [02/Jan/2026:10:11:12.345] web app/s1 0/0/1/2/3 503 217 - -"
        ' SC-- 1/1/0/0/0 0/0 "GET / HTTP/1.1"',
    ),
    _format(
        "apache",
        rf"\[{_WEEKDAY} {_MONTH} (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})\] "
        r"\[(?:(?P<module>[\w-]+):)?(?P<level>[a-z]+\d?)\] ?"
        r"(?:\[pid (?P<pid>\d+)(?::tid (?P<tid>\d+))?\] )?"
        r"(?:\[client (?P<client>[^\]]+)\] )?(?P<message>.*)",
        "[Fri Jan  2 10:11:12.345 2026] [core:error] [pid 31] file does not exist",
    ),
    _format(
        "klog",
        r"(?P<level>[IWEF])(?P<month>\d\d)(?P<day>\d\d) "
        rf"{_CLOCK}\s+(?P<pid>\d+) (?P<module>[\w./-]+):(?P<line>\d+)\] ?"
        r"(?P<message>.*)",
        "E0102 10:11:12.345678      31 pay.go:7] no money",
    ),
    _format(
        "spark",
        r"(?P<year>\d\d)/(?P<month>\d\d)/(?P<day>\d\d) "
        rf"{_CLOCK} {_LEVEL} (?P<module>[\w.$]+): (?P<message>.*)",
        "26/01/02 10:11:12 ERROR executor.Executor: task failed",
    ),
    _format(
        "hdfs",
        r"(?P<year>\d\d)(?P<month>\d\d)(?P<day>\d\d) "
        r"(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d) (?P<pid>\d+) "
        rf"{_LEVEL} (?P<module>[\w.$]+): (?P<message>.*)",
        "260102 101112 148 ERROR dfs.DataNode: block is lost",
    ),
    _format(
        "tomcat",
        rf"(?P<day>\d\d)-{_MONTH}-(?P<year>\d{{4}}) {_CLOCK} {_LEVEL} "
        r"\[(?P<thread>.*?)\] (?P<module>[\w.$<>]+) (?P<message>.*)",
        "02-Jan-2026 10:11:12.345 SEVERE [main] org.apache.Valve.invoke no",
    ),
    _format(
        "java.util.logging",
        rf"{_MONTH} (?P<day>\d{{1,2}}), (?P<year>\d{{4}}),? {_CLOCK} "
        r"(?P<half>[AP]M) (?P<module>[\w.$]+)(?: (?P<function>\S+))?(?P<message>)$",
        "Jan 02, 2026 10:11:12 AM com.shop.Cart pay",
    ),
    _format(
        "php",
        rf"\[(?P<day>\d\d)-{_MONTH}-(?P<year>\d{{4}}) {_CLOCK}"
        r"(?: (?P<zone>[\w/+-]+))?\] "
        r"(?:(?:PHP )?(?P<level>[A-Z][A-Za-z ]{2,20}): +)?"
        r"(?:\[pool (?P<module>\S+)\] )?(?P<message>.*)",
        "[02-Jan-2026 10:11:12 UTC] PHP Fatal error:  Uncaught TypeError in a.php:7",
    ),
    _format(
        "dmesg",
        rf"\[{_WEEKDAY} {_MONTH} (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}})\] "
        r"(?P<message>.*)",
        "[Fri Jan  2 10:11:12 2026] Out of memory: Killed process 31",
    ),
    _format(
        "monotonic",
        r"\[ *(?P<uptime>\d+\.\d{6})\] "
        r"(?:(?P<host>[\w.-]+) (?P<module>[\w.@-]+)\[(?P<pid>\d+)\]: )?"
        r"(?P<message>.*)",
        "[ 5125.123456] web1 systemd[1]: shop.service: Failed",
    ),
    _format(
        "logcat",
        rf"(?P<month>\d\d)-(?P<day>\d\d) {_CLOCK} +(?P<pid>\d+) +(?P<tid>\d+) "
        r"(?P<level>[VDIWEFA]) (?P<module>[^:]*?) *: ?(?P<message>.*)",
        "01-02 10:11:12.345  1702  2395 E WindowManager: no money",
    ),
    _format(
        "logcat brief",
        rf"(?:(?P<month>\d\d)-(?P<day>\d\d) {_CLOCK} )?(?P<level>[VDIWEFA])/"
        r"(?P<module>[^(]+?) *\( *(?P<pid>\d+)\): ?(?P<message>.*)",
        "E/WindowManager( 1702): no money",
    ),
    _format(
        "rich",
        r"\[(?P<month>\d\d)/(?P<day>\d\d)/(?P<year>\d\d) "
        rf"{_CLOCK}\] {_LEVEL} +(?P<message>.*?)(?: {{2,}}(?P<place>[\w./-]+:\d+))?$",
        "[01/02/26 10:11:12] ERROR    charge failed            pay.py:7",
    ),
    _format(
        "asctime",
        rf"{_WEEKDAY} {_MONTH} (?P<day>[ \d]\d) {_CLOCK} (?P<year>\d{{4}}):? "
        rf"(?:\[?{_LEVEL}\]?:? +)?(?P<message>.*)",
        "Fri Jan  2 10:11:12 2026 ERROR charge failed",
    ),
    _format(
        "redis",
        rf"(?P<pid>\d+):(?P<role>[MSCX]) (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) "
        rf"{_CLOCK} (?P<level>[.*#-]) (?P<message>.*)",
        "31:M 02 Jan 2026 10:11:12.345 # Out Of Memory",
    ),
    _format(
        "ruby",
        rf"[DIWEFAU], \[{_AT} \#(?P<pid>\d+)\] +(?P<level>[A-Z]+) -- "
        r"(?P<module>[^:]*): (?P<message>.*)",
        "E, [2026-01-02T10:11:12.345678 #31] ERROR -- shop: charge failed",
    ),
    _format(
        "cassandra",
        rf"{_LEVEL} +\[(?P<thread>[^\]]*)\] {_AT} (?P<module>\S+):(?P<line>\d+) - "
        r"(?P<message>.*)",
        "ERROR [main] 2026-01-02 10:11:12,345 CassandraDaemon.java:759 - no",
    ),
    _format(
        "level first",
        rf"\[?{_LEVEL}\]?:?[ \t]+\[?{_AT}\s?(?P<zone>{ZONE})?\]?[:,]?\s+"
        r"(?:(?P<module>[\w.]+) (?P<pid>\d+) (?P<tid>\d+) )?"
        r"(?:(?P<id>[0-9a-f-]{36})\t)?(?P<message>.*)",
        "ERROR 2026-01-02 10:11:12,345 views 31 140234 boom",
    ),
    _format(
        "csvlog",  # of PostgreSQL
        rf"{_AT} (?P<zone>{ZONE}),\"?(?P<user>[^\",]*)\"?,"
        r"\"?(?P<database>[^\",]*)\"?,"
        r"(?P<pid>\d+),\"?(?P<client>[^\",]*)\"?,[\da-f.]*,\d*,\"?[^\",]*\"?,"
        r"[^,]*,[^,]*,\d*,(?P<level>[A-Z]+\d?),(?P<state>\w*),"
        r"\"?(?P<message>(?:[^\"]|\"\")*)\"?,.*",
        '2026-01-02 10:11:12.345 UTC,"app","shop",31,"[local]",69.1f,7,"INSERT",'
        '2026-01-02 10:11:00 UTC,3/7,0,ERROR,23505,"duplicate key","Key (id)",',
    ),
    _format(
        "asp.net",
        r"(?P<level>trce|dbug|info|warn|fail|crit): (?P<module>[\w.]+)"
        r"\[(?P<event>\d+)\](?P<message>)$",
        "fail: Microsoft.AspNetCore.Server.Kestrel[13]",
    ),
    _format(
        "django",
        r"(?P<message>(?P<level>Internal Server Error|Service Unavailable"
        r"|Bad Request|Not Found|Forbidden|Unauthorized|Method Not Allowed)"
        r"(?: \([^)]*\))?: /.*)",
        "Internal Server Error: /admin",
    ),
    _format(
        "winston",
        r"(?P<level>error|warn|info|http|verbose|debug|silly): (?P<message>\S.*)",
        "error: charge failed",
    ),
    _format(
        "cluster",  # of Blue Gene and its like
        r"(?:-|[A-Z_]+) (?P<epoch>\d{10}) \d{4}\.\d\d\.\d\d (?P<host>\S+) "
        r"(?:\d{4}-\d\d-\d\d-[\d.]+ \S+ (?P<kind>\w+) (?P<module>\w+) "
        r"(?P<level>[A-Z]+) |[A-Z][a-z]{2} [ \d]?\d [\d:]{8} \S+ "
        r"(?P<app>[^:\[]+)(?:\[(?P<pid>\d+)\])?: )(?P<message>.*)",
        "- 1767348672 2026.01.02 R2 2026-01-02-10.11.12.345 R2 RAS KERNEL FATAL no",
    ),
    _format(
        "node state",
        r"(?P<id>\d+) (?P<host>\S+) (?P<module>[\w.]+) (?P<state>[\w.]+) "
        r"(?P<epoch>\d{9,10}) \d (?P<message>.*)",
        "134681 node-246 unix.hw state_change.unavailable 1767348672 1 Link error",
    ),
    _format(
        "proxy",
        r"\[(?P<month>\d\d)\.(?P<day>\d\d) "
        rf"{_CLOCK}\] (?P<module>[\w.-]+)(?: \*64)? - (?P<message>.*)",
        "[01.02 10:11:12] chrome.exe - proxy.test:5070 error",
    ),
    _format(
        "piped",
        r"(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d)-(?P<hour>\d{1,2}):"
        r"(?P<minute>\d{1,2}):(?P<second>\d{1,2})(?::\d+)?\|(?P<module>\w+)\|"
        r"(?P<pid>\d+)\|(?P<message>.*)",
        "20260102-10:11:12:345|Step_LSC|30002312|no steps",
    ),
)
"""Layouts that are recognised by one pattern, the more telling ones first."""
