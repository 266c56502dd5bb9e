"""Facts about a picture as data: a closed vocabulary, a fixed grammar, and what makes a fact false."""

import random
from collections.abc import Collection
from dataclasses import dataclass, replace
from zlib import crc32

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "black")
THINGS = ("tree", "house", "car", "boat", "fish", "flower", "ball", "star")
PLACES = (
    *("top left", "top", "top right"),
    *("left", "centre", "right"),
    *("bottom left", "bottom", "bottom right"),
)
CORNERS = ("top left", "top right", "bottom left", "bottom right")
NUMBERS = ("zero", "one", "two", "three", "four")
LETTERS = tuple("ABCDEFGH")
DIGITS = tuple("12345")
PAGE_WORDS = (
    *("SALE", "MILK", "TEA", "BREAD", "OPEN", "FREE", "NEWS", "MUSIC"),
    *("CAKE", "ZOO", "JAZZ", "ROOM", "RAIN", "SNOW", "WIND", "STOP"),
)
SCREEN_WORDS = ("WIFI", "SEND", "SAVE", "PLAY", "HELP", "HOME", "MAIL", "STOP")
DIAGRAM_WORDS = ("SUN", "RAIN", "LEAF", "ROOT", "SEED", "STEM", "FOOD", "WORM")

#: What may stand in each slot of a fact.
VALUES: dict[str, tuple[str, ...]] = {
    "size": ("small", "large"),
    "colour": COLOURS,
    "thing": THINGS,
    "place": PLACES,
    "corner": CORNERS,
    "ground": ("meadow", "beach", "snowfield", "street"),
    "time": ("day", "night"),
    "number": NUMBERS[1:],
    "relation": ("left of", "right of"),
    "letter": LETTERS,
    "digit": DIGITS,
    "chart": ("bar chart", "line chart", "pie chart", "table"),
    "share": ("quarter", "half", "three quarters"),
    "sheet": ("page", "poster"),
    "page word": PAGE_WORDS,
    "screen word": SCREEN_WORDS,
    "diagram word": DIAGRAM_WORDS,
    "screen": ("phone", "web page"),
    "theme": ("light", "dark"),
    "switch state": ("on", "off"),
    "box state": ("ticked", "empty"),
    "variable": ("a", "n", "x", "y"),
    "result": tuple(map(str, range(1, 11))),
    "organ": ("chest", "head"),
    "finding": ("spot", "ring", "line"),
    "stain": ("pink", "blue"),
    "cell": ("round", "long"),
    "nuclei": ("no nucleus", "one nucleus", "two nuclei"),
    "verdict": ("normal", "suspicious"),
    "direction": ("left", "right", "up", "down"),
    "pattern": ("stripes", "dots", "checks", "waves", "rings"),
    "finish": ("sharp", "soft", "grainy"),
    "look": ("warm", "cool", "neutral"),
    "change": (
        "moves left",
        "moves right",
        "moves up",
        "moves down",
        "grows",
        "shrinks",
        "appears",
        "vanishes",
    ),
    "order": ("first", "then"),
    "count": NUMBERS[:3],
}


@dataclass(frozen=True, slots=True)
class Form:
    """How facts of one kind are worded."""

    #: With a pair of braces per slot.
    template: str
    slots: tuple[str, ...] = ()
    #: The positions of two slots, some of whose combinations no training picture shows.
    pair: tuple[int, int] | None = None
    #: The positions of the slots in which another value always makes it false; None for all.
    falsifiable: tuple[int, ...] | None = None


