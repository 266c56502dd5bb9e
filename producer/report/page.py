"""The page itself: the template filled, and the files that stand beside it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
