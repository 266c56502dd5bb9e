"""Draw the demo's charts, tables, formulas and diagrams with matplotlib, one picture per function."""

from collections.abc import Callable
from io import BytesIO

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyArrowPatch, FancyBboxPatch, Polygon
from PIL import Image

mpl.use("Agg")
INK, BLUE, ORANGE, GREEN, RED, GREY = "#22303c", "#2f6fb0", "#e07b28", "#3c9a5f", "#c23b3b", "#9aa5b1"


def drawn(width: float, height: float, draw: Callable[[Axes], None], *, bare: bool = False) -> Image.Image:
    """Return what `draw` puts on axes of `width` x `height` inches at 100 dots per inch."""
    figure = Figure(figsize=(width, height), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    if bare:
        axes.set_axis_off()
    draw(axes)
    page = BytesIO()
    figure.savefig(page, format="png")
    return Image.open(page).convert("RGB")


def bar_chart() -> Image.Image:
    def draw(axes: Axes) -> None:
        quarters, x = ["Q1", "Q2", "Q3", "Q4"], np.arange(4)
        for shift, (name, sold, colour) in enumerate(
            [("Laptops", [142, 155, 149, 203], BLUE), ("Tablets", [88, 76, 91, 134], ORANGE)]
        ):
            bars = axes.bar(x + shift * 0.38, sold, 0.36, label=name, color=colour)
            axes.bar_label(bars, padding=2, fontsize=9)
        axes.set_xticks(x + 0.19, quarters)
        axes.set(title="Units sold per quarter, 2024 (thousands)", ylabel="Thousand units", ylim=(0, 230))
        axes.legend()
        axes.spines[["top", "right"]].set_visible(False)

    return drawn(7.2, 4.8, draw)


def line_chart() -> Image.Image:
    def draw(axes: Axes) -> None:
        years = np.arange(1990, 2024)
        anomaly = 0.018 * (years - 1990) + 0.28 + 0.09 * np.sin(years * 1.7) + 0.05 * np.cos(years * 0.9)
        axes.fill_between(years, anomaly - 0.08, anomaly + 0.08, color=RED, alpha=0.15, label="95 % interval")
        axes.plot(years, anomaly, color=RED, marker="o", markersize=3, label="Annual mean")
        axes.axhline(0, color=GREY, linewidth=1)
        axes.annotate("strong El Niño", (1998, anomaly[8]), (1999, 0.95), arrowprops={"arrowstyle": "->"})
        axes.set(title="Surface temperature anomaly", xlabel="Year", ylabel="°C above 1951 to 1980")
        axes.legend(loc="upper left")
        axes.grid(alpha=0.3)

    return drawn(7.6, 4.4, draw)


def pie_chart() -> Image.Image:
    def draw(axes: Axes) -> None:
        shares = {"Rent": 34, "Food": 22, "Transport": 14, "Savings": 12, "Leisure": 11, "Other": 7}
        axes.pie(
            list(shares.values()),
            labels=list(shares),
            autopct="%d %%",
            startangle=90,
            colors=[BLUE, ORANGE, GREEN, RED, "#8064a2", GREY],
            wedgeprops={"edgecolor": "white"},
        )
        axes.set_title("Where a month's income of 2,850 € goes")

    return drawn(5.8, 5.2, draw)


def data_table() -> Image.Image:
    rows = [
        ["Ridge Pass", "2,114 m", "11.4 km", "+846 m", "4 h 50"],
        ["Lake Loop", "986 m", "7.2 km", "+142 m", "2 h 15"],
        ["Chapel Path", "1,240 m", "5.8 km", "+310 m", "2 h 05"],
        ["Glacier View", "2,587 m", "14.9 km", "+1,205 m", "7 h 20"],
        ["Old Mill Walk", "742 m", "3.1 km", "+55 m", "0 h 50"],
    ]

    def draw(axes: Axes) -> None:
        axes.set_title("Table 3. Marked trails of the Valdora valley", loc="left", fontsize=13)
        table = axes.table(
            rows, colLabels=["Trail", "Top", "Length", "Climb", "Time"], loc="center", cellLoc="center"
        )
        table.scale(1, 2.1)
        for (row, _), cell in table.get_celld().items():
            cell.set_edgecolor(GREY)
            cell.set_facecolor("#dbe7f3" if row == 0 else "#f6f8fa" if row % 2 else "white")

    return drawn(7.6, 3.4, draw, bare=True)


def equation() -> Image.Image:
    steps = [
        "Solve the quadratic equation",
        r"$a x^2 + b x + c = 0, \quad a \neq 0$",
        "Complete the square:",
        r"$\left(x + \frac{b}{2a}\right)^2 = \frac{b^2 - 4ac}{4a^2}$",
        "Take the root on both sides:",
        r"$x_{1,2} = \frac{-b \pm \sqrt{b^2 - 4ac}}{2a}$",
    ]

    def draw(axes: Axes) -> None:
        for number, step in enumerate(steps):
            is_formula = step.startswith("$")
            axes.text(
                0.14 if is_formula else 0.03,
                0.93 - 0.17 * number,
                step,
                fontsize=21 if is_formula else 14,
                color=INK,
                va="center",
            )

    return drawn(6.4, 5.0, draw, bare=True)


def geometry() -> Image.Image:
    def draw(axes: Axes) -> None:
        axes.set_aspect("equal")
        axes.add_patch(Polygon([(0, 0), (8, 0), (0, 6)], fill=False, edgecolor=INK, linewidth=2))
        axes.add_patch(Circle((2, 2), 2, fill=False, edgecolor=BLUE, linewidth=2))
        axes.add_patch(Polygon([(0, 0), (0.5, 0), (0.5, 0.5), (0, 0.5)], fill=False, edgecolor=INK))
        axes.plot([2, 2], [2, 0], color=BLUE, linestyle="--")
        labels = {
            (-0.5, -0.5): "A",
            (8.2, -0.5): "B",
            (-0.5, 6.2): "C",
            (2.15, 2.1): "M",
            (2.15, 0.9): "r",
            (3.8, -0.6): "8 cm",
            (-1.4, 2.9): "6 cm",
            (4.3, 3.2): "10 cm",
        }
        for (x, y), label in labels.items():
            axes.text(x, y, label, fontsize=14)
        axes.set_title("Find the radius r of the incircle of triangle ABC.", fontsize=13)
        axes.set(xlim=(-1.8, 9), ylim=(-1.2, 7))

    return drawn(6.2, 5.0, draw, bare=True)


def flowchart() -> Image.Image:
    boxes = {
        (0.5, 0.92): ("Order received", "#dbe7f3"),
        (0.5, 0.70): ("Item in stock?", "#fbe8cf"),
        (0.2, 0.45): ("Reserve item", "#d9efe0"),
        (0.8, 0.45): ("Order from supplier", "#f6d9d9"),
        (0.2, 0.20): ("Ship to customer", "#d9efe0"),
        (0.8, 0.20): ("Notify customer of delay", "#f6d9d9"),
    }
    arrows = [((0.5, 0.87), (0.5, 0.76), "")]
    arrows += [((0.4, 0.65), (0.22, 0.51), "yes"), ((0.6, 0.65), (0.78, 0.51), "no")]
    arrows += [
        ((0.2, 0.39), (0.2, 0.26), ""),
        ((0.8, 0.39), (0.8, 0.26), ""),
        ((0.6, 0.45), (0.37, 0.45), "arrived"),
    ]

    def draw(axes: Axes) -> None:
        axes.set(xlim=(0, 1), ylim=(0.08, 1))
        for (x, y), (label, colour) in boxes.items():
            axes.add_patch(
                FancyBboxPatch(
                    (x - 0.155, y - 0.045), 0.31, 0.09, "round,pad=0.01", facecolor=colour, edgecolor=INK
                )
            )
            axes.text(x, y, label, ha="center", va="center", fontsize=10.5)
        for start, end, label in arrows:
            axes.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=16, color=INK))
            axes.text((start[0] + end[0]) / 2, (start[1] + end[1]) / 2 + 0.02, label, color=RED, ha="center")

    return drawn(7.4, 5.6, draw, bare=True)


