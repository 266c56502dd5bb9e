"""Which media an engine has been given: later calls of a sample name them and send no pixels.

The engine may have dropped what it was given; then the pixels are sent again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from capflow_tasks.media.loader import LoadedMedia

#: Keys kept, most recently used; some 200 bytes each.
_MOST = 100_000


class SentMedia:
    """Keys of media that the engine has answered about, with the tokens that each costs."""

    def __init__(self) -> None:
        self._tokens: OrderedDict[str, int] = OrderedDict()

    def tokens(self, key: str) -> int | None:
        """The tokens of media that need not be sent again, else None."""
        if key in self._tokens:
            self._tokens.move_to_end(key)
        return self._tokens.get(key)

    def add(self, media: Iterable[LoadedMedia]) -> None:
        self._tokens.update((each.key, each.tokens) for each in media)
        while len(self._tokens) > _MOST:
            self._tokens.popitem(last=False)

    def forget(self, media: Iterable[LoadedMedia]) -> None:
        for each in media:
            self._tokens.pop(each.key, None)

    def clear(self) -> None:
        self._tokens.clear()
