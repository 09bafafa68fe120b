"""Build the site: pages, API reference, settings, commands, errors, glossary.

``make docs`` runs it. The pages stay where they are read on a code host; here they
are gathered under short names, their links follow, and what they do not say is drawn
from the code. A warning, a broken link or a missing anchor ends the build.
"""

from __future__ import annotations

import importlib
import inspect
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import get_origin
from urllib.parse import unquote

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "build" / "pages"
SITE = ROOT / "build" / "docs"

GUIDES = {
    f"fm_storage/{room}/README.md": room
    for room in (
        *("manager", "config", "catalog", "sessions", "hooks", "repositories"),
        *("postgres", "vectors", "outbox", "migrate", "cli", "testing"),
    )
} | {
    "fm_storage/manager/DEPLOYING.md": "deploying",
    "fm_storage/postgres/POOLERS.md": "poolers",
}
PROJECT = {
    "tests/README.md": "tests",
    "tests/bench/README.md": "figures",
    "migrations/README.md": "writing-migrations",
    ".github/CONTRIBUTING.md": "contributing",
    ".github/SECURITY.md": "security",
    "CHANGELOG.md": "changelog",
}
PAGES = {"README.md": "index", ".docs/glossary.md": "glossary"} | GUIDES | PROJECT
DRAWN = ["settings", "commands", "errors"]
ROOMS = [Path(path).parent.name for path in GUIDES if path.endswith("README.md")]

_COMMENT = re.compile(r"^<!--.*?-->\n?", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"(\]\()([^)#\s:]+)((?:#[^)\s]*)?\))")


def gather() -> None:
    """Copy the pages under their names in the site; links and pictures follow."""
    for path, name in PAGES.items():
        text = _COMMENT.sub("", (ROOT / path).read_text("utf-8"))
        folder = (ROOT / path).parent

        def moved(match: re.Match[str], folder: Path = folder) -> str:
            target = (folder / match[2]).resolve().relative_to(ROOT)
            if str(target) in PAGES:
                return f"{match[1]}{PAGES[str(target)]}.md{match[3]}"
            shutil.copy(ROOT / target, SOURCES / target.name)
            return f"{match[1]}{target.name}{match[3]}"

        text = _LINK.sub(moved, text)
        if name == "index":
            text += contents()
        (SOURCES / f"{name}.md").write_text(text, "utf-8")


def contents() -> str:
    """Return the hidden tables of contents, which make the navigation."""
    parts = {
        "Guides": [*GUIDES.values()],
        "Reference": [*DRAWN, "glossary", *(f"api/{room}" for room in API)],
        "Project": [*PROJECT.values()],
    }
    return "".join(
        f"\n```{{toctree}}\n:hidden:\n:caption: {part}\n\n"
        + "\n".join(names)
        + "\n```\n"
        for part, names in parts.items()
    )


def public_names() -> dict[str, list[str]]:
    """Return every public name, by room, as it is best imported."""
    top = importlib.import_module("fm_storage")
    found: dict[str, list[str]] = {}
    seen: set[int] = set()
    for room in [*ROOMS, ""]:
        if room == "cli":
            continue
        package = importlib.import_module(
            f"fm_storage.{room}" if room else "fm_storage"
        )
        for name in package.__all__:
            thing = getattr(package, name)
            if name == "__version__" or id(thing) in seen or _is_error(thing):
                continue
            seen.add(id(thing))
            where = top if getattr(top, name, None) is thing else package
            found.setdefault(room, []).append(f"{where.__name__}.{name}")
    return found


def _is_error(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, Exception)


def draw_api() -> None:
    """Write a page for each room: the docstrings of its public names."""
    (SOURCES / "api").mkdir()
    for room, names in API.items():
        lines = [
            f"# fm_storage.{room}" if room in ROOMS else "# fm_storage",
            "",
            f"How to use it: [{room}](../{room}.md)." if room in ROOMS else "",
            "",
        ]
        for name in names:
            module, _, short = name.rpartition(".")
            thing = getattr(importlib.import_module(module), short)
            lines += [f"## {short}", "", *_directive(name, thing), ""]
        (SOURCES / "api" / f"{room}.md").write_text("\n".join(lines), "utf-8")


def _directive(name: str, thing: object) -> list[str]:
    if isinstance(thing, type):
        kind, options = (
            "autoclass",
            [":members:", ":inherited-members: object, BaseModel"],
        )
        options = [*options, ":exclude-members: model_config, model_post_init"]
    elif callable(thing) and get_origin(thing) is None:
        kind, options = "autofunction", []
    else:
        kind, options = "autodata", []
    return [
        "```{eval-rst}",
        f".. {kind}:: {name}",
        *(f"   {o}" for o in options),
        "```",
    ]


