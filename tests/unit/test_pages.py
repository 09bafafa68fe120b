"""What the pages point to is there: links, proofs, commands."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import click
import pytest
import yaml

from fm_storage.cli import cli
from fm_storage.config import StorageConfig
from fm_storage.config.section import section_of
from tests.support.pages import ROOT, pages, without_comments

PAGES = pages()
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
each_page = pytest.mark.parametrize("page", PAGES, ids=NAMES)

_CODE = re.compile(r"^ *```.*?^ *```$|`[^`\n]+`", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"!?\[(?:[^\[\]]|\[[^\]]*\])*\]\(([^)\s]+)\)")


def _slugs(page: Path) -> set[str]:
    """Return the anchors of a page, as code hosts make them from its headings."""
    text = re.sub(
        r"^ *```.*?^ *```$", "", page.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    found: set[str] = set()
    for heading in re.findall(r"^#+ +(.+?) *$", text, re.MULTILINE):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
        found.add(slug)
    return found


def test_the_front_page_is_short():
    """At most 8 KB: a front page; the rest is on the rooms' pages."""
    assert len((ROOT / "README.md").read_bytes()) <= 8192


@each_page
def test_links_lead_somewhere(page: Path):
    """A relative link names a file of the project, and a heading that it has."""
    broken = []
    for link in _LINK.findall(_CODE.sub("", without_comments(page.read_text("utf-8")))):
        if link.startswith(("https://", "mailto:")):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        inside = target.exists() and target.is_relative_to(ROOT)
        if not inside or (anchor and anchor not in _slugs(target)):
            broken.append(link)

    assert not broken


@each_page
def test_proofs_exist(page: Path):
    """Each file, each test and each -k that a page names is there."""
    text = page.read_text("utf-8")
    missing = []
    for match in re.finditer(
        r"(?<![\w/.])(tests/[\w/.*-]+\w)(?:::(\w+))?(?: -k (\w+))?", text
    ):
        path, test, word = match.groups()
        files = list(ROOT.glob(path))
        if not files:
            missing.append(path)
            continue
        sources = [
            file.read_text("utf-8")
            for found in files
            for file in ([found] if found.is_file() else found.rglob("test_*.py"))
        ]
        names = [
            name for source in sources for name in re.findall(r"def (test_\w+)", source)
        ]
        stems = [found.stem for found in files] + [
            file.stem
            for found in files
            if found.is_dir()
            for file in found.rglob("test_*.py")
        ]
        if test and test not in names:
            missing.append(f"{path}::{test}")
        if word and not any(word in name for name in names + stems):
            missing.append(f"{path} -k {word}")

    assert not missing


@each_page
def test_make_targets_exist(page: Path):
    """Each ``make target`` in a page is one of the Makefile's."""
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z][a-z-]*)", page.read_text("utf-8")))

    assert named <= targets


def test_a_manifest_names_what_exists(monkeypatch: pytest.MonkeyPatch):
    """Commands parse, settings are complete, the probes' paths are the probes'."""
    page = ROOT / "fm_storage" / "manager" / "DEPLOYING.md"
    [manifests] = re.findall(r"```yaml\n(.*?)```", page.read_text("utf-8"), re.DOTALL)
    containers = [
        container
        for manifest in yaml.safe_load_all(manifests)
        for kind in ("initContainers", "containers")
        for container in manifest["spec"]["template"]["spec"].get(kind, ())
    ]
    assert len(containers) == 3
    for container in containers:
        program, name, *arguments = container["command"]
        if program == "fm-storage":
            command = cli.get_command(click.Context(cli), name)
            assert command is not None
            command.make_context(name, arguments)
        known = StorageConfig.model_fields
        with monkeypatch.context() as environment:
            for variable in container["env"]:
                name = variable["name"]
                section, setting = name.removeprefix("FM_STORAGE_").lower().split("__")
                model = section_of(known[section].annotation)
                assert model is not None
                assert setting in model.model_fields
                secret = "postgresql://app@db/shop"
                environment.setenv(name, variable.get("value", secret))
            assert StorageConfig.from_env().migrations is not None
        for probe in ("livenessProbe", "readinessProbe"):
            path = container.get(probe, {"httpGet": {"path": "/livez"}})
            assert path["httpGet"]["path"].rsplit("/", 1)[1] in {"livez", "readyz"}


def test_the_picture_of_the_rooms_is_complete():
    """Every folder of the package is drawn, and no other."""
    page = (ROOT / ".github" / "CONTRIBUTING.md").read_text("utf-8")
    picture = page.partition("```text\nfm_storage/\n")[2].partition("migrations/")[0]
    drawn = set(re.findall(r"^ +([a-z_]+)/ ", picture, re.MULTILINE))
    there = {
        file.parent.name
        for file in (ROOT / "fm_storage").glob("*/**/__init__.py")
        if file.parent.name != "process"
    }

    assert drawn == there


def test_the_front_page_names_every_extra():
    """What can be installed is found there."""
    front = (ROOT / "README.md").read_text("utf-8")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = front.partition("\nExtras: ")[2].partition("\n")[0]

    named = set(re.findall(r"`(\w+)`", extras))
    assert named == set(project["optional-dependencies"])


def test_the_page_of_the_command_line_names_every_command():
    """Also those below a command, such as ``errors resolve``."""
    table = (ROOT / "fm_storage/cli/README.md").read_text("utf-8").splitlines()
    missing = []

    def look(group: click.Group, above: str) -> None:
        with click.Context(group) as ctx:
            for name in group.list_commands(ctx):
                command = group.get_command(ctx, name)
                row = [line for line in table if f"`fm-storage {above}" in line]
                if not any(re.search(rf"\b{name}\b", line) for line in row):
                    missing.append(f"{above} {name}")
                if isinstance(command, click.Group):
                    look(command, above or name)

    look(cli, "")
    assert not missing
