"""Core asks an accelerator what it can do; it never looks at a device's name, nor whether an attribute is there."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [ROOT / "packages" / "ds-core" / "src" / "ds_core", ROOT / "packages" / "ds-zero" / "src" / "ds_zero"]

HOST = {"cpu", "meta"}
"""Not devices: memory of the host, and none."""

TYPE_OF_A_DEVICE = {"type", "device_type"}
ACCELERATORS = {"accelerator", "acc", "_accelerator"}
FUNCTIONS = {"hasattr", "getattr"}


def offences(tree: ast.AST) -> Iterator[str]:
    """What a source does that it should ask an accelerator for."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            named = {text for side in sides for text in _texts(side)} - HOST
            if named and any(_is_device_type(side) for side in sides):
                yield f"line {node.lineno}: compares a device's name with {', '.join(sorted(named))}"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in FUNCTIONS:
            if node.args and _is_accelerator(node.args[0]):
                yield f"line {node.lineno}: {node.func.id} on an accelerator"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "startswith":
            if _is_device_type(node.func.value):
                yield f"line {node.lineno}: looks at how a device's name begins"
        elif isinstance(node, ast.Match) and _is_device_type(node.subject):
            yield f"line {node.lineno}: chooses by a device's name"
        elif isinstance(node, ast.Attribute) and node.attr in {"is_cuda", "is_xpu", "is_mps"}:
            yield f"line {node.lineno}: asks a tensor for {node.attr}"


def _texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.Tuple | ast.List | ast.Set):
        for each in node.elts:
            yield from _texts(each)


def _is_device_type(node: ast.AST) -> bool:
    """``x.device_type``, ``x.device.type``, ``device.type`` or a name of that kind; and an accelerator's own name."""
    if isinstance(node, ast.Name):
        return node.id == "device_type"
    if not isinstance(node, ast.Attribute):
        return False
    owner = _last_name(node.value)
    if node.attr == "device_type":
        return True
    if node.attr == "type":
        return owner.endswith("device") or owner == "home"
    return node.attr in {"name", "id"} and _is_accelerator(node.value)


def _is_accelerator(node: ast.AST) -> bool:
    return _last_name(node) in ACCELERATORS and ast.unparse(node) != "torch.accelerator"


def _last_name(node: ast.AST) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


@pytest.mark.parametrize(
    "code",
    [
        'x.device.type == "cuda"',
        'if device.type in ("cpu", "xpu"): pass',
        'accelerator.device_type != "hpu"',
        'self.accelerator.name == "cuda"',
        'hasattr(accelerator, "graph")',
        'getattr(self._accelerator, "graph", None)',
        'device_type.startswith("cu")',
        "tensor.is_cuda",
        "match x.device.type:\n    case _: pass",
    ],
)
def test_the_rule_finds(code: str) -> None:
    assert list(offences(ast.parse(code)))


@pytest.mark.parametrize(
    "code",
    [
        'x.device.type == "cpu"',
        'tensor.device.type != "meta"',
        "accelerator.has(Capability.GRAPHS)",
        'hasattr(x, "step")',
        'getattr(torch.accelerator, "Graph", None)',
    ],
)
def test_the_rule_lets_pass(code: str) -> None:
    assert not list(offences(ast.parse(code)))


@pytest.mark.parametrize("folder", SOURCES, ids=lambda folder: folder.name)
def test_core_asks_for_abilities_and_never_for_names(folder: Path) -> None:
    files = sorted(folder.rglob("*.py"))
    assert files
    found = {
        str(path.relative_to(folder)): list(offences(ast.parse(path.read_text(encoding="utf-8")))) for path in files
    }
    assert {path: each for path, each in found.items() if each} == {}
