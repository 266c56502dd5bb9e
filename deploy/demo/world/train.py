"""Train the demo's model from nothing, or go on where an earlier call was stopped.

    PYTHONPATH=deploy/demo python -m world.train FOLDER [--steps 6000] [--rows 16] [--seed 1]

With OMP_WAIT_POLICY=passive, threads sleep while they wait for each other: four times as fast on a busy
machine. Uses a GPU if there is one; that takes more rows a step in the same time.

FOLDER gets `state.pt` and `tokenizer`, to go on from; `log.jsonl`, a line of losses and held-out results now
and then; `curve.png`; and at the end `model`, which vLLM loads.
"""

import argparse
import json
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, Dataset
from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

from model_families import FAMILIES
from tiny_checkpoint import write_checkpoint
from world.curve import draw_curve
from world.lessons import SEEING, TASKS, RowMaker, build_tokenizer, collate
from world.model import Batch, build_model, predict
from world.muon import Muon

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
#: While it learns to see, the rows are short, and so many more go into a step.
MORE_ROWS = 1.5
LEARNING_RATE, WARM_UP_STEPS, WEIGHT_DECAY = 3e-3, 100, 0.05
#: Share of the training at whose end the learning rate has fallen to zero.
FALLING = 0.35
SECONDS_PER_SAVE, STEPS_PER_LINE, STEPS_PER_TEST = 180, 25, 250
HELD_OUT_BATCHES, HELD_OUT_ROWS = 8, 16


@dataclass(frozen=True, slots=True)
class Plan:
    """How long to train, with how many rows a step, and from which seed; only the seed must stay the same."""

    steps: int
    rows: int
    seed: int


class Batches(Dataset[Batch]):
    """The batch of each step."""

    def __init__(self, plan: Plan, tokenizer: Qwen2Tokenizer) -> None:
        self._plan = plan
        self._maker = RowMaker(tokenizer, plan.seed)

    def __getitem__(self, step: int) -> Batch:
        progress = step / self._plan.steps
        most = round(self._plan.rows * MORE_ROWS)
        count = most if progress < SEEING else self._plan.rows
        return collate([self._maker.make(step * most + number, progress) for number in range(count)])


class Optimizers:
    """Muon for the matrices inside the layers, AdamW for the rest; the rate falls in the last third."""

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, plan: Plan) -> None:
        self._steps = plan.steps
        matrices: list[Tensor] = []
        others: list[Tensor] = []
        for name, weight in model.named_parameters():
            is_inner = weight.ndim == 2 and "embed_tokens" not in name and "lm_head" not in name
            (matrices if is_inner else others).append(weight)
        self._all: list[Any] = [
            torch.optim.AdamW(others, LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.0),
            Muon(matrices, LEARNING_RATE, momentum=0.95, weight_decay=WEIGHT_DECAY),
        ]

    def step(self, step: int) -> None:
        left = (self._steps - step) / (self._steps * FALLING)
        rate = LEARNING_RATE * min(1.0, (step + 1) / WARM_UP_STEPS, left)
        for optimizer in self._all:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()

    def state(self) -> list[Any]:
        return [optimizer.state_dict() for optimizer in self._all]

    def load(self, state: list[Any]) -> None:
        for optimizer, each in zip(self._all, state, strict=True):
            optimizer.load_state_dict(each)


class Tally:
    """Means by task."""

    def __init__(self) -> None:
        self._sums = torch.zeros(len(TASKS))
        self._counts = torch.zeros(len(TASKS))

    def add(self, tasks: Tensor, values: Tensor) -> None:
        self._sums.index_add_(0, tasks.cpu(), values.cpu())
        self._counts.index_add_(0, tasks.cpu(), torch.ones(len(values)))

    def means(self) -> dict[str, float]:
        pairs = zip(TASKS, (self._sums / self._counts).tolist(), self._counts.tolist(), strict=True)
        return {task: round(mean, 4) for task, mean, count in pairs if count}


def learn(model: Qwen2_5_VLForConditionalGeneration, batch: Batch, tally: Tally) -> float:
    """Add the gradient of one batch; return its weighted loss."""
    batch = batch.to(DEVICE)
    logits, following = predict(model, batch)
    losses = cross_entropy(logits, following, reduction="none")
    chosen = batch.weights > 0
    weights = batch.weights[chosen]
    loss = (losses * weights).sum() / weights.sum()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    tally.add(batch.tasks[chosen], losses.detach())
    return float(loss.detach())


def test(model: Qwen2_5_VLForConditionalGeneration, batches: list[Batch]) -> dict[str, float]:
    """Return the share of answers by task in which each token, given those before it, is right."""
    tally = Tally()
    for batch in batches:
        with torch.no_grad():
            logits, following = (each.cpu() for each in predict(model, batch.to(DEVICE)))
        chosen = batch.weights > 0
        rows, _ = torch.where(chosen)
        question = rows * 1000 + batch.segments[chosen]
        _, number = question.unique(return_inverse=True)
        count = int(number.max()) + 1
        is_right = torch.ones(count).index_reduce_(
            0, number, (logits.argmax(-1) == following).float(), "amin"
        )
        tasks = torch.zeros(count, dtype=torch.long).index_copy_(0, number, batch.tasks[chosen])
        tally.add(tasks, is_right)
    return tally.means()


@dataclass(slots=True)
class Stretch:
    """What happened since the last progress line."""

    steps: int = 0
    pictures: int = 0
    loss: float = 0.0
    tally: Tally = field(default_factory=Tally)
    began: float = field(default_factory=time.monotonic)


