"""Compare arms on the samples that all have finished: measures, differences, and what chance explains."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property

from capflow_tasks.errors import UserError
from capflow_tasks.records import FinishedSample, JsonObject
from producer.console import count, counted, percent
from producer.evaluation import questions
from producer.evaluation.arms import ArmSamples
from producer.evaluation.measures import NOTHING, Bootstrap, Estimate, Part
from producer.evaluation.questions import Answered
from producer.evaluation.samples import Drawn, Key
from producer.reading.caption_files import Criteria, scores_of
from producer.writing.captions import caption_record, guard_findings

#: What a value of a measure is written like.
Format = Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that is measured of each sample."""

    name: str
    #: What it says, for people.
    meaning: str
    format: Format
    #: Of a difference, with its sign.
    format_difference: Format


def _share(name: str, meaning: str) -> Measure:
    return Measure(name, meaning, percent, lambda value: f"{100 * value:+.1f} points")


def _mean(name: str, meaning: str) -> Measure:
    return Measure(name, meaning, lambda value: f"{value:.2f}", lambda value: f"{value:+.2f}")


#: The measures that have a meaning of their own, in the order in which they are shown; the first that two
#: arms have is what the verdict is about. The grades of each dimension follow them.
MEASURES = (
    _share("question_accuracy", "questions answered right from the caption alone"),
    _share("question_coverage", "questions that the caption answers, right or wrong"),
    _share("cannot_tell", "questions that the caption settles neither way"),
    _share("right_of_answered", "right answers among those given"),
    _share("fact_recall", "reference facts that the caption bears out"),
    _share("fact_precision", "reference facts borne out, of those that the caption takes a side on"),
    _mean("expected_grade", "the judge's expected grade, mean of all dimensions, 1 to 3"),
    _mean("overall", "the judge's overall grade, 1 to 3"),
    _share("claim_support", "claims of the caption that the media bear out"),
    _share("quote_support", "quoted words that were read in the media"),
    _share("text_coverage", "confidently read words that the caption holds"),
    _share("kept", "captions that meet the minimums"),
    _share("guard", "captions in whose making the guard found something"),
    _share("failed", "samples without a caption"),
    Measure(
        "tokens",
        "prompt and answer tokens of a sample",
        lambda value: count(round(value)),
        lambda value: f"{value:+,.0f}",
    ),
)
_KNOWN = {measure.name: measure for measure in MEASURES}
#: With fewer samples the percentile bootstrap's intervals are too narrow.
FEW_SAMPLES = 30
#: What other parts of Capflow store with a caption, a share from 0 to 1.
_STORED_SHARES = ("quote_support", "text_coverage", "claim_support")


