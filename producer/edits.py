"""What a run takes over when its plan or its annotation files have been edited, and what it captions anew."""

import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import groupby, takewhile
from pathlib import Path

from capflow_tasks.entries import shown
from capflow_tasks.errors import PlanError
from capflow_tasks.media.remote import is_remote
from capflow_tasks.records import PlanShard, Stage
from capflow_tasks.store.edits import EditStore, StoredEntry
from capflow_tasks.store.runs import RunStore
from capflow_tasks.store.states import NewSample, ShardRow, first_stage
from capflow_tasks.store.views import Views
from producer.reading.folders import differs_by_guess
from producer.reading.samples import batches_of, in_groups

log = logging.getLogger(__name__)

#: Reads a shard's samples from an index on; raises PlanError where the file behind the shard breaks off.
ReadSamples = Callable[[PlanShard, int], Iterator[NewSample]]

#: Batches inserted in one transaction, at most.
_CHUNK = 64
#: Edited lines that are logged one by one.
_SHOWN = 10
#: The keys of a plan line that have another name in a shard, and those that identify no shard.
_PLAN_KEYS = {"dataset": "data_name", "annotation": "json_url"}
_NO_KEYS = {"line", "line_number", "version"}


@dataclass(slots=True)
class Replacement:
    """A shard of the plan in the place of earlier ones."""

    row: ShardRow
    #: The shards with samples of its range.
    earlier: Sequence[ShardRow]
    #: Of those, the ids of shards whose samples it takes over.
    sources: Sequence[int]
    #: Samples that it has taken over.
    taken: int = 0

    def sentence(self, plan: Path, corrected: int) -> str:
        """Say what becomes of the shard's samples; of those taken over so many have other entries."""
        shard, earlier = self.row.shard, self.earlier
        again = min(sum(_inserted_in(row, shard) for row in earlier), shard.sample_count) - self.taken
        counts = [
            f"{self.taken - corrected} of its {shard.sample_count} samples are taken over",
            f"{again + corrected} are captioned again",
            f"{shard.sample_count - self.taken - again} are new",
        ]
        names = ", ".join(_name(row.shard) for row in earlier[:3]) + (", ..." if len(earlier) > 3 else "")
        changes = _changes(earlier[0].shard, shard) if len(earlier) == 1 else ""
        return f"{plan}:{shard.line_number} replaces {names} of an earlier plan{changes}: {', '.join(counts)}"


def follow_plan(
    store: EditStore, views: Views, run_id: int, rows: Sequence[ShardRow], plan: Path
) -> list[Replacement]:
    """Set aside the shards that the plan no longer names, and give the new ones what follows their cursor.

    Return what replaces what. Samples behind a gap can be taken over once the gap has been inserted.
    """
    newly_aside = store.set_aside_others(run_id, [row.id for row in rows])
    by_file: defaultdict[str, list[ShardRow]] = defaultdict(list)
    for earlier in views.set_aside(run_id):
        by_file[Path(earlier.shard.annotation).name].append(earlier)
    replacements, replaced = list[Replacement](), set()
    for row in rows if by_file else ():
        shard = row.shard
        overlapping = [
            earlier for earlier in by_file[Path(shard.annotation).name] if _inserted_in(earlier, shard)
        ]
        replaced |= {earlier.id for earlier in overlapping}
        if overlapping and row.expanded_to < shard.end_idx:
            sources = [each.id for each in overlapping if _asks_the_same(each, row)]
            taken = store.take_over(row, sources)
            replacements.append(Replacement(row, overlapping, sources, taken))
    gone = [row for rows in by_file.values() for row in rows if row.id in newly_aside - replaced]
    _say(
        f"{_name(row.shard)} is no longer in {plan}: what is captioned of it is kept, counts no more, "
        "and is taken over when a plan of this run names it again"
        for row in gone
        if row.expanded_to > row.shard.start_idx
    )
    store.drop_emptied(run_id)
    return replacements


def take_over_behind_gaps(
    store: EditStore,
    runs: RunStore,
    replacement: Replacement,
    read: ReadSamples,
    batch_size: int,
    stages: Sequence[Stage],
) -> None:
    """Insert the samples before those that earlier shards hold, and take these over."""
    row = replacement.row
    while gap := store.gap_before(row.id, replacement.sources):
        samples = takewhile(lambda new: new.idx < gap.stop, read(row.shard, gap.start))
        cursor = gap.start
        # A file that breaks off is reported when its samples are inserted.
        with suppress(PlanError):
            for chunk in in_groups(batches_of(samples, batch_size, stages), _CHUNK):
                if runs.expand(row.id, cursor, chunk) is None:
                    return
                cursor = chunk[-1].end_idx
        if cursor < gap.stop:
            return
        replacement.taken += store.take_over(row, replacement.sources)


def say_replaced(replacements: Sequence[Replacement], plan: Path, corrected: Mapping[int, int]) -> None:
    """Log what each shard takes over, less what was corrected; of a shard that goes on, only the former."""
    _say(
        each.sentence(plan, corrected.get(each.row.id, 0))
        for each in replacements
        if each.taken or each.row.expanded_to == each.row.shard.start_idx
    )


def _say(sentences: Iterable[str]) -> None:
    said = list(sentences)
    for sentence in said[:_SHOWN]:
        log.info("%s", sentence)
    if len(said) > _SHOWN:
        log.info("and so on, for %s more lines of the plan", len(said) - _SHOWN)