@dataclass(slots=True)
class Training:
    """A training under way."""

    folder: Path
    plan: Plan
    tokenizer: Qwen2Tokenizer
    model: Qwen2_5_VLForConditionalGeneration
    optimizers: Optimizers
    step: int = 0
    #: Spent so far, over all calls.
    seconds: float = 0.0
    #: Whether to save and stop after the step under way.
    is_stopping: bool = False

    def stop(self, *signal_and_frame: object) -> None:
        self.is_stopping = True

    @property
    def _log_path(self) -> Path:
        return self.folder / "log.jsonl"

    def save(self) -> None:
        """Write the state beside the old one, then put it in its place."""
        aside = self.folder / "state.pt.new"
        state = {
            "seed": self.plan.seed,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "optimizers": self.optimizers.state(),
        }
        torch.save(state, aside)
        aside.replace(self.folder / "state.pt")
        draw_curve(self.folder)

    def load(self) -> None:
        """Go on from a saved state, if there is one."""
        path = self.folder / "state.pt"
        if not path.exists():
            return
        state = torch.load(path, map_location=DEVICE, weights_only=True)
        if state["seed"] != self.plan.seed:
            raise SystemExit(f"{path} has the seed {state['seed']}; give that one, or another folder")
        self.model.load_state_dict(state["model"])
        self.optimizers.load(state["optimizers"])
        self.step, self.seconds = state["step"], state["seconds"]
        # what was logged after the state was saved happens again
        lines = self._log_path.read_text("utf-8").splitlines() if self._log_path.exists() else []
        kept = [line for line in lines if json.loads(line)["step"] <= self.step]
        self._log_path.write_text("".join(f"{line}\n" for line in kept), "utf-8")
        print(f"going on after step {self.step}", flush=True)

    def run(self) -> None:
        """Train until the last step, or until `stop` is called."""
        held_out = list(_held_out(self.tokenizer))
        workers = max(1, (os.cpu_count() or 2) - 1)
        batches = DataLoader(
            Batches(self.plan, self.tokenizer),
            batch_size=None,
            sampler=range(self.step, self.plan.steps),
            num_workers=workers,
            prefetch_factor=max(2, 8 // workers),
        )
        stretch, saved = Stretch(), time.monotonic()
        for batch in batches:
            stretch.loss += learn(self.model, batch, stretch.tally)
            stretch.pictures += len(batch.tokens)
            stretch.steps += 1
            self.optimizers.step(self.step)
            self.step += 1
            if self.is_stopping:
                break
            if self.step % STEPS_PER_LINE == 0:
                self._log(stretch, held_out)
                stretch = Stretch()
            if time.monotonic() - saved > SECONDS_PER_SAVE:
                self.save()
                saved = time.monotonic()
        self.save()

    def _log(self, stretch: Stretch, held_out: list[Batch]) -> None:
        """Print a progress line and add it to the log, now and then with held-out results."""
        seconds = time.monotonic() - stretch.began
        self.seconds += seconds
        minutes_left = (self.plan.steps - self.step) * seconds / stretch.steps / 60
        line: dict[str, Any] = {
            "step": self.step,
            "seconds": round(self.seconds),
            "loss": round(stretch.loss / stretch.steps, 4),
            "pictures_per_second": round(stretch.pictures / seconds, 2),
            "by_task": stretch.tally.means(),
        }
        tasks = " ".join(f"{task} {mean:.2f}" for task, mean in line["by_task"].items())
        print(
            f"{self.step}/{self.plan.steps} loss {line['loss']:.3f}, {line['pictures_per_second']:.1f} "
            f"pictures/s, {minutes_left:.0f} min left; {tasks}",
            flush=True,
        )
        if self.step % STEPS_PER_TEST == 0 or self.step == self.plan.steps:
            line["held_out"] = test(self.model, held_out)
            print("  held out:", _percentages(line["held_out"]), flush=True)
        with self._log_path.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def _held_out(tokenizer: Qwen2Tokenizer) -> Iterator[Batch]:
    maker = RowMaker(tokenizer, 0, is_held_out=True)
    for first in range(0, HELD_OUT_BATCHES * HELD_OUT_ROWS, HELD_OUT_ROWS):
        yield collate([maker.make(first + number, 1.0) for number in range(HELD_OUT_ROWS)])


def _percentages(shares: dict[str, float]) -> str:
    return ", ".join(f"{task} {100 * share:.0f} %" for task, share in shares.items())


def open_tokenizer(folder: Path) -> Qwen2Tokenizer:
    """Open the tokenizer that the training began with, so that the lessons may change on the way."""
    if not folder.exists():
        build_tokenizer().save_pretrained(folder)
    return Qwen2Tokenizer.from_pretrained(folder)


def write_model(folder: Path, model: Qwen2_5_VLForConditionalGeneration, tokenizer: Qwen2Tokenizer) -> None:
    """Write the weights in bfloat16, to be computed with in float32, which is fast on any CPU."""
    write_checkpoint(folder, model, tokenizer, FAMILIES["qwen2.5-vl"])
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8")) | {"dtype": "float32"}
    path.write_text(json.dumps(config, indent=2) + "\n", "utf-8")


def train(folder: Path, plan: Plan) -> None:
    tokenizer = open_tokenizer(folder / "tokenizer")
    torch.manual_seed(plan.seed)
    model = build_model(tokenizer).to(DEVICE)
    torch.set_float32_matmul_precision("high")  # TF32 where the GPU has it
    training = Training(folder, plan, tokenizer, model, Optimizers(model, plan))
    training.load()
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, training.stop)
    training.run()
    if training.step == plan.steps:
        write_model(folder / "model", model, tokenizer)
    else:
        print(f"stopped after step {training.step}; the same command goes on from there", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    train(arguments.folder, Plan(arguments.steps, arguments.rows, arguments.seed))


if __name__ == "__main__":
    main()
