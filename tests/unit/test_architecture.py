"""The contracts of imports are import-linter's; here is what importing costs."""

import subprocess
import sys

import pytest

HEAVY_LIBRARIES = {"torch", "torchvision", "vllm", "transformers", "qwen_vl_utils", "cv2"}


@pytest.mark.parametrize("module", ["capflow_tasks.fleet.worker", "capflow_tasks.qwen_vl", "producer.run"])
def test_importing_the_surface_loads_no_heavy_library(module: str) -> None:
    script = f"import sys, {module}; print(*sys.modules.keys() & {HEAVY_LIBRARIES!r})"
    answer = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (answer.returncode, answer.stdout.split()) == (0, []), answer.stderr
