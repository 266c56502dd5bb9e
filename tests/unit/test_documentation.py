"""The generated pages are those of the code, and files outside the site link to files that exist."""

import re
from pathlib import Path

import pytest

from deploy.reference import REPOSITORY, pages


@pytest.mark.parametrize("name", ["commands.md", "settings.md"])
def test_the_committed_reference_is_what_the_code_generates(name: str) -> None:
    (path, content) = next(page for page in pages().items() if page[0].name == name)
    assert path.read_text() == content, "run `make docs` and commit docs/reference"


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "deploy/README.md", "tests/benchmarks/README.md"]
)
def test_every_link_leads_to_a_file(name: str) -> None:
    page = REPOSITORY / name
    links = re.findall(r"\]\(([^)#]+)", page.read_text())
    assert links
    assert [link for link in links if not Path(page.parent, link).exists()] == []
