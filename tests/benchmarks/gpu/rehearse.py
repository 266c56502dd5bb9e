"""`python -m tests.benchmarks.gpu.rehearse FOLDER`: whether the kit brings all that the import asks for.

Makes FOLDER/site, which holds what machine.txt names and nothing else, taken from this environment; packs for
this Python, installs as on the GPU machine, and imports there what the engine and the fleet import. Without a
GPU vLLM leaves out its CUDA kernels, so what only those import is not seen.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distributions
from pathlib import Path

import click
from packaging.utils import canonicalize_name

from producer.cli.options import Command
from tests.chaos.fleet import REPOSITORY

_HERE = Path(__file__).parent
MACHINE = _HERE / "machine.txt"
#: Modules of vLLM that a worker on a GPU loads, as far as they load without one; and the fleet's.
_MODULES = """
deploy.torchvision_ops
vllm.engine.arg_utils vllm.entrypoints.llm vllm.v1.engine.async_llm vllm.v1.engine.core
vllm.v1.executor.uniproc_executor vllm.v1.worker.gpu_worker vllm.v1.worker.gpu_model_runner
vllm.v1.attention.backends.flash_attn vllm.v1.structured_output.backend_xgrammar vllm.v1.sample.sampler
vllm.model_executor.models.qwen2_5_vl vllm.model_executor.model_loader.dummy_loader
vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors vllm.compilation.backends
capflow_tasks.engine.vllm_engine capflow_tasks.fleet.application producer.cli.caption
tests.benchmarks.gpu.measure tests.benchmarks.gpu.worker
tests.benchmarks.rivals.bare tests.benchmarks.rivals.static_batches
"""


@click.command(cls=Command)
@click.argument("folder", type=click.Path(path_type=Path, file_okay=False))
def main(folder: Path) -> None:
    """Pack, install and import in FOLDER with nothing but the kit and what the GPU machine has."""
    site, parts = folder.absolute() / "site", folder.absolute() / "parts"
    pretend_machine(site)
    _run([sys.executable, "-m", "tests.benchmarks.gpu.pack", str(parts), "--python", _version()])
    surroundings = {**os.environ, "GPU_PYTHON": sys.executable, "GPU_SITE": str(site)}
    python = _run([str(_HERE / "install.sh"), str(parts), str(folder / "store")], surroundings).split()[-1]
    modules = _MODULES.split()
    script = f"import importlib\nfor name in {modules!r}: importlib.import_module(name)"
    _run([python, "-c", script], {**surroundings, "PYTHONPATH": ""})
    click.echo(f"{len(modules)} modules import with {python}")


def pretend_machine(site: Path) -> None:
    """Links to the packages of this environment that the machine has as well."""
    site.mkdir(parents=True, exist_ok=True)
    named = {line.strip() for line in MACHINE.read_text().splitlines() if not line.startswith("#")}
    for package in distributions():
        if canonicalize_name(package.name) in named:
            for path in _top_level(package):
                link = site / path.name
                link.unlink(missing_ok=True)
                link.symlink_to(path)


def _top_level(package: Distribution) -> Iterator[Path]:
    """What a package has put into site-packages: its modules and its metadata."""
    names = {file.parts[0] for file in package.files or [] if file.parts[0] not in ("..", "__pycache__")}
    return (Path(str(package.locate_file(name))) for name in names)


def _run(command: list[str], environment: dict[str, str] | None = None) -> str:
    return subprocess.run(
        command, cwd=REPOSITORY, env=environment, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def _version() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


if __name__ == "__main__":
    main()
