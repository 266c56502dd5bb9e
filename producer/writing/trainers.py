"""Write the files that trainers read: LLaVA and Qwen, LLaMA-Factory, ms-swift, and chat templates.

Each sample is one conversation and the paths of its media; a key without media is left out. What the loaders
make of them: docs/how-to/export-for-training.md.
"""

import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryFile

from capflow_tasks.errors import UserError
from capflow_tasks.records import JsonObject, Modality
from producer.writing.captions import Captioned
from producer.writing.conversations import media_listed
from producer.writing.whole import json_line, whole_file

_ROLES = {"system": "system", "human": "user", "gpt": "assistant"}
_PLACEHOLDER = re.compile(r"<(image|video)>\n?")


def _paths(each: Captioned) -> dict[str, list[str]]:
    """Return the sample's paths by kind, without the kinds that it lacks."""
    media = media_listed(each.sample.entry)
    by_kind = {kind.value: [path for found, path in media if found is kind] for kind in Modality}
    return {kind: paths for kind, paths in by_kind.items() if paths}


def _plural(each: Captioned) -> JsonObject:
    return {f"{kind}s": paths for kind, paths in _paths(each).items()}


def _llava(each: Captioned) -> JsonObject:
    """Without a system turn, which LLaVA does not know and Qwen's loader takes for an answer."""
    media = {kind: paths if len(paths) > 1 else paths[0] for kind, paths in _paths(each).items()}
    turns = [turn for turn in each.record["conversations"] if turn["from"] != "system"]
    return {"id": each.key, **media, "conversations": turns}


def _llama_factory(each: Captioned) -> JsonObject:
    return {"conversations": each.record["conversations"], **_plural(each)}


def _ms_swift(each: Captioned) -> JsonObject:
    turns = each.record["conversations"]
    messages = [{"role": _ROLES[turn["from"]], "content": turn["value"]} for turn in turns]
    return {"messages": messages, **_plural(each)}


def _messages(each: Captioned) -> JsonObject:
    turns = each.record["conversations"]
    messages = [{"role": _ROLES[turn["from"]], "content": _parts(turn)} for turn in turns]
    return {"messages": messages, **_plural(each)}


def _parts(turn: JsonObject) -> list[JsonObject]:
    """Return a turn as typed parts, its placeholders as parts without text."""
    pieces = _PLACEHOLDER.split(turn["value"]) if turn["from"] == "human" else [turn["value"]]
    kinds = [{"type": kind} for kind in pieces[1::2]]
    texts = [{"type": "text", "text": text} for text in pieces[::2]]
    in_order = [part for pair in zip(texts, [*kinds, None], strict=True) for part in pair]
    return [part for part in in_order if part and part.get("text") != ""]


@dataclass(frozen=True, slots=True)
class Trainer:
    """How one trainer's file is made."""

    record: Callable[[Captioned], JsonObject]
    #: Writes the records to the file, and returns their number and their keys.
    write: Callable[[Path, Iterable[JsonObject]], tuple[int, set[str]]]
    suffix: str


def write_list(path: Path, records: Iterable[JsonObject]) -> tuple[int, set[str]]:
    """Write the records as one JSON list."""
    keys, count = set[str](), 0
    with whole_file(path) as file:
        for record in records:
            file.write((b",\n" if count else b"[\n") + json_line(record).rstrip())
            keys |= record.keys()
            count += 1
        file.write(b"\n]\n" if count else b"[]\n")
    return count, keys


def write_typed_lines(path: Path, records: Iterable[JsonObject]) -> tuple[int, set[str]]:
    """Write one record per line; those that bring a new key move to the front.

    For `datasets` takes the columns from the beginning of a file, and refuses later ones.
    """
    keys, count = set[str](), 0
    with whole_file(path) as file, TemporaryFile(dir=path.parent) as body:
        for record in records:
            (body if record.keys() <= keys else file).write(json_line(record))
            keys |= record.keys()
            count += 1
        body.seek(0)
        copyfileobj(body, file)
    return count, keys


TRAINERS = {
    "messages": Trainer(_messages, write_typed_lines, ".jsonl"),
    "llava": Trainer(_llava, write_list, ".json"),
    "llama-factory": Trainer(_llama_factory, write_typed_lines, ".jsonl"),
    "ms-swift": Trainer(_ms_swift, write_typed_lines, ".jsonl"),
}


def register(folder: Path, name: str, file_name: str, keys: Iterable[str]) -> None:
    """Add a file to the folder's `dataset_info.json`, where LLaMA-Factory looks data sets up; others stay."""
    path = folder / "dataset_info.json"
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
    except ValueError as error:
        raise UserError(f"{path}: is not JSON: {error}; fix or remove it, then export again") from error
    columns = {"messages": "conversations"} | {key: key for key in ("images", "videos") if key in keys}
    known[name] = {"file_name": file_name, "formatting": "sharegpt", "columns": columns}
    with whole_file(path) as file:
        file.write(json.dumps(known, ensure_ascii=False, indent=2).encode() + b"\n")
