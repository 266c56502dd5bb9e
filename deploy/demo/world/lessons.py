"""Training rows: a picture or video drawn by lot, and as many questions about it as fit into a row."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from transformers import Qwen2Tokenizer

from capflow_tasks.domains.catalogue import Agent
from capflow_tasks.records import Stage
from model_families import QWEN25_CHAT, qwen_tokenizer
from world.drawing import SIDE, VIDEO_SIDE, draw_frames, draw_picture
from world.facts import Scene, falsified
from world.grading import draw_caption
from world.model import FRAMES, Batch
from world.questions import (
    Question,
    ask,
    ask_corrector,
    ask_critic,
    ask_judge,
    ask_router,
    ask_verifier,
    catalogue,
    task_of,
)
from world.scenes import STORIES, draw_scene

VIDEO = "Video & Temporal"
#: What the model gets of a picture and of a video: pixels, tokens per side, frames.
PICTURE_PIXELS, VIDEO_PIXELS, VIDEO_FRAMES = SIDE // 2, VIDEO_SIDE // 2, 8
#: Share of the training in which the model only learns to see, with short rows and so more pictures.
SEEING = 0.25
#: Statements and captions that are compared with each picture later, as far as the row has room.
CLAIMS, CAPTIONS = 6, 3
#: Most tokens of a row, in that time and later; and what any question takes.
FEW_TOKENS, MOST_TOKENS, _SHORTEST = 160, 288, 16
_MARK = "[instruction]"
TASKS = (
    *("overview", "details", "words", "conclusions", "summary"),
    *("route", "claim", "correction", "grade", "errors"),
)
#: Weight of an answer's tokens where it is not 1: what is one word long counts more.
_WEIGHTS = {"claim": 2.0, "route": 2.0}
_GRADE_WEIGHT, _JSON_WEIGHT = 3.0, 0.1
#: Share of pictures that mix two domains.
_MIXED = 0.04


@dataclass(slots=True)
class Row:
    """One medium with its questions, as tokens; see `Batch`."""

    frames: NDArray[np.uint8]
    tokens: list[int]
    positions: NDArray[np.int64]
    segments: list[int]
    weights: list[float]
    tasks: list[int]


def build_tokenizer(size: int = 1280) -> Qwen2Tokenizer:
    """Train the tokenizer on the world's questions and answers; the same world gives the same tokenizer."""
    tokenizer = qwen_tokenizer([], list(_corpus()), size)
    tokenizer.chat_template = QWEN25_CHAT
    return tokenizer


def _corpus() -> Iterator[str]:
    draw = random.Random("tokenizer")
    for domain in list(STORIES) * 150:
        scene, other = (draw_scene(domain, draw, is_held_out=False) for _ in range(2))
        for question in draw_questions(scene, other, draw, progress=1.0):
            yield f"<|im_start|>user\n{question.instruction}<|im_end|>\n"
            yield f"{question.answer}\nsystem\n{catalogue().system}\nassistant\n yes no"


def draw_questions(scene: Scene, other: Scene, draw: random.Random, progress: float) -> list[Question]:
    """Draw questions about a scene in random order; those that compare texts with it come when it can see."""
    agents = catalogue().resolve(scene.domain).agents
    writers = [agent for agent in agents if agent.stage is not Stage.SCORE]
    if progress < SEEING:
        return _draw_looks(scene, writers, draw)
    questions = [ask(agent, scene, draw) for agent in writers if draw.random() < _SHARES[task_of(agent)]]
    if scene.domain != VIDEO and draw.random() < 0.25:
        questions.append(ask_router(scene.domain, draw))
    for _ in range(CLAIMS):
        questions += _draw_claims(scene, draw)
    for _ in range(CAPTIONS):
        caption = draw_caption(scene, other, draw)
        questions.append(ask_judge(scene, caption, draw))
        if draw.random() < 0.5:
            questions.append(ask_critic(caption))
    draw.shuffle(questions)
    return questions