def solar_system() -> Image.Image:
    planets = [
        ("Mercury", 0.6, 6, "#9b8b7a"),
        ("Venus", 1.3, 10, "#d9b36c"),
        ("Earth", 2.1, 11, "#4a80c4"),
        ("Mars", 2.9, 8, "#c0583a"),
        ("Jupiter", 4.2, 34, "#c9a27e"),
        ("Saturn", 5.8, 28, "#e0c890"),
        ("Uranus", 7.1, 19, "#8fd0d6"),
        ("Neptune", 8.2, 18, "#4d6fd0"),
    ]

    def draw(axes: Axes) -> None:
        axes.figure.set_facecolor("#0b1020")
        axes.set(xlim=(-0.9, 9), ylim=(-1.6, 1.6))
        axes.add_patch(Circle((-1.2, 0), 1.3, color="#f6c744"))
        axes.text(-0.75, 0, "Sun", fontsize=13, va="center")
        for name, x, size, colour in planets:
            axes.plot([x], [0], "o", markersize=size, color=colour)
            axes.text(x, -0.75, name, color="white", ha="center", fontsize=10)
        axes.plot([5.4, 6.2], [-0.12, 0.12], color="#cdb98a", linewidth=3)
        axes.set_title("The planets in order of distance (not to scale)", color="white", fontsize=14)

    return drawn(9.0, 3.6, draw, bare=True)


def plant_cell() -> Image.Image:
    parts = [
        ((3.2, 3.0), 1.0, "#b58fd0", "Nucleus", (0.4, 5.3)),
        ((6.2, 3.2), 1.5, "#a8d8ee", "Vacuole", (8.2, 5.4)),
        ((2.2, 1.3), 0.42, "#58b368", "Chloroplast", (-1.4, 0.2)),
        ((4.5, 1.2), 0.42, "#58b368", "", (0, 0)),
        ((5.3, 5.0), 0.32, "#e98b5a", "Mitochondrion", (4.4, 6.6)),
        ((1.4, 4.0), 0.32, "#e98b5a", "", (0, 0)),
    ]

    def draw(axes: Axes) -> None:
        axes.set(xlim=(-2, 10.4), ylim=(-0.6, 7.2), aspect="equal")
        axes.add_patch(
            FancyBboxPatch((0.8, 0.6), 7.2, 5.0, "round,pad=0.3", facecolor="#e4f4d8", edgecolor=GREEN, lw=6)
        )
        for centre, radius, colour, name, place in parts:
            axes.add_patch(Circle(centre, radius, facecolor=colour, edgecolor=INK))
            if name:
                axes.annotate(name, centre, place, fontsize=12, arrowprops={"arrowstyle": "-"})
        axes.annotate("Cell wall", (8.3, 1.2), (8.8, 0.2), fontsize=12, arrowprops={"arrowstyle": "-"})
        axes.set_title("Figure 2.4  A plant cell", fontsize=14)

    return drawn(7.6, 5.2, draw, bare=True)
