"""What the installed torch was built for, read from its files: a probe need not wait for ``import torch``."""

from __future__ import annotations

import ast
import importlib.util
from dataclasses import dataclass
from pathlib import Path

__all__ = ["TorchBuild", "read_torch_build", "torch_build"]

_NAMES = ("__version__", "cuda", "hip", "xpu")


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """Facts of ``torch/version.py``; None where that build of torch lacks the thing.

    Attributes:
        version: for example ``"2.13.0+cu130"``; empty when torch is not installed.
        cuda: version of the CUDA toolkit it was built with.
        hip: version of HIP.
        xpu: version of the SYCL compiler.
    """

    version: str = ""
    cuda: str | None = None
    hip: str | None = None
    xpu: str | None = None


def torch_build() -> TorchBuild:
    """Of the torch that ``import torch`` would find. Does not import it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return TorchBuild()
    try:
        return read_torch_build((Path(spec.origin).parent / "version.py").read_text(encoding="utf-8"))
    except OSError:
        return TorchBuild()


def read_torch_build(text: str) -> TorchBuild:
    """The facts in the text of a ``torch/version.py``."""
    found: dict[str, str | None] = {}
    for statement in ast.parse(text).body:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            continue
        for target in targets:
            if isinstance(target, ast.Name) and target.id in _NAMES and isinstance(value, ast.Constant):
                found[target.id] = value.value if isinstance(value.value, str) else None
    version = found.pop("__version__", None)
    return TorchBuild(version or "", **found)
