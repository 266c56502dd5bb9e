"""Charts as inline SVG; classes take their colours from the page's style sheet."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import floor, log10

from markupsafe import Markup, escape

from producer.console import short_count

#: The canvas of columns: about as wide as a card of the page, so that text keeps its size.
_WIDTH, _HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 4, 8, 22
#: Labels that fit below the columns.
_MOST_LABELS = 5


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a bar."""

    #: CSS class that colours it.
    css_class: str
    value: float
    title: str


@dataclass(frozen=True, slots=True)
class Column:
    label: str
    value: float
    title: str


def bar(parts: Iterable[Part], total: float) -> Markup:
    """A bar of parts; parts that add up to `total` fill the whole width."""
    pieces, at = [], 0.0
    for part in parts:
        width = 100 * part.value / total if total else 0.0
        if width:
            pieces.append(_rectangle(part.css_class, (at, 0, width, 10), part.title))
        at += width
    return Markup(
        '<svg class="bar" viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">{}</svg>'
    ).format(Markup().join(pieces))


def columns(chart: Sequence[Column], label: str) -> Markup:
    """Columns above a base line; screen readers read the `label`."""
    top = nice_top(max((column.value for column in chart), default=0))
    step = (_WIDTH - _LEFT - _RIGHT) / max(1, len(chart))
    every = -(-len(chart) // _MOST_LABELS)
    pieces = [_grid_line(share, top) for share in (0.0, 0.5, 1.0)]
    for number, column in enumerate(chart):
        left, height = _LEFT + number * step, _plot_height() * column.value / top
        gap = min(3.0, step / 4)
        box = (left + gap / 2, _base() - height, step - gap, height)
        pieces.append(_rectangle("one", box, column.title))
        if number % every == 0:
            pieces.append(_text(left + step / 2, _HEIGHT - 7, column.label, "middle"))
    return Markup('<svg class="columns" viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>').format(
        _WIDTH, _HEIGHT, label, Markup().join(pieces)
    )


def nice_top(most: float) -> float:
    """The smallest of 1, 2 and 5 times a power of ten that is at least `most`."""
    if most <= 0:
        return 1.0
    power = 10.0 ** floor(log10(most))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= most)


def _base() -> float:
    return _HEIGHT - _BOTTOM


def _plot_height() -> float:
    return _base() - _TOP


def _grid_line(share: float, top: float) -> Markup:
    y = _base() - share * _plot_height()
    line = Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(
        _LEFT, _WIDTH - _RIGHT, y, y
    )
    return line + _text(_LEFT - 5, y + 3.5, short_count(share * top), "end")


def _rectangle(css_class: str, box: tuple[float, float, float, float], title: str) -> Markup:
    x, y, width, height = (f"{value:.2f}" for value in box)
    return Markup('<rect class="{}" x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect>').format(
        css_class, x, y, width, height, title
    )


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, escape(text))
