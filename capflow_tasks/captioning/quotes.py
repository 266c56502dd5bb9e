"""Compares what a caption quotes with the text that was read in its pictures, and the other way round.

Case, blanks and typographic marks do not count. A program that reads text makes small mistakes, too: up to
two other characters in a row count as read, but never another digit.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

from rapidfuzz import fuzz, process
from rapidfuzz.distance import Levenshtein

from capflow_tasks.records import JsonObject

#: Least likeness of a quoted passage, or of a word, and what was read, from 0 to 100.
_LIKENESS = 85
#: Most characters in a row that a reading mistake changes, and the share of a passage that mistakes change.
_MISTAKE, _MISREAD = 2, 0.08
#: Shorter passages must be whole words of what was read.
_SHORT = 6
#: Passages of a caption that are stored as unsupported, at most, and the longest of them, characters.
_MOST_LISTED, _MOST_CHARACTERS = 10, 200

_FENCE = re.compile(r"```[^\n]*\n(.*?)(?:```|\Z)", re.DOTALL)
_QUOTE = re.compile(
    r'"([^"\n]*)"|“([^”\n]*)”|«([^»\n]*)»|„([^“”\n]*)[“”]|「([^」\n]*)」|『([^』\n]*)』|`([^`\n]*)`'
)
#: What a caption writes in place of text that it cannot read or leaves out.
_GAP = re.compile(r"\[[a-z ]+\]|\.{3}|…")
#: A run of letters or digits, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+")
_MARKS = str.maketrans(
    dict.fromkeys("‘’‚‛′`´", "'")
    | dict.fromkeys("“”„‟″«»", '"')
    | dict.fromkeys("‐‑‒–—―−", "-")
    | {"×": "x", "•": "·"}
)


def quoted_in(caption: str) -> list[str]:
    """Return the passages that a caption quotes: in quotation marks or backticks, and lines of code."""
    lines = [line for block in _FENCE.findall(caption) for line in block.splitlines()]
    passages = [next(filter(None, groups), "") for groups in _QUOTE.findall(_FENCE.sub("\n", caption))]
    return [each for each in dict.fromkeys(lines + passages) if any(_pieces(each))]


def without_quotes(text: str) -> str:
    """Return the text with a blank in place of each passage that it quotes, and of each block of code."""
    return _QUOTE.sub(" ", _FENCE.sub(" ", text))


def text_checks(
    caption: str, verbatim: Sequence[str], pictures: Sequence[JsonObject], sure: float
) -> JsonObject:
    """Return what is stored of a caption: its quotes, those unsupported, the words read, those covered.

    `verbatim` are answers that copy what stands in the picture, `pictures` what was read, as stored. Words
    count that were read with a confidence of `sure` at least, and that the caption or such an answer holds.
    """
    lines = [line for picture in pictures for row in picture["rows"] for line in row]
    read = _Text(" ".join(line["text"] for line in lines))
    quotes = quoted_in(caption)
    unsupported = [quote for quote in quotes if not all(map(read.has, _pieces(quote)))]
    words = Counter(_words(" ".join(line["text"] for line in lines if line["confidence"] >= sure)))
    return {
        "quotes": len(quotes),
        "unsupported": len(unsupported),
        "unsupported_quotes": [quote[:_MOST_CHARACTERS] for quote in unsupported[:_MOST_LISTED]],
        "words": words.total(),
        "covered_words": _covered(words, [caption, *verbatim]),
    }


def quote_support(checks: JsonObject | None) -> float | None:
    """Return the share of quotes that stand in the picture; None where nothing is quoted or was read."""
    quotes = (checks or {}).get("quotes")
    return 1 - checks["unsupported"] / quotes if checks and quotes else None


def text_coverage(checks: JsonObject | None) -> float | None:
    """Return the share of the words surely read that the caption has; None where there are none."""
    words = (checks or {}).get("words")
    return checks["covered_words"] / words if checks and words else None


def claim_support(checks: JsonObject | None) -> float | None:
    """Return the share of a caption's claims that were kept; None where it has none that was asked about.

    A rewritten caption no longer has those that were dropped.
    """
    found = checks or {}
    left = ("kept", "unsure") if found.get("is_rewritten") else ("kept", "unsure", "dropped")
    counts = [found.get(name, 0) for name in left]
    return counts[0] / sum(counts) if sum(counts) else None


def _folded(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold().translate(_MARKS)


def _words(text: str) -> list[str]:
    return _WORD.findall(_folded(text))


def _pieces(quote: str) -> Iterator[str]:
    """Yield the parts of a quote between its gaps, folded and without blanks."""
    for part in _GAP.split(_folded(quote)):
        piece = "".join(part.split()).strip(".,;:!?")
        if any(map(str.isalnum, piece)):
            yield piece


@dataclass(slots=True, init=False)
class _Text:
    """A text without blanks, that knows where its words begin."""

    characters: str
    _starts: frozenset[int]

    def __init__(self, text: str) -> None:
        parts = _folded(text).split()
        self.characters = "".join(parts)
        self._starts = frozenset(accumulate(map(len, parts), initial=0))

    def has(self, piece: str) -> bool:
        """Return whether the piece stands in the text, but for mistakes in reading it."""
        start = self.characters.find(piece)
        while start >= 0:
            if self._is_whole(start, start + len(piece)):
                return True
            start = self.characters.find(piece, start + 1)
        found = fuzz.partial_ratio_alignment(piece, self.characters, score_cutoff=_LIKENESS)
        if found is None or len(self.characters) < len(piece):
            return False
        return _is_misread(piece, self.characters[found.dest_start : found.dest_end]) and self._is_whole(
            found.dest_start, found.dest_end
        )

    def _is_whole(self, start: int, end: int) -> bool:
        """Return whether no number, and no word of a short piece, goes on before or behind it."""
        return not any(self._goes_on(place, end - start < _SHORT) for place in (start, end))

    def _goes_on(self, place: int, is_short: bool) -> bool:
        pair = self.characters[max(place - 1, 0) : place + 1]
        if place in self._starts or len(pair) < 2:
            return False
        return pair.isdigit() or (is_short and pair.isalpha() and len(_WORD.findall(pair)) == 1)


def _is_misread(piece: str, read: str) -> bool:
    """Return whether both differ by small mistakes only: a few characters at a place, and no digit."""
    edits = [
        (piece[edit.src_start : edit.src_end], read[edit.dest_start : edit.dest_end])
        for edit in Levenshtein.opcodes(piece, read)
        if edit.tag != "equal"
    ]
    longest = [max(map(len, changed)) for changed in edits]
    has_digit = any(map(str.isdigit, "".join(text for changed in edits for text in changed)))
    is_small = max(longest, default=0) <= _MISTAKE and sum(longest) <= max(_MISTAKE, len(piece) * _MISREAD)
    return is_small and not has_digit


def _covered(words: Counter[str], texts: Sequence[str]) -> int:
    """Return how many of the words one of the texts has, each as often as it has it."""
    held: Counter[str] = Counter()
    for text in texts:
        held |= Counter(_words(text))
    joined = " ".join("".join(_words(text)) for text in texts)
    missing = words - held
    alike = sum(
        times for word, times in missing.items() if word not in held and _stands_in(word, joined, held)
    )
    return (words & held).total() + alike


def _stands_in(word: str, joined: str, held: Counter[str]) -> bool:
    """Return whether a word stands among the held ones, joined or read with a mistake."""
    if len(word) < 4:
        return False
    if word in joined:
        return True
    has_digit = any(map(str.isdigit, word))
    return (
        not has_digit
        and process.extractOne(word, list(held), scorer=fuzz.ratio, score_cutoff=_LIKENESS) is not None
    )
