"""The page itself: the template filled, and the files that stand beside it."""

from __future__ import annotations

import json
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capflow_tasks.errors import UserError
from producer.report.overview import Overview

_HERE = Path(__file__).parent

#: In the order in which they need one another.
SCRIPTS = ("data.js", "filters.js", "gallery.js", "detail.js", "page.js")

#: `file:` beside 'self', because browsers do not agree on what a page from disk itself is.
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self' file:",
        "style-src 'self' file:",
        "img-src 'self' file:",
        "base-uri 'none'",
        "form-action 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types capflow",
    )
)


def write_page(folder: Path, overview: Overview, shown: int) -> None:
    """Write index.html and its styles and scripts; `shown` samples are in the gallery."""
    environment = Environment(
        loader=FileSystemLoader(_HERE / "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template("page.html").render(
        overview=overview, shown=shown, scripts=SCRIPTS, policy=POLICY, made_at=datetime.now(UTC)
    )
    (folder / "index.html").write_text(page.lstrip(), "utf-8")
    shutil.copytree(_HERE / "static", folder / "static")


#: What tells a report from a folder that somebody may miss.
_SIGNS = ("index.html", "static", "data")


def check_replaceable(folder: Path) -> None:
    """Raise UserError where something else than a report lies."""
    if folder.is_dir() and all((folder / sign).exists() for sign in _SIGNS):
        return
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} holds something else than a report; name another folder with -o")


#: What could end a script element or begin a comment in it, were the script ever put into a page.
_ESCAPED = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&'"})


def as_script(name: str, value: Any) -> str:
    """A script, pure ASCII, that hands the value to the page under this name.

    The value travels as a string for JSON.parse: as a literal, a key named __proto__ would have a meaning.
    """
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return f"capflow.data.take({_literal(name)}, JSON.parse({_literal(text)}));\n"


def _literal(text: str) -> str:
    return json.dumps(text).translate(_ESCAPED)