def _inserted_in(earlier: ShardRow, shard: PlanShard) -> int:
    """Count the samples of the shard that the earlier one has, or had before another took them over."""
    if earlier.shard.dataset != shard.dataset and earlier.shard.annotation != shard.annotation:
        return 0
    return max(0, min(earlier.expanded_to, shard.end_idx) - max(earlier.shard.start_idx, shard.start_idx))


def _asks_the_same(earlier: ShardRow, row: ShardRow) -> bool:
    """Whether equal entries get equal captions; whether the entries are equal is read later."""
    old, new = earlier.shard, row.shard
    return (old.task, old.modality) == (new.task, new.modality) and _has_moved(old.root, new.root)


@lru_cache(maxsize=1024)
def _has_moved(old: str, new: str) -> bool:
    """Whether the folder is the same one, or the old one is gone: two that exist may hold other media.

    Of remote ones nobody knows whether they exist.
    """
    if old == new or is_remote(old) or is_remote(new):
        return old == new
    return not Path(old).exists() or Path(old).samefile(new)


def _changes(old: PlanShard, new: PlanShard) -> str:
    """List the keys that differ: ` ("end_idx" was 4, is 3)`."""
    before, after = asdict(old), asdict(new)
    changed = [
        f'"{_PLAN_KEYS.get(key, key)}" was {shown(before[key])}, is {shown(after[key])}'
        for key in before
        if key not in _NO_KEYS and before[key] != after[key]
    ]
    return f" ({'; '.join(changed)})" if changed else ""


def _name(shard: PlanShard) -> str:
    return f"{shard.dataset}[{shard.start_idx}-{shard.end_idx - 1}]"


def read_again(
    store: EditStore,
    run_id: int,
    rows: Sequence[ShardRow],
    read: ReadSamples,
    stages: Sequence[Stage],
    *,
    refused_too: bool,
) -> tuple[list[str], Counter[int]]:
    """Compare what was read of annotation files that have changed, and open again the samples that differ.

    With `refused_too` those are compared, too, of which entries were refused: a domain may exist by now.
    Return a message for each file that could not be read on, and the corrected samples by shard.
    """
    noted = store.stamps(run_id)
    refused = store.with_refused(run_id) if refused_too else set()
    stamps = {row.id: _stamp(row.shard.annotation) for row in rows}
    problems: dict[str, None] = {}
    changed: Counter[str] = Counter()
    corrected: Counter[int] = Counter()
    for row in rows:
        has_changed = stamps[row.id] != noted[row.id] and row.expanded_to > row.shard.start_idx
        if not has_changed and row.id not in refused:
            continue
        try:
            count, is_complete = _compare(store, row, read, stages)
            changed[row.shard.annotation] += count
            corrected[row.id] = count
            if not is_complete:
                del stamps[row.id]
        except PlanError as error:
            problems[str(error)] = None
            del stamps[row.id]
    for annotation, count in changed.items():
        if count:
            entries = "1 entry has" if count == 1 else f"{count} entries have"
            log.info("%s: %s changed and will be captioned again", annotation, entries)
    store.note_stamps({key: stamp for key, stamp in stamps.items() if stamp != noted[key]})
    return list(problems), corrected


def changed_entries(
    store: EditStore, run_id: int, rows: Sequence[ShardRow], read: ReadSamples
) -> Iterator[tuple[int, list[int]]]:
    """Yield by shard the samples whose entries differ from what was read. Raises PlanError."""
    noted = store.stamps(run_id)
    for row in rows:
        if _stamp(row.shard.annotation) != noted[row.id] and row.expanded_to > row.shard.start_idx:
            ids = [old.sample_id for old, _ in _differing(store, row, read)]
            if ids:
                yield row.id, ids


def _differing(store: EditStore, row: ShardRow, read: ReadSamples) -> Iterator[tuple[StoredEntry, NewSample]]:
    """Yield the entries that are not as they were read."""
    entries = takewhile(lambda new: new.idx < row.expanded_to, read(row.shard, row.shard.start_idx))
    pairs = zip(store.entries(row.id), entries, strict=False)
    return (pair for pair in pairs if _differs(*pair, row.shard.root))


def _compare(store: EditStore, row: ShardRow, read: ReadSamples, stages: Sequence[Stage]) -> tuple[int, bool]:
    """Correct the shard's samples; return how many, and whether no worker had one of them."""
    count, is_complete = 0, True
    differing = _differing(store, row, read)
    for batch_id, group in groupby(differing, key=lambda pair: pair[0].batch_id):
        changed = list(group)
        to_caption = [new for old, new in changed if not (old.refusal and new.failure)]
        stage = (first_stage(to_caption, stages) or stages[0]) if to_caption else None
        if store.correct(batch_id, {old.sample_id: new for old, new in changed}, stage):
            count += len(changed)
            continue
        is_complete = False
        log.warning(
            "%s: a worker captions entries that have changed; run the command again when it has finished",
            row.shard.annotation,
        )
    return count, is_complete


def _differs(old: StoredEntry, new: NewSample, root: str) -> bool:
    """Whether the entry says something else, or is refused no more, or for another reason.

    A file that cannot be read now may be the picture or video that it was.
    """
    refusal = new.failure and new.failure.message
    if old.refusal and old.refusal != refusal:
        return True
    return bool(old.entry != new.entry) and not differs_by_guess(new.entry, old.entry, root)


def _stamp(annotation: str) -> str:
    """Return the file's size and time, which change when its content does. Raises PlanError."""
    try:
        found = Path(annotation).stat()
    except OSError as error:
        raise PlanError(f"{annotation}: {error.strerror}; put it back, or correct the plan") from error
    return f"{found.st_size} {found.st_mtime_ns}"
