"""What is asked to verify a caption claim by claim, and which answers keep a claim."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Annotated, Any

from pydantic import Field

from capflow_tasks.domains.yaml_file import Keys, Text, placeholder_faults, read_yaml
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Stage

#: The agent whose answer is the list of claims with what became of them.
VERIFIER = "verifier"
#: In place of a prompt: each sentence of a caption is a claim.
SENTENCES = "sentences"

_Share = Annotated[float, Field(ge=0, le=1)]


class VerifierKeys(Keys):
    """The key `verify` of _defaults.yaml."""

    #: True for every workflow, not for `verified` alone.
    enabled: bool | None = None
    claims: Text | None = None
    question: Text | None = None
    rewrite: Text | None = None
    drop_below: _Share | None = None
    keep_from: _Share | None = None


@dataclass(frozen=True, slots=True)
class Verifier:
    """How captions are verified."""

    #: string.Template texts; SENTENCES in place of the first.
    claims: str
    question: str
    rewrite: str
    #: Probability of "yes" below which a claim is removed, and from which on it is kept.
    drop_below: float
    keep_from: float

    @property
    def digest(self) -> str:
        return sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()[:12]


def read_verifier(own: JsonObject, is_wanted: bool) -> tuple[Verifier | None, list[str]]:
    """Lay the user's keys over the packaged ones; return the verifier and a line per fault.

    There is a verifier where it is wanted or the user's keys enable it.
    """
    keys: dict[str, Any] = _packaged() | {name: value for name, value in own.items() if name != "enabled"}
    prompts = {"claims": {"caption"}, "question": {"claim"}, "rewrite": {"caption", "claims"}}
    faults = [
        f"verify.{name}: {fault}"
        for name, needed in prompts.items()
        if keys[name].strip() != SENTENCES
        for fault in placeholder_faults(
            keys[name], needed | ({"quotes"} if name == "rewrite" else set()), needed
        )
    ]
    if keys["drop_below"] > keys["keep_from"]:
        faults.append(f"verify.drop_below: {keys['drop_below']:g} is above keep_from; change one of them")
    return Verifier(**keys) if own.get("enabled", is_wanted) else None, faults


def cutting_faults(own: JsonObject, domains: Sequence[JsonObject]) -> Iterator[str]:
    """Find domains whose captions have no sentences, where the user's keys have denied sentences cut."""
    if own.get("claims", "").strip() != SENTENCES:
        return
    for keys in domains:
        writers = [pair for pair in keys["merged"].items() if pair[1].get("stage") == Stage.SUMMARIZE]
        for name, merged in writers[-1:]:
            if merged.get("answer") == "json":
                yield (
                    f"{keys['file']}: agents.{name}: answer: json has no sentences to cut; "
                    "write a prompt for verify.claims in _defaults.yaml, or remove that key"
                )


@cache
def _packaged() -> dict[str, Any]:
    file = files("capflow_tasks") / "domains" / "verifier" / "prompts.yaml"
    return read_yaml(file, VerifierKeys, WorkflowError).model_dump(exclude_none=True)