def measure_of(name: str) -> Measure:
    return _KNOWN.get(name) or _mean(name, f"{name.replace('_', ' ')} of a caption, 1 to 3")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What two arms differ by in one measure."""

    first: str
    second: str
    measure: Measure
    values: tuple[Estimate, Estimate]
    difference: Estimate

    def __str__(self) -> str:
        write, write_difference = self.measure.format, self.measure.format_difference
        low, high = write_difference(self.difference.low), write_difference(self.difference.high)
        chance = "more than chance" if self.difference.excludes_zero else "no more than chance may give"
        return (
            f"{self.second} against {self.first}, {self.measure.name}: {write(self.values[1].value)} against "
            f"{write(self.values[0].value)}, a difference of {write_difference(self.difference.value)} "
            f"({low} to {high}), which is {chance}."
        )


@dataclass(frozen=True, slots=True)
class Judged:
    """What an arm made of one sample."""

    sample: FinishedSample
    #: Its line of a caption file; of a failed sample only what is known.
    record: JsonObject
    answers: tuple[Answered, ...]
    facts: tuple[Answered, ...]
    parts: Mapping[str, Part]


def judge(sample: FinishedSample, answers: Sequence[Answered], criteria: Criteria) -> Judged:
    """Measure one sample of one arm; `answers` are those to questions and about facts."""
    asked = tuple(each for each in answers if not each.question.is_fact)
    facts = tuple(each for each in answers if each.question.is_fact)
    record = caption_record(sample)
    parts: dict[str, Part] = {
        "failed": (float(sample.failure is not None), 1),
        "tokens": (_tokens(sample), 1),
        "kept": (float(sample.failure is None and criteria.keeps(record)), 1),
    }
    if sample.failure is None:
        parts |= {"guard": (float(bool(guard_findings(sample.results))), 1), **_stored(record, criteria)}
    if asked:
        parts |= {
            "question_accuracy": questions.accuracy(asked),
            "question_coverage": questions.coverage(asked),
            "cannot_tell": questions.cannot_tell(asked),
            "right_of_answered": questions.right_of_answered(asked),
        }
    if facts:
        parts |= {"fact_recall": questions.recall(facts), "fact_precision": questions.precision(facts)}
    return Judged(sample, record, asked, facts, parts)


def _tokens(sample: FinishedSample) -> int:
    results = (*sample.results, *sample.others)
    return sum(each.prompt_tokens + each.completion_tokens for each in results)


def _stored(record: JsonObject, criteria: Criteria) -> dict[str, Part]:
    """Return the grades of a caption, and the shares that are stored with it."""
    scores = scores_of(record, criteria.rubrics)
    found: dict[str, Part] = {
        name if name == "overall" else f"grade_{name}": (grade, 1) for name, grade in scores.grades.items()
    }
    if (expected := (record.get("expected_scores") or {}).get("overall")) is not None:
        found["expected_grade"] = (expected, 1)
    shares = {name: record.get(name) for name in _STORED_SHARES}
    return found | {name: (share, 1) for name, share in shares.items() if isinstance(share, int | float)}


class Comparison:
    """Arms side by side, on the samples that all have finished, in the order in which they were drawn."""

    def __init__(
        self,
        arms: Sequence[ArmSamples],
        samples: Sequence[Drawn],
        answers: Mapping[str, Mapping[Key, Sequence[Answered]]],
        criteria: Criteria,
        seed: int = 0,
    ) -> None:
        """`answers` are by arm and sample. Raises UserError where the arms share no sample."""
        self.arms = list(arms)
        self.drawn = len(samples)
        self.samples = [each for each in samples if all(each.key in arm.finished for arm in arms)]
        if not self.samples:
            numbers = ", ".join(f"{arm.arm.name} has {len(arm.finished)}" for arm in arms)
            raise UserError(
                f"the arms have no sample in common of {len(samples)} drawn: {numbers}; name runs of the "
                "same media, or let arms caption them"
            )
        #: By arm, in the order of the samples.
        self.judged = {
            arm.arm.name: [
                judge(arm.finished[each.key], answers.get(arm.arm.name, {}).get(each.key, ()), criteria)
                for each in self.samples
            ]
            for arm in arms
        }
        self._bootstrap = Bootstrap(len(self.samples), seed)

    @cached_property
    def measures(self) -> list[Measure]:
        """Those that any arm has a value of: the known ones in their order, then each dimension."""
        found = {name for own in self.judged.values() for each in own for name in each.parts}
        names = [measure.name for measure in MEASURES if measure.name in found]
        return list(map(measure_of, names + sorted(found - set(names))))

    @cached_property
    def estimates(self) -> dict[str, dict[str, Estimate]]:
        """By arm and measure."""
        return {
            arm: {
                measure.name: found
                for measure in self.measures
                if (found := self._bootstrap.estimate(self._parts(arm, measure)))
            }
            for arm in self.judged
        }

    @cached_property
    def verdicts(self) -> list[Verdict]:
        """What each other arm differs from the first by, in every measure that both have."""
        first, *others = self.judged
        return [verdict for other in others for verdict in self._verdicts(first, other)]

    @property
    def headlines(self) -> list[Verdict]:
        """For each arm but the first, the verdict that counts most."""
        return list({verdict.second: verdict for verdict in reversed(self.verdicts)}.values())[::-1]

    @property
    def caution(self) -> str:
        """What to keep in mind about so few samples; empty for enough."""
        count_of = len(self.samples)
        if count_of >= FEW_SAMPLES:
            return ""
        return f"{counted(count_of, 'sample')}: with fewer than {FEW_SAMPLES} the intervals are too narrow"

    def domain_of(self, number: int) -> str:
        """Return the domain of a sample: that of the first arm that knows it."""
        own = (self.judged[arm][number].sample.domain for arm in self.judged)
        return next(filter(None, own), "(none)")

    def by_domain(self) -> dict[str, dict[str, dict[str, float]]]:
        """Return the measures by domain and arm."""
        numbers: dict[str, list[int]] = {}
        for number in range(len(self.samples)):
            numbers.setdefault(self.domain_of(number), []).append(number)
        return {
            domain: {arm: self._sums(arm, own) for arm in self.judged}
            for domain, own in sorted(numbers.items())
        }

    def _sums(self, arm: str, numbers: Sequence[int]) -> dict[str, float]:
        found: dict[str, float] = {}
        for measure in self.measures:
            parts = [self.judged[arm][number].parts.get(measure.name, NOTHING) for number in numbers]
            if below := sum(part[1] for part in parts):
                found[measure.name] = sum(part[0] for part in parts) / below
        return found

    def _verdicts(self, first: str, second: str) -> list[Verdict]:
        found = []
        for measure in self.measures:
            ours, theirs = (self.estimates[arm].get(measure.name) for arm in (first, second))
            difference = self._bootstrap.difference(self._parts(first, measure), self._parts(second, measure))
            if ours and theirs and difference:
                found.append(Verdict(first, second, measure, (ours, theirs), difference))
        return found

    def _parts(self, arm: str, measure: Measure) -> list[Part]:
        return [each.parts.get(measure.name, NOTHING) for each in self.judged[arm]]

    def as_json(self) -> JsonObject:
        differences = {
            (each.second, each.measure.name): _rounded(each.difference)
            | {"is_more_than_chance": each.difference.excludes_zero}
            for each in self.verdicts
        }
        return {
            "samples": len(self.samples),
            "left_out": self.drawn - len(self.samples),
            "verdicts": list(map(str, self.headlines)),
            "arms": [
                {
                    "name": arm.arm.name,
                    "run": arm.run,
                    "workflow": arm.arm.workflow,
                    "model": arm.arm.model,
                    "usd_per_1000": arm.usd_per_1000,
                    "measures": {
                        name: _rounded(each) | {"difference": differences.get((arm.arm.name, name))}
                        for name, each in self.estimates[arm.arm.name].items()
                    },
                }
                for arm in self.arms
            ],
            "domains": {
                domain: {
                    arm: {name: round(value, 4) for name, value in own.items()} for arm, own in arms.items()
                }
                for domain, arms in self.by_domain().items()
            },
        }


def _rounded(estimate: Estimate) -> JsonObject:
    return {name: round(value, 4) for name, value in asdict(estimate).items()}