def _draw_looks(scene: Scene, writers: Sequence[Agent], draw: random.Random) -> list[Question]:
    """Draw questions that are answered from the picture alone: the details, then some others."""
    looks = [agent for agent in writers if agent.stage is Stage.PERCEIVE]
    details = [ask(agent, scene, draw) for agent in looks if task_of(agent) == "details"]
    others = [ask(agent, scene, draw) for agent in looks if task_of(agent) != "details"]
    others += _draw_claims(scene, draw) + _draw_claims(scene, draw)
    if scene.domain != VIDEO and draw.random() < 0.1:
        others.append(ask_router(scene.domain, draw))
    draw.shuffle(others)
    return details + others


def _draw_claims(scene: Scene, draw: random.Random) -> list[Question]:
    """Draw a question about a true or false statement, and one that asks to correct the false one."""
    truth = draw.choice(scene.facts)
    false = falsified(truth, scene.facts, draw)
    questions = [ask_verifier(draw.choice((truth, false)), scene)]
    return [*questions, ask_corrector(false, truth)] if draw.random() < 0.2 else questions


#: How often agents are asked then, by task.
_SHARES = {"details": 0.4, "summary": 0.4, "overview": 0.2, "conclusions": 0.3, "words": 0.2}


def draw_media(scene: Scene) -> NDArray[np.uint8]:
    """Draw what the model gets: (frames, height, width, 3), a picture being one frame."""
    if scene.domain == VIDEO:
        size = (VIDEO_PIXELS, VIDEO_PIXELS)
        frames = [each.resize(size, Image.Resampling.BICUBIC) for each in draw_frames(scene, VIDEO_FRAMES)]
        return np.stack([np.asarray(each) for each in frames])
    return np.asarray(shrink(draw_picture(scene)))[None]


def shrink(picture: Image.Image) -> Image.Image:
    return picture.resize((PICTURE_PIXELS, PICTURE_PIXELS), Image.Resampling.BICUBIC)


def mix(first: Scene, second: Scene, draw: random.Random) -> tuple[Image.Image, str]:
    """Join two pictures side by side; the domain is drawn by their shares of the width."""
    share = draw.choice((0.25, 0.5, 0.75))
    picture = draw_picture(first)
    width = round(SIDE * share)
    picture.paste(draw_picture(second).crop((width, 0, SIDE, SIDE)), (width, 0))
    return picture, first.domain if draw.random() < share else second.domain


def render(tokenizer: Qwen2Tokenizer, kind: str, instruction: str) -> str:
    """Render the prompt as the product's engine does: system line, medium, instruction."""
    messages = [
        {"role": "system", "content": [{"type": "text", "text": catalogue().system}]},
        {"role": "user", "content": [{"type": kind}, {"type": "text", "text": instruction}]},
    ]
    text: str = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return text


