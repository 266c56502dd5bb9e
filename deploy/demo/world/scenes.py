"""Draws what a picture shows by lot: one function per domain, which returns facts, not pixels."""

import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from world.facts import (
    COLOURS,
    CORNERS,
    DIAGRAM_WORDS,
    DIGITS,
    LETTERS,
    NUMBERS,
    PAGE_WORDS,
    PLACES,
    SCREEN_WORDS,
    THINGS,
    VALUES,
    Fact,
    Scene,
    fact,
)

#: What a domain's function returns: overview, details, conclusions.
Story = tuple[Fact, list[Fact], list[Fact]]

WARM = ("red", "orange", "yellow", "pink")
COOL = ("green", "blue", "purple")


def _pick(draw: random.Random, slot: str) -> str:
    return draw.choice(VALUES[slot])


def _sample(draw: random.Random, values: Sequence[str], count: int) -> list[str]:
    return draw.sample(values, count)


def photo(draw: random.Random) -> Story:
    """One to three things on a ground, each in a column of its own, from left to right."""
    count = draw.randint(1, 3)
    columns = sorted(draw.sample(range(3), count))
    things = _sample(draw, THINGS, count)
    details = [
        fact(
            "thing", _pick(draw, "size"), draw.choice(COLOURS), thing, PLACES[3 * draw.randrange(3) + column]
        )
        for thing, column in zip(things, columns, strict=True)
    ]
    conclusions = [fact("things", NUMBERS[count])]
    if count > 1:
        first, second = draw.sample(range(count), 2)
        relation = "left of" if first < second else "right of"
        conclusions.append(fact("relation", things[first], relation, things[second]))
    return fact("photo", _pick(draw, "ground"), _pick(draw, "time")), details, conclusions


def _ranked(draw: random.Random, count: int) -> list[str]:
    """Return digits of which the highest occurs once."""
    highest = draw.randint(2, 5)
    digits = [draw.randint(1, highest - 1) for _ in range(count)]
    digits[draw.randrange(count)] = highest
    return list(map(str, digits))


def chart(draw: random.Random) -> Story:
    kind = _pick(draw, "chart")
    count = draw.randint(2, 3)
    overview = fact("chart", kind, NUMBERS[count])
    if kind == "pie chart":
        shares = draw.sample(
            ("quarter", "three quarters") if count == 2 else ("half", "quarter", "quarter"), count
        )
        colours = _sample(draw, COLOURS, count)
        slices = [fact("slice", *each) for each in zip(colours, shares, strict=True)]
        largest = max(range(count), key=lambda number: VALUES["share"].index(shares[number]))
        return overview, slices, [fact("largest", colours[largest])]
    letters = sorted(_sample(draw, LETTERS, count))
    digits = _ranked(draw, count)
    highest = [fact("highest", letters[digits.index(max(digits))])]
    if kind == "bar chart":
        colours = _sample(draw, COLOURS, count)
        return overview, [fact("bar", *each) for each in zip(letters, colours, digits, strict=True)], highest
    if kind == "line chart":
        return overview, [fact("point", *each) for each in zip(letters, digits, strict=True)], highest
    rows = zip(letters, digits, draw.choices(DIGITS, k=count), strict=True)
    return overview, [fact("row", *each) for each in rows], highest


def sheet(draw: random.Random) -> Story:
    """A page or poster: a title, one or two lines, and perhaps a drawn sign."""
    count = draw.randint(1, 2)
    title, *lines = _sample(draw, PAGE_WORDS, count + 1)
    details = [fact("title", title), *(fact("line", line) for line in lines)]
    if draw.random() < 0.5:
        details.append(fact("sign", draw.choice(COLOURS), draw.choice(THINGS)))
    overview = fact("sheet", _pick(draw, "sheet"), draw.choice(COLOURS), NUMBERS[count])
    return overview, details, [fact("topic", title)]


