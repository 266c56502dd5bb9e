"""Draw a scene from its facts alone, so that every fact can be read from the picture."""

import random
from collections.abc import Callable, Iterator
from functools import cache
from math import cos, pi, sin

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.ImageDraw import ImageDraw as Pen

from world.facts import CORNERS, PLACES, Fact, Scene

#: Side of a picture as drawn, pixels; the model sees it at half the size, 6 x 6 tokens.
SIDE = 336
#: Side of a video as drawn; the model sees it at half the size, 4 x 4 tokens for two frames.
VIDEO_SIDE = 224
VIDEO_SECONDS = 4.0

RGB = {
    "red": (214, 32, 38),
    "orange": (247, 138, 20),
    "yellow": (245, 218, 40),
    "green": (38, 150, 62),
    "blue": (36, 84, 206),
    "purple": (128, 50, 158),
    "pink": (246, 142, 190),
    "black": (22, 22, 26),
}
_PAPER, _INK = (250, 249, 244), (30, 30, 34)
_GROUNDS = {
    "meadow": (176, 214, 140),
    "beach": (238, 216, 160),
    "snowfield": (244, 247, 252),
    "street": (168, 168, 172),
}
_SKIES = {"day": (206, 228, 248), "night": (52, 58, 92)}
_THEMES = {"light": ((240, 241, 245), _INK), "dark": ((44, 47, 56), (236, 238, 242))}

Point = tuple[float, float]


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


def _write(pen: Pen, at: Point, text: str, colour: tuple[int, int, int], size: int = 46) -> None:
    pen.text(at, text, colour, _font(size), anchor="lm", stroke_width=1)


def _polygon(centre: Point, radius: float, points: str) -> list[Point]:
    """Scale points, written as "x,y x,y" in hundredths of the radius."""
    pairs = (pair.split(",") for pair in points.split())
    return [(centre[0] + float(x) / 100 * radius, centre[1] + float(y) / 100 * radius) for x, y in pairs]


#: Outlines of things that are one polygon.
_OUTLINES = {
    "house": "-80,-10 0,-95 80,-10 80,90 25,90 25,30 -25,30 -25,90 -80,90",
    "tree": "0,-100 75,30 20,30 20,95 -20,95 -20,30 -75,30",
    "boat": "-10,-95 -10,20 -95,20 -60,80 60,80 95,20 5,20 70,5 5,-95",
    "fish": "-95,0 -50,-45 20,-50 55,-10 95,-50 95,50 55,10 20,50 -50,45",
    "car": "-95,45 -95,0 -55,-5 -35,-55 35,-55 55,-5 95,0 95,45",
}


def thing(pen: Pen, name: str, colour: str, centre: Point, radius: float, edge: tuple[int, int, int]) -> None:
    fill, (x, y) = RGB[colour], centre
    width = max(2, round(radius / 12))
    if name == "ball":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill, edge, width)
    elif name == "star":
        spokes = [radius if number % 2 == 0 else radius * 0.4 for number in range(10)]
        angles = [number * pi / 5 - pi / 2 for number in range(10)]
        points = [(x + r * cos(a), y + r * sin(a)) for r, a in zip(spokes, angles, strict=True)]
        pen.polygon(points, fill, edge, width)
    elif name == "flower":
        for number in range(5):
            angle, petal = number * 2 * pi / 5 - pi / 2, radius * 0.42
            px, py = x + 0.56 * radius * cos(angle), y + 0.56 * radius * sin(angle)
            pen.ellipse((px - petal, py - petal, px + petal, py + petal), fill, edge, width)
        core = radius * 0.28
        pen.ellipse((x - core, y - core, x + core, y + core), _PAPER, edge, width)
    else:
        pen.polygon(_polygon(centre, radius, _OUTLINES[name]), fill, edge, width)
    if name == "car":
        for side in (-0.5, 0.5):
            cx, cy, wheel = x + side * radius, y + 0.5 * radius, radius * 0.27
            pen.ellipse((cx - wheel, cy - wheel, cx + wheel, cy + wheel), _INK, edge, width)


def _shift(draw: random.Random, most: float = 8) -> float:
    return draw.uniform(-most, most)


def _photo(pen: Pen, scene: Scene, draw: random.Random) -> None:
    ground, time = scene.overview.values
    pen.rectangle((0, 0, SIDE, SIDE), _SKIES[time])
    pen.rectangle((0, SIDE * 0.5 + _shift(draw), SIDE, SIDE), _GROUNDS[ground])
    edge = _INK if time == "day" else (255, 255, 255)
    for each in scene.details:
        size, colour, name, place = each.values
        row, column = divmod(PLACES.index(place), 3)
        centre = (56 + 112 * column + _shift(draw), 56 + 112 * row + _shift(draw))
        thing(pen, name, colour, centre, 26 if size == "small" else 46, edge)


