"""What the documents name is there: links and anchors, files, pages, commands, and what the API reference shows."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
import yaml

from rl.cli.main import app

ROOT = Path(__file__).parent.parent
PAGES = sorted((ROOT / "docs").rglob("*.md"))
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "policies/tiny/README.md", *PAGES]
PACKAGES = ("envs", "rewards", "policies", "rollout", "rl")
IDS = [str(document.relative_to(ROOT)) for document in DOCUMENTS]

LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
FENCE = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
CODE_FILE = re.compile(rf"(?<![\w/.])(?:{'|'.join(PACKAGES)}|configs|tests|docs)/[\w/.-]*\w\.(?:py|yaml|c|md|png)\b")
COMMAND = re.compile(r"polytrace ([a-z]+)(?: ([a-z]+)\b)?")
HEADING = re.compile(r"^#{1,6} (.+)$", re.MULTILINE)


def slugs(document: Path) -> set[str]:
    """Anchors of the headings, as GitHub and the site make them."""
    headings = HEADING.findall(FENCE.sub("", document.read_text(encoding="utf-8")))
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading).strip().replace(" ", "-") for heading in plain}


def wrong_links(document: Path) -> Iterator[str]:
    for target in LINK.findall(FENCE.sub("", document.read_text(encoding="utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (document.parent / path).resolve() if path else document
        if not file.is_file():
            yield f"{target}: no such file"
        elif anchor and anchor not in slugs(file):
            yield f"{target}: {file.name} has no such heading, but {sorted(slugs(file))}"
        elif document in PAGES and ROOT / "docs" not in file.parents:
            yield f"{target}: outside docs/, where the site cannot follow"


def names_of(module: str) -> set[str]:
    """What a module of ours defines or imports at its top, or the modules of a package; empty where there is none."""
    file = ROOT / f"{module.replace('.', '/')}.py"
    if not file.is_file():
        return {other.stem for other in file.with_suffix("").glob("*.py")}
    found: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ImportFrom):
            found |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            found |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return found


def wrong_code(code: str) -> Iterator[str]:
    """Imports from our packages that lead nowhere; raises SyntaxError for what is no Python."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] in PACKAGES:
            missing = {alias.name for alias in node.names} - names_of(node.module)
            yield from (f"from {node.module} import {name}" for name in sorted(missing))


def commands() -> dict[str, set[str]]:
    """The subcommands of each command, none of most."""
    found: dict[str, set[str]] = {}
    for command in app.registered_commands:
        found[command.name or command.callback.__name__] = set()  # type: ignore[union-attr]
    for group in app.registered_groups:
        assert group.name and isinstance(group.typer_instance, typer.Typer)
        inner = group.typer_instance.registered_commands
        shown = [command for command in inner if not command.hidden]
        found[group.name] = {command.name or command.callback.__name__ for command in shown}  # type: ignore[union-attr]
    return found


def wrong_commands(text: str) -> Iterator[str]:
    known = commands()
    code = [*FENCE.findall(text), *re.findall(r"`([^`\n]+)`", FENCE.sub("", text))]
    for name, inner in (match for part in code for match in COMMAND.findall(part)):
        takes_config = name == "label"  # a config may stand where others have a subcommand
        if name not in known or (known[name] and inner and inner not in known[name] and not takes_config):
            yield f"polytrace {name} {inner}".rstrip()


def pages_of_nav() -> list[Path]:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    return [
        ROOT / "docs" / page for shelf in nav for pages in shelf.values() for entry in pages for page in entry.values()
    ]


def tree_of_architecture() -> Iterator[Path]:
    """Folders and Python files of the annotated tree."""
    text = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    [tree] = re.findall(r"## The tree\n\n```\n(.*?)```", text, re.DOTALL)
    package = ROOT
    for line in tree.splitlines():
        if top := re.match(r"(\w+)/", line):
            package = ROOT / top[1]
            yield package
        else:
            room = re.match(r"  (\w+)/", line)
            folder = package / room[1] if room else package
            yield folder
            yield from (folder / file for file in re.findall(r"\w+\.py\b", line))


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_link_and_anchor_leads_somewhere(document: Path) -> None:
    assert list(wrong_links(document)) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_file_of_ours_that_is_named_exists(document: Path) -> None:
    named = CODE_FILE.findall(document.read_text(encoding="utf-8"))
    assert [path for path in named if "NAME" not in path and not (ROOT / path).is_file()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_every_command_that_is_named_exists(document: Path) -> None:
    assert list(wrong_commands(document.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=IDS)
def test_python_that_is_shown_parses_and_imports_what_is_there(document: Path) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", document.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    assert [wrong for code in blocks for wrong in wrong_code(code)] == []


def test_checks_find_what_is_wrong(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# A b: `c`\n[x](gone.md) [y](#a-b-c) [z](#a-b) ![w](https://example.org/w.png)\n")
    assert [wrong.split(":")[0] for wrong in wrong_links(page)] == ["gone.md", "#a-b"]
    told = "`polytrace tain demo`, `polytrace rewards tset`, `polytrace train demo`\n```\npolytrace archive lss\n```"
    assert set(wrong_commands(told)) == {"polytrace tain demo", "polytrace rewards tset", "polytrace archive lss"}
    assert list(wrong_code("from rl import gspo, train\nfrom rewards.score import Comparison")) == [
        "from rl import gspo"
    ]


def test_every_page_is_on_a_shelf_of_the_site_once() -> None:
    assert sorted(pages_of_nav()) == PAGES


def test_every_command_stands_in_the_list_of_commands() -> None:
    text = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
    names = [f"{name} {inner}" for name, more in commands().items() for inner in more or {""}]
    assert [name for name in names if f"polytrace {name}".rstrip() not in text] == []


def test_the_tree_of_the_architecture_page_is_the_tree() -> None:
    shown = set(tree_of_architecture())
    assert {path for path in shown if not path.exists()} == set()
    rooms = {file.parent for package in PACKAGES for file in (ROOT / package).glob("*/__init__.py")}
    assert rooms - shown == set()


@pytest.mark.parametrize("page", sorted((ROOT / "docs/reference").glob("*.md")), ids=lambda page: page.stem)
def test_what_the_api_reference_shows_is_defined_where_it_says(page: Path) -> None:
    shown = re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    assert shown
    assert [name for name in shown if name.rpartition(".")[2] not in names_of(name.rpartition(".")[0])] == []


def test_the_readme_is_short_enough_to_be_read() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 170
