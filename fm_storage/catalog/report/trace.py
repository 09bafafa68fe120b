"""A trace as people read it: where the fault is, whose code each line is."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from fm_storage.catalog.record.frames import lines_of, raised_of

_HEAD, _TAIL = 4000, 8000
_CLOSE = 12


class Part(NamedTuple):
    """Lines of a trace, and whose code they are: ``own``, ``library``, or neither."""

    text: str
    whose: str


class Trace(NamedTuple):
    """A trace in two lengths.

    Attributes:
        kind: Type of the exception that it ends in, "" if unknown.
        culprit: The last frame of one's own, without its line; "" if there is none.
        near: From that frame to the end of the exception.
        whole: All of it; of a very long one the beginning and the end.
    """

    kind: str
    culprit: str
    near: list[Part]
    whole: list[Part]


@lru_cache(maxsize=2048)
def read_trace(text: str) -> Trace:
    """Return a trace with its lines marked by whose code they show."""
    if len(text) > _HEAD + _TAIL:
        text = f"{text[:_HEAD]}\n…\n{text[-_TAIL:]}"
    raised = raised_of(text)
    inward = 'File "' in text
    last = (raised[-1] if inward else raised[0]) if raised else None
    own = [frame.name for frame in last.frames if frame.own] if last else []
    if last and not own:
        others = [one for each in raised for one in each.frames if one.own]
        own = [one.name for one in others]
    lines = list(lines_of(text))
    return Trace(
        kind=(last.kind or "") if last else "",
        culprit=own[-1] if own else "",
        near=_parts(_near(lines, inward=inward)),
        whole=_parts(lines),
    )


def _near(lines: list[tuple[str, str]], *, inward: bool) -> list[tuple[str, str]]:
    """Return the lines about the last frame of one's own, and the exception's."""
    whose = [one[1] for one in lines]
    if "own" not in whose:
        return lines[-_CLOSE:] if inward else lines[:_CLOSE]
    if inward:
        at = len(whose) - 1 - whose[::-1].index("own")
        while at and whose[at - 1] == "own":  # the source below it is of the frame
            if lines[at][0].lstrip().startswith('File "'):
                break
            at -= 1
        found = lines[at:]
        if len(found) > _CLOSE:  # many frames of libraries below it
            found = [*found[: _CLOSE // 2], ("  …", ""), *found[-_CLOSE // 2 :]]
        return found
    at = whose.index("own")
    if at < _CLOSE:
        return lines[: at + 1]
    return [lines[0], ("    …", ""), lines[at]]


def _parts(lines: list[tuple[str, str]]) -> list[Part]:
    """Return neighbours of one kind together."""
    found: list[Part] = []
    for text, whose in lines:
        if found and found[-1].whose == whose:
            found[-1] = Part(f"{found[-1].text}\n{text}", whose)
        else:
            found.append(Part(text, whose))
    return found
