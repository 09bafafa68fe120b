"""The shapes of log lines, as regular expressions with named groups."""

from __future__ import annotations

import re
from typing import NamedTuple

from fm_storage.catalog.logs.timestamps import ZONE

_LEVEL = (
    r"(?P<level>TRACE?|VERBOSE|DEBUG?|FINE(?:R|ST)?|INFO(?:RMATION)?|NOTICE|WARN(?:ING)?"
    r"|ERR(?:OR?)?|SEVERE|CRIT(?:ICAL)?|FATAL|ALERT|EMERG(?:ENCY)?|D?PANIC|SUCCESS|AUDIT"
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
            rf"""{_LEVEL}\t(?:(?P<module>[\w.-]+)\t)?
                 (?:(?P<place>[\w./-]+\.go:\d+)\t)?(?P<message>.*)""",
        ),
        (
            "zap lower",  # of Istio, InfluxDB
            r"""(?P<level>trace|debug|info|warn|error|d?panic|fatal)\t
                (?:(?P<module>[\w.-]+)\t)?(?:(?P<place>[\w./-]+\.go:\d+)\t)?
                (?P<message>.*)""",
        ),
        (
            "tagged",
            r"""\[(?P<module>[\w.:-]+)\][ ](?P<level>trace|debug|verbose|info|warn|error
                |fatal):[ ](?P<message>.*)""",
        ),
        (
            "twisted",
            r"""\[(?P<module>[\w.]+)\#(?P<level>debug|info|warn|error|critical)\][ ]
                (?P<message>.*)""",
        ),
        (
            "sidekiq",
            rf"""pid=(?P<pid>\d+)[ ]tid=(?P<tid>\S+)[ ](?:\w+=\S+[ ])*{_LEVEL}:[ ]
                 (?P<message>.*)""",
        ),
        (
            "salt",
            rf"""\[(?P<module>[\w.]+)\s*:\d+\s*\]\[{_LEVEL}\s*\]\[(?P<pid>\d+)\][ ]
                 (?P<message>.*)""",
        ),
        (
            "fail2ban",
            rf"(?P<module>[\w.]+)\s+\[(?P<pid>\d+)\]:[ ]{_LEVEL}\s+(?P<message>.*)",
        ),
        (
            "odoo",
            rf"""(?P<pid>\d+)[ ]{_LEVEL}[ ][\w?-]+[ ](?P<module>\w+(?:\.\w+)+):[ ]
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
        ("monolog", rf"(?P<module>[\w-]+)\.{_LEVEL}:[ ](?P<message>.*)"),
        (
            "clickhouse",
            r"""\[[ ]?(?P<tid>\d+)[ ]\][ ]\{(?P<request>[^}]*)\}[ ]<(?P<level>\w+)>[ ]
                (?P<module>[^:]+):[ ](?P<message>.*)""",
        ),
        (
            "mongodb",
            r"""(?P<level>[FEWID])\d?[ ]+(?P<module>[A-Z_]{3,})[ ]+
                \[(?P<thread>[^\]]*)\][ ](?P<message>.*)""",
        ),
        (
            "open vswitch",
            rf"\|\d+\|(?P<module>[\w()]+)\|{_LEVEL}\|(?P<message>.*)",
        ),
        (
            "bind",
            r"""(?P<module>[\w-]+):[ ](?P<level>critical|error|warning|notice|info
                |debug)(?:[ ]\d+)?:[ ](?P<message>.*)""",
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
            rf"""{_LEVEL}\s+\[(?P<module>[A-Za-z_]\w*(?:\.\w+)+)\]\s+(?:-\s+)?
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
                 (?:\[[^\]]*\]\s+)?--?:?\s?(?P<message>.*)""",
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
                 (?P<module>[A-Za-z_][\w$]*(?:(?:[./]|::)[\w$-]+)*)\]?(?:\[\d+\])?
                 (?:\s+\[[^\]]*\])?\s*(?::|\s-)\s(?P<message>.*)""",
        ),
        (
            "category",
            rf"""\[{_LEVEL}\]\s+(?P<module>[\w.-]+(?=[ ]-)|[a-z][\w.-]*(?=:))
                 (?::|[ ]-)[ ](?P<message>.*)""",
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
    r"(?:(?:\d+ )?\[(?P<level>(?i:trace|debug|info|note|notice|warn(?:ing)?|error"
    r"|system|crit(?:ical)?|alert|emerg|fatal))\]:?|"
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
INDENTED = re.compile(
    r" {2,4}(?=\d{4}[-/]\d\d[-/]\d\d[T ][\d:.]+Z? +"
    rf"\[?{_LEVEL})"
)
"""In front of the line of a formatter that indents its first line, too."""
GO_PLACE = re.compile(r"(?P<place>[\w./-]+\.go:\d+): (?P<message>.*)", re.DOTALL)
SYSLOG_5424 = re.compile(
    r"<(?P<priority>\d{1,3})>\d{1,2} (?P<at>\S+) (?P<host>\S+) (?P<app>\S+) "
    r"(?P<pid>\S+) (?P<id>\S+) "
    r"(?:-|(?P<data>(?:\[(?:[^\]\"\\]|\"(?:[^\"\\]|\\.)*\"|\\.)*\])+))"
    r"(?: \ufeff?(?P<message>.*))?$",
    re.DOTALL,
)
SYSLOG_3164 = re.compile(
    r"(?:<(?P<priority>\d{1,3})>)?"
    r"(?:(?P<at>[A-Z][a-z]{2} [ \d]\d \d\d:\d\d:\d\d(?:\.\d+)?)"
    r"|(?P<iso>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?(?:Z|[+-]\d\d:?\d\d))) +"
    r"(?:(?P<host>[\w.:-]*[\w.-]) )?(?P<app>[\w./@() -]{1,64}?)(?:\[(?P<pid>\d+)\])?"
    r"(?: \([^)]*\))?: "
    r"(?P<message>.*)",
    re.DOTALL,
)
BARE = re.compile(
    rf"\[?(?:{_LEVEL})\]?(?:(?::(?P<module>[\w.-]+):)|:?\s+)(?P<message>\S.*)",
    re.DOTALL,
)
LOGFMT = re.compile(r'([\w.@/-]+)=("(?:[^"\\]|\\.)*"|[^\s"]*)(?:\s+|$)')
LOGFMT_START = re.compile(r'(?:[\w.@/-]+=(?:"(?:[^"\\]|\\.)*"|[^\s"]*)\s+){2}')
COMPOSE = re.compile(r"(?P<service>[\w.-]+)\s+\| |\[pod/(?P<pod>[^\]\s]+)\] ")
IN_MESSAGE = re.compile(rf"^\W*{_LEVEL}\b[\]:\s]", re.IGNORECASE)
HTTP_STATUS = re.compile(
    r'"(?:[A-Z]{3,7}) [^"]* HTTP/[\d.]+" (\d{3})\b|(?: -?\d+(?:/[+-]?\d+){4}) (\d{3}) '
)
"""The status in the line of a web server or proxy."""
SOUNDS_BAD = re.compile(
    r"\b(?:error|exception|fail(?:ed|ure|s)?|fatal|panic|cannot|unable|refused|denied"
    r"|traceback|segfault|out of memory|timed out|is down|crash(?:ed)?"
    r"|corrupt(?:ed)?)\b",
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
_YEAR, _DAY = r"(?P<year>\d{4})", r"(?P<day>\d{1,2})"
_HALF = r"(?P<half>[AP]M)"
_SLASHED = r"[/.](?P<month>\d\d)[/.](?P<day>\d\d)"
_DIGITS = r"(?P<month>\d\d)(?P<day>\d\d)"
_NAMED = rf"(?:{_WEEKDAY},? )?{_DAY}[ -]{_MONTH}"
_TIME = r"(?P<hour>\d\d)(?P<minute>\d\d)(?P<second>\d\d(?:[.,]\d+)?)"
_NUMBERS = r"(?P<month>\d{1,2})/(?P<day>\d{1,2})/(?P<year>\d{4})"

STAMPS = tuple(
    (re.compile(rf"(?:\[(?P<pid>\d+)\] )?[\[(]?{pattern}[\])]?:?\s+"), alone)
    for pattern, alone in (
        (rf"{_YEAR}{_SLASHED}[ -]{_CLOCK}", True),
        (rf"{_YEAR}{_DIGITS}[T -]{_CLOCK}", True),
        (rf"{_YEAR}{_DIGITS}T{_TIME}(?P<zone>{ZONE})?", True),
        (rf"{_NAMED}[ -]{_YEAR},?[ :]{_CLOCK}(?: (?P<zone>{ZONE}))?", True),
        (rf"{_DAY}\.(?P<month>\d\d)\.{_YEAR},? {_CLOCK}", True),
        (rf"{_NUMBERS},? {_CLOCK}(?: {_HALF})?", True),
        (rf"(?P<day>\d\d) {_MONTH} {_CLOCK}", False),
        (rf"{_MONTH} +{_DAY} {_CLOCK}", False),
        (rf"(?P<year>\d\d){_DIGITS} {{1,2}}{_CLOCK}", False),
        (r"(?P<epoch>\d{10}(?:\.\d{1,9})?|\d\.\d{6,}e\+?09)", False),
        (rf"(?P<clock>\d{{1,2}}:\d\d(?::\d\d(?:[.,]\d{{1,9}})?)?) ?{_HALF}", False),
        (r"(?P<clock>\d\d:\d\d:\d\d(?:[.,]\d{1,9})?)", False),
    )
)
"""Dates that are not ISO 8601, and whether one begins an entry without a level."""


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
        "gin",
        rf"\[GIN\] {_YEAR}/(?P<month>\d\d)/(?P<day>\d\d) - {_CLOCK} \| +"
        r"(?P<status>\d{3}) \| +\S+ \| +(?P<client>\S+) \| (?P<request>[A-Z]+ .*)",
        '[GIN] 2026/01/02 - 10:11:12 | 500 | 1.23ms | 10.0.0.7 | POST     "/pay"',
    ),
    _format(
        "uwsgi",
        r"\[pid: (?P<pid>\d+)\|app: [^\]]*\] (?P<client>\S+) .*?"
        rf"\[{_WEEKDAY} {_MONTH} (?P<day>[ \d]\d) {_CLOCK} {_YEAR}\] "
        r"(?P<request>[A-Z]+ \S+) => .*?\(HTTP/[\d.]+ (?P<status>\d{3})\).*",
        "[pid: 31|app: 0|req: 7/9] 10.0.0.7 () {40 vars in 512 bytes} [Fri Jan  2 "
        "10:11:12 2026] GET /pay => generated 0 bytes in 5 msecs (HTTP/1.1 500) 2",
    ),
    _format(
        "http.sys",
        rf"{_AT} (?P<client>[\d.:a-f]+) \d+ [\d.:a-f]+ \d+ HTTP/[\d.]+ "
        r"(?P<request>[A-Z]+ \S+) (?P<status>\d{3}) .*",
        "2026-01-02 10:11:12 10.0.0.7 51 10.0.0.1 80 HTTP/1.1 GET /pay 503 1 Offline",
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
        "cisco",
        rf"(?:\d+: )?[*.]?{_MONTH} +{_DAY} (?:{_YEAR} )?{_CLOCK}"
        rf"(?: (?P<zone>{ZONE}))?(?: (?P<host>[\w.-]+))? ?: "
        r"%(?P<module>[A-Z]\w*(?:-[A-Z]\w*)*)-(?P<priority>[0-7])-(?P<id>\w+): "
        r"(?P<message>.*)",
        "000123: Jan  2 2026 10:11:12.345 UTC: %LINK-3-UPDOWN: Interface is down",
    ),
    _format(
        "dmesg decoded",
        r"(?P<module>kern|user|daemon|auth|syslog) *:(?P<level>\w+) *: "
        r"\[ *(?P<uptime>\d+\.\d+)\] (?P<message>.*)",
        "kern  :err   : [ 5125.123456] ata1.00: failed command: READ",
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
        "iis",
        rf"{_AT} (?:(?P<site>W3SVC\d+) (?P<host>\S+) )?[\d.:a-f]+ "
        r"(?P<request>[A-Z]{3,8} \S+ \S+) \d+ \S+ (?P<client>\S+)"
        r"(?: \S+){1,6}? (?P<status>[1-5]\d\d) \d+ \d+ \d+.*",
        "2026-01-02 10:11:12 10.0.0.1 GET /pay - 443 - 10.0.0.7 curl - 500 0 0 31",
    ),
    _format(
        "load balancer",  # of AWS
        rf"(?:https?|h2|grpcs?|wss?) {_AT}Z \S+ (?P<client>\S+) \S+ \S+ \S+ \S+ "
        r"(?P<status>\d{3}) \S+ \d+ \d+ \"(?P<request>[^\"]*)\".*",
        "http 2026-01-02T10:11:12.345678Z app/lb/1 10.0.0.7:51 10.0.0.9:80 0.1 0.1"
        ' 0.1 502 502 34 366 "GET http://x.test:80/ HTTP/1.1" "curl"',
    ),
    _format(
        "squid",
        r"(?P<epoch>\d{10}\.\d{3}) +\d+ (?P<client>\S+) (?P<result>[A-Z_]+)/"
        r"(?P<status>\d{3}) \d+ (?P<request>[A-Z]+ \S+) .*",
        "1767348672.345    123 10.0.0.7 TCP_MISS/503 4000 GET http://x.test/ - -",
    ),
    _format(
        "audit",  # of Linux
        r"(?:node=(?P<host>\S+) )?type=(?P<module>\w+) "
        r"msg=audit\((?P<epoch>\d{10}\.\d{3}):\d+\): (?P<message>.*)",
        "type=AVC msg=audit(1767348672.345:7): avc: denied { read } for pid=31",
    ),
    _format(
        "cockroach",
        r"(?P<level>[IWEF])(?P<year>\d\d)(?P<month>\d\d)(?P<day>\d\d) "
        rf"{_CLOCK} (?P<pid>\d+) (?P<place>\S+:\d+) (?P<message>.*)",
        "E260102 10:11:12.345678 31 server/pay.go:7 [n1] no money",
    ),
    _format(
        "nest",
        rf"\[Nest\] (?P<pid>\d+)\s+- {_NUMBERS}, {_CLOCK} {_HALF}\s+"
        r"(?P<level>[A-Z]+) (?:\[(?P<module>[^\]]+)\] )?(?P<message>.*)",
        "[Nest] 31  - 01/02/2026, 10:11:12 AM   ERROR [ExceptionsHandler] no money",
    ),
    _format(
        "weblogic",
        rf"<{_MONTH} {_DAY}, {_YEAR},? {_CLOCK} {_HALF}(?: (?P<zone>{ZONE}))?> "
        r"<(?P<level>[A-Z]\w+)> <(?P<module>[^>]*)> (?:<[^>]*> )*?"
        r"<(?P<id>BEA-\d+)> <(?P<message>.*?)>? *$",
        "<Jan 2, 2026 10:11:12 AM UTC> <Error> <HTTP> <BEA-101017> <no money>",
    ),
    _format(
        "websphere",
        r"\[(?P<month>\d\d?)/(?P<day>\d\d?)/(?P<year>\d\d) "
        rf"(?P<clock>\d{{1,2}}:\d\d:\d\d):\d{{3}} (?P<zone>{ZONE})\] "
        r"(?P<tid>[0-9a-f]{8}) (?P<module>\S+)\s+(?:A|(?P<level>[FEWIDCOR]))\s+"
        r"(?P<message>.*)",
        "[1/2/26 10:11:12:345 UTC] 0000001f ServletWrappe E   SRVE0068E: no money",
    ),
    _format(
        "tornado",
        r"\[(?P<level>[DIWEC]) (?P<year>\d{2,4}?)-?(?P<month>\d\d)-?(?P<day>\d\d) "
        rf"{_CLOCK} (?P<module>\w+)(?::(?P<line>\d+))?\] (?P<message>.*)",
        "[E 260102 10:11:12 web:1789] Uncaught exception GET /pay",
    ),
    _format(
        "fern",
        rf"\[{_YEAR}-(?P<month>\d\d)-(?P<day>\d\d)\]\[{_CLOCK}\]"
        rf"\[(?P<module>[\w:.-]+)\]\[{_LEVEL}\] ?(?P<message>.*)",
        "[2026-01-02][10:11:12][shop::cart][ERROR] no money",
    ),
    _format(
        "unreal",
        rf"\[{_YEAR}\.(?P<month>\d\d)\.(?P<day>\d\d)-(?P<hour>\d\d)\.(?P<minute>\d\d)"
        r"\.(?P<second>\d\d):\d{3}\]\[ *(?P<frame>\d+)\](?P<module>\w+): "
        r"(?:(?P<level>Fatal|Error|Warning|Log|Verbose): )?(?P<message>.*)",
        "[2026.01.02-10.11.12:345][  7]LogNet: Error: no money",
    ),
    _format(
        "minecraft",
        rf"\[(?P<day>\d\d){_MONTH}{_YEAR} {_CLOCK}\] \[(?P<thread>[^\]]*)/{_LEVEL}\] "
        r"(?:\[(?P<module>[\w.$-]+)/[^\]]*\]: )?(?P<message>.*)",
        "[02Jan2026 10:11:12.345] [main/ERROR] [net.minecraft.Server/]: no money",
    ),
    _format(
        "zabbix",
        r"(?P<pid>\d+):(?P<year>\d{4})(?P<month>\d\d)(?P<day>\d\d):"
        rf"{_TIME} (?P<message>.*)",
        "31:20260102:101112.345 cannot connect to [[db]:3306]",
    ),
    _format(
        "nagios",
        r"\[(?P<epoch>\d{10})\] "
        r"(?P<message>(?:SERVICE|HOST|PASSIVE|CURRENT|EXTERNAL) .*)",
        "[1767348672] SERVICE ALERT: web1;HTTP;CRITICAL;HARD;3;no route",
    ),
    _format(
        "unbound",
        r"\[(?P<epoch>\d{10})\] (?P<module>[\w-]+)\[(?P<pid>\d+):\w+\] "
        r"(?P<level>[a-z]+): (?P<message>.*)",
        "[1767348672] unbound[31:0] error: no route",
    ),
    _format(
        "slow log",  # of MySQL
        rf"\# Time: {_AT}(?P<zone>Z|[+-]\d\d:\d\d)?(?P<message>)$",
        "# Time: 2026-01-02T10:11:12.345678Z",
    ),
    _format(
        "erlang",
        rf"=(?P<level>[A-Z]+) REPORT==== {_DAY}-{_MONTH}-{_YEAR}::{_CLOCK}.*"
        r"===(?P<message>)$",
        "=ERROR REPORT==== 2-Jan-2026::10:11:12 ===",
    ),
    _format(
        "samba",
        rf"\[{_YEAR}/(?P<month>\d\d)/(?P<day>\d\d) {_CLOCK}, +(?P<verbosity>\d+)"
        r"[^\]]*\] (?P<place>\S+:\d+)\((?P<function>[^)]*)\)(?P<message>)$",
        "[2026/01/02 10:11:12.345678,  0] ../source3/smbd/server.c:1784(main)",
    ),
    _format(
        "couchdb",
        rf"\[(?P<level>[a-z]+)\] {_AT}(?P<zone>Z) (?P<host>\S+) <[\d.]+> \S+ "
        r"(?P<message>.*)",
        "[error] 2026-01-02T10:11:12.345678Z nonode@nohost <0.31.0> ----- no money",
    ),
    _format(
        "windows event",
        rf"(?P<level>[A-Z][a-z]+),{_NUMBERS} {_CLOCK} {_HALF},(?P<module>[^,]*),"
        r"(?P<id>\d+),[^,]*,\"?(?P<message>.*)",
        "Error,1/2/2026 10:11:12 AM,Application Error,1000,(100),Faulting shop.exe",
    ),
    _format(
        "logrus",
        r"(?P<level>FATA|ERRO|WARN|INFO|DEBU|TRAC|PANI)"
        rf"\[(?:(?P<uptime>\d+)|{_AT}(?P<zone>{ZONE})?)\] "
        r"(?P<message>.*)",
        "ERRO[0012] charge failed",
    ),
    _format(
        "ansible",
        r"(?P<level>fatal|failed): \[(?P<host>[^\]]+)\]:? (?P<message>.*)",
        'fatal: [web1]: UNREACHABLE! => {"changed": false}',
    ),
    _format(
        "compiler",
        r"(?P<place>[\w./+-]+:\d+(?::\d+)?): "
        r"(?P<level>fatal error|error|warning|note): (?P<message>.*)",
        "pay.c:7:3: error: expected ';'",
    ),
    _format(
        "winston",
        r"(?P<level>fatal|error|warn(?:ing)?|info|http|verbose|debug|silly): "
        r"(?P<message>\S.*)",
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

HEADERS = re.compile(
    "|".join(
        re.sub(r"\(\?P<\w+>", "(?:", pattern.pattern)
        for pattern in (
            *(one.pattern for one in FORMATS),
            *(pattern for pattern, _ in STAMPS),
            *(STAMP, SYSLOG_5424, SYSLOG_3164, LOGFMT_START, BARE),
        )
    )
    + r"|\{",
    re.DOTALL,
)
"""Matches whatever may be a header: one look instead of sixty at all other lines."""