def _chart(pen: Pen, scene: Scene, draw: random.Random) -> None:
    pen.rectangle((0, 0, SIDE, SIDE), _PAPER)
    _CHARTS[scene.overview.values[0]](pen, scene.details, draw)


def _axes(pen: Pen) -> None:
    """Draw a line for each value: 44 pixels are 1."""
    for value in range(6):
        y = 270 - 44 * value
        pen.line((20, y, 320, y), _INK if value == 0 else (205, 205, 205), 3 if value == 0 else 2)


def _bars(pen: Pen, bars: tuple[Fact, ...], draw: random.Random) -> None:
    _axes(pen)
    for number, bar in enumerate(bars):
        letter, colour, digit = bar.values
        x = 56 + 112 * number + _shift(draw)
        pen.rectangle((x - 28, 270 - 44 * int(digit), x + 28, 270), RGB[colour], _INK, 2)
        _write(pen, (x - 14, 303), letter, _INK)


def _points(pen: Pen, points: tuple[Fact, ...], draw: random.Random) -> None:
    _axes(pen)
    places = []
    for number, point in enumerate(points):
        letter, digit = point.values
        places.append((56 + 112 * number + _shift(draw), 270.0 - 44 * int(digit)))
        _write(pen, (places[-1][0] - 14, 303), letter, _INK)
    pen.line(places, (90, 90, 100), 5)
    for x, y in places:
        pen.ellipse((x - 13, y - 13, x + 13, y + 13), _INK)


def _pie(pen: Pen, slices: tuple[Fact, ...], draw: random.Random) -> None:
    start = -90.0
    for each in slices:
        colour, share = each.values
        end = start + {"quarter": 90, "half": 180, "three quarters": 270}[share]
        pen.pieslice((38, 38, 298, 298), start, end, RGB[colour], _PAPER, 4)
        start = end


def _table(pen: Pen, rows: tuple[Fact, ...], draw: random.Random) -> None:
    for number, row in enumerate(rows):
        y = 56 + 112 * number
        pen.line((14, y + 54, 322, y + 54), _INK, 3)
        for column, value in enumerate(row.values):
            _write(pen, (42 + 112 * column + _shift(draw, 4), y + _shift(draw, 4)), value, _INK, 56)
    for column in (1, 2):
        pen.line((112 * column, 14, 112 * column, 110 * len(rows)), _INK, 3)


_CHARTS: dict[str, Callable[[Pen, tuple[Fact, ...], random.Random], None]] = {
    "bar chart": _bars,
    "line chart": _points,
    "pie chart": _pie,
    "table": _table,
}


def _sheet(pen: Pen, scene: Scene, draw: random.Random) -> None:
    """A page has a coloured band at its top, a poster a coloured frame."""
    kind, colour, _ = scene.overview.values
    pen.rectangle((0, 0, SIDE, SIDE), _PAPER)
    if kind == "page":
        pen.rectangle((0, 0, SIDE, 26), RGB[colour])
    else:
        pen.rectangle((0, 0, SIDE - 1, SIDE - 1), None, RGB[colour], 20)
    for number, each in enumerate(scene.details):
        if each.form == "sign":
            sign_colour, name = each.values
            thing(pen, name, sign_colour, (258 + _shift(draw, 4), 250 + _shift(draw, 4)), 46, _INK)
        elif each.form == "title":
            _write(pen, (36 + _shift(draw, 5), 70), each.values[0], _INK, 62)
        else:
            _write(pen, (36 + _shift(draw, 5), 84 + 84 * number), each.values[0], _INK)
    pen.line((36, 112, 300, 112), _INK, 4)


def _corner(place: str, draw: random.Random) -> Point:
    row, column = divmod(CORNERS.index(place), 2)
    return 100 + 136 * column + _shift(draw), 100 + 136 * row + _shift(draw)


def _medical(pen: Pen, scene: Scene, draw: random.Random) -> None:
    if scene.overview.form == "scan":
        _scan(pen, scene, draw)
    else:
        _cells(pen, scene, draw)


def _scan(pen: Pen, scene: Scene, draw: random.Random) -> None:
    bone, tissue, finding = (190, 190, 190), (84, 84, 84), (255, 255, 255)
    pen.rectangle((0, 0, SIDE, SIDE), (8, 8, 8))
    if scene.overview.values[0] == "head":
        pen.ellipse((14, 8, 322, 328), tissue, bone, 14)
    else:
        pen.rounded_rectangle((8, 14, 328, 322), 60, tissue)
        for left in (24, 184):
            pen.ellipse((left, 30, left + 128, 306), (36, 36, 36), bone, 4)
        pen.rectangle((160, 20, 176, 316), bone)
    for each in scene.details:
        size, kind, place = each.values
        x, y = _corner(place, draw)
        r = 18 if size == "small" else 44
        if kind == "line":
            pen.line((x - r, y - r, x + r, y + r), finding, 10)
        else:
            pen.ellipse((x - r, y - r, x + r, y + r), finding if kind == "spot" else None, finding, 9)


