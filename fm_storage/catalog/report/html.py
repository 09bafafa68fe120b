"""Templates in which every value is escaped.

Text of a log is hostile. A value is escaped where a template prints it, and
characters that are invisible or turn the direction of a line are replaced; only
what a template made itself is printed as it is.
"""

from __future__ import annotations

import re
from functools import cache
from typing import TYPE_CHECKING

from fm_storage.catalog.report.charts import format_span, format_time

if TYPE_CHECKING:
    from jinja2 import Environment

_TEXT = 6000
_VARIABLE = re.compile(r"(<\w+>)")
# Controls are invisible, and the direction marks make a line read as another.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)


@cache
def environment() -> Environment:
    """Return the templates of this folder, compiled at first use."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader(__package__ or ""),
        autoescape=True,
        finalize=_visible,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        cut=_cut,
        number="{:,}".format,
        short=_short,
        span=format_span,
        time=format_time,
        variable_parts=lambda text: _VARIABLE.split(text) if text else [],
    )
    return made


def _visible(value: object) -> object:
    if hasattr(value, "__html__"):
        return value
    shown = _UNSEEN.sub("\ufffd", str(value))
    return shown.encode("utf-8", "replace").decode()


def _short(kind: str) -> str:
    """Return the name of a type without its package."""
    return kind if ":" in kind else kind.rpartition(".")[2] or kind


def _cut(text: str) -> str:
    if len(text) <= _TEXT:
        return text
    return f"{text[: _TEXT // 2]}\n…\n{text[-_TEXT // 2 :]}"