class RowMaker:
    """Makes the row of a number; the same seed and number give the same row."""

    def __init__(self, tokenizer: Qwen2Tokenizer, seed: int, *, is_held_out: bool = False) -> None:
        self._tokenizer, self._seed, self._is_held_out = tokenizer, seed, is_held_out
        self._encode = lru_cache(10_000)(self._tokens)
        self._frames = {kind: self._frame(kind) for kind in ("image", "video")}

    def make(self, number: int, progress: float) -> Row:
        draw = random.Random(f"{self._seed}/{self._is_held_out}/{number}")
        if draw.random() < _MIXED and not self._is_held_out:
            first, second = draw.sample([domain for domain in STORIES if domain != VIDEO], 2)
            scenes = [draw_scene(domain, draw, is_held_out=False) for domain in (first, second)]
            picture, domain = mix(scenes[0], scenes[1], draw)
            return self._row(np.asarray(shrink(picture))[None], [ask_router(domain, draw)], MOST_TOKENS)
        domain = draw.choice(list(STORIES))
        scene = draw_scene(domain, draw, is_held_out=self._is_held_out)
        other = draw_scene(domain, draw, is_held_out=False)
        questions = draw_questions(scene, other, draw, progress)
        return self._row(draw_media(scene), questions, FEW_TOKENS if progress < SEEING else MOST_TOKENS)

    def _row(self, frames: NDArray[np.uint8], questions: Sequence[Question], most_tokens: int) -> Row:
        kind = "image" if len(frames) == 1 else "video"
        prefix, before, after = self._frames[kind]
        row = self._begin(frames, prefix, kind)
        start = int(row.positions.max()) + 1
        for number, question in enumerate(questions, start=1):
            suffix = self._encode(before + question.instruction + after)
            answer = self._encode(question.answer + "<|im_end|>")
            if len(row.tokens) + len(suffix) + len(answer) <= most_tokens:
                self._add(row, number, start, suffix, answer, question.task)
            elif most_tokens - len(row.tokens) < _SHORTEST:
                break
        return row

    def _frame(self, kind: str) -> tuple[str, str, str]:
        """Return what stands before the medium's end, from there to the instruction, and after it."""
        before, after = render(self._tokenizer, kind, _MARK).split(_MARK)
        prefix, end, rest = before.partition("<|vision_end|>")
        return prefix, end + rest, after

    def _begin(self, frames: NDArray[np.uint8], prefix: str, kind: str) -> Row:
        """Begin a row with the system line and the medium."""
        side, steps = frames.shape[1] // 28, max(1, len(frames) // FRAMES)
        before = self._encode(prefix.removesuffix(f"<|{kind}_pad|>"))
        tokens = before + self._encode(f"<|{kind}_pad|>") * (steps * side * side)
        text = np.arange(len(before))[None].repeat(3, 0)
        media = np.indices((steps, side, side)).reshape(3, -1) + len(before)
        positions = np.concatenate([text, media], 1)
        nothing = [0] * len(tokens)
        return Row(frames, tokens, positions, list(nothing), [0.0] * len(tokens), list(nothing))

    def _add(
        self, row: Row, number: int, start: int, suffix: list[int], answer: list[int], task: str
    ) -> None:
        length = len(suffix) + len(answer)
        learned = [self._weight(task, token) for token in answer]
        row.tokens += suffix + answer
        row.positions = np.concatenate([row.positions, (start + np.arange(length))[None].repeat(3, 0)], 1)
        row.segments += [number] * length
        # what stands at a token is the weight of predicting the next one
        row.weights += [0.0] * (len(suffix) - 1) + learned + [0.0]
        row.tasks += [TASKS.index(task)] * length

    def _weight(self, task: str, token: int) -> float:
        if task != "grade":
            return _WEIGHTS.get(task, 1.0)
        return _GRADE_WEIGHT if self._tokenizer.decode([token]).strip() in ("1", "2", "3") else _JSON_WEIGHT

    def _tokens(self, text: str) -> list[int]:
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens


def collate(rows: Sequence[Row]) -> Batch:
    """Join rows, padded to the longest."""
    length = max(len(row.tokens) for row in rows)

    def padded(values: Sequence[Sequence[float]], fill: float, kind: torch.dtype) -> torch.Tensor:
        return torch.tensor([[*each, *[fill] * (length - len(each))] for each in values], dtype=kind)

    pictures = [number for number, row in enumerate(rows) if len(row.frames) == 1]
    videos = [number for number, row in enumerate(rows) if len(row.frames) > 1]
    positions = np.zeros((3, len(rows), length), np.int64)
    for number, row in enumerate(rows):
        positions[:, number, : len(row.tokens)] = row.positions
    return Batch(
        pictures=_stacked([rows[number].frames[0] for number in pictures]),
        videos=_stacked([rows[number].frames for number in videos]),
        order=torch.tensor(pictures + videos),
        tokens=padded([row.tokens for row in rows], 0, torch.long),
        positions=torch.from_numpy(positions),
        segments=padded([row.segments for row in rows], -1, torch.long),
        weights=padded([row.weights for row in rows], 0.0, torch.float32),
        tasks=padded([row.tasks for row in rows], 0, torch.long),
    )


def _stacked(frames: Sequence[NDArray[np.uint8]]) -> torch.Tensor:
    return torch.from_numpy(np.stack(frames)) if frames else torch.empty(0, dtype=torch.uint8)
