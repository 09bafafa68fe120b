"""What a trace says about where a fault is: types, frames, and which are one's own.

Python, Java, Go, JavaScript, Rust, .NET, PHP and Ruby. Line numbers and folders go
(they differ between releases and machines), the last folder stays: two packages may
each have their ``views.py``.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import NamedTuple

_MAX_FRAMES = 40
_DECIDE = 2  # innermost frames that decide
_TELLING = 6  # own frames by which traces are compared
_REPEATED = 3


class Frame(NamedTuple):
    """A frame: ``folder/file:function`` or a qualified name, and whose it is."""

    name: str
    own: bool


class Raised(NamedTuple):
    """One exception of a trace with its frames, the outermost first."""

    kind: str | None
    frames: tuple[Frame, ...]


@dataclass(frozen=True, slots=True, eq=False)
class _Language:
    """How traces of a language are read.

    Attributes:
        hint: Found in every trace of it.
        frame: A frame, with its *name* or *file* or both.
        begin: Where another exception of the same trace begins.
        kind: The type of an exception, in its part of the trace.
        foreign: Found in the file or name of frames that are not the application's.
        inward: Whether the innermost frame comes last.
        whole: Whether names tell enough, so that the file's is left out.
    """

    hint: str
    frame: re.Pattern[str]
    begin: re.Pattern[str]
    kind: re.Pattern[str]
    foreign: re.Pattern[str]
    inward: bool = False
    whole: bool = False


def _lines(pattern: str) -> re.Pattern[str]:
    return re.compile(pattern, re.MULTILINE)


_NEVER = re.compile(r"(?!)")
_JVM_KIND = _lines(
    r"(?:^|Exception in thread \"[^\"]*\" |^Caused by: |: )"
    r"((?:[a-z_]\w*\.)+[A-Z][\w$]*)(?::|\s*$)"
)
_LANGUAGES = (
    _Language(
        'File "',
        _lines(r'^[ \t|]*File "(?P<file>[^"]+)", line \d+(?:, in (?P<name>.+))?$'),
        _lines(r"^[ |+]*(?:Exception Group )?Traceback \(most recent call last\):$"),
        _lines(
            r"^(?: *\| )?((?:[A-Za-z_]\w*\.)*[A-Z]\w+|(?:[A-Za-z_]\w*\.)+\w+)(?:: |$)"
        ),
        re.compile(
            r"[/\\](?:site|dist)-packages[/\\]|[/\\][Ll]ib[/\\]python\d|^<"
            r"|[/\\]Python\d+[/\\]Lib[/\\]|python\d+\.zip|/bin/[^/.]+$|[/\\]fm_storage[/\\]"
        ),
        inward=True,
    ),
    _Language(
        "tack backtrace:",
        _lines(
            r"^\s*\d+:\s+(?:0x[0-9a-f]+ - )?(?P<name>[\w:<>{}&*,;'.()\[\]#=$ -]+?)"
            r"(?:::h[0-9a-f]{16})?$"
        ),
        _NEVER,
        _lines(r"^thread '.*' (?:\(\d+\) )?(panicked) at "),
        re.compile(
            r"^<?(?:std|core|alloc|tokio|futures\w*|hyper|axum|actix\w*|rayon|tower\w*"
            r"|anyhow|eyre|backtrace|test|_*rust\w*|_*start|main|__libc\w*|clone\d*)"
            r"(?:::|$)| as (?:core|std)::"
        ),
        whole=True,
    ),
    _Language(
        "at ",
        _lines(
            r"^\s*at (?:[\w.@-]+/+)?"
            r"(?P<name>[\w.$]+(?:/0x[0-9a-f]+)?[\w.$]*(?:<\w*init>)?)"
            r"\((?:[\w$-]+\.(?:java|kt|scala|groovy)(?::\d+)?|Native Method"
            r"|Unknown Source)\)"
        ),
        _lines(r"^\s*Caused by: "),
        _JVM_KIND,
        re.compile(
            r"^(?:javax?|jakarta|sun|jdk|kotlinx?|scala|groovy|clojure|akka|reactor|rx"
            r"|okhttp3|okio|retrofit2|junit|org\.(?:apache|springframework|hibernate"
            r"|eclipse|jboss|postgresql|junit|gradle|slf4j|xnio|glassfish|h2|jetbrains"
            r"|testng|mockito|codehaus|aspectj|bouncycastle|mongodb|redisson|quartz)"
            r"|com\.(?:sun|google|fasterxml|zaxxer|mysql|oracle|ibm|mongodb|amazonaws"
            r"|netflix|squareup|github|rabbitmq|datastax|intellij|microsoft)"
            r"|io\.(?:netty|grpc|undertow|micronaut|quarkus|vertx|reactivex|lettuce"
            r"|micrometer|projectreactor|ktor|opentelemetry)|software\.amazon)\."
        ),
        whole=True,
    ),
    _Language(
        "at ",
        _lines(
            r"^\s*at (?P<name>[\w.`<>\[\],+|&$]+(?:\.\.ctor)?)"
            r"\([^\n]*?\)(?: in (?P<file>[^\n]+?):line \d+)?\s*$"
        ),
        _lines(r"^\s*---> "),
        _lines(r"(?:^|: |---> )((?:[A-Z]\w*\.)+[A-Z]\w*(?:Exception|Error))\b"),
        re.compile(r"^(?:System|Microsoft|Npgsql|MassTransit|Newtonsoft|Dapper)\."),
        whole=True,
    ),
    _Language(
        "at ",
        _lines(
            r"^\s*at (?:async |new )?(?:(?P<name>[\w.$<>\[\]# ]+?) \()?(?:file://)?"
            r"(?P<file>[^\s()]*?):\d+:\d+\)?$"
        ),
        _lines(r"^\s*\[cause\]: "),
        _lines(
            r"^(?:\s*\[cause\]: )?(?:Uncaught )?(?:\(in promise\) )?([A-Z]\w*Error)\b"
        ),
        re.compile(r"node_modules|^node:|^internal/|<anonymous>|^native "),
    ),
    _Language(
        ".go:",
        _lines(
            r"^(?P<name>[\w./-]+?(?:\.\(\*?\w+\))?(?:\.[\w-]+)*)\((?!\*)[^\n]*\)\n"
            r"\t(?P<file>\S+\.go):\d+"
        ),
        _NEVER,
        _lines(r"^(panic|fatal error): "),
        re.compile(r"/pkg/mod/|/(?:go|libexec)/src/|/vendor/"),
    ),
    _Language(
        ".php",
        _lines(
            r"^#\d+ (?P<file>/?[^\s(]+\.php)\(\d+\): (?P<name>[\w\\{}>:-]+)\("
        ),
        _lines(r"^Next "),
        _lines(r"(?:Uncaught |^Next |^)((?:\w+\\)*[A-Z]\w*(?:Exception|Error))\b"),
        re.compile(r"/vendor/|^\[internal"),
    ),
    _Language(
        ".rb:",
        _lines(
            r"^\s*(?:from |\d+: from )?(?P<file>\S+\.rb):\d+:in [`'](?P<name>[^']+)'"
        ),
        _NEVER,
        _lines(r"^\S+\.rb:\d+:in [^\n]*\(((?:[A-Z]\w*::)*[A-Z]\w*)\)$"),
        re.compile(r"/gems/|/lib/ruby/|^<internal:"),
    ),
)  # fmt: skip
_KINDS = {"fatal error": "fatal_error", "panicked": "panic"}
# A chain of anyhow (or eyre): what failed, why, and perhaps where.
_ANYHOW = re.compile(
    r"Error: .*(?:\n(?!Caused by:|Stack backtrace:).*)*?\n+"
    r"(?:Caused by:\n|Stack backtrace:\n)"
)
_LAMBDA = re.compile(r"\$\$Lambda(?:[$/]\w+)*|\$\d+|\{\{closure\}\}")
_INLINED = re.compile(r"<(?:list|dict|set)comp>$")  # frames before Python 3.12 only
_VERSIONED = re.compile(r"\d+(?:[.\d]*\d)?|(?<![a-z])[0-9a-f]{7,}(?![a-z])")
_CUT = re.compile(r"RecursionError$|StackOverflow\w*$")
_GROUP = "Exception Group Traceback"


class _Own:
    """What an application has named as its own code; mutable, one for the process."""

    names: tuple[str, ...] = ()
    named: re.Pattern[str] | None = None


def own_names() -> tuple[str, ...]:
    """Return what ``own_code()`` was given."""
    return _Own.names


def own_code(names: Iterable[str]) -> None:
    """Name the code that is the application's own, for this process.

    Args:
        names: Folders or packages (``shop``, ``com.acme``, ``/srv/app``). None of
            them: everything that is not a library's, the language's or a server's.
    """
    _Own.names = tuple(names)
    parts = [re.escape(one.strip("/.")).replace(r"\.", r"[./\\]") for one in _Own.names]
    _Own.named = (
        re.compile(rf"(?:^|[/\\.:])(?:{'|'.join(parts)})(?:[/\\.:]|$)")
        if parts
        else None
    )
    for cached in (_frame, raised_of, frames_of, place_of):
        cached.cache_clear()


def _is_own(name: str, file: str, language: _Language) -> bool:
    if _Own.named is not None:
        return any(map(_Own.named.search, (name, file)))
    return not language.foreign.search(name if language.whole else file)


def _tail(path: str) -> str:
    """Return the file and the folder it is in, without versions."""
    parts = path.replace("\\", "/").rstrip("/").split("/")
    if len(parts) < 2 or not parts[-2]:
        return parts[-1]
    return f"{_VERSIONED.sub('<n>', parts[-2])}/{parts[-1]}"


@lru_cache(maxsize=1 << 13)
def _frame(name: str, file: str, language: _Language) -> Frame | None:
    if _INLINED.match(name):
        return None
    own = _is_own(name, file, language)
    if not language.whole:
        name = f"{_tail(file)}:{name}"
    return Frame(_LAMBDA.sub("", name), own)


@lru_cache(maxsize=256)
def raised_of(trace: str) -> tuple[Raised, ...]:
    """Return the exceptions of a trace in the order of its text."""
    for language in _LANGUAGES:
        if language.hint in trace and (found := _raised(trace, language)):
            return found
    return ()


def _raised(trace: str, language: _Language) -> tuple[Raised, ...]:
    starts = [one.start() for one in language.begin.finditer(trace)]
    bounds = [0, *filter(None, starts), len(trace)]
    raised: list[Raised] = []
    end = 0
    for begin, stop in pairwise(bounds):
        frames: list[Frame] = []
        for found in language.frame.finditer(trace, begin, stop):
            end = found.end()
            groups = found.groupdict("")
            frame = _frame(groups.get("name", ""), groups.get("file", ""), language)
            if frame is not None:
                frames.append(frame)
        if frames:
            # In Python the type stands behind the frames, elsewhere before them.
            kind = language.kind.search(trace, end if language.inward else begin, stop)
            order = frames if language.inward else reversed(frames)
            raised.append(Raised(kind and _KINDS.get(kind[1], kind[1]), tuple(order)))
    return tuple(raised)


@lru_cache(maxsize=256)
def frames_of(trace: str | None) -> tuple[str, ...]:
    """Return the names of a trace's frames in the order of its text, without lines.

    A recursion counts once; a trace that is not understood has none.
    """
    kept: list[str] = []
    inward = trace is not None and 'File "' in trace
    for one in raised_of(trace) if trace else ():
        for frame in one.frames if inward else one.frames[::-1]:
            if not kept or frame.name != kept[-1]:
                kept.append(frame.name)
    return tuple(kept[-_MAX_FRAMES:] if inward else kept[:_MAX_FRAMES])


@lru_cache(maxsize=256)
def exception_type(trace: str | None) -> str | None:
    """Return the type of the exception that a trace ends in, or None."""
    if not trace:
        return None
    if _ANYHOW.match(trace) is not None:
        return "anyhow::Error"
    if 'File "' in trace or "Traceback (most recent" in trace:
        types = _LANGUAGES[0].kind.findall(trace)
        return types[0 if _GROUP in trace else -1] if types else None
    for language in _LANGUAGES[1:]:
        found = language.kind.search(trace)
        if found:
            return _KINDS.get(found[1], found[1])
    return None


@lru_cache(maxsize=256)
def place_of(trace: str) -> tuple[str, bool]:
    """Return what a trace says about which fault it is, and whether that is enough.

    The innermost two frames of one's own decide, of the exception and of the one at
    the root of its chain; of a group those of its children, in any order. Without
    own frames it is the innermost ones, and the message has to decide, too.
    """
    raised = raised_of(trace)
    if not raised:
        return "", False
    python = 'File "' in trace
    own = [one for one in raised if any(frame.own for frame in one.frames)]
    if python and _GROUP in trace:
        decide = sorted({_place(one) for one in own or raised})
    elif own:
        last, root = (own[-1], own[0]) if python else (own[0], own[-1])
        final = raised[-1] if python else raised[0]
        decide = [
            _short(final.kind),
            _place(last),
            *([_place(root)] if root is not last else ()),
        ]
    else:
        final = raised[-1] if python else raised[0]
        decide = [_place(final)]
    return "\n".join(decide), bool(own)


def _place(one: Raised) -> str:
    """Return the type and the innermost frames that decide, the outermost first."""
    names = [frame.name for frame in one.frames if frame.own]
    names = names or [frame.name for frame in one.frames]
    if one.kind and _CUT.search(one.kind):
        # Where a recursion is cut says nothing; what recurs does.
        counts = Counter(names)
        again = sorted(name for name in counts if counts[name] >= _REPEATED)
        if again:
            return "\x1e".join([_short(one.kind), *again[:4]])
    path: list[str] = []
    for name in names:
        if name in path:
            del path[path.index(name) + 1 :]
        else:
            path.append(name)
    return "\x1e".join([_short(one.kind), *path[-_DECIDE:]])


def _short(kind: str | None) -> str:
    """Return the name of a type without the module, which may bear a release."""
    return re.split(r"[.\\:]", kind)[-1] if kind else ""


@lru_cache(maxsize=256)
def code_beside(trace: str, error_code: str) -> str:
    """Return what *error_code* says beyond the types of the exceptions in a trace."""
    for one in raised_of(trace):
        if one.kind and error_code.startswith(one.kind):
            rest = error_code[len(one.kind) :]
            if not rest or rest[0] == ":":
                return rest
    return error_code


def weighed_frames(trace: str | None) -> list[tuple[str, float]]:
    """Return the frames by which traces are compared, the most telling first.

    The innermost of one's own weighs 4, each one further out half as much; what it
    had called of a library weighs 1. Entry points, which all traces share, are least.
    """
    raised = raised_of(trace) if trace else ()
    if not raised:
        return []
    one = raised[-1] if 'File "' in str(trace) else raised[0]
    own = [frame.name for frame in one.frames if frame.own]
    names = list(dict.fromkeys(reversed(own or [frame.name for frame in one.frames])))
    found = [(name, 4.0 / 2**at) for at, name in enumerate(names[:_TELLING])]
    if own and not one.frames[-1].own:
        found.append((one.frames[-1].name, 1.0))
    return found


def lines_of(trace: str) -> Iterator[tuple[str, str]]:
    """Yield the lines of a trace, and whose code each shows.

    ``own`` or ``library`` for a frame and the source below it, else "".
    """
    language = next(
        (
            one
            for one in _LANGUAGES
            if one.hint in trace and one.frame.search(trace) is not None
        ),
        None,
    )
    if language is None:
        yield from ((line, "") for line in trace.split("\n"))
        return
    starts: dict[int, bool] = {}
    extra = 0  # lines of a frame beyond the first
    for found in language.frame.finditer(trace):
        groups = found.groupdict()
        own = _is_own(groups.get("name") or "", groups.get("file") or "", language)
        starts[trace.count("\n", 0, found.start())] = own
        extra = found[0].count("\n")
    whose, depth, left = "", 0, 0
    for number, line in enumerate(trace.split("\n")):
        indent = len(line) - len(line.lstrip(" |"))
        if number in starts:
            whose, depth, left = ("own" if starts[number] else "library"), indent, extra
        elif left:
            left -= 1
        elif not (language.inward and indent > depth and line.strip()):
            whose = ""
        yield line, whose
