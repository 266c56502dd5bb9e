"""Everything of vLLM that Capflow uses exists in the installed version, or in another one's source.

`CAPFLOW_TEST_VLLM` names the other: a version, which pip downloads (250 MB or more), a wheel, or a folder
that has `vllm/` in it. Nothing of it is imported or run.
"""

from __future__ import annotations

import ast
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from unittest.mock import Mock, patch
from zipfile import ZipFile

import pytest
from packaging.version import Version

from capflow_tasks.curator.qwen_vl import QwenLM, QwenVL
from capflow_tasks.settings import Settings

pytestmark = pytest.mark.e2e

REPOSITORY = Path(__file__).resolve().parents[2]
WHEELS = REPOSITORY / ".capflow" / "tests" / "wheels"

#: What is used of objects that vLLM makes, and of prompts that it is given.
ATTRIBUTES = {
    "vllm.v1.engine.async_llm:AsyncLLM": (
        "errored",
        "from_engine_args",
        "generate",
        "model_config",
        "shutdown",
        "vllm_config",
    ),
    "vllm.config:VllmConfig": ("cache_config",),
    "vllm.config:CacheConfig": ("block_size", "num_gpu_blocks"),
    "vllm.config:ModelConfig": ("max_model_len", "multimodal_config"),
    "vllm.outputs:RequestOutput": ("num_cached_tokens", "outputs", "prompt_token_ids"),
    "vllm.outputs:CompletionOutput": ("finish_reason", "logprobs", "text", "token_ids"),
    "vllm.logprobs:Logprob": ("decoded_token", "logprob"),
    "vllm.inputs:TextPrompt": (
        "mm_processor_kwargs",
        "multi_modal_data",
        "multi_modal_uuids",
        "prompt",
    ),
    "vllm.platforms.interface:Platform": ("is_cpu",),
    "vllm:LLM": ("generate", "llm_engine", "model_config"),
}


@dataclass(frozen=True)
class Source:
    """vLLM's source: `read` returns the text of a file such as vllm/outputs.py, or None."""

    read: Callable[[str], str | None]

    @cache  # noqa: B019 - lives as long as the tests
    def tree(self, module: str) -> tuple[ast.Module, str] | None:
        """Return a module and the package that its relative imports start from."""
        path = module.replace(".", "/")
        for file, package in ((f"{path}/__init__.py", module), (f"{path}.py", module.rpartition(".")[0])):
            if (text := self.read(file)) is not None:
                return ast.parse(text), package
        return None

    def find(self, module: str, name: str) -> tuple[str, ast.AST] | None:
        """Return where a name is defined, through imports, also those for type checkers only."""
        if (found := self.tree(module)) is None:
            return None
        tree, package = found
        for node in ast.walk(tree):
            if name in _names_defined_by(node):
                return module, node
            if isinstance(node, ast.ImportFrom):
                origin = _origin(node, package)
                for alias in node.names:
                    if name == (alias.asname or alias.name) and origin != module:
                        return self.find(origin, alias.name) or self.find_module(f"{origin}.{alias.name}")
        return self.find_module(f"{module}.{name}")

    def find_module(self, module: str) -> tuple[str, ast.AST] | None:
        found = self.tree(module)
        return found and (module, found[0])

    def members(self, module: str, name: str) -> set[str]:
        """Return the fields and methods of a class and its bases; of a variable, those of its type."""
        found = self.find(module, name)
        if found is None:
            return set()
        origin, node = found
        if isinstance(node, ast.AnnAssign) and isinstance(node.annotation, ast.Name):
            return self.members(origin, node.annotation.id)
        if not isinstance(node, ast.ClassDef):
            return set()
        bases = [base.id for base in node.bases if isinstance(base, ast.Name) and base.id != name]
        own = {member for inner in ast.walk(node) for member in _members_set_by(inner)}
        own |= {name for inner in node.body for name in _names_defined_by(inner)}
        return own.union(*(self.members(origin, base) for base in bases))


def _origin(node: ast.ImportFrom, package: str) -> str:
    above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
    return ".".join([*above, *filter(None, [node.module])])


