"""Lets a CUDA build of torchvision be imported beside a CPU build of torch.

PyPI carries torchvision for Linux as a CUDA build only. Its compiled operators don't load beside a CPU torch,
and its Python parts, the only ones that captioning needs, then die on `operator torchvision::nms does not
exist`. Declaring the two operators that are looked up at import is enough to bring the Python parts to life.

`deploy/setup-venv.sh` copies this file into site-packages, with a `.pth` that imports it, only where it finds
that torchvision doesn't import. It has to be there, not in a plugin: vLLM spawns its engine as a fresh
interpreter. Nothing is imported, torch least of all, before somebody imports torchvision.
"""

from __future__ import annotations

import sys

TYPE_CHECKING = False  # `typing` would be imported at every start of the interpreter
if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType
    from typing import Any

OPERATORS = ("nms", "qnms")
_library: Any = None  # the declarations live as long as this object does


def declare_operators() -> None:
    """Tell torch the schemas of torchvision's operators; calling one still fails, for want of a kernel."""
    global _library
    if _library is None:
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for name in OPERATORS:
            _library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


class TorchvisionFinder:
    """A meta-path finder that declares the operators just before torchvision's own code runs."""

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

        # not at find_spec: many only ask whether torchvision is there
        setattr(spec.loader, "exec_module", exec_module)  # noqa: B010
        return spec


sys.meta_path.insert(0, TorchvisionFinder)
