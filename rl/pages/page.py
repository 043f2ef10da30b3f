"""Self-contained HTML pages from templates/: no network, no script, light and dark.

Every page extends templates/page.html.j2, the frame with the title and the style that all share, and draws what several
pages have (numbers, charts, rows of pictures, facts) by the macros of page_parts.j2.
"""

from importlib.resources import files
from pathlib import Path
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from rollout.disk import whole_file


def render_page(template: str, **values: Any) -> str:
    """The template `rl/pages/templates/TEMPLATE` filled in; what is not Markup is escaped.

    A name without a value is an error.
    """
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, loader=FunctionLoader(_read)
    )
    return environment.get_template(template).render(**values)


def write_page(path: Path, page: str) -> None:
    """Write a page to `path`, whole or not at all; its folder is made where it is missing."""
    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")


def _read(name: str) -> str:
    return (files("rl.pages") / "templates" / name).read_text(encoding="utf-8")
