"""Right and corrupted captions of a scene, with the grades and the errors that they deserve."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from world.facts import Fact, Scene, falsified, write


@dataclass(frozen=True, slots=True)
class GradedCaption:
    """A caption of a scene and what a perfect judge says of it."""

    #: A key of CORRUPTIONS.
    kind: str
    text: str
    #: By the dimensions of the judge; the overall grade is the lowest.
    grades: dict[str, int]
    errors: str

    @property
    def named_errors(self) -> list[str]:
        """The errors as the judge lists them, without quotes: vLLM's grammar keeps those out."""
        return [] if self.errors == "none." else [self.errors.removesuffix(".").replace('"', "")]


def _graded(
    kind: str, text: str, said: Sequence[Fact], truth: Sequence[Fact], form: int = 3
) -> GradedCaption:
    """Grade a caption by the facts it states: none false or missing is 3, one is 2, more is 1."""
    false = [each for each in said if each not in truth]
    missing = [each for each in truth if each not in said]
    grades = {"accuracy": max(1, 3 - len(false)), "completeness": max(1, 3 - len(missing)), "form": form}
    first = [f"false: {false[0]}"] if false else [f"missing: {missing[0]}"] if missing else ["none"]
    broken = {1: "garbled", 2: "cut off"}
    errors = broken[form] if form in broken else first[0]
    return GradedCaption(kind, text, grades, f"{errors}.")


def _right(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    return _graded("right", write(scene.facts), scene.facts, scene.facts)


def _incomplete(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Leave out one statement or two, but not the last of them."""
    most = min(2, len(scene.facts) - 1)
    dropped = draw.sample(scene.facts, draw.randint(1, most))
    said = [each for each in scene.facts if each not in dropped]
    return _graded("incomplete", write(said), said, scene.facts)


def _wrong(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Make one or two statements false."""
    said = list(scene.facts)
    for number in draw.sample(range(len(said)), draw.choice((1, 1, 2))):
        said[number] = falsified(said[number], scene.facts, draw)
    return _graded("wrong", write(said), said, scene.facts)


def _swapped(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Exchange a value between two statements of one form; if there are none, take the other scene's."""
    facts = scene.facts
    choices = [
        (first, second, slot)
        for first in range(len(facts))
        for second in range(first + 1, len(facts))
        if facts[first].form == facts[second].form and len(facts[first].values) > 1
        for slot in range(len(facts[first].values))
        if facts[first].values[slot] != facts[second].values[slot]
    ]
    if not choices:
        return _other(scene, other, draw)
    first, second, slot = draw.choice(choices)
    said = list(facts)
    for here, there in ((first, second), (second, first)):
        values = list(facts[here].values)
        values[slot] = facts[there].values[slot]
        said[here] = replace(facts[here], values=tuple(values))
    if any(fact.is_held_out for fact in said) and not any(fact.is_held_out for fact in facts):
        return _wrong(scene, other, draw)
    return _graded("swapped", write(said), said, facts)


def _other(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Take the caption of another scene."""
    return _graded("other", write(other.facts), other.facts, scene.facts)


def _cut_off(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Break off inside a statement, at a blank."""
    kept = draw.randrange(len(scene.facts))
    words = str(scene.facts[kept]).split()
    said = scene.facts[:kept]
    part = " ".join(words[: draw.randrange(len(words))])
    text = "; ".join([*map(str, said), *([part] if part else [])])
    if not text:
        return _cut_off(scene, other, draw)
    return _graded("cut off", text, said, scene.facts, form=2)


def _garbled(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    words = write(scene.facts).split()
    draw.shuffle(words)
    return _graded("garbled", " ".join(words), (), scene.facts, form=1)


CORRUPTIONS: dict[str, Callable[[Scene, Scene, random.Random], GradedCaption]] = {
    "right": _right,
    "incomplete": _incomplete,
    "wrong": _wrong,
    "swapped": _swapped,
    "other": _other,
    "cut off": _cut_off,
    "garbled": _garbled,
}
_SHARES = {"right": 8, "incomplete": 4, "wrong": 6, "swapped": 3, "other": 2, "cut off": 1, "garbled": 1}


def draw_caption(scene: Scene, other: Scene, draw: random.Random) -> GradedCaption:
    """Draw a caption of a kind by lot; `other` is another scene of the domain."""
    (kind,) = draw.choices(list(_SHARES), list(_SHARES.values()))
    return CORRUPTIONS[kind](scene, other, draw)
