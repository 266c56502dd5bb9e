"""Downloads a checkpoint from the Hugging Face hub, and checks that one is complete."""

import json
import re
from pathlib import Path

_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


def has_all_weights(folder: Path) -> bool:
    """Check that every file of weights exists, by the index or, without one, by the file names."""
    if (folder / _INDEX).exists():
        return _has_all_of_index(folder)
    found = {path.name for path in folder.glob("*.safetensors")}
    shards = [shard for shard in map(_SHARD.fullmatch, found) if shard]
    return bool(found) and all(_siblings(shard) <= found for shard in shards)


def _has_all_of_index(folder: Path) -> bool:
    try:
        index = json.loads((folder / _INDEX).read_bytes())
        names = {str(name) for name in index["weight_map"].values()}
    except (ValueError, LookupError, TypeError, AttributeError):
        return False  # the index is cut short: download it again
    return bool(names) and all((folder / name).is_file() for name in names)


def _siblings(shard: re.Match[str]) -> set[str]:
    digits, count = len(shard["number"]), shard["count"]
    return {
        f"{shard['stem']}-{number:0{digits}d}-of-{count}.safetensors" for number in range(1, int(count) + 1)
    }


def download_model_from_hf(
    model_id: str,
    local_dir: str | Path,
    ignore_patterns: list[str] | None = None,
    filename: str | None = None,
    revision: str | None = None,
) -> None:
    """Download a checkpoint, or one file of it, to `local_dir`, without the files already there."""
    from huggingface_hub import hf_hub_download, snapshot_download

    if filename is None:
        snapshot_download(model_id, revision=revision, local_dir=local_dir, ignore_patterns=ignore_patterns)
    elif ignore_patterns:
        raise ValueError("ignore_patterns and filename exclude each other.")
    else:
        hf_hub_download(model_id, filename, revision=revision, local_dir=local_dir)
