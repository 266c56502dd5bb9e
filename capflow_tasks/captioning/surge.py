"""Finds a surge of failures: a kind that most of the latest samples fail with, and that was rare before."""

from collections import Counter, deque
from collections.abc import Iterable, Sequence

#: Share of the earlier samples up to which a kind of failure is rare.
_RARE = 0.1


def most_common_failure(latest: Sequence[str | None]) -> str | None:
    """Return the kind that more than half of these samples failed with; None stands for no failure."""
    kind, count = Counter(latest).most_common(1)[0] if latest else (None, 0)
    return kind if 2 * count > len(latest) else None


def is_rare(failures: int, samples: int) -> bool:
    """Return whether so many failures of one kind are few among so many samples, as among none."""
    return failures <= _RARE * samples


class Surge:
    """Watches the outcomes of one worker in one stage of one run. Not thread-safe."""

    def __init__(self, samples: int) -> None:
        """Judge by the latest `samples`; 0 for never."""
        self._latest: deque[str | None] = deque(maxlen=samples)
        #: Outcomes before the latest, and before a surge.
        self._earlier: Counter[str | None] = Counter()
        #: The kind of the surge that goes on; None while there is none.
        self._kind: str | None = None

    def add(self, kinds: Iterable[str | None]) -> str | None:
        """Add samples by their kind of failure, None for one that passed.

        Return the kind of the surge that begins or goes on; None without one.
        """
        for kind in kinds:
            if self._kind is None and self._latest and len(self._latest) == self._latest.maxlen:
                self._earlier[self._latest[0]] += 1
            self._latest.append(kind)
        if not self._latest or len(self._latest) < (self._latest.maxlen or 0):
            return None
        found = most_common_failure(self._latest)
        goes_on = found is not None and found == self._kind
        begins = is_rare(self._earlier[found], self._earlier.total())
        self._kind = found if goes_on or begins else None
        return self._kind
