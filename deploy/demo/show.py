"""Print what three pictures of the demo show beside their captions, and how to continue with real weights.

python deploy/demo/show.py FOLDER_OF_CAPTIONS
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from world.facts import read

SHOWN = 3
FAREWELL = """\
A small model that knows only this drawn world wrote these captions; of photographs it knows nothing.
On a machine with a GPU, install Capflow and name a model that knows what you have:

    pip install '.\\[gpu,embedded]'
    CAPFLOW_MODEL=Qwen/Qwen2.5-VL-7B-Instruct capflow caption plan.jsonl --output captions"""

Record = dict[str, Any]


def records(folder: Path) -> list[Record]:
    """Return the records of drawn scenes, whose facts are known."""
    names = [path for path in sorted(folder.glob("Rank*_node*_*.jsonl")) if "photographs" not in path.name]
    return [
        json.loads(line)
        for path in names
        if not path.name.endswith(".failed.jsonl")
        for line in path.open(encoding="utf-8")
    ]


def compared(record: Record) -> Text:
    """Return the caption, with what is no fact in red."""
    facts = read(record["facts"])
    parts = [Text(said, style="green" if said in facts else "bold red") for said in read(record["caption"])]
    return Text("; ").join(parts)


def right(record: Record) -> tuple[int, int]:
    """Return how many of a caption's statements are facts, and how many it makes."""
    facts, said = read(record["facts"]), read(record["caption"])
    return sum(each in facts for each in said), len(said)


def first_of_each_domain(given: Iterable[Record]) -> list[Record]:
    return list({record["domain"]: record for record in reversed(list(given))}.values())[::-1]


def show(folder: Path) -> None:
    console = Console(width=110)
    found = records(folder)
    if not found:
        sys.exit(f"show.py: {folder} has no captions of drawn scenes; run make demo")
    table = Table(
        "picture", "what it shows", "caption (what is wrong is red)", title="Look at the pictures and compare"
    )
    for record in first_of_each_domain(found)[:SHOWN]:
        table.add_row(record["image"], record["facts"], compared(record), end_section=True)
    console.print(table)
    good, said = (sum(each) for each in zip(*map(right, found), strict=True))
    console.print(f"{good} of the {said} statements in {len(found)} captions are facts.", highlight=False)
    for what, path in (("Pictures", "media"), ("Captions", folder.name), ("Report", "report/index.html")):
        console.print(f"{what}: {folder.parent / path}", highlight=False, soft_wrap=True)
    console.print()
    console.print(FAREWELL, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
