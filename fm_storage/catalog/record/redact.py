"""What must not be stored: secrets, and what PostgreSQL cannot hold.

Apart from the fingerprint, because everything on its way into the catalogue
passes here first: message, trace, context, and the text that is embedded.

Masked are, wherever they stand: values behind names such as password, passwd,
passphrase, secret, token, api_key, access_key, private_key, credential,
authorization, cookie, csrf, session_key, pass, pwd, otp, cvv and ssn (in
``name=value``, ``name: value``, JSON and keys of the context; there also
session_id and auth); the password in a URL; whole Cookie headers; Bearer and
Basic credentials; JSON web tokens; private keys in PEM; keys of AWS, GitHub,
GitLab, Slack, Stripe, OpenAI, Anthropic, Google, npm and PyPI by their shape;
card numbers that pass Luhn's test. Not masked: secrets that look like words.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from enum import Enum
from functools import lru_cache
from typing import TYPE_CHECKING, Any
from uuid import UUID

import orjson

if TYPE_CHECKING:
    from fm_storage._typing import Json, JsonObject

__all__ = [
    "MASK",
    "MAX_CONTEXT_BYTES",
    "MAX_TEXT",
    "clean_context",
    "is_plain",
    "mask_context",
    "mask_text",
    "repair_context",
    "repair_text",
]

MASK = "***"

MAX_TEXT = 64 * 1024
"""Characters kept of a message or trace; the middle of a longer one goes."""

MAX_CONTEXT_BYTES = 64 * 1024
"""Bytes of JSON kept as context; larger values in it are shortened."""

_COMMON = 600  # bytes of a message with its context that are worth remembering
_MAX_DEPTH = 12
_MAX_ITEMS = 1000
_MAX_VALUE = 8 * 1024
_SHORT_VALUE = 256

# Names whose value is a secret, as they occur as keys and in ``name=value``. The
# short ones are parts of common words (compass) and must begin one themselves.
_LONG = (
    r"password|passphrase|passwd|passwort|secret|token|api[_-]?key|access[_-]?key"
    r"|private[_-]?key|signing[_-]?key|encryption[_-]?key|session[_-]?key"
    r"|credentials?|authorization|cookie|csrf|xsrf"
)
_SHORT = r"pass|passcode|pwd|otp|cvv|ssn"
_NAMES = rf"(?:{_LONG}|(?<![A-Za-z])(?:{_SHORT}))"
_SECRET_KEY = re.compile(
    rf"(?i:{_NAMES}|session[_-]?id|(?<![A-Za-z])auth)(?:$|[^A-Za-z]|(?<=[a-z])(?=[A-Z]))"
)
_PAIR = re.compile(
    rf"""(?P<name>{_NAMES}(?:[_-][A-Za-z0-9]+)?["']?\s*(?:=>|[:=])\s*)
        (?P<value>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*'
        |(?:(?:Bearer|Basic|Token|Digest|Negotiate)\s+)[^\s,;"']+
        |[^\s,;&"'<>()\[\]{{}}]+)""",
    re.IGNORECASE | re.VERBOSE,
)
_SHAPES = re.compile(
    r"""(?P<pem>-----BEGIN[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----
            (?:.*?-----END[ ][A-Z0-9 ]*PRIVATE[ ]KEY-----|.*))
        |(?P<url>\b[a-z][a-z0-9+.-]*://[^\s:/@?\#]*:)[^\s/]*(?=@)
        |(?P<cookie>\b(?:Set-)?Cookie["']?:[ ]*)[^\r\n]+
        |\b(?:Bearer|Basic)[ ]+(?P<bearer>[A-Za-z0-9+/=._~-]{16,})
        |\b(?P<known>eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}(?:\.[A-Za-z0-9_-]*)?
            |(?:AKIA|ASIA)[A-Z0-9]{16}
            |gh[pousr]_[A-Za-z0-9]{30,}|github_pat_[A-Za-z0-9_]{22,}
            |glpat-[A-Za-z0-9_-]{20,}|xox[abeoprs]-[A-Za-z0-9-]{10,}
            |(?:sk|rk|pk)[-_](?:live|test|proj|ant)[-_][A-Za-z0-9_-]{16,}
            |AIza[A-Za-z0-9_-]{35}|npm_[A-Za-z0-9]{36}|pypi-[A-Za-z0-9_-]{32,})
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_CARD = re.compile(r"(?<![\w.-])(?:\d[ -]?){12,18}\d(?![\w-]|\.\d)")
# A look for these costs a tenth of the patterns, and most lines hold none.
_HINTS = (
    "pass", "pwd", "secret", "token", "cred", "auth", "session", "cookie",
    "srf", "otp", "cvv", "ssn", "bearer", "basic", "eyj", "akia", "asia",
    "ghp_", "gho_",
    "ghu_", "ghs_", "ghr_", "_pat_", "glpat", "xox", "k_live", "k_test", "k-live",
    "k-test", "k-proj", "k-ant", "aiza", "npm_", "pypi-", "-----begin",
)  # fmt: skip
# Of the words with "key", most name something else: the same names as in _LONG.
_KEY_HINT = re.compile(r"(?:api|access|private|signing|encryption|session)[_-]?key")
# The letters that patterns take for those of ASCII when case does not count, as
# hints are written.
_FOLDED = str.maketrans({"\u017f": "s", "\u0130": "i", "\u0131": "i", "\u212a": "k"})
_DIGITS = re.compile(r"\d[\d -]{11,}")
# What may stand in a run of digits; beyond ASCII too much is better than too little.
_RUNS = bytes(
    48 if code in b"0123456789 -" or code >= 0x80 else 120 for code in range(256)
)
_RUN = b"0" * 12
_NUMERALS = b"0123456789"
_UTF8 = ("utf-8", "surrogatepass")
_LEAST_DIGITS = 13
_TEXT = frozenset({str})
_SIMPLE = frozenset({str, int, bool, type(None)})
_LEAST, _MOST = -(2**63), 2**64 - 1  # integers that JSON's writer takes
_LOST = re.compile("[\x00\ud800-\udfff]")


def mask_text(text: str) -> str:
    """Return *text* with everything that looks like a secret replaced by ``***``.

    Names stay (``password=***``), so that the line can still be read. A masked
    text is left as it is when it is masked again.
    """
    data = text.encode(*_UTF8)
    if _hints_at_secret(data):
        text = _SHAPES.sub(_mask_shape, text)
        text = _PAIR.sub(_mask_pair, text)
    # A run of bytes is found in a twentieth of the time of a pattern; masking
    # above puts none there that was not there before.
    if _RUN in data.translate(_RUNS) and _DIGITS.search(text) is not None:
        text = _CARD.sub(_mask_card, text)
    return text


def _hints_at_secret(data: bytes) -> bool:
    # No hint holds a space or a digit, so words can be asked one by one, without
    # their digits, and a cache answers for those of other lines.
    return _any_hints(data.translate(None, _NUMERALS))


def _any_hints(words: bytes) -> bool:
    return any(map(_word_hints, words.split()))


# Most errors differ from an earlier one in their numbers only.
_common_hints = lru_cache(maxsize=4096)(_any_hints)


@lru_cache(maxsize=1 << 15)
def _word_hints(word: bytes) -> bool:
    lower = word.decode(*_UTF8).translate(_FOLDED).lower()
    return (
        any(map(lower.__contains__, _HINTS))
        or ("://" in lower and "@" in lower)
        or ("key" in lower and _KEY_HINT.search(lower) is not None)
    )


def is_plain(message: str, context: Mapping[Any, Any] | None) -> bool:
    """Say whether an entry can be stored as it is, in one quick look.

    True for most of what a log holds: short text without a hint at a secret.
    False decides nothing; it only means that everything must be looked at.
    """
    if context:
        if not _TEXT.issuperset(map(type, context)):
            return False
        texts = list(context.values())
        kinds = set(map(type, texts))
        if kinds != _TEXT:
            if not kinds <= _SIMPLE:
                return False
            numbers = [value for value in texts if type(value) is int]
            if numbers and not _LEAST <= min(numbers) <= max(numbers) <= _MOST:
                return False
            texts = [value for value in texts if type(value) is str]
        text = "\n".join([message, *context, *texts])
    else:
        text = message
    if len(text) >= _MAX_VALUE or not text.isascii() or "\x00" in text:
        return False
    words = text.encode().translate(None, _NUMERALS)
    if (_common_hints if len(words) < _COMMON else _any_hints)(words):
        return False
    return (
        len(text) - len(words) < _LEAST_DIGITS
        or _DIGITS.search(text) is None
        or _CARD.sub(_mask_card, text) == text
    )


def clean_context(
    context: Mapping[Any, Any],
) -> tuple[JsonObject | None, tuple[str, ...]]:
    """Return *context* repaired and masked, and what was done to it."""
    repaired, done = repair_context(context)
    masked = mask_context(repaired)
    return (masked if isinstance(masked, dict) else None), done


def _mask_shape(match: re.Match[str]) -> str:
    if match["url"] is not None:
        return match["url"] + MASK
    if match["cookie"] is not None:
        return match["cookie"] + MASK
    if match["bearer"] is not None:
        return match[0].removesuffix(match["bearer"]) + MASK
    return MASK


def _mask_pair(match: re.Match[str]) -> str:
    value = match["value"]
    quote = value[0] if value[0] in "\"'" else ""
    return f"{match['name']}{quote}{MASK}{quote}"


def _mask_card(match: re.Match[str]) -> str:
    digits = [int(c) for c in match[0] if c.isdigit()]
    doubled = [d * 2 - 9 * (d > 4) for d in digits[-2::-2]]
    return MASK if (sum(digits[-1::-2]) + sum(doubled)) % 10 == 0 else match[0]


def mask_context(value: Json) -> Json:
    """Return *value* with secrets masked, by key as well as by shape."""
    if isinstance(value, str):
        return mask_text(value)
    if isinstance(value, list):
        return [mask_context(item) for item in value]
    if isinstance(value, dict):
        return {
            mask_text(key): MASK
            if item not in (None, "", False) and _SECRET_KEY.search(key)
            else mask_context(item)
            for key, item in value.items()
        }
    return value


def repair_text(text: str, *, limit: int = MAX_TEXT) -> tuple[str, tuple[str, ...]]:
    r"""Return *text* as PostgreSQL can store it, and what was done to it.

    NUL becomes ``\x00``, a lone surrogate ``\udcXX`` (as text), and the middle
    of a text longer than *limit* characters gives way to a note.
    """
    done: list[str] = []
    if "\x00" in text:
        done.append("NUL escaped")
    try:
        text.encode()
    except UnicodeEncodeError:
        done.append("surrogates escaped")
    if done:
        text = _LOST.sub(_escape, text)
    if len(text) > limit:
        done.append(f"shortened from {len(text)} characters")
        head, tail = limit // 2, limit // 2 - 40
        text = f"{text[:head]}\n… {len(text) - head - tail} characters …\n" + (
            text[-tail:] if tail > 0 else ""
        )
    return text, tuple(done)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code <= 0xFF else f"\\u{code:04x}"


def repair_context(
    context: Mapping[Any, Any] | None,
) -> tuple[JsonObject | None, tuple[str, ...]]:
    """Return *context* as a JSON object of bounded size, and what was done to it.

    Values that JSON has no word for are kept as text; NaN and infinity too.
    Never raises: a value whose ``repr`` fails is named by its type.
    """
    if context is None:
        return None, ()
    done: set[str] = set()
    plain = _plain(context, done, _MAX_VALUE, 0)
    if not isinstance(plain, dict):
        plain = {"value": plain}
    size = len(orjson.dumps(plain))
    if size > MAX_CONTEXT_BYTES:
        done.add(f"context shortened from {size} bytes")
        plain = _fit(plain)
    return plain, tuple(sorted(done))


def _fit(context: JsonObject) -> JsonObject:
    """Shorten every value, then drop the last ones, until the object fits."""
    kept: JsonObject = {}
    left = MAX_CONTEXT_BYTES - 1024
    for key, value in context.items():
        text = orjson.dumps(value).decode()
        if len(text) > _SHORT_VALUE * 4:
            value = text[:_SHORT_VALUE] + "…"  # noqa: PLW2901 - the shorter one
        cost = len(orjson.dumps({key: value}))
        if cost > left:
            kept["…"] = f"{len(context) - len(kept)} more"
            break
        kept[key] = value
        left -= cost
    return kept


_SCALARS: dict[type, Callable[[Any], str]] = {
    UUID: str,
    datetime: datetime.isoformat,
    date: date.isoformat,
    time: time.isoformat,
    timedelta: str,
}


def _plain(value: object, done: set[str], limit: int, depth: int) -> Json:  # noqa: C901, PLR0912 - one branch per kind of value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Enum):
        return _plain(value.value, done, limit, depth)
    if isinstance(value, str):
        text, changes = repair_text(str(value), limit=limit)
        done.update(f"context: {change}" for change in changes)
        return text
    if isinstance(value, int):
        if _LEAST <= value <= _MOST:
            return int(value)
        done.add("context: huge integer kept as text")
        return _text_of(value, done, limit)
    if isinstance(value, float):
        if math.isfinite(value):
            return float(value)
        done.add("context: NaN or infinity kept as text")
        return str(float(value))
    if type(value) in _SCALARS:
        return _SCALARS[type(value)](value)
    if isinstance(value, bytes | bytearray | memoryview):
        return _plain(bytes(value).decode("utf-8", "replace"), done, limit, depth)
    if depth >= _MAX_DEPTH:
        done.add("context: too deep, kept as text")
        return _text_of(value, done, limit)
    try:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {
                field.name: getattr(value, field.name, None)
                for field in dataclasses.fields(value)
            }
        if isinstance(value, Mapping):
            return {
                _key(key, done): _plain(item, done, limit, depth + 1)
                for key, item in _first(value.items(), done)
            }
        if isinstance(value, list | tuple | set | frozenset):
            return [
                _plain(item, done, limit, depth + 1) for item in _first(value, done)
            ]
    except Exception:
        done.add("context: unreadable value replaced")
        return f"<unreadable {type(value).__name__}>"
    done.add("context: unserialisable value kept as text")
    return _text_of(value, done, limit)


def _first(items: Any, done: set[str]) -> Any:
    for at, item in enumerate(items):
        if at >= _MAX_ITEMS:
            done.add(f"context: only the first {_MAX_ITEMS} items kept")
            return
        yield item


def _key(key: object, done: set[str]) -> str:
    text, changes = repair_text(
        key if isinstance(key, str) else _text_of(key, done, _SHORT_VALUE),
        limit=_SHORT_VALUE,
    )
    done.update(f"context: {change}" for change in changes)
    return text


def _text_of(value: object, done: set[str], limit: int) -> str:
    try:
        text = str(value) if isinstance(value, int) else repr(value)
    except Exception:
        done.add("context: unreadable value replaced")
        return f"<unreadable {type(value).__name__}>"
    return repair_text(text, limit=limit)[0]
