"""Kernels as points of a roofline: what one call moves and computes, and how to call it. Measures nothing.

A family of points is a file in kernel_table/ with a function ``points(quick: bool) -> Iterator[KernelPoint]``. It
yields one point after the other, so the tensors of one are gone when the next are made.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path

__all__ = ["TABLE", "UNITS", "KernelPoint", "families"]

TABLE = Path(__file__).parent / "kernel_table"

UNITS = ("fp32", "bf16", "int8")
"""Roofs of arithmetic: float32 fused multiply-add, dot products of bfloat16 into float32, and of int8 into int32."""


@dataclasses.dataclass(frozen=True)
class KernelPoint:
    """One kernel at one size.

    Args:
        name: short, as the page shows it.
        bytes: the least that must be moved: every input read once, every output written once.
        flops: operations of arithmetic; a fused multiply-add is two, a division or a root one, a conversion none.
        run: one call through `ds_core.ops`.
        peer: the same work by something else, or None.
        peer_name: what that is.
        unit: of `UNITS`: the roof its arithmetic is held against.
    """

    name: str
    bytes: int
    flops: int
    run: Callable[[], object]
    peer: Callable[[], object] | None = None
    peer_name: str = "torch"
    unit: str = "fp32"


Family = Callable[[bool], Iterator[KernelPoint]]


def families() -> dict[str, Family]:
    """``points`` of every file in kernel_table/, by the name of the file."""
    found: dict[str, Family] = {}
    for path in sorted(TABLE.glob("[a-z]*.py")):
        spec = importlib.util.spec_from_file_location(f"kernel_table_{path.stem}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found[path.stem] = module.points
    return found
