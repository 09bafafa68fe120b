"""What makes two errors the same: the normalised text, or the place, as a number.

Numbers, identifiers, hosts, times and paths go, words stay. The same text is grouped,
embedded and shown as a pattern. Two events never share a fingerprint; what is one
event in several templates is merged above (``catalog.query.merging``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import TYPE_CHECKING

from fm_storage.catalog.record.frames import (
    code_beside,
    exception_type,
    place_of,
    weighed_frames,
)

if TYPE_CHECKING:
    from fm_storage.postgres import Record

VERSION = 3
"""Of the rules; errors of an older one are grouped anew, and keep their groups."""

_MAX_MESSAGE = 2000
_TEMPLATE = 500
_MADE = "M-"  # begins codes that were made of a message

# One pass over the words of a text: the first alternative that fits at a place wins,
# so the more telling shapes come first. What is one thing in two spellings has one
# name: hosts and addresses, hexadecimal and decimal numbers, numbers with a unit.
_LABEL = "[A-Za-z0-9](?:[A-Za-z0-9_-]*[A-Za-z0-9])?"
_MONTHS = "(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
_VARIABLE = re.compile(
    rf"""
    (?P<uuid>\b[0-9a-fA-F]{{8}}(?:-[0-9a-fA-F]{{4}}){{3}}-[0-9a-fA-F]{{12}}\b)
  | (?P<url>\b[a-z][a-z0-9+.-]{{1,15}}://[^\s'"<>)\],;]+)
  | (?P<email>\b[\w.+-]+@[\w-]+(?:\.[\w-]+)+\b)
  | (?P<time>(?<![\w/.-])\d{{4}}[-/]\d\d?[-/]\d\d?
        (?:[T_]\d\d:?\d\d(?::?\d\d(?:[.,]\d+)?)?(?:Z|[+-]\d\d:?\d\d)?)?(?![\w/])
      | (?<![\w/.-])\d\d?[-/](?:\d\d?|{_MONTHS})[-/]\d{{4}}(?::\d\d:\d\d:\d\d)?(?![\w/])
      | (?<![\w:])\d\d?:\d\d:\d\d(?:[.,:]\d+)?(?![\w:]))
  | (?P<addr>(?<![\w.])/?\d{{1,3}}(?:\.\d{{1,3}}){{3}}(?::\d+)?(?:/\d+)?(?!\d|[\w.]\w)
      | (?<![\w:])(?:[0-9a-fA-F]{{0,4}}:){{3,7}}[0-9a-fA-F]{{0,4}}(?:%\w+)?(?![\w:])
      | \b(?:[0-9a-fA-F]{{2}}[:-]){{5}}[0-9a-fA-F]{{2}}\b
      | (?<![\w@/.$-])(?!(?:com|org|net|java|javax|sun|io|edu)\.)(?:
          (?:{_LABEL}\.)+(?:com|net|org|edu|gov|mil|test|localdomain)
        | (?:{_LABEL}\.){{2,}}(?:arpa|cloud|corp|dev|home|info|int|internal|io|lan|local
            |(?!at|cc|cs|do|go|i[dnst]|js|kt|m[dey]|no|py|r[bs]|s[ho]|t[os])[a-z]{{2}})
        | (?=\S*\d)(?:{_LABEL}\.){{2,}}(?:at|i[nst]|me|no|to))
        \.?(?::\d+)?(?![\w-]|[./$:(]\w))
  | (?P<path>(?<![\w<>])(?:[A-Za-z]:\\|\\\\)[^\s'"<>|:*?,;)]+
      | (?<![\w<>.])(?:~|\.{{1,2}})?/(?:[\w.@%+=~$\#:-]+/)+[\w.@%+=~$\#*-]*
        (?:\?[^\s"'<>]*)?
      | (?<![\w<>./])/[\w.@%+=~$\#-]*\w(?:\?[^\s"'<>]*)?
      | \b[\w.-]+(?:/[\w.@%+=-]+){{2,}})
  | (?P<id>\b(?![0-9a-fA-F]+\b|0[xX])
      (?:(?=[A-Za-z-]*\d[A-Za-z-]*\d)[A-Za-z0-9](?:[A-Za-z0-9]|-(?=\w)){{19,}}
        |(?=[A-Za-z]*\d+[A-Za-z]+\d)[A-Za-z0-9]{{10,}})(?![^\W_]))
  | (?P<n>(?<![A-Za-z])[-+]?0[xX][0-9a-fA-F]+\b
      | (?<![^\W_])(?=[a-fA-F]*\d)(?=\d*[a-fA-F])[0-9a-fA-F]{{8,}}(?![^\W_])
      | (?<![^\W_])(?=[a-f]*\d[a-f]*\d)[0-9a-f]{{4,7}}(?![^\W_])
      | (?<![^\W_])(?:[a-f]{{8}}|[A-F]{{8}}|(?=[A-Z]*\d+[A-Z])[A-Z\d]{{4,}})(?![^\W_])
      | (?<=[^\W_][-_])[A-Za-z]\d+(?![^\W_])
      | (?<![A-Za-z])(?:(?<!\w)[<>~])?[-+]?(?:\d+(?:[.,]\d+)*|\.\d+)(?:[eE][-+]?\d+)?
        (?:%|(?:min|[KMGT]i?B|[A-Za-zµ°][A-Za-z]?)(?![^\W_])
          |(?:[hm]\d+){{1,2}}(?:\.\d+)?s?(?![A-Za-z]))?
      | (?<=[A-Za-z])\d{{2,}}(?:[.,]\d+)*
      | (?<!\S)\*{{4,}}(?!\S))
    """,
    re.VERBOSE,
)
_RUN = re.compile(
    r"(<\w+>)(?:,\1)+|<n>(?:(?:[_.:/\#|@~-]{1,2}(?:[A-Za-z][_-])?|##)<n>)+"
)
# Then over several words, the placeholders among them; only where a word of those
# stands that begin or end such a phrase.
_DAYS = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)[a-z]{0,6},?"
_DATE = rf"(?:{_MONTHS}[a-z]{{0,6}}[ ]<n>|<n>[ ]{_MONTHS}[a-z]{{0,6}})"
_UNITS = "(?:[kKMGTP]i?B|[Bb]|[nuµm]?s|msecs?|secs?|mins?|hrs?|h)"
_BEFORE_USER = "|".join(
    f"(?<={words.replace(' ', '[ ]')}[ ])"
    for words in (
        *("[Pp]assword for", "publickey for", "[Ff]or user", "[Bb]y user"),
        *("[Ii]nvalid user", "[Uu]nknown user", "[Ii]llegal user"),
    )
)
_PHRASE = re.compile(
    rf"""
    (?P<time>\b(?:{_DAYS}[ ])?{_DATE},?(?:[ ]<n>)?(?:[ ]<time>)?(?:[ ][A-Z]{{3,5}}\b)?
        (?:[ ]<n>)?
      | \b{_DAYS}[ ]<time> | <time>[ ][AP]M\b)
  | (?P<user>(?:{_BEFORE_USER})
        (?!(?:is|was|not|has|name|id|agent|with|from|in|at|by|on|to)\b)
        ["'(\[]?[\w.@$-]+["')\]]?)
  | (?P<n><n>[ ]{_UNITS}\b(?![./]))
    """,
    re.VERBOSE,
)
_PART_OF_PHRASE = re.compile(
    rf"\W*(?:{_MONTHS}[a-z]{{0,6}}|{_DAYS}|[AP]M|user|[Pp]assword|publickey|{_UNITS})\b"
)
_UTF8 = ("utf-8", "surrogatepass")
_COMMON = 400  # characters of a message that is worth remembering
_LEVELLED = bytes.maketrans(b"023456789", b"111111111")
_DIGIT = re.compile(r"\d")


def _placeholder(match: re.Match[str]) -> str:
    return f"<{match.lastgroup}>"


@lru_cache(maxsize=1 << 15)
def _word(word: str) -> str:
    # Letters alone hold nothing that varies.
    if word.isalpha():
        return word
    short = _VARIABLE.sub(_placeholder, word)
    return _RUN.sub(_run, short) if short.count("<") > 1 else short


def _run(match: re.Match[str]) -> str:
    return match[1] or "<n>"


@lru_cache(maxsize=1 << 15)
def _is_part_of_phrase(word: str) -> bool:
    return _PART_OF_PHRASE.match(word) is not None


def normalise(text: str) -> str:
    """Return *text* with its variable parts replaced: ``read <n> bytes of <path>``.

    Only the first 2000 characters count. A run of equal placeholders becomes
    one, so that lists of any length are the same.
    """
    # Word by word, through a cache, which is ten times as fast as one pass. But for
    # the 0 of 0x1f no shape tells one digit from another, so all numbers of a length
    # are one text to it; where a digit stays in a word (log4j), it is put back.
    text = text[:_MAX_MESSAGE]
    # Bytes are translated in a tenth of the time of text.
    data = text.encode(*_UTF8)
    if b"0x" in data or b"0X" in data:
        data = data.replace(b"0x", b"\0x").replace(b"0X", b"\0X")
        data = data.translate(_LEVELLED).replace(b"\0", b"0")
    else:
        data = data.translate(_LEVELLED)
    level = data.decode(*_UTF8)
    if len(level) >= _COMMON:
        return _by_word(text)[0]
    short, digits = _levelled(level)
    if digits:
        words, ours = level.split(), text.split()
        for at in digits:
            words[at] = ours[at]
        short, _ = _levelled(" ".join(words))
    return short


def _by_word(text: str) -> tuple[str, tuple[int, ...]]:
    """Return the template, and which words of *text* have kept a digit in it."""
    words = list(map(_word, text.split()))
    short = " ".join(words)
    if "<" in short:
        kept: list[str] = []
        last = ""
        for word in words:
            bare = word.rstrip(",")
            if bare == last and "<" in bare:
                kept[-1] = word
            else:
                kept.append(word)
            last = bare
        short = " ".join(kept)
    if any(map(_is_part_of_phrase, words)):
        short = _PHRASE.sub(_placeholder, short)
    if _DIGIT.search(short) is None:
        return short, ()
    return short, tuple(
        at for at, word in enumerate(words) if _DIGIT.search(word) is not None
    )


# Most errors differ from an earlier one in their numbers only.
_levelled = lru_cache(maxsize=8192)(_by_word)


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

    Two errors share it when module, code, and the place in one's own code agree;
    of errors without such a place, the normalised messages have to agree, too.
    """
    return fingerprint_of_template(
        normalise(message),
        module=module,
        error_code=error_code,
        stack_trace=stack_trace,
    )


def fingerprints_of(rows: Iterable[Record]) -> list[Fingerprint]:
    """Return the fingerprints of errors as they are stored, by column."""
    return [
        fingerprint_of(
            row["message"],
            module=row["module"],
            error_code=row["error_code"],
            stack_trace=row["stack_trace"],
        )
        for row in rows
    ]


def fingerprint_of_template(
    template: str,
    *,
    module: str = "",
    error_code: str = "",
    stack_trace: str | None = None,
) -> Fingerprint:
    """Return the fingerprint of an error whose message is normalised already."""
    place, enough = ("", False) if stack_trace is None else place_of(stack_trace)
    if stack_trace is not None or error_code[:2] == _MADE:
        error_code = code_that_counts(error_code, stack_trace)
    return _of(template, "" if enough else template, module, error_code, place)


def code_that_counts(error_code: str, stack_trace: str | None) -> str:
    """Return the code, or nothing if it was made of the message or of the trace."""
    if error_code.startswith(_MADE):
        return ""
    return code_beside(stack_trace, error_code) if stack_trace else error_code


@lru_cache(maxsize=1 << 14)
def _of(
    template: str, decides: str, module: str, error_code: str, place: str
) -> Fingerprint:
    text = f"{VERSION}\x1f{decides}\x1f{module}\x1f{error_code}\x1f{place}"
    digest = blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()
    return Fingerprint(int.from_bytes(digest, "big", signed=True), template[:_TEMPLATE])


@lru_cache(maxsize=4096)
def code_of_template(template: str) -> str:
    """Return the code given to a message that has none: ``M-`` and eight digits."""
    digest = blake2b(template.encode("utf-8", "replace"), digest_size=4).hexdigest()
    return f"{_MADE}{digest}"


def text_for_vector(
    message: str,
    *,
    module: str = "",
    error_code: str = "",
    stack_trace: str | None = None,
) -> str:
    """Return the text that stands for an error in the vector store.

    Code and module, the normalised message, and the frames, the innermost of one's
    own several times: what two errors have in common when they are the same fault,
    without what differs anyway.
    """
    parts = [normalise(message)]
    if error_code and not error_code.startswith(_MADE):
        parts.append(error_code)
    if module:
        parts.append(module)
    if stack_trace:
        kind = exception_type(stack_trace)
        if kind and kind != error_code:
            parts.append(kind)
        for name, weight in weighed_frames(stack_trace):
            parts.extend([name] * max(1, round(weight)))
    return "\n".join(parts)
