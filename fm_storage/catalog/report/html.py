"""HTML that is escaped by construction.

Apart from the report, because this is the rule that keeps hostile log text from
becoming markup: text is escaped when it becomes part of an element, and only
``Markup`` is not; nothing else can make a ``Markup`` but the functions here.
"""

from __future__ import annotations

import re
from base64 import b64encode
from hashlib import sha256
from html import escape

__all__ = ["Markup", "document", "el", "join"]

_VOID = frozenset({"meta", "br"})

# Controls are invisible, and the direction marks make a line read as another.
_UNSEEN = re.compile(
    r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]"
)


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


def _text(value: object) -> str:
    if isinstance(value, Markup):
        return value
    shown = _UNSEEN.sub("\ufffd", str(value))
    return escape(shown.encode("utf-8", "replace").decode())


def el(tag: str, *children: object, **attributes: object) -> Markup:
    """Return an element; children and attribute values are escaped.

    A trailing underscore of an attribute's name goes (``class_``), other
    underscores become hyphens; attributes that are None are left out.
    """
    parts = [
        f' {name.rstrip("_").replace("_", "-")}="{_text(value)}"'
        for name, value in attributes.items()
        if value is not None
    ]
    opening = f"<{tag}{''.join(parts)}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{''.join(map(_text, children))}</{tag}>")


def join(*parts: object) -> Markup:
    """Return parts one after the other, escaped where they are text."""
    return Markup("".join(map(_text, parts)))


def document(title: str, style: str, *body: object) -> str:
    """Return a whole page that may load nothing and run nothing.

    The policy allows this one style sheet, by its hash, and nothing else: no
    script, no image, no font, no connection.
    """
    digest = b64encode(sha256(style.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )
    head = el(
        "head",
        el("meta", charset="utf-8"),
        el("meta", http_equiv="Content-Security-Policy", content=policy),
        el("meta", name="viewport", content="width=device-width, initial-scale=1"),
        el("meta", name="color-scheme", content="light dark"),
        el("meta", name="referrer", content="no-referrer"),
        el("title", title),
        el("style", Markup(style)),
    )
    return f"<!doctype html>\n{el('html', head, el('body', *body), lang='en')}\n"