FORMS: dict[str, Form] = {
    "photo": Form("photo of a {} by {}", ("ground", "time")),
    "thing": Form("{} {} {} at {}", ("size", "colour", "thing", "place"), pair=(1, 2)),
    "relation": Form("{} {} {}", ("thing", "relation", "thing"), falsifiable=(1,)),
    "things": Form("things: {}", ("number",)),
    "chart": Form("{} with {} parts", ("chart", "number")),
    "bar": Form("bar {} {} {}", ("letter", "colour", "digit"), pair=(0, 1)),
    "point": Form("point {} {}", ("letter", "digit"), pair=(0, 1)),
    "slice": Form("slice {} {}", ("colour", "share"), pair=(0, 1)),
    "row": Form("row {} {} {}", ("letter", "digit", "digit"), pair=(0, 1)),
    "highest": Form("highest {}", ("letter",)),
    "largest": Form("largest {}", ("colour",)),
    "sheet": Form("{} in {} with {} below", ("sheet", "colour", "number")),
    "title": Form('title "{}"', ("page word",)),
    "line": Form('line "{}"', ("page word",)),
    "sign": Form("{} {} as a sign", ("colour", "thing"), pair=(0, 1)),
    "topic": Form('about "{}"', ("page word",)),
    "scan": Form("scan of a {}", ("organ",)),
    "cells": Form("cells with {} stain", ("stain",)),
    "finding": Form("{} {} at {}", ("size", "finding", "corner"), pair=(1, 2)),
    "cell": Form("{} cell with {} at {}", ("cell", "nuclei", "corner"), pair=(1, 2)),
    "verdict": Form("looks {}", ("verdict",)),
    "screen": Form("{} {} screen", ("theme", "screen")),
    "switch": Form('switch "{}" {}', ("screen word", "switch state"), pair=(0, 1)),
    "box": Form('box "{}" {}', ("screen word", "box state"), pair=(0, 1)),
    "button": Form('button "{}" {}', ("screen word", "colour"), pair=(0, 1)),
    "controls": Form("controls: {}", ("number",)),
    "editor": Form("{} editor with {} lines", ("theme", "number")),
    "set": Form("{} = {}", ("variable", "digit"), pair=(0, 1)),
    "add": Form("{} = {} + {}", ("variable", "variable", "digit"), pair=(1, 2)),
    "print": Form("print({})", ("variable",)),
    "output": Form("prints {}", ("result",)),
    "diagram": Form("diagram of {} boxes", ("number",)),
    "node": Form('{} box "{}"', ("colour", "diagram word"), pair=(0, 1)),
    "arrow": Form('"{}" leads to "{}"', ("diagram word", "diagram word")),
    "start": Form('starts with "{}"', ("diagram word",)),
    "texture": Form("{} texture", ("finish",)),
    "pattern": Form("{} {} on {}", ("colour", "pattern", "colour"), pair=(0, 1)),
    "motif": Form("{} {} in the middle", ("colour", "thing"), pair=(0, 1)),
    "look": Form("{} look", ("look",)),
    "clip": Form("video on {} ground", ("theme",)),
    "event": Form("{} {} {} {}", ("order", "colour", "thing", "change"), pair=(1, 2)),
    "ending": Form("at the end: {}", ("count",)),
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One statement that is true or false of a picture."""

    #: A key of FORMS.
    form: str
    #: A value for each slot.
    values: tuple[str, ...]

    def __str__(self) -> str:
        return FORMS[self.form].template.format(*self.values)

    @property
    def is_held_out(self) -> bool:
        """Whether no training picture may show it: about one in twelve of the combinations of two slots."""
        pair = FORMS[self.form].pair
        if pair is None:
            return False
        return crc32(" ".join((self.form, *(self.values[slot] for slot in pair))).encode()) % 12 == 0


def fact(form: str, *values: str) -> Fact:
    return Fact(form, values)


@dataclass(frozen=True, slots=True)
class Scene:
    """What one picture or video shows; drawn with the same seed, it is the same to the pixel."""

    #: A name in the catalogue.
    domain: str
    overview: Fact
    details: tuple[Fact, ...]
    #: What follows from the details.
    conclusions: tuple[Fact, ...]
    #: Of all that no fact tells, such as small shifts.
    seed: int

    @property
    def facts(self) -> tuple[Fact, ...]:
        """All facts in the order of the caption."""
        return (self.overview, *self.details, *self.conclusions)

    @property
    def words(self) -> tuple[str, ...]:
        """The words written in the picture, from top to bottom."""
        return tuple(
            value
            for each in self.details
            for value, slot in zip(each.values, FORMS[each.form].slots, strict=True)
            if slot.endswith(" word") and each.form != "arrow"
        )


def write(facts: Collection[Fact]) -> str:
    """Word the facts as a caption."""
    return "; ".join(map(str, facts)) + "."


def read(caption: str) -> list[str]:
    """Return the statements of a caption, as worded."""
    return [part for part in (part.strip() for part in caption.strip().removesuffix(".").split(";")) if part]


def falsified(truth: Fact, others: Collection[Fact], draw: random.Random) -> Fact:
    """Replace one value of a fact so that it is none of `others`.

    What is held out is never made of what is not: who saw it in false statements only would learn that it is
    false, whatever the picture shows.
    """
    form = FORMS[truth.form]
    slots, choices = form.slots, form.falsifiable or range(len(form.slots))
    while True:
        slot = draw.choice(choices)
        value = draw.choice(VALUES[slots[slot]])
        values = (*truth.values[:slot], value, *truth.values[slot + 1 :])
        false = replace(truth, values=values)
        is_told = false.is_held_out and not truth.is_held_out
        if false != truth and false not in others and not is_told:
            return false