def draw_settings() -> None:
    """Write every setting with its variable, default and meaning."""
    from fm_storage.config import StorageConfig

    lines = ["# Settings", "", "How they are given: [config](config.md).", ""]
    table = ["| setting | variable | default |", "|---|---|---|"]
    whole = StorageConfig.model_fields
    kinds = {
        name: type(field.get_default(call_default_factory=True))
        for name, field in whole.items()
    }
    sections = {"": whole} | {
        name: kind.model_fields
        for name, kind in kinds.items()
        if hasattr(kind, "model_fields")
    }
    for section, fields in sections.items():
        lines += [f"## {section or 'The manager'}", "", *table]
        for name, field in fields.items():
            if not section and name in sections:
                continue
            default = field.get_default(call_default_factory=True)
            key = f"{section}.{name}" if section else name
            variable = f"FM_STORAGE_{key.replace('.', '__')}".upper()
            shown = "" if default in (None, {}, ()) else f"`{default}`"
            lines.append(f"| `{key}` | `{variable}` | {shown} |")
        lines.append("")
    lines += ["What each means: [the classes](api/config.md).", ""]
    (SOURCES / "settings.md").write_text("\n".join(lines), "utf-8")


def draw_commands() -> None:
    """Write the help of every command, as the program prints it."""
    import click

    from fm_storage.cli import cli

    lines = ["# Commands", "", "Exit codes: [cli](cli.md#exit-codes).", ""]

    def walk(command: click.Command, path: str, depth: int) -> None:
        context = click.Context(command, info_name=path, max_content_width=88)
        lines.extend([f"{'#' * min(depth, 4)} {path}", "", "```text"])
        lines.extend([command.get_help(context), "```", ""])
        if isinstance(command, click.Group):
            for name in command.list_commands(context):
                found = command.get_command(context, name)
                assert found is not None
                walk(found, f"{path} {name}", depth + 1)

    walk(cli, "fm-storage", 2)
    (SOURCES / "commands.md").write_text("\n".join(lines), "utf-8")


def draw_errors() -> None:
    """Write the tree of errors as it is, and every error with its attributes."""
    from fm_storage import errors

    drawn = (inspect.getdoc(errors) or "").partition("::\n\n")[2]
    tree = [line[4:] for line in drawn.splitlines() if line.startswith("    ")]
    order = [word for line in tree for word in re.findall(r"^[│├└─ ]*(\w+)", line)]
    if sorted(order) != sorted(errors.__all__):
        missing = set(order) ^ set(errors.__all__)
        sys.exit(f"fm_storage.errors: its tree and its names differ: {missing}")
    lines = [
        "# Errors",
        "",
        "Every error that fm_storage raises on its own behalf. Messages",
    ]
    lines += ["read *owner: fact with numbers; remedy* and never hold a secret.", ""]
    lines += ["```text", *tree, "```", ""]
    for name in order:
        lines += ["```{eval-rst}", f".. autoexception:: fm_storage.errors.{name}"]
        lines += ["   :members:", "   :show-inheritance:", "```", ""]
    (SOURCES / "errors.md").write_text("\n".join(lines), "utf-8")


class _Links(HTMLParser):
    """The links and the anchors of one HTML file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = {"", "top"}
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del tag
        for name, value in attrs:
            if name == "id" and value:
                self.anchors.add(value)
            elif name in {"href", "src"} and value:
                self.links.add(value)


def broken_links() -> list[str]:
    """Return the links of the built site that lead nowhere, or out of it unasked."""
    pages = {file: _Links(file.read_text("utf-8")) for file in SITE.rglob("*.html")}
    broken = []
    for file, page in pages.items():
        for link in sorted(page.links):
            if re.match(r"(https?|mailto|data):|#$", link):
                continue
            path, _, anchor = unquote(link).partition("#")
            path = path.partition("?")[0]
            target = (file.parent / path).resolve() if path else file
            known = pages[target].anchors if target in pages else {anchor}
            if not target.exists() or anchor not in known:
                broken.append(f"{file.relative_to(SITE)}: {link}")
    return broken


def main() -> None:
    """Gather, draw, build, check."""
    for folder in (SOURCES, SITE):
        shutil.rmtree(folder, ignore_errors=True)
    SOURCES.mkdir(parents=True)
    gather()
    draw_api()
    draw_settings()
    draw_commands()
    draw_errors()
    options = ["-q", "-W", "--keep-going", "-c", str(Path(__file__).parent)]
    options += ["-d", str(ROOT / "build" / "doctrees")]
    built = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, str(SOURCES), str(SITE)],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        check=False,
    )
    broken = broken_links()
    for link in broken:
        print(f"broken link: {link}", file=sys.stderr)
    if built.returncode or broken:
        sys.exit(1)
    print(
        f"the site is in {SITE.relative_to(ROOT)}: open {SITE.relative_to(ROOT)}/index.html"
    )


API = {room or "more": names for room, names in public_names().items()}

if __name__ == "__main__":
    main()