def _cells(pen: Pen, scene: Scene, draw: random.Random) -> None:
    pale, body, dark = {
        "pink": ((252, 232, 240), (240, 160, 196), (120, 30, 90)),
        "blue": ((230, 238, 252), (150, 184, 240), (26, 48, 130)),
    }[scene.overview.values[0]]
    pen.rectangle((0, 0, SIDE, SIDE), pale)
    for each in scene.details:
        shape, nuclei, place = each.values
        x, y = _corner(place, draw)
        width, height = (54, 54) if shape == "round" else (64, 32)
        pen.ellipse((x - width, y - height, x + width, y + height), body, dark, 4)
        for offset in {"no nucleus": (), "one nucleus": (0,), "two nuclei": (-24, 24)}[nuclei]:
            pen.ellipse((x + offset - 15, y - 15, x + offset + 15, y + 15), dark)


def _screen(pen: Pen, scene: Scene, draw: random.Random) -> None:
    """A phone has a round frame, a web page an address bar; each control has a row."""
    theme, kind = scene.overview.values
    ground, ink = _THEMES[theme]
    pen.rectangle((0, 0, SIDE, SIDE), (120, 124, 134) if kind == "phone" else ground)
    if kind == "phone":
        pen.rounded_rectangle((8, 2, 328, 334), 34, ground, _INK, 8)
        pen.rounded_rectangle((128, 14, 208, 26), 6, _INK)
    else:
        pen.rectangle((0, 0, SIDE, 40), (150, 156, 168))
        pen.rounded_rectangle((70, 8, 320, 32), 8, _PAPER)
    for number, each in enumerate(scene.details):
        word, state = each.values
        y = 98 + 84 * number
        if each.form == "button":
            pen.rounded_rectangle((24, y - 36, 312, y + 36), 14, RGB[state], ink, 3)
            pale = state in ("yellow", "pink", "orange")
            _write(pen, (100 + _shift(draw, 5), y), word, _INK if pale else _PAPER)
            continue
        _write(pen, (100 + _shift(draw, 5), y), word, ink)
        if each.form == "box":
            pen.rectangle((34, y - 22, 78, y + 22), None, ink, 5)
            if state == "ticked":
                pen.line([(40, y), (52, y + 16), (74, y - 18)], ink, 8)
        else:
            pen.rounded_rectangle(
                (24, y - 20, 88, y + 20), 20, (40, 170, 80) if state == "on" else (150, 150, 156)
            )
            x = 68 if state == "on" else 44
            pen.ellipse((x - 16, y - 16, x + 16, y + 16), (255, 255, 255))


def _code(pen: Pen, scene: Scene, draw: random.Random) -> None:
    """Lines of code beside a bar of line marks, as an editor has it; each character has a column."""
    ground, ink = _THEMES[scene.overview.values[0]]
    pen.rectangle((0, 0, SIDE, SIDE), ground)
    pen.rectangle((0, 0, 34, SIDE), (90, 120, 170))
    for number, each in enumerate(scene.details):
        y = 56 + 112 * number + _shift(draw, 5)
        pen.ellipse((10, y - 7, 24, y + 7), _PAPER)
        for column, character in enumerate(str(each).replace(" ", "")):
            pen.text((70 + 34 * column, y), character, ink, _font(52), anchor="mm", stroke_width=1)


def _diagram(pen: Pen, scene: Scene, draw: random.Random) -> None:
    """Boxes with words below each other, joined by arrows."""
    pen.rectangle((0, 0, SIDE, SIDE), _PAPER)
    boxes = [each for each in scene.details if each.form == "node"]
    words = [each.values[1] for each in boxes]
    for number, box in enumerate(boxes):
        y = 56 + 112 * number
        pen.rectangle((50, y - 34, 286, y + 34), _PAPER, RGB[box.values[0]], 14)
        _write(pen, (90 + _shift(draw, 5), y), box.values[1], _INK)
    for arrow in (each for each in scene.details if each.form == "arrow"):
        first, last = (56 + 112 * words.index(word) for word in arrow.values)
        down = 1 if last > first else -1
        tip, x = last - 36 * down, 168
        pen.line((x, first + 38 * down, x, tip), _INK, 8)
        pen.polygon([(x - 24, tip - 22 * down), (x + 24, tip - 22 * down), (x, tip)], _INK)