def medical(draw: random.Random) -> Story:
    """A scan with one or two findings, or one to three cells; large or many-nucleated is suspicious."""
    if draw.random() < 0.5:
        count = draw.randint(1, 2)
        corners = sorted(_sample(draw, CORNERS, count), key=CORNERS.index)
        details = [fact("finding", _pick(draw, "size"), _pick(draw, "finding"), corner) for corner in corners]
        overview = fact("scan", _pick(draw, "organ"))
        is_suspicious = any(each.values[0] == "large" for each in details)
    else:
        corners = sorted(_sample(draw, CORNERS, draw.randint(1, 3)), key=CORNERS.index)
        details = [fact("cell", _pick(draw, "cell"), _pick(draw, "nuclei"), corner) for corner in corners]
        overview = fact("cells", _pick(draw, "stain"))
        is_suspicious = any(each.values[1] == "two nuclei" for each in details)
    return overview, details, [fact("verdict", "suspicious" if is_suspicious else "normal")]


def screen(draw: random.Random) -> Story:
    count = draw.randint(1, 3)
    details = []
    for word in _sample(draw, SCREEN_WORDS, count):
        control = draw.choice(("switch", "box", "button"))
        state = _pick(draw, {"switch": "switch state", "box": "box state", "button": "colour"}[control])
        details.append(fact(control, word, state))
    overview = fact("screen", _pick(draw, "theme"), _pick(draw, "screen"))
    return overview, details, [fact("controls", NUMBERS[count])]


def code(draw: random.Random) -> Story:
    """A program of two or three lines that prints a number."""
    first, second = _sample(draw, VALUES["variable"], 2)
    start, step = draw.choice(DIGITS), draw.choice(DIGITS)
    details, printed, result = [fact("set", first, start)], first, int(start)
    if draw.random() < 0.6:
        printed, result = draw.choice((first, second)), int(start) + int(step)
        details.append(fact("add", printed, first, step))
    details.append(fact("print", printed))
    overview = fact("editor", _pick(draw, "theme"), NUMBERS[len(details)])
    return overview, details, [fact("output", str(result))]


def diagram(draw: random.Random) -> Story:
    """Two or three boxes below each other, joined by arrows that all point the same way."""
    count = draw.randint(2, 3)
    words = _sample(draw, DIAGRAM_WORDS, count)
    boxes = [fact("node", draw.choice(COLOURS), word) for word in words]
    path = words if draw.random() < 0.5 else words[::-1]
    arrows = [fact("arrow", *pair) for pair in pairwise(path)]
    return fact("diagram", NUMBERS[count]), boxes + arrows, [fact("start", path[0])]


def texture(draw: random.Random) -> Story:
    fore, ground, sign = _sample(draw, COLOURS, 3)
    details = [fact("pattern", fore, _pick(draw, "pattern"), ground)]
    if draw.random() < 0.5:
        details.append(fact("motif", sign, draw.choice(THINGS)))
    look = "warm" if {fore, ground} <= set(WARM) else "cool" if {fore, ground} <= set(COOL) else "neutral"
    return fact("texture", _pick(draw, "finish")), details, [fact("look", look)]


def video(draw: random.Random) -> Story:
    """One or two things, each of which does something; the second in the second half."""
    count = draw.randint(1, 2)
    things = _sample(draw, THINGS, count)
    colours = _sample(draw, COLOURS, count)
    changes = [_pick(draw, "change") for _ in range(count)]
    details = [fact("event", *each) for each in zip(VALUES["order"], colours, things, changes, strict=False)]
    left = NUMBERS[count - changes.count("vanishes")]
    return fact("clip", _pick(draw, "theme")), details, [fact("ending", left)]


#: By name in the catalogue.
STORIES: dict[str, Callable[[random.Random], Story]] = {
    "Code & Programming": code,
    "Infographic & Document": sheet,
    "Knowledge & Education": diagram,
    "Medical & Bio-Imaging": medical,
    "Natural": photo,
    "Structure & Math": chart,
    "Synthetic & Aesthetic": texture,
    "UI & Interaction": screen,
    "Video & Temporal": video,
}


def draw_scene(domain: str, draw: random.Random, *, is_held_out: bool) -> Scene:
    """Draw a scene without any held-out combination, or with at least one."""
    while True:
        overview, details, conclusions = STORIES[domain](draw)
        if any(each.is_held_out for each in details) == is_held_out:
            return Scene(domain, overview, tuple(details), tuple(conclusions), draw.getrandbits(32))
