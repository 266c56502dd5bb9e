"""The guard: named rules that an answer of free text must pass before anyone reads it.

A rule repairs the text, or finds a fault: then the answer is asked for again with changed sampling, and
after the last attempt its sample fails under the rule's name. Whether a caption is true is for the judge.
"""

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from ftfy.badness import is_bad
from py3langid.langid import MODEL_FILE, LanguageIdentifier

from capflow_tasks import errors
from capflow_tasks.captioning.quotes import without_quotes
from capflow_tasks.domains.catalogue import Agent
from capflow_tasks.domains.schemas import broken_by, texts_in
from capflow_tasks.engine.chat import THINKING_OPENINGS
from capflow_tasks.entries import unstorable
from capflow_tasks.records import Completion, JsonObject, RefusedAnswer, Rule, Sampling

#: The failure of a sample whose answer breaks a rule in every attempt.
ERRORS: dict[Rule, type[errors.AnswerFault]] = {
    Rule.EMPTY: errors.AnswerEmpty,
    Rule.THINKING: errors.AnswerThinking,
    Rule.REFUSAL: errors.AnswerRefusal,
    Rule.LOOP: errors.AnswerLoop,
    Rule.CUT_OFF: errors.AnswerCutOff,
    Rule.ECHO: errors.AnswerEcho,
    Rule.MOJIBAKE: errors.AnswerMojibake,
    Rule.WRONG_LANGUAGE: errors.AnswerWrongLanguage,
    Rule.MARKUP: errors.AnswerMarkup,
    Rule.INVALID_JSON: errors.AnswerInvalidJson,
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One rule that an answer broke."""

    rule: Rule
    #: The part of the answer that shows it, at most 120 characters.
    evidence: str


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer that went through all rules."""

    #: The answer with what could be repaired.
    text: str
    repairs: tuple[Finding, ...] = ()
    #: Why the text cannot be used, worst first.
    faults: tuple[Finding, ...] = ()
    #: What an answer of JSON says; None for other answers.
    data: JsonObject | None = None


@dataclass(frozen=True, slots=True)
class Guard:
    """The rules as the settings choose them."""

    #: How often an answer is asked for, in all.
    attempts: int = 3
    #: Rules that are left out.
    off: frozenset[Rule] = frozenset()

    def with_broken_signs(self, answer: Completion) -> Completion:
        """Return the answer with NUL replaced where broken text may pass: PostgreSQL cannot store NUL."""
        if Rule.MOJIBAKE not in self.off:
            return answer
        return replace(answer, text=answer.text.replace("\0", "\N{REPLACEMENT CHARACTER}"))

    def check(self, agent: Agent, answer: Completion) -> Checked:
        """Repair what can be repaired, and name what cannot; letters and scores have rules of their own."""
        text = answer.text.strip()
        if agent.answer == "json":
            return self._check_json(agent, text, answer.finish_reason)
        if agent.answer != "text":
            return Checked(text)
        repairs: list[Finding] = []
        for rule, repair in {} if agent.verbatim else _REPAIRS.items():
            repaired = repair(text)
            if rule not in self.off and repaired != text and _words(repaired):
                repairs.append(_finding(rule, text))
                text = repaired
        faults = _faults(text, answer.finish_reason, agent)
        kept = tuple(_finding(rule, evidence) for rule, evidence in faults if rule not in self.off)
        return Checked(text, tuple(repairs), kept)

    def _check_json(self, agent: Agent, text: str, finish_reason: str) -> Checked:
        """Check an answer by a schema: that it follows it, and its texts by the rules for prose."""
        bare = found["inner"].strip() if (found := _FENCE.match(text)) else text
        repairs = (_finding(Rule.MARKUP, text),) if bare != text else ()
        if finish_reason == "length":
            return Checked(bare, repairs, (_finding(Rule.CUT_OFF, f"... {bare[-100:]}"),))
        data, fault = _parsed(bare, agent.schema or {})
        if fault:
            return Checked(bare, repairs, (_finding(Rule.INVALID_JSON, fault),))
        # a list of tags, or half of a sentence, is fine in a part
        prose = "\n".join(texts_in(data))
        faults = _faults(prose, finish_reason, agent) if prose else ()
        kept = (each for each in faults if each[0] not in self.off | _NOT_IN_JSON)
        return Checked(bare, repairs, tuple(_finding(*each) for each in kept), data)


def record(checked: Checked, refused: Sequence[RefusedAnswer]) -> JsonObject | None:
    """Return what is stored beside an answer: its repairs, and the earlier attempts; None for neither."""
    found: JsonObject = {}
    if checked.repairs:
        found["repairs"] = {repair.rule: repair.evidence for repair in checked.repairs}
    if refused:
        found["attempts"] = [{name: getattr(each, name) for name in _STORED} for each in refused]
    return found or None


#: What is stored of a refused answer beside the one that was kept.
_STORED = ("faults", "finish_reason", "prompt_tokens", "cached_tokens", "completion_tokens")


def changed_sampling(sampling: Sampling, faults: tuple[Finding, ...]) -> Sampling:
    """Return the sampling with which an answer with these faults is asked for again."""
    rules = {fault.rule for fault in faults}
    if Rule.LOOP in rules:
        # greedy loops come back on every try; Qwen's model cards advise a presence penalty of 0 to 2
        penalty = max(sampling.presence_penalty or 0.0, 1.0)
        return replace(sampling, temperature=max(sampling.temperature or 0.0, 0.7), presence_penalty=penalty)
    if Rule.CUT_OFF in rules:
        return replace(sampling, max_tokens=2 * sampling.max_tokens)
    return another_draw(sampling)


def another_draw(sampling: Sampling) -> Sampling:
    """Return the sampling with which the same prompt gets another answer, that of a greedy agent too."""
    return replace(sampling, temperature=max(sampling.temperature or 0.0, 0.5))


def _faults(text: str, finish_reason: str, agent: Agent) -> Iterator[tuple[Rule, str]]:
    if not _words(text):
        yield Rule.EMPTY, repr(text)
        return
    is_free = not agent.verbatim
    if found := _THINKING_TAG.search(text) or (is_free and _THINKING_OPENING.match(text)):
        yield Rule.THINKING, found[0]
    if is_free and (found := _REFUSAL.search(without_quotes(text)[:_OPENING])):
        yield Rule.REFUSAL, found[0]
    if evidence := _loop(text, _VERBATIM_FACTOR if agent.verbatim else 1):
        yield Rule.LOOP, evidence
    if finish_reason == "length" or (is_free and _BROKEN_OFF.search(text)):
        yield Rule.CUT_OFF, f"... {text[-100:]}"
    if evidence := _echo(text, agent.prompt):
        yield Rule.ECHO, evidence
    if "\N{REPLACEMENT CHARACTER}" in text or is_bad(text):
        yield Rule.MOJIBAKE, next((line for line in text.splitlines() if is_bad(line)), text)
    if is_free and agent.language != "any" and (evidence := _other_language(text, agent.language)):
        yield Rule.WRONG_LANGUAGE, evidence
    if is_free and (found := _STRUCTURE.match(text)):
        yield Rule.MARKUP, found[0]


#: Rules that no part of a JSON object needs to keep.
_NOT_IN_JSON = {Rule.EMPTY, Rule.CUT_OFF, Rule.MARKUP}


def _parsed(text: str, schema: Mapping[str, Any]) -> tuple[JsonObject | None, str]:
    """Return what the JSON says, and why it cannot be used, or nothing."""
    try:
        data = json.loads(text, strict=False)
    # RecursionError: a model in a loop can nest brackets without end
    except (ValueError, RecursionError) as error:
        return None, f"{error}: {text}"
    fault = broken_by(data, schema) or unstorable(data)
    return data, fault or ""


def _finding(rule: Rule, evidence: str) -> Finding:
    line = " ".join(evidence.split())
    return Finding(rule, line if len(line) <= 120 else f"{line[:117]}...")


# Words: a run of letters or digits, or one character of a script that is written without spaces.
_WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]|[^\W_]+(?:['’][^\W_]+)?")


def _words(text: str) -> list[str]:
    return _WORD.findall(text.casefold())


def _any_of(*patterns: str, start: str = "") -> re.Pattern[str]:
    return re.compile(f"{start}(?:{'|'.join(patterns)})", re.IGNORECASE)


_THINKING_TAG = _any_of(
    r"</?think(?:ing)?>",
    r"<\|channel\|>",
    r"<\|?(?:begin|end)_of_thought\|?>",
    *map(re.escape, THINKING_OPENINGS),
)
_LOOK = "(?:think|describe|write|give|look|start by|anal[yi][sz]e)"
_THINKING_OPENING = _any_of(
    r"(?:hmm+|wait)\b",
    rf"let me {_LOOK}\b",
    r"the user (?:wants|asks|is asking|has asked)\b",
    rf"i (?:need to|have to|should|am asked to) {_LOOK}\b",
    r"got it, let\b",
    start=r"\A\W*(?:(?:okay|ok|alright)\W+)?(?:so )?",
)

#: Refusals stand at the beginning of an answer.
_OPENING = 240
_CANNOT = (
    r"(?:can(?:['’]?t|not)|am (?:not able|unable)|['’]m (?:not able|unable)|won['’]t|will not"
    r"|do(?:n['’]t| not) have access)"
)
_HELP = (
    "(?:assist|help|provide|describe|identify|comply|see|view|process|access|analy[sz]e|create|generate"
    "|continue)"
)
_REFUSAL = _any_of(
    r"\bi(?: am|['’]m) (?:very |so |really )?sorry\b",
    r"\b(?:i apologi[sz]e|my apologies)\b",
    r"\b(?:as|i am|i['’]m) an? (?:ai|language|artificial)\b",
    rf"\b(?:i|we) ?{_CANNOT} (?:to )?(?:be able to )?{_HELP}\b",
    r"\bi (?:do not|don['’]t) (?:see|have access to) (?:an?|any|the) (?:image|picture|video)\b",
    r"\b(?:no|without an) image (?:was|is|has been) (?:provided|attached|given)\b",
    r"\bes tut mir leid\b",
    r"\bich kann\b.{0,60}\bnicht (?:helfen|beschreiben|beantworten|identifizieren|sehen)\b",
    r"\bje suis (?:vraiment )?désolée?\b",
    r"\bje ne (?:peux|suis) pas (?:en mesure|capable|vous aider|décrire|identifier|voir|fournir)\b",
    r"\blo siento\b",
    r"\bno puedo (?:ayudar|describir|identificar|ver|proporcionar)\b",
    r"\bmi dispiace\b",
    r"\bnon posso (?:aiutar|descrivere|identificare)",
    r"\bdesculpe\b",
    r"\bnão posso (?:ajudar|descrever|identificar)\b",
    r"抱歉|对不起|我(?:无法|不能)(?:帮助|提供|描述|识别|查看|看到)",
    r"申し訳(?:ありません|ございません)|お手伝いできません",
)

#: The last words of a sentence that nobody ends there.
_BROKEN_OFF = re.compile(
    r"(?:,|\b(?:the|an?|and|or|of|with|which|that|whose|is|are|its|their|from|into"
    r"|und|der|die|das|mit|et|le|la|les|de|avec|y|el|con))\Z",
    re.IGNORECASE,
)

#: Anything that is set up as data where prose was asked for.
_STRUCTURE = re.compile(r'\A(?:```|[{\[]\s*[{"]|<(?:html|div|p|svg|caption|answer)\b)', re.IGNORECASE)

_TAG = re.compile(r"</?(?:report|caption)(?:-\d+)?(?:\s[^>]*)?>|\$(?:reports|caption|dimensions|domain)\b")
#: So many words in a row are no accident.
_ECHO_WORDS = 12


def _echo(text: str, prompt: str) -> str:
    """Return what the answer repeats of its prompt, or its first tag of the prompt's own."""
    if found := _TAG.search(text):
        return found[0]
    known, words = _runs_of(prompt), _words(text)
    for start in range(len(words) - _ECHO_WORDS + 1):
        run = tuple(words[start : start + _ECHO_WORDS])
        if run in known:
            return " ".join(run)
    return ""


@cache
def _runs_of(prompt: str) -> frozenset[tuple[str, ...]]:
    words = _words(prompt)
    return frozenset(tuple(words[i : i + _ECHO_WORDS]) for i in range(len(words) - _ECHO_WORDS + 1))


#: One character again and again; what draws lines, leaders and blanks in forms may be longer.
_CHARACTERS = re.compile(
    r"([^\W\d_])\1{11,}|([!?])\2{7,}|(\d)\3{39,}|([^\w\s])\4{399,}|(_)\5{399,}|([^\W\d_]{2,8}?)\6{9,}"
)
#: What is copied from a picture may repeat so much more often than prose.
_VERBATIM_FACTOR = 4
#: The longest unit, in words, whose repetition is looked for.
_LONGEST_UNIT = 80
#: A whole sentence of at least five words may come so often, as in a refrain.
_MOST_REFRAINS = 5
_SENTENCE = re.compile(r"[^.!?。！？\n]+")


def _loop(text: str, factor: int) -> str:
    """Return the unit that the answer repeats without end, or nothing; `factor` raises what is allowed."""
    if found := _CHARACTERS.search(text):
        return found[0]
    words = _words(text)
    # Numbers count as equal, so that "3. A car. 4. A car." is found.
    names = ["0" if word.isdigit() else word for word in words]
    for period in range(1, min(_LONGEST_UNIT, len(words) // 2) + 1):
        start, times = _longest_repetition(names, period)
        unit = names[start : start + period]
        if times >= factor * _allowed_times(unit, times * period / len(words)):
            return f"{' '.join(words[start : start + period])} (x{times:g})"
    sentences = Counter(" ".join(_words(each)) for each in _SENTENCE.findall(text))
    for sentence, times in sentences.most_common(1):
        if times > factor * _MOST_REFRAINS and len(sentence.split()) >= 5:
            return f"{sentence} (x{times})"
    return ""


def _longest_repetition(words: list[str], period: int) -> tuple[int, float]:
    """Return where a unit of `period` words is repeated longest, and how many times it stands there."""
    best = start = length = 0
    for index in range(period, len(words)):
        length = length + 1 if words[index] == words[index - period] else 0
        if length > best:
            best, start = length, index - length + 1 - period
    return start, 1 + best / period


def _allowed_times(unit: list[str], share: float) -> float:
    """Return how often a unit must stand in a row to be a loop; `share` of the text is what it fills."""
    names = len([word for word in unit if not word.isdigit()])
    if names == 0:  # the cells of a table, the digits of a number
        return 200
    if "0" in unit and names < 3:  # the labels of an axis: "week 1 week 2"
        return 60
    if share > 0.6:
        return 3 if len(unit) > 1 or share > 0.9 else 4
    return 6 if len(unit) <= 2 else 4


#: Below so many words outside quotation marks a language cannot be told.
_FEWEST_WORDS = 12
_SURE = 0.95


def _other_language(text: str, language: str) -> str:
    """Return the language that the prose, without what it quotes, is surely written in instead."""
    prose = without_quotes(text)
    if len(_words(prose)) < _FEWEST_WORDS:
        return ""
    ranked = _identifier().rank(prose)
    found, probability = ranked[0]
    # A script of its own makes its few languages share the probability.
    own = dict(ranked).get(language, 0.0)
    is_sure = probability >= _SURE or (own < 1 - _SURE and probability > 0.5)
    return f"{found} ({probability:.2f}): {prose}" if found != language and is_sure else ""


@cache
def _identifier() -> LanguageIdentifier:
    # Loading takes about a second.
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


_FENCE = re.compile(r"\A```[\w-]*\n(?P<inner>.*?)\n?```\Z", re.DOTALL)
_LONE_KEY = re.compile(
    r'\A\{\s*"(?:caption|description|answer|text)"\s*:\s*"(?P<inner>(?:[^"\\]|\\.)*)"\s*\}\Z', re.DOTALL
)


def _without_markup(text: str) -> str:
    """Take the text out of a fence or of an object with one key."""
    if found := _FENCE.match(text):
        text = found["inner"].strip()
    if found := _LONE_KEY.match(text):
        text = found["inner"].replace("\\n", "\n").replace('\\"', '"')
    return text


_KIND = "(?:image|picture|photo|photograph|video|screenshot)"
_OPENINGS = _any_of(
    r"(?:here(?:['’]s| is| are)|below is|the following is)\b[^.\n:]{0,120}:\s*",
    r"(?:\*\*|#+ ?)?(?:detailed |final |image |video )?(?:caption|description)(?:\*\*)?"
    r"(?::(?:\*\*)?\s*|\s*\n\s*)",
    r"(?<=[!.] )",
    start=r"\A(?:(?:sure|certainly|of course|absolutely)[,!.]\s*)?",
)
_SHOWS = re.compile(
    rf"\A(?:this|the) {_KIND} (?:shows|depicts|features|presents|displays|captures|contains)\s+"
    r"(?=(?:an?|the|two|three|four|five|several|many|some)\b)",
    re.IGNORECASE,
)
_CLOSING = _any_of(
    r"let me know if\b",
    r"i hope (?:this|that) helps",
    r"feel free to ask",
    r"if you (?:need|have|would like) (?:any|more|further)\b",
    start=r"\s*",
)


def _without_opening(text: str) -> str:
    """Remove an opening such as "Here is a description:", and a closing remark."""
    bare = _SHOWS.sub("", _OPENINGS.sub("", text))
    if found := _CLOSING.search(bare):
        bare = bare[: found.start()].strip()
    return bare[:1].upper() + bare[1:] if bare != text else text


#: In the order in which they are tried.
_REPAIRS: dict[Rule, Callable[[str], str]] = {
    Rule.MARKUP: _without_markup,
    Rule.META_OPENING: _without_opening,
}
