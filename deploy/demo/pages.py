"""Draw the demo's documents, screens and code with Pillow, one picture per function."""

from functools import cache
from pathlib import Path

import matplotlib as mpl
from PIL import Image, ImageDraw, ImageFont

INK, PAPER, BLUE, GREEN, RED, GREY, PALE = (
    "#22303c",
    "#ffffff",
    "#2f6fb0",
    "#3c9a5f",
    "#c23b3b",
    "#7b8794",
    "#eef2f6",
)
FONTS = Path(mpl.get_data_path()) / "fonts" / "ttf"

REPORT = """\
The harbour of Port Ellis handled 41,260 containers in the first half of the year, 6 % more than a year \
before. Most of the growth came from refrigerated goods, which now make up a fifth of all cargo.

Two of the five cranes on the north quay were out of service for eleven weeks. Even so, the median time that \
a ship spent at berth fell from 31 to 27 hours, because arrivals were spread more evenly over the day.

We recommend to extend the booking system to small carriers, to replace crane 4 before winter, and to \
publish berth times every week."""

CODE = '''\
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    x: float
    y: float

    def distance(self, other: "Point") -> float:
        """Straight-line distance."""
        dx, dy = self.x - other.x, self.y - other.y
        return (dx * dx + dy * dy) ** 0.5


def nearest(points: list[Point], to: Point) -> Point:
    # ties go to the first one
    return min(points, key=to.distance)
'''

TERMINAL = """\
$ python -m pytest -q tests/test_basket.py
...F..                                          [100%]
===================== FAILURES =====================
_________________ test_total_of_two ________________
    def test_total_of_two():
>       assert basket(2, 3.50).total == 7.0
E       AssertionError: assert 3.5 == 7.0

tests/test_basket.py:18: AssertionError
1 failed, 5 passed in 0.12s
$ git diff --stat
 shop/basket.py | 2 +-
 1 file changed, 1 insertion(+), 1 deletion(-)"""

MARKUP = """\
<form action="/login" method="post">
  <label for="mail">E-mail</label>
  <input id="mail" type="email">
  <label for="word">Password</label>
  <input id="word" type="password">
  <button class="primary">
    Sign in
  </button>
</form>"""

KEYWORDS = ("from", "import", "class", "def", "return", "assert")


@cache
def font(size: int, face: str = "DejaVuSans") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(FONTS / f"{face}.ttf", size)


def bold(size: int) -> ImageFont.FreeTypeFont:
    return font(size, "DejaVuSans-Bold")


def mono(size: int) -> ImageFont.FreeTypeFont:
    return font(size, "DejaVuSansMono")


def blank(width: int, height: int, colour: str = PAPER) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    page = Image.new("RGB", (width, height), colour)
    return page, ImageDraw.Draw(page)


