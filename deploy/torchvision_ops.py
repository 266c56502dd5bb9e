"""Make a CUDA build of torchvision importable with a CPU build of torch.

PyPI has torchvision for Linux only as a CUDA build. Its compiled operators do not load with a CPU torch, and
its Python parts, which are all that captioning needs, then fail with `operator torchvision::nms does not
exist`. Declaring the two operators that the import looks up is enough for the Python parts to work.

`deploy/setup-venv.sh` copies this file into site-packages, with a `.pth` that imports it, only where
torchvision does not import. A plugin would be too late, because vLLM spawns its engine as a fresh
interpreter. Nothing is imported before somebody imports torchvision.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # importing `typing` would slow down every start of the interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OPERATORS = ("nms", "qnms")
_library: Any = None  # the declarations live as long as this object does


def declare_operators() -> None:
    """Declare the schemas of torchvision's operators to torch; they have no kernels, so calling one fails."""
    global _library
    if _library is None:
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class TorchvisionFinder:
    """Declare the operators just before torchvision's own code runs; a meta-path finder."""

    @staticmethod
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != "torchvision":
            return None
        from importlib.machinery import PathFinder

        spec = PathFinder.find_spec(name, path, target)
        if spec is None or spec.loader is None:
            return spec
        run_module = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            declare_operators()
            run_module(module)

        # Not in find_spec: many callers only ask whether torchvision exists.
        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


sys.meta_path.insert(0, TorchvisionFinder)