def _texture(pen: Pen, scene: Scene, draw: random.Random) -> None:
    fore, pattern, ground = scene.details[0].values
    pen.rectangle((0, 0, SIDE, SIDE), RGB[ground])
    _PATTERNS[pattern](pen, RGB[fore], draw.uniform(0, 28))
    for each in scene.details[1:]:
        pen.ellipse((100, 100, 236, 236), _PAPER)
        thing(pen, each.values[1], each.values[0], (168 + _shift(draw, 3), 168 + _shift(draw, 3)), 50, _INK)


def _stripes(pen: Pen, colour: tuple[int, int, int], start: float) -> None:
    for x in range(-56, SIDE, 56):
        pen.rectangle((x + start, 0, x + start + 28, SIDE), colour)


def _dots(pen: Pen, colour: tuple[int, int, int], start: float) -> None:
    for x in range(-56, SIDE + 56, 56):
        for y in range(-56, SIDE + 56, 56):
            pen.ellipse((x + start, y + start, x + start + 34, y + start + 34), colour)


def _checks(pen: Pen, colour: tuple[int, int, int], start: float) -> None:
    for column in range(-1, 7):
        for row in range(-1, 7):
            if (column + row) % 2:
                x, y = 56 * column + start, 56 * row + start
                pen.rectangle((x, y, x + 55, y + 55), colour)


def _waves(pen: Pen, colour: tuple[int, int, int], start: float) -> None:
    for y in range(-56, SIDE + 56, 56):
        pen.line([(x, y + start + 18 * sin(x * pi / 42)) for x in range(0, SIDE + 6, 6)], colour, 20)


def _rings(pen: Pen, colour: tuple[int, int, int], start: float) -> None:
    for least in range(28, 280, 56):
        r = least + start / 2
        pen.ellipse((168 - r, 168 - r, 168 + r, 168 + r), None, colour, 26)


_PATTERNS: dict[str, Callable[[Pen, tuple[int, int, int], float], None]] = {
    "stripes": _stripes,
    "dots": _dots,
    "checks": _checks,
    "waves": _waves,
    "rings": _rings,
}

_PICTURES: dict[str, Callable[[Pen, Scene, random.Random], None]] = {
    "Code & Programming": _code,
    "Infographic & Document": _sheet,
    "Knowledge & Education": _diagram,
    "Medical & Bio-Imaging": _medical,
    "Natural": _photo,
    "Structure & Math": _chart,
    "Synthetic & Aesthetic": _texture,
    "UI & Interaction": _screen,
}


def draw_picture(scene: Scene) -> Image.Image:
    """Draw the picture of a scene of any domain but Video & Temporal."""
    draw = random.Random(scene.seed)
    picture = Image.new("RGB", (SIDE, SIDE))
    _PICTURES[scene.domain](ImageDraw.Draw(picture), scene, draw)
    finish = scene.overview.values[0]
    if scene.overview.form == "texture" and finish == "soft":
        return picture.filter(ImageFilter.GaussianBlur(7))
    if scene.overview.form == "texture" and finish == "grainy":
        noise = (
            np.random.default_rng(scene.seed)
            .normal(0, 36, (SIDE // 2, SIDE // 2, 1))
            .repeat(2, 0)
            .repeat(2, 1)
        )
        return Image.fromarray(np.clip(np.asarray(picture) + noise, 0, 255).astype(np.uint8))
    return picture


def draw_frames(scene: Scene, count: int) -> Iterator[Image.Image]:
    """Draw that many evenly spaced frames of a video scene, the first at its start."""
    draw = random.Random(scene.seed)
    homes = [(62.0 + 100 * number + _shift(draw), 112.0 + _shift(draw)) for number in range(2)]
    ground, edge = ((232, 236, 240), _INK) if scene.overview.values[0] == "light" else ((70, 74, 88), _PAPER)
    for frame in range(count):
        picture = Image.new("RGB", (VIDEO_SIDE, VIDEO_SIDE), ground)
        pen = ImageDraw.Draw(picture)
        for event, home in zip(scene.details, homes, strict=False):
            order, colour, name, change = event.values
            # each change takes two seconds: the first half of the video or the second
            progress = min(max(frame / count * 2 - (order == "then"), 0.0), 1.0)
            x, y, radius = _moved(home, change, progress)
            if radius:
                thing(pen, name, colour, (x, y), radius, edge)
        yield picture


def _moved(home: Point, change: str, progress: float) -> tuple[float, float, float]:
    """Return where a thing is, and its radius, when so much of its change is done."""
    (x, y), way = home, 90 * (progress - 0.5)
    if change.startswith("moves"):
        dx, dy = {"left": (-0.5, 0), "right": (0.5, 0), "up": (0, -1), "down": (0, 1)}[change.split()[1]]
        return x + dx * way, y + dy * way, 32
    radius = {
        "grows": 16 + 30 * progress,
        "shrinks": 46 - 30 * progress,
        "appears": 34 if progress > 0.5 else 0,
        "vanishes": 0 if progress > 0.5 else 34,
    }
    return x, y, radius[change]
