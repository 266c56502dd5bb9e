"""A page that compares arms: the measures, and the captions sample by sample."""

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from capflow_tasks.records import Modality
from producer.console import count, counted, percent, usd
from producer.evaluation.comparison import Comparison, Judged
from producer.evaluation.measures import NOTHING
from producer.report.pictures import PictureTask, draw_all
from producer.scoring import caption_of
from producer.writing.whole import whole_folder

_HERE = Path(__file__).parent / "templates"
#: Pictures are shown of so many samples, and so many samples at all.
MOST_SHOWN = 500
_PICTURE_SIZE = 640


def write_page(comparison: Comparison, folder: Path, processes: int) -> Path:
    """Write the page as a folder that appears whole; the samples in which arms differ most come first."""
    numbers = _order(comparison)[:MOST_SHOWN]
    with whole_folder(folder) as aside:
        tasks = [task for number in numbers for task in _tasks(comparison, number, aside)]
        drawn = draw_all(tasks, processes)
        pictures = {
            task.large.stem: f"pictures/{task.large.name}"
            for task, each in zip(tasks, drawn, strict=True)
            if not each.reason
        }
        page = _template().render(
            comparison=comparison,
            domains=comparison.by_domain(),
            samples=[_sample(comparison, number, pictures) for number in numbers],
            made_at=datetime.now(UTC),
        )
        (aside / "index.html").write_text(page.lstrip(), "utf-8")
        shutil.copy(_HERE / "compare.css", aside / "compare.css")
    return folder / "index.html"


def _order(comparison: Comparison) -> list[int]:
    """Sort the samples by how far apart the arms are in the measure that the verdict is about."""
    headlines = comparison.headlines
    name = headlines[0].measure.name if headlines else ""

    def spread(number: int) -> float:
        parts = [own[number].parts.get(name, NOTHING) for own in comparison.judged.values()]
        values = [above / below for above, below in parts if below]
        return min(values, default=0.0) - max(values, default=0.0)

    return sorted(range(len(comparison.samples)), key=spread)


def _tasks(comparison: Comparison, number: int, folder: Path) -> list[PictureTask]:
    sample = comparison.samples[number]
    kind, path = sample.media[0]
    large = folder / "pictures" / f"{number:05}.jpg"
    return [PictureTask(Modality(kind), sample.shard.root, path, large, None, _PICTURE_SIZE)]


def _sample(comparison: Comparison, number: int, pictures: Mapping[str, str]) -> dict[str, Any]:
    sample = comparison.samples[number]
    return {
        "name": ", ".join(path for _, path in sample.media),
        "domain": comparison.domain_of(number),
        "picture": pictures.get(f"{number:05}"),
        "arms": [_arm(name, own[number]) for name, own in comparison.judged.items()],
        "questions": _questions([own[number] for own in comparison.judged.values()]),
    }


def _arm(name: str, judged: Judged) -> dict[str, Any]:
    failure = judged.sample.failure
    return {
        "name": name,
        "caption": caption_of(judged.record) if "caption" in judged.record else None,
        "failure": f"{failure.kind}: {failure.message}" if failure else None,
        "overall": judged.record.get("overall"),
        "errors": judged.record.get("errors") or [],
        "guard": sorted({str(each["rule"]) for each in judged.record.get("guard", [])}),
        "tokens": round(judged.parts["tokens"][0]),
    }


def _questions(arms: Sequence[Judged]) -> list[dict[str, Any]]:
    """List each question with the answer of every arm."""
    by_arm = [(*judged.answers, *judged.facts) for judged in arms]
    return [
        {
            "text": answers[0].question.text,
            "answer": answers[0].question.answer,
            "given": [
                {"choice": each.choice, "is_right": each.is_right, "share": each.shares.get(each.choice)}
                for each in answers
            ],
        }
        for answers in zip(*by_arm, strict=True)
    ]


def _template() -> Any:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"thousands": count, "counted": counted, "percent": percent, "usd": usd}
    return environment.get_template("compare.html")
