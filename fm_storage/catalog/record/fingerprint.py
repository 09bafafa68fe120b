"""What makes two errors the same: the normalised text and its fingerprint.

Numbers, identifiers, addresses and paths go, words and stack frames stay. The same
text is grouped, embedded and shown as a pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b

_MAX_MESSAGE = 2000
_MAX_FRAMES = 40
_TEMPLATE = 500

# One pass over the text: the first alternative that fits at a place wins, so the
# more telling shapes come first.
_VARIABLE = re.compile(
    r"""
    (?P<uuid>\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b)
  | (?P<url>\b[a-z][a-z0-9+.-]{1,15}://[^\s'"<>)\],;]+)
  | (?P<email>\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b)
  | (?P<time>\b\d{4}-\d\d-\d\d
        (?:T\d\d:\d\d(?::\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?\b
      | \b\d\d:\d\d:\d\d(?:[.,]\d+)?\b)
  | (?P<addr>(?<![\w.])/?\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?(?:/\d+)?(?![\w.]\w)
      | (?<![\w:])(?:[0-9a-fA-F]{0,4}:){3,7}[0-9a-fA-F]{0,4}(?:%\w+)?(?![\w:])
      | \b(?:[0-9a-fA-F]{2}[:-]){5}[0-9a-fA-F]{2}\b)
  | (?P<path>(?<![\w<>])(?:[A-Za-z]:\\|\\\\)[^\s'"<>|:*?,;)]+
      | (?<![\w<>.])(?:~|\.{1,2})?/(?:[\w.@%+=~$#-]+/)+[\w.@%+=~$#*-]*
      | (?<![\w<>./])/[\w.@%+=~$#-]*\w
      | \b[\w.-]+(?:/[\w.@%+=-]+){2,})
  | (?P<hex>\b0[xX][0-9a-fA-F]+\b
      | \b(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{8,}\b)
  | (?P<id>\b(?=[A-Za-z0-9_-]{20,}\b)(?=[A-Za-z_-]*\d[A-Za-z_-]*\d)
      [A-Za-z0-9]+(?:[A-Za-z0-9]|-(?=\w))*\b)
  | (?P<n>(?<![A-Za-z])[-+]?\d+(?:[.,]\d+)*(?:[eE][-+]?\d+)?%?
      | (?<=[A-Za-z])\d{2,}(?:[.,]\d+)*)
    """,
    re.VERBOSE,
)
_UTF8 = ("utf-8", "surrogatepass")
_LIST = re.compile(r"(<\w+>)(?:(?:, | |,)\1)+")
_COMMON = 400  # characters of a message that is worth remembering
_LEVELLED = bytes.maketrans(b"123456789", b"000000000")


def _placeholder(match: re.Match[str]) -> str:
    return f"<{match.lastgroup}>"


@lru_cache(maxsize=1 << 15)
def _word(word: str) -> str:
    # Letters alone hold nothing that varies.
    return word if word.isalpha() else _VARIABLE.sub(_placeholder, word)


def normalise(text: str) -> str:
    """Return *text* with its variable parts replaced: ``read <n> bytes of <path>``.

    Only the first 2000 characters count. A run of equal placeholders becomes
    one, so that lists of any length are the same.
    """
    # Word by word, through a cache, which is ten times as fast as one pass. No
    # shape tells one digit from another, so all numbers of a length are one word
    # to it; but where a digit stays in the text (log4j), or a zero means a
    # hexadecimal number (0x1f), the word is looked at as it is.
    text = text[:_MAX_MESSAGE]
    # Bytes are translated in a tenth of the time of text.
    level = text.encode(*_UTF8).translate(_LEVELLED).decode(*_UTF8)
    short = (_levelled if len(level) < _COMMON else _by_word)(level)
    if "0" in short or "0x" in level or "0X" in level:
        short = _by_word(text)
    return short


def _by_word(text: str) -> str:
    short = " ".join(map(_word, text.split()))
    return _LIST.sub(r"\1", short) if short.count("<") > 1 else short


# Most errors differ from an earlier one in their numbers only.
_levelled = lru_cache(maxsize=4096)(_by_word)


_PYTHON_FRAME = re.compile(
    r'^[\s|]*File "([^"]+)", line \d+(?:, in (.+))?$', re.MULTILINE
)
_JAVA_FRAME = re.compile(
    r"^\s*at (?:[\w.@-]+/+)?([\w.$]+(?:/0x[0-9a-f]+)?[\w.$]*(?:<\w*init>)?)"
    r"\((?:[\w$-]+\.(?:java|kt|scala|groovy)(?::\d+)?|Native Method|Unknown Source)\)",
    re.MULTILINE,
)
_GO_FRAME = re.compile(
    r"^([\w./-]+?(?:\.\(\*?\w+\))?(?:\.[\w-]+)*)\((?!\*)[^\n]*\)\n\t(\S+\.go):\d+",
    re.MULTILINE,
)
_JS_FRAME = re.compile(
    r"^\s*at (?:async |new )?(?:([\w.$<>\[\] ]+?) \()?(?:file://)?"
    r"([^\s()]*?):\d+:\d+\)?$",
    re.MULTILINE,
)
_RUST_FRAME = re.compile(
    r"^\s*\d+:\s+(?:0x[0-9a-f]+ - )?([\w:<>{}&*,;'.()\[\]#=$ -]+?)"
    r"(?:::h[0-9a-f]{16})?$",
    re.MULTILINE,
)
_RUST_GENERATED = re.compile(r"\{\{closure\}\}")
_LAMBDA = re.compile(r"\$\$Lambda(?:[$/]\w+)*|\$\d+")


@lru_cache(maxsize=256)
def frames_of(trace: str | None) -> tuple[str, ...]:
    """Return the frames of a trace as ``file:function``, without line numbers.

    Python, Java, Go, JavaScript and Rust traces are understood; anything else
    has no frames. Folders go (they differ between machines), and a recursion
    counts once.
    """
    if not trace:
        return ()
    found: list[str] = []
    if 'File "' in trace:
        found = [
            f"{_tail(file)}:{function or ''}"
            for file, function in _PYTHON_FRAME.findall(trace)
        ]
    backtrace = trace.partition("tack backtrace:")[2]
    if not found and backtrace:
        found = [
            _RUST_GENERATED.sub("", name) for name in _RUST_FRAME.findall(backtrace)
        ]
    if not found and "at " in trace:
        found = found or [_LAMBDA.sub("", name) for name in _JAVA_FRAME.findall(trace)]
        found = found or [
            f"{_tail(file)}:{function}" for function, file in _JS_FRAME.findall(trace)
        ]
    if not found and ".go:" in trace:
        found = [
            f"{_tail(file)}:{function}" for function, file in _GO_FRAME.findall(trace)
        ]
    kept: list[str] = []
    for frame in found:
        if not kept or frame != kept[-1]:
            kept.append(frame)
    return tuple(kept[-_MAX_FRAMES:] if 'File "' in trace else kept[:_MAX_FRAMES])


def _tail(path: str) -> str:
    return path.replace("\\", "/").rsplit("/", 1)[-1]


_PYTHON_TYPE = re.compile(
    r"^(?:\s*\|\s*)?((?:[A-Za-z_]\w*\.)*[A-Z]\w+)(?:: |$)",
    re.MULTILINE,
)
_JAVA_TYPE = re.compile(
    r"(?:^|Exception in thread \"[^\"]*\" |Caused by: |: )"
    r"((?:[a-z_]\w*\.)+[A-Z][\w$]*)(?::|\s*$)",
    re.MULTILINE,
)
_JS_TYPE = re.compile(
    r"^(?:Uncaught )?(?:\(in promise\) )?([A-Z]\w*Error)\b", re.MULTILINE
)
_GO_TYPE = re.compile(r"^(panic|fatal error): ", re.MULTILINE)
# A chain of anyhow (or eyre): what failed, why, and perhaps where.
_ANYHOW = re.compile(
    r"Error: .*(?:\n(?!Caused by:|Stack backtrace:).*)*?\n+"
    r"(?:Caused by:\n|Stack backtrace:\n)"
)
_RUST_TYPE = re.compile(r"^thread '.*' (?:\(\d+\) )?(panicked) at ", re.MULTILINE)


@lru_cache(maxsize=256)
def exception_type(trace: str | None) -> str | None:
    """Return the type of the exception that a trace ends in, or None."""
    if not trace:
        return None
    if _ANYHOW.match(trace) is not None:
        return "anyhow::Error"
    if 'File "' in trace or "Traceback (most recent" in trace:
        types = _PYTHON_TYPE.findall(trace)
        return types[-1] if types else None
    for pattern in (_JAVA_TYPE, _JS_TYPE, _GO_TYPE, _RUST_TYPE):
        found = pattern.search(trace)
        if found:
            return {"fatal error": "fatal_error", "panicked": "panic"}.get(
                found[1], found[1]
            )
    return None


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Identity of a group of errors.

    Attributes:
        value: Signed 64-bit number, the same on every machine.
        template: The normalised message, for people.
    """

    value: int
    template: str

    def __str__(self) -> str:
        """Return the number as sixteen hexadecimal digits."""
        return f"{self.value & 0xFFFF_FFFF_FFFF_FFFF:016x}"


def fingerprint_of(
    message: str,
    *,
    module: str = "",
    error_code: str = "",
    stack_trace: str | None = None,
) -> Fingerprint:
    """Return the fingerprint of an error.

    Two errors share it when module, code, normalised message and frames agree.
    """
    return fingerprint_of_template(
        normalise(message),
        module=module,
        error_code=error_code,
        stack_trace=stack_trace,
    )


def fingerprint_of_template(
    template: str,
    *,
    module: str = "",
    error_code: str = "",
    stack_trace: str | None = None,
) -> Fingerprint:
    """Return the fingerprint of an error whose message is normalised already."""
    frames = "" if stack_trace is None else _lines_of_frames(stack_trace)
    return _of(template, module, error_code, frames)


@lru_cache(maxsize=256)
def _lines_of_frames(trace: str) -> str:
    return "\n".join(frames_of(trace))


@lru_cache(maxsize=1 << 14)
def _of(template: str, module: str, error_code: str, frames: str) -> Fingerprint:
    text = f"{template}\x1f{module}\x1f{error_code}\x1f{frames}"
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return Fingerprint(int.from_bytes(digest, "big", signed=True), template[:_TEMPLATE])


@lru_cache(maxsize=4096)
def code_of_template(template: str) -> str:
    """Return the code given to a message that has none: ``M-`` and eight digits."""
    digest = blake2b(template.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"M-{digest}"


def text_for_vector(
    message: str,
    *,
    module: str = "",
    error_code: str = "",
    stack_trace: str | None = None,
) -> str:
    """Return the text that stands for an error in the vector store.

    Code and module, the normalised message, and the frames: what two errors
    have in common when they are the same fault, without what differs anyway.
    """
    parts = [normalise(message)]
    if error_code and not error_code.startswith("M-"):
        parts.append(error_code)
    if module:
        parts.append(module)
    if stack_trace:
        kind = exception_type(stack_trace)
        if kind and kind != error_code:
            parts.append(kind)
        parts.extend(frames_of(stack_trace)[-12:])
    return "\n".join(parts)