def _names_defined_by(node: ast.AST) -> Sequence[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        return [node.name]
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        return [node.target.id]
    if isinstance(node, ast.Assign):
        return [target.id for target in node.targets if isinstance(target, ast.Name)]
    return []


def _members_set_by(node: ast.AST) -> Sequence[str]:
    """Return what a node anywhere in a class gives it: an attribute, or an argument of its initializer."""
    if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
        return [node.attr]
    if isinstance(node, ast.FunctionDef) and node.name == "__init__":
        return [argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)]
    return []


def _wheel(version: str) -> Path:
    WHEELS.mkdir(parents=True, exist_ok=True)
    if not (found := list(WHEELS.glob(f"vllm-{version}-*.whl"))):
        download = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(WHEELS)]
        subprocess.run([*download, f"vllm=={version}"], check=True, timeout=580)
        found = list(WHEELS.glob(f"vllm-{version}-*.whl"))
    return found[0]


@pytest.fixture(scope="module")
def source() -> Source:
    wanted = os.environ.get("CAPFLOW_TEST_VLLM")
    if not wanted:
        spec = importlib.util.find_spec("vllm")
        assert spec
        assert spec.origin
        return _folder(Path(spec.origin).parents[1])
    path = Path(wanted) if Path(wanted).exists() else _wheel(str(Version(wanted)))
    if path.is_dir():
        return _folder(path)
    wheel = ZipFile(path)
    names = set(wheel.namelist())
    return Source(lambda file: wheel.read(file).decode() if file in names else None)


def _folder(folder: Path) -> Source:
    return Source(lambda file: (folder / file).read_text("utf-8") if (folder / file).is_file() else None)


def imports() -> list[tuple[str, str]]:
    """Return what Capflow imports from vLLM: (module, name)."""
    nodes = [node for tree in _own_trees() for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return sorted(
        {
            (node.module, alias.name)
            for node in nodes
            if node.module and node.module.split(".")[0] == "vllm"
            for alias in node.names
        }
    )


def calls() -> list[tuple[str, str]]:
    """Return the arguments that Capflow names when it calls what it imports: (function, argument)."""
    imported = {name for _, name in imports()} | {"LLM"}
    return sorted(
        {
            (node.func.id, keyword.arg)
            for tree in _own_trees()
            for node in ast.walk(tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in imported
            for keyword in node.keywords
            if keyword.arg
        }
    )


def _own_trees() -> list[ast.Module]:
    return [ast.parse(path.read_text("utf-8")) for path in (REPOSITORY / "capflow_tasks").rglob("*.py")]


def arguments_of_engines() -> set[str]:
    """Return every argument that vLLM's engines are built with."""
    from capflow_tasks.engine.vllm_engine import engine_args

    chosen = Settings(max_model_len=256, max_num_seqs=1, gpu_memory_utilization=0.5, quantization="fp8")
    arguments = {"model", *engine_args(chosen, "model")}
    with (
        patch("capflow_tasks.curator.qwen_vl.LLM") as llm,
        patch("capflow_tasks.curator.qwen_vl.SamplingParams"),
        patch("capflow_tasks.curator.qwen_vl.AutoTokenizer", Mock()),
    ):
        QwenVL("models", "qwen3", 1).setup()
        QwenLM("models").setup()
    return arguments.union(*(call.kwargs for call in llm.call_args_list))


@pytest.mark.parametrize(("module", "name"), imports())
def test_what_is_imported_exists(source: Source, module: str, name: str) -> None:
    assert source.find(module, name), f"{module} has no {name}"


def test_engines_take_every_argument_that_they_are_built_with(source: Source) -> None:
    known = source.members("vllm", "AsyncEngineArgs")
    assert sorted(arguments_of_engines() - known) == []


@pytest.mark.parametrize(("function", "argument"), calls())
def test_what_is_called_takes_the_arguments_that_are_named(
    source: Source, function: str, argument: str
) -> None:
    modules = {name: module for module, name in imports()}
    known = source.members(modules.get(function, "vllm"), function)
    if function in {"LLM", "AsyncEngineArgs"}:  # LLM hands on to EngineArgs what it does not know
        known |= source.members("vllm", "EngineArgs")
    assert argument in known


@pytest.mark.parametrize("owner", ATTRIBUTES)
def test_what_is_read_is_there(source: Source, owner: str) -> None:
    module, _, name = owner.partition(":")
    assert set(ATTRIBUTES[owner]) - source.members(module, name) == set()
