"""Write the data set card of an export: what is in it, who wrote it, and how `datasets` loads it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import yaml

from capflow_tasks.records import JsonObject
from producer.writing.ownership import OwnFiles
from producer.writing.whole import whole_file

#: The name of a card.
CARD = "README.md"
#: The beginning of every card of Capflow; a README.md that begins otherwise is somebody else's.
_MARK = "---\n# Written by `capflow export`.\n"


@dataclass(frozen=True, slots=True)
class Card:
    run: str
    form: str
    #: Captions by "domain", "model" and "prompts (digest)".
    counts: Mapping[str, Counter[str]]
    #: Patterns of file names by split; empty where `datasets` cannot load the files together.
    files: Mapping[str, str]
    #: The columns, as `datasets` writes them; empty where the files say it.
    features: Sequence[JsonObject] = ()


def write_card(folder: Path, card: Card, own: OwnFiles) -> bool:
    """Write `README.md`, and return whether it was.

    One that is not Capflow's stays, and so does another run's, or one that was edited.
    """
    path = folder / CARD
    if path.exists() and not path.read_text("utf-8", "replace").startswith(_MARK):
        return False
    if not own.is_own(CARD):
        return False
    with own.writing([CARD]), whole_file(path) as file:
        file.write(_text(card).encode())
    return True


def _text(card: Card) -> str:
    head: JsonObject = {"license": "other", "task_categories": ["image-to-text"], "tags": ["capflow"]}
    if card.files:
        data_files = [{"split": split, "path": pattern} for split, pattern in card.files.items()]
        head["configs"] = [{"config_name": "default", "data_files": data_files}]
    if card.features:
        head["dataset_info"] = {"features": list(card.features)}
    tables = "\n".join(_table(title, counts) for title, counts in card.counts.items())
    loaded = (
        "`datasets.load_dataset` loads this folder by its path.\n"
        if card.files
        else "The keys of these files differ by domain; for `datasets`, export with `--format parquet`.\n"
    )
    return (
        f"{_MARK}{yaml.safe_dump(head, sort_keys=False, allow_unicode=True)}---\n\n# {card.run}\n\n"
        f"Captions of the run `{card.run}`, written as {card.form} by Capflow {version('capflow-fleet')}. "
        f"{loaded}\n{tables}\n## Licence\n\n"
        "State here before you publish: the licence of the media, that of the captions, and the terms of the "
        "models above.\n"
    )


def _table(title: str, counts: Counter[str]) -> str:
    rows = "".join(f"| {name.replace('|', chr(92) + '|')} | {count:,} |\n" for name, count in counts.items())
    return f"| {title} | captions |\n|---|---|\n{rows}"
