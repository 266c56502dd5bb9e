"""Finds all that is wrong in a user's folder of domain files; a run stops at the first file."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from importlib.resources import files
from pathlib import Path

from capflow_tasks.domains.catalogue import load_catalogue, make_domain
from capflow_tasks.domains.files import DEFAULTS, laid_over, merged_defaults, read_file, read_folder
from capflow_tasks.domains.rules import agent_faults, domain_faults
from capflow_tasks.errors import WorkflowError
from capflow_tasks.records import JsonObject, Stage


def folder_faults(folder: Path) -> list[str]:
    """One line per fault: file, key, fault, remedy. Empty when the folder can be used."""
    ours = read_folder(files("capflow_tasks") / "domains")
    theirs, faults = _read_each(folder)
    defaults = merged_defaults(ours.pop(DEFAULTS), theirs.pop(DEFAULTS, {"agents": {}}))
    sources = (ours | theirs).values()
    faults += domain_faults(sources)
    for keys in sources:
        faults += list(_agents_faults(keys, defaults)) or _faults_of(partial(make_domain, keys, defaults))
    return faults or _faults_of(partial(load_catalogue, folder))


def _read_each(folder: Path) -> tuple[dict[str, JsonObject], list[str]]:
    """What the files say that can be read, by name, and what is wrong with the others."""
    names = sorted(path.name for path in folder.glob("*.yaml")) if folder.is_dir() else []
    if not names:
        return {}, [f"{folder}: holds no domain file; name a folder with at least one *.yaml"]
    found: dict[str, JsonObject] = {}
    faults: list[str] = []
    for name in names:
        try:
            found[name] = read_file(folder / name)
        except WorkflowError as error:
            faults += str(error).splitlines()
    return found, faults


def _agents_faults(keys: JsonObject, defaults: JsonObject) -> Iterator[str]:
    """What is wrong with each of a domain's agents, and not just with the first."""
    earlier: dict[str, Stage] = {}
    for name, given in keys["agents"].items():
        shared = laid_over({"sampling": defaults["sampling"]}, defaults["agents"].get(name, {}))
        merged = laid_over(shared, given)
        for fault in agent_faults(name, merged, earlier):
            yield f"{keys['file']}: agents.{name}: {fault}"
        if "stage" in merged:
            earlier[name] = Stage(merged["stage"])


def _faults_of(load: Callable[[], object]) -> list[str]:
    try:
        load()
    except WorkflowError as error:
        return str(error).splitlines()
    return []