def wrapped(text: str, face: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Break paragraphs into lines that fit `width` pixels."""
    lines: list[str] = []
    for paragraph in text.split("\n"):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and face.getlength(longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines


def report_page() -> Image.Image:
    page, pen = blank(720, 960)
    serif = font(19, "DejaVuSerif")
    pen.text((70, 60), "PORT ELLIS HARBOUR AUTHORITY", GREY, font(14))
    pen.text((70, 95), "Half-Year Report: Container Traffic", INK, font(27, "DejaVuSerif-Bold"))
    pen.line((70, 142, 650, 142), INK, 2)
    lines = wrapped(REPORT, serif, 580)
    for number, line in enumerate(lines):
        pen.text((70, 165 + 28 * number), line, INK, serif)
    top = 200 + 28 * len(lines)
    for number, (month, count) in enumerate([("January to March", "19,480"), ("April to June", "21,780")]):
        pen.rectangle((70, top + 40 * number, 650, top + 40 * (number + 1)), outline=GREY)
        pen.text((84, top + 9 + 40 * number), month, INK, serif)
        pen.text((636, top + 9 + 40 * number), count, INK, serif, anchor="ra")
    pen.text((360, 925), "- 7 -", GREY, font(14), anchor="mm")
    return page


def invoice() -> Image.Image:
    page, pen = blank(560, 760, "#fdfcf7")
    pen.text((40, 36), "INVOICE", BLUE, bold(34))
    pen.text((520, 44), "No. 2024-0317", INK, font(16), anchor="ra")
    pen.text((520, 68), "12 March 2024", INK, font(16), anchor="ra")
    pen.multiline_text((40, 100), "Maple & Sons Joinery\n14 Mill Lane, Ashford", INK, font(16), spacing=6)
    items = [("Oak table, 180 x 90 cm", 1, 640), ("Chair, ash", 4, 85), ("Delivery", 1, 45)]
    pen.rectangle((40, 190, 520, 222), BLUE)
    for x, title, anchor in [(50, "Item", "lm"), (370, "Qty", "mm"), (510, "Amount", "rm")]:
        pen.text((x, 206), title, PAPER, bold(15), anchor=anchor)
    for number, (name, quantity, price) in enumerate(items):
        y = 246 + 42 * number
        pen.text((50, y), name, INK, font(16), anchor="lm")
        pen.text((370, y), str(quantity), INK, font(16), anchor="mm")
        pen.text((510, y), f"{quantity * price:.2f}", INK, font(16), anchor="rm")
        pen.line((40, y + 21, 520, y + 21), "#d5d9dd")
    pen.text((510, 400), "Subtotal   1025.00", INK, font(16), anchor="rm")
    pen.text((510, 430), "VAT 20 %    205.00", INK, font(16), anchor="rm")
    pen.text((510, 468), "Total  £ 1230.00", INK, bold(20), anchor="rm")
    pen.text((40, 690), "Please pay within 30 days. Thank you!", GREY, font(15))
    return page


def poster() -> Image.Image:
    page, pen = blank(600, 840, "#123247")
    for step in range(40):
        pen.ellipse(
            (90 + step * 5, 130 + step * 5, 510 - step * 5, 550 - step * 5), (240, 120 + 3 * step, 60 + step)
        )
    for row in range(7):
        pen.polygon(
            [(0, 470 + 26 * row), (300, 440 + 30 * row), (600, 480 + 26 * row), (600, 700), (0, 700)],
            (20, 60 + 9 * row, 85 + 10 * row),
        )
    pen.text((300, 70), "SUMMER JAZZ", "#ffe9b8", bold(62), anchor="mm")
    pen.text((300, 740), "FRI 12 & SAT 13 JULY", PAPER, bold(36), anchor="mm")
    pen.text((300, 785), "Riverside Stage · 7 pm · free entry", "#ffe9b8", font(24), anchor="mm")
    return page


def road_sign() -> Image.Image:
    page, pen = blank(640, 480, "#9cc4e4")
    pen.rectangle((0, 330, 640, 480), "#6f8f52")
    pen.polygon([(250, 480), (390, 480), (330, 330), (310, 330)], "#5b5f63")
    for x in (200, 430):
        pen.rectangle((x, 230, x + 12, 400), "#8a8f94")
    pen.rounded_rectangle((130, 60, 510, 240), 14, "#0b6b3a", PAPER, 5)
    pen.text((160, 80), "Ashford  12", PAPER, bold(34))
    pen.text((160, 130), "Kings Bay  38", PAPER, bold(34))
    pen.text((160, 182), "EXIT 7", "#ffd84d", bold(34))
    pen.line((460, 215, 460, 110), PAPER, 8)
    pen.polygon([(440, 118), (480, 118), (460, 84)], PAPER)
    return page


def shop_page() -> Image.Image:
    page, pen = blank(960, 640)
    pen.rectangle((0, 0, 960, 34), "#dfe3e8")
    pen.rounded_rectangle((90, 6, 700, 28), 10, PAPER)
    pen.text((104, 17), "https://shop.greenleaf.example/teas", GREY, font(13), anchor="lm")
    pen.text((40, 66), "GreenLeaf", GREEN, bold(28), anchor="lm")
    for number, entry in enumerate(["Teas", "Pots", "Gifts", "About"]):
        pen.text((420 + 100 * number, 66), entry, INK, font(18), anchor="lm")
    pen.rounded_rectangle((830, 48, 925, 84), 8, GREEN)
    pen.text((877, 66), "Basket (2)", PAPER, font(15), anchor="mm")
    teas = [
        ("Sencha Spring", "8.90", "#9fc37c"),
        ("Earl Grey", "6.50", "#b98a5b"),
        ("Rooibos Vanilla", "7.20", "#c8613c"),
    ]
    for number, (name, price, colour) in enumerate(teas):
        left = 40 + 300 * number
        pen.rounded_rectangle((left, 120, left + 270, 560), 12, PALE)
        pen.ellipse((left + 55, 150, left + 215, 310), colour)
        pen.text((left + 20, 350), name, INK, bold(21))
        pen.text((left + 20, 386), "100 g, loose leaf", GREY, font(16))
        pen.text((left + 20, 424), f"€ {price}", INK, bold(24))
        pen.rounded_rectangle((left + 20, 485, left + 250, 530), 8, BLUE)
        pen.text((left + 135, 507), "Add to basket", PAPER, font(17), anchor="mm")
    pen.text((480, 605), "Free delivery from € 30 · Imprint · Privacy", GREY, font(14), anchor="mm")
    return page


def settings_screen() -> Image.Image:
    page, pen = blank(420, 800, "#f2f3f7")
    pen.text((24, 20), "9:41", INK, bold(17))
    pen.text((396, 20), "82 %", INK, font(16), anchor="ra")
    pen.text((24, 66), "Settings", INK, bold(34))
    rows = [
        ("Wi-Fi", "Home-5G"),
        ("Bluetooth", True),
        ("Mobile data", True),
        ("Dark mode", False),
        ("Language", "English"),
    ]
    for number, (name, state) in enumerate(rows):
        y = 140 + 84 * number
        pen.rounded_rectangle((16, y, 404, y + 72), 14, PAPER)
        pen.text((36, y + 36), name, INK, font(20), anchor="lm")
        if isinstance(state, bool):
            pen.rounded_rectangle((330, y + 20, 384, y + 52), 16, GREEN if state else "#c9ced4")
            knob = 354 if state else 332
            pen.ellipse((knob, y + 22, knob + 28, y + 50), PAPER)
        else:
            pen.text((384, y + 36), f"{state}  >", GREY, font(18), anchor="rm")
    pen.text((210, 600), "Software update available", BLUE, font(18), anchor="mm")
    return page


def weather_screen() -> Image.Image:
    page, pen = blank(420, 720, "#2d6cc0")
    pen.text((210, 70), "Lisbon", PAPER, font(36), anchor="mm")
    pen.text((210, 165), "23°", PAPER, bold(104), anchor="mm")
    pen.text((210, 250), "Mostly sunny · H 26° L 17°", PAPER, font(20), anchor="mm")
    days = [("Today", 17, 26), ("Tue", 16, 24), ("Wed", 15, 21), ("Thu", 15, 23), ("Fri", 18, 28)]
    pen.rounded_rectangle((20, 310, 400, 660), 20, "#3f7dd0")
    for number, (day, low, high) in enumerate(days):
        y = 350 + 66 * number
        pen.text((44, y), day, PAPER, font(20), anchor="lm")
        pen.text((170, y), f"{low}°", "#cfe0f5", font(20), anchor="rm")
        pen.rounded_rectangle((190 + 6 * (low - 15), y - 4, 230 + 6 * (high - 15), y + 4), 4, "#ffd84d")
        pen.text((376, y), f"{high}°", PAPER, font(20), anchor="rm")
    return page


def code_editor() -> Image.Image:
    page, pen = blank(860, 560, "#1e1e2e")
    pen.rectangle((0, 0, 860, 36), "#2a2a3c")
    pen.text((20, 18), "geometry.py — shapes", "#cdd6f4", font(14), anchor="lm")
    for number, line in enumerate(CODE.splitlines(), 1):
        y = 50 + 28 * (number - 1)
        pen.text((40, y), str(number), "#6c7086", mono(17), anchor="ra")
        colour = "#a6adc8" if "#" in line else "#a6e3a1" if '"""' in line else "#cdd6f4"
        pen.text((64, y), line, colour, mono(17))
        word = line.strip().split(" ")[0]
        if word in KEYWORDS:
            indent = len(line) - len(line.lstrip())
            pen.text((64 + indent * mono(17).getlength(" "), y), word, "#cba6f7", mono(17))
    pen.rectangle((0, 534, 860, 560), "#89b4fa")
    pen.text((14, 547), "main   Python 3.11   Ln 17, Col 40   UTF-8", "#1e1e2e", font(13), anchor="lm")
    return page


def terminal() -> Image.Image:
    page, pen = blank(760, 400, "#0c0f14")
    for number, line in enumerate(TERMINAL.splitlines()):
        colour = "#7ee787" if line.startswith("$") else "#ff7b72" if line[:1] in "E>" and line else "#d0d7de"
        pen.text((18, 16 + 27 * number), line, colour, mono(17))
    return page


def web_code() -> Image.Image:
    page, pen = blank(940, 400)
    pen.rectangle((0, 0, 520, 400), "#282c34")
    pen.text((18, 14), "login.html", "#9da5b4", font(14))
    for number, line in enumerate(MARKUP.splitlines()):
        pen.text((18, 50 + 32 * number), line, "#e5c07b" if "input" in line else "#98c379", mono(16))
    pen.text((560, 14), "Preview", GREY, font(14))
    for y, label, content in [(70, "E-mail", "ana@mail.example"), (165, "Password", "••••••••")]:
        pen.text((580, y), label, INK, font(17))
        pen.rounded_rectangle((580, y + 28, 890, y + 68), 6, PAPER, GREY)
        pen.text((594, y + 48), content, INK, font(16), anchor="lm")
    pen.rounded_rectangle((580, 280, 890, 326), 8, BLUE)
    pen.text((735, 303), "Sign in", PAPER, bold(18), anchor="mm")
    return page
