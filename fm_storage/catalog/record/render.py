"""Exceptions as text: message, code and trace, with chain, group and notes.

Rendering is the most expensive part of recording (it reads source lines) and must
not fail, whatever the exception's own methods do.
"""

from __future__ import annotations

import contextlib
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass

logger = logging.getLogger("fm_storage.catalog")

_MAX_DEPTH = 20
_MAX_FRAMES = 64


@dataclass(frozen=True, slots=True)
class Rendered:
    """What the catalogue keeps of an exception."""

    message: str
    error_code: str
    stack_trace: str
    context: dict[str, object]


def render(exc: BaseException) -> Rendered:
    """Return message, code, trace and structure of *exc*; never raises.

    The trace is what Python prints: causes, contexts, groups and notes included,
    of a deep recursion the outer and inner frames. The code is the qualified
    name of the type, followed by the SQLSTATE where there is one.
    """
    code = type_name(exc)
    state = _attribute(exc, "sqlstate")
    if isinstance(state, str) and state:
        code = f"{code}:{state}"
    return Rendered(_message(exc), code, _trace(exc), _structure(exc))


def type_name(exc: BaseException) -> str:
    """Return the qualified name of the type, builtins without their module."""
    kind = type(exc)
    name = kind.__qualname__.replace("<locals>.", "")
    return name if kind.__module__ == "builtins" else f"{kind.__module__}.{name}"


def _message(exc: BaseException) -> str:
    text = _str(exc)
    if isinstance(exc, KeyError) and len(exc.args) == 1:
        text = f"KeyError: {text}"
    return text or type_name(exc)


def _str(exc: BaseException) -> str:
    try:
        return str(exc)
    except Exception:  # str() of an exception may do anything
        return f"<unprintable {type_name(exc)}>"


def text_of(value: object) -> str:
    """Return *value* as text, whatever its own methods do; never raises."""
    for convert in (str, repr):
        with contextlib.suppress(Exception):
            return convert(value)
    return f"<unprintable {type(value).__name__}>"


def _trace(exc: BaseException) -> str:
    chain = [exc, *_chain(exc)]
    try:
        # Python leaves out what lies below a falsy exception.
        if all(chain):
            found = traceback.TracebackException.from_exception(exc, lookup_lines=False)
            _shorten(found)
            return "".join(found.format()).rstrip("\n")
    except Exception:  # rendered another way
        logger.debug("%s is rendered frame by frame", type(exc))
    return "\n\n".join(map(_own_trace, reversed(chain)))


def _own_trace(exc: BaseException) -> str:
    lines = traceback.format_tb(exc.__traceback__)[-_MAX_FRAMES:]
    head = ["Traceback (most recent call last):\n"] if lines else []
    return "".join([*head, *lines, f"{type_name(exc)}: {_str(exc)}"])


def _shorten(found: traceback.TracebackException, depth: int = 0) -> None:
    """Drop the middle of stacks that are deeper than anyone reads."""
    if len(found.stack) > _MAX_FRAMES:
        half = _MAX_FRAMES // 2
        del found.stack[half:-half]
    if depth < _MAX_DEPTH:
        below = [found.__cause__, found.__context__, *(found.exceptions or ())]
        for inner in below:
            if inner is not None:
                _shorten(inner, depth + 1)


def _structure(exc: BaseException) -> dict[str, object]:
    """Return what the trace shows but a program could not find in it again."""
    context: dict[str, object] = {}
    chain = [type_name(inner) for inner in _chain(exc)]
    if chain:
        context["caused_by"] = chain
    if isinstance(exc, BaseExceptionGroup):
        context["exceptions"] = [
            f"{type_name(inner)}: {_str(inner)[:200]}" for inner in _leaves(exc)
        ]
    notes = _attribute(exc, "__notes__")
    if isinstance(notes, list) and notes:
        context["notes"] = [text_of(note)[:1000] for note in notes[:20]]
    return context


def _chain(exc: BaseException) -> Iterator[BaseException]:
    seen = {id(exc)}
    inner = _below(exc)
    while inner is not None and id(inner) not in seen and len(seen) <= _MAX_DEPTH:
        seen.add(id(inner))
        yield inner
        inner = _below(inner)


def _below(exc: BaseException) -> BaseException | None:
    # Compared with None: an exception may be falsy.
    if exc.__cause__ is not None:
        return exc.__cause__
    return None if exc.__suppress_context__ else exc.__context__


def _leaves(
    group: BaseExceptionGroup[BaseException], limit: int = 20
) -> list[BaseException]:
    found: list[BaseException] = []
    waiting: list[BaseException] = [group]
    while waiting and len(found) < limit:
        exc = waiting.pop(0)
        if isinstance(exc, BaseExceptionGroup):
            waiting.extend(exc.exceptions)
        else:
            found.append(exc)
    return found


def _attribute(exc: BaseException, name: str) -> object:
    try:
        return getattr(exc, name, None)
    except Exception:  # a property may do anything
        return None
