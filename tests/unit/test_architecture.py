"""What may import what, how long a module may be, and that the README names every file."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("capflow_tasks", "producer")
SOURCES = sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))
LINE_LIMIT = 300

#: Libraries that cost seconds and hundreds of megabytes to import, and the modules that may: nobody else, not
#: even inside a function.
HEAVY_LIBRARIES = {"torch", "torchvision", "vllm", "transformers", "qwen_vl_utils", "cv2"}
MAY_IMPORT_HEAVY_LIBRARIES = {
    "capflow_tasks/media/pictures.py",
    "capflow_tasks/on_demand.py",
    "capflow_tasks/engine/vllm_engine.py",
    "capflow_tasks/engine/vllm_requests.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imported_modules(path: Path) -> Iterator[str]:
    """Absolute names of all modules that a file imports, at its top or anywhere inside."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = path.relative_to(REPOSITORY).parts[: -node.level] if node.level else ()
            yield ".".join([*package, *filter(None, [node.module])])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
        ):
            yield from (str(argument.value) for argument in node.args if isinstance(argument, ast.Constant))


def imported_libraries(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in imported_modules(path)}


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_imports_point_from_the_producer_to_the_tasks(path: Path) -> None:
    if path.is_relative_to(REPOSITORY / "capflow_tasks"):
        assert "producer" not in imported_libraries(path)


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_heavy_libraries_stay_behind_the_engine(path: Path) -> None:
    if name_of(path) not in MAY_IMPORT_HEAVY_LIBRARIES:
        assert not imported_libraries(path) & HEAVY_LIBRARIES


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_module_fits_in_300_lines(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) <= LINE_LIMIT


@pytest.mark.parametrize("module", ["capflow_tasks", "producer.cli"])
def test_importing_the_surface_loads_no_heavy_library(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules.keys() & {HEAVY_LIBRARIES!r})"
    answer = subprocess.run(
        [sys.executable, "-c", script],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (answer.returncode, answer.stdout.split()) == (0, []), answer.stderr


def test_the_readme_names_every_file_of_the_packages() -> None:
    readme = (REPOSITORY / "README.md").read_text("utf-8")
    missing = [name_of(path) for path in SOURCES if path.name != "__init__.py" and path.name not in readme]
    assert not missing
