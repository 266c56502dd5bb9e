"""How good the guard's rules are on the labelled texts: the table of "Why you can trust a caption".

    python -m tests.guard_quality

A line of `guard_texts.jsonl` is a text with the rules that it breaks (`faults`), or is `repaired` by.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from capflow_tasks.captioning.guard import Guard
from capflow_tasks.domains.catalogue import load_catalogue
from capflow_tasks.records import Completion

_FILE = Path(__file__).parent / "unit" / "guard_texts.jsonl"


def labelled_texts() -> list[dict[str, Any]]:
    return [json.loads(line) for line in _FILE.read_text("utf-8").splitlines()]


def wanted_of(entry: dict[str, Any]) -> set[str]:
    return {*entry.get("faults", ()), *(f"{rule} (repaired)" for rule in entry.get("repaired", ()))}


@dataclass(frozen=True, slots=True)
class Quality:
    """How one rule does."""

    name: str
    #: Texts that break it.
    texts: int
    #: Of the texts in which it finds something, the share that breaks it; a bad text may break further rules.
    precision: float
    #: Of the texts that break it, the share in which it finds that.
    recall: float


def measure() -> Iterator[Quality]:
    """Check each text as the answer of an agent of its kind."""
    agents = {
        agent.name: agent for name in ("UI", "Natural") for agent in load_catalogue().resolve(name).agents
    }
    hits, missed, false_alarms = Counter[str](), Counter[str](), Counter[str]()
    for entry in labelled_texts():
        agent = agents["ocr" if entry.get("verbatim") else "visual_guideline"]
        text = entry["text"]
        answer = Completion(text, 100, 0, len(text.split()), entry.get("finish", "stop"), 1.0)
        checked, wanted = Guard().check(agent, answer), wanted_of(entry)
        found = {str(fault.rule) for fault in checked.faults}
        found |= {f"{repair.rule} (repaired)" for repair in checked.repairs}
        hits.update(wanted & found)
        missed.update(wanted - found)
        false_alarms.update(() if wanted else found)
    for name in sorted(hits | missed | false_alarms):
        texts = hits[name] + missed[name]
        precision = hits[name] / max(hits[name] + false_alarms[name], 1)
        yield Quality(name, texts, precision, hits[name] / max(texts, 1))


def table() -> str:
    entries = labelled_texts()
    good = sum(not wanted_of(entry) for entry in entries)
    lines = ["| rule | texts | precision | recall |", "|---|---|---|---|"]
    lines += [
        f"| {each.name} | {each.texts} | {each.precision:.3f} | {each.recall:.3f} |" for each in measure()
    ]
    lines.append(f"| all | {len(entries)}, of which {good} break none | | |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
