"""How a model is spoken to: its chat template, its special tokens, and where its thinking ends.

Imports neither vLLM nor torch; a processor or tokenizer of transformers is handed in.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import exp
from typing import Any

from capflow_tasks.errors import BadAnswer
from capflow_tasks.records import Request, Token

#: Likeliest tokens to ask for at each place of an answer by a schema: three grades, and some to spare.
ALTERNATIVES = 5

#: What encloses the thinking of the models that think, by family.
_THINKING_MARKS = (
    ("<think>", "</think>"),  # Qwen, GLM, InternVL, MiniCPM-V, DeepSeek
    ("<thinking>", "</thinking>"),
    ("<seed:think>", "</seed:think>"),
    ("[THINK]", "[/THINK]"),  # Mistral
    ("◁think▷", "◁/think▷"),  # Kimi
    ("<|channel>thought", "<channel|>"),  # Gemma 4
)
#: An answer that begins with one of these is thinking.
THINKING_OPENINGS = tuple(opening for opening, _ in _THINKING_MARKS)

#: Placeholders for which some servers look in the text itself, whatever their tokenizer knows.
_PLACEHOLDERS = (
    "<image>",
    "<video>",
    "<audio>",
    "<IMG_CONTEXT>",
    "<start_of_image>",
    "<image_soft_token>",
    "[IMG]",
)


class Chat:
    """The chat with one loaded model."""

    def __init__(self, processor: Any, *, sees: bool = True) -> None:
        """`processor` is a processor of transformers, or the tokenizer of a model that sees nothing."""
        self._tokenizer = getattr(processor, "tokenizer", processor)
        self._template = getattr(processor, "chat_template", None)
        self._sees = sees
        self._thinking = thinking_marks(self._template or "")
        self.plain = neutralizer(special_tokens(processor))

    def thinks(self, request: Request) -> bool:
        """Return whether the request asks for thinking, and the model can."""
        return self._thinking is not None and request.sampling.thinking_tokens > 0

    @property
    def thinking_end(self) -> str:
        """The text that ends the thinking; empty for a model that does not think."""
        return self._thinking[1] if self._thinking else ""

    def render(self, request: Request) -> str:
        """Render system line, media, instruction: a sample's calls differ only in the instruction.

        The prompt ends where thinking begins if the request asks for it, else where the answer begins.
        """
        system, instruction = self.plain(request.system), self.plain(request.instruction)
        media = numbered([[{"type": ref.kind.value}] for ref in request.media])
        messages: list[Any] = [
            {"role": "system", "content": [_text_part(system)]},
            {"role": "user", "content": [*media, _text_part(instruction)]},
        ]
        if not self._sees:
            # templates of text models refuse a list of parts, or leave it out
            messages = [{"role": "system", "content": system}, {"role": "user", "content": instruction}]
        thinks = self.thinks(request)
        text: str = self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
            # each template reads one of the two
            enable_thinking=thinks,
            thinking=thinks,
        )
        return self._begun(text, thinks=thinks)

    def _begun(self, prompt: str, *, thinks: bool) -> str:
        """Open the thinking, or close what the template of a model that always thinks has opened."""
        if self._thinking is None:
            return prompt
        opening, _ = self._thinking
        is_open = prompt.rstrip().endswith(opening)
        if thinks:
            return prompt if is_open else f"{prompt}{opening}\n"
        return self.closed(prompt, "") if is_open else prompt

    def closed(self, prompt: str, thought: str) -> str:
        """Return the prompt with what the model has thought, ended where its answer begins."""
        return f"{prompt}{self.plain(thought).rstrip()}\n{self.thinking_end}\n\n"


def numbered(media: Sequence[Sequence[Mapping[str, Any]]]) -> list[Mapping[str, Any]]:
    """Join the content parts of several media, each after its number; a single one needs none."""
    if len(media) == 1:
        return list(media[0])
    return [
        part
        for number, parts in enumerate(media, start=1)
        for part in (_text_part(f"{_named(parts)} {number}: "), *parts)
    ]


def _named(parts: Sequence[Mapping[str, Any]]) -> str:
    return "Picture" if str(parts[0]["type"]).startswith("image") else "Video"


def _text_part(text: str) -> dict[str, str]:
    return {"type": "text", "text": text}


def thinking_marks(template: str) -> tuple[str, str] | None:
    """Return what encloses a model's thinking, found in its chat template; None if it does not think."""
    return next((marks for marks in _THINKING_MARKS if marks[1] in template), None)


def answer_of(text: str) -> str:
    """Return the answer without the thinking before it; what is nothing but thinking stays, for the guard."""
    begun = text.lstrip()
    for opening, end in _THINKING_MARKS:
        before, found, after = text.partition(end)
        # a template may have opened the thinking already, so that only its end is in the answer
        if found and (begun.startswith(opening) or not before.lstrip().startswith(THINKING_OPENINGS)):
            return answer_of(after)
    return text


def special_tokens(processor: Any) -> set[str]:
    """Return the control tokens and media placeholders of a processor and its tokenizer."""
    tokenizer = getattr(processor, "tokenizer", processor)
    marks = [mark for marks in _THINKING_MARKS for mark in marks]
    added = getattr(tokenizer, "added_tokens_decoder", {}).values()
    known = [token.content for token in added if token.special or token.content in marks]
    placeholders = [value for name, value in vars(processor).items() if name.endswith("_token")]
    return {
        token for token in (*tokenizer.all_special_tokens, *known, *placeholders) if isinstance(token, str)
    }


def neutralizer(tokens: Iterable[str] = ()) -> Callable[[str], str]:
    """Return what turns special tokens in a text into plain text, by a blank behind their first character.

    A tokenizer recognizes them anywhere in a prompt: in a caption or a transcript, too.
    """
    longest_first = sorted({*_PLACEHOLDERS, *tokens}, key=lambda token: (-len(token), token))
    words = [re.escape(token) for token in longest_first if len(token.strip()) > 1]
    token_start = re.compile(rf"(?=<\||{'|'.join(words)}).", re.DOTALL)
    return lambda text: token_start.sub(r"\g<0> ", text)


def choice_probabilities(
    logprobs: Iterable[tuple[str, float]], choices: Sequence[str]
) -> Mapping[str, float]:
    """Return the probability of each choice as the first token of an answer, summing to 1.

    `logprobs` are the likeliest first tokens, each with the natural logarithm of its probability. Raises
    BadAnswer when no choice is among them.
    """
    found: defaultdict[str, float] = defaultdict(float)
    for token, logprob in logprobs:
        found[token.strip()] += exp(logprob)
    total = sum(found[choice] for choice in choices)
    if not total:
        likely = ", ".join(repr(token) for token in found) or "nothing"
        raise BadAnswer(f"none of {', '.join(choices)} is a likely answer; likely is {likely}")
    return {choice: found[choice] / total for choice in choices}


def token(text: str, logprobs: Iterable[tuple[str, float]]) -> Token:
    """Return a token with the likeliest at its place; `logprobs` as in `choice_probabilities`."""
    return Token(text, {each: exp(logprob) for each, logprob in logprobs})
