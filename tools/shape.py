"""Report the shape of the code: four numbers that grow when a design starts to slip. A report, not a gate.

Usage: python tools/shape.py [--json] [ROOT]

The numbers: the biggest class, attributes born outside ``__init__``, ``global`` statements, and ``isinstance`` or
``hasattr`` in the modules that make up the engine.
"""

from __future__ import annotations

import argparse
import ast
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TypeGuard

ENGINE_MODULES = frozenset({"engine", "build", "runner", "part"})
TOP = 5


@dataclass(frozen=True)
class Place:
    """A line of a file, and what is there."""

    file: str
    line: int
    what: str


@dataclass(frozen=True)
class ClassSize:
    """How big a class is."""

    file: str
    name: str
    line_count: int
    method_count: int


@dataclass
class Shape:
    """The four numbers, each with the places behind it."""

    classes: list[ClassSize] = field(default_factory=list)
    born_outside_init: list[Place] = field(default_factory=list)
    globals: list[Place] = field(default_factory=list)
    engine_type_checks: list[Place] = field(default_factory=list)
    module_count: int = 0
    line_count: int = 0

    def add(self, other: Shape) -> None:
        """Count what `other` found too."""
        self.classes += other.classes
        self.born_outside_init += other.born_outside_init
        self.globals += other.globals
        self.engine_type_checks += other.engine_type_checks
        self.module_count += other.module_count
        self.line_count += other.line_count


def methods(node: ast.ClassDef) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
    """The functions in the body of a class."""
    return [item for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]


def self_targets(function: ast.FunctionDef | ast.AsyncFunctionDef) -> Iterator[tuple[str, int]]:
    """Name and line of every ``self.name`` the function assigns."""
    positional = [*function.args.posonlyargs, *function.args.args]
    if not positional:
        return
    first = positional[0].arg
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.ctx, ast.Store)
            and isinstance(node.value, ast.Name)
            and node.value.id == first
        ):
            yield node.attr, node.lineno


def declared_attributes(node: ast.ClassDef) -> set[str]:
    """Attributes a class states in its body, or sets in ``__init__``, ``__new__`` or ``__post_init__``."""
    names: set[str] = set()
    for item in node.body:
        if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name):
            names.add(item.target.id)
        elif isinstance(item, ast.Assign):
            names.update(target.id for target in item.targets if isinstance(target, ast.Name))
            if any(isinstance(target, ast.Name) and target.id == "__slots__" for target in item.targets):
                names.update(
                    constant.value
                    for constant in ast.walk(item.value)
                    if isinstance(constant, ast.Constant) and isinstance(constant.value, str)
                )
    for function in methods(node):
        names.add(function.name)
        if function.name in {"__init__", "__new__", "__post_init__"}:
            names.update(name for name, _ in self_targets(function))
    return names


def family(node: ast.ClassDef, known: dict[str, ast.ClassDef]) -> set[str]:
    """Attributes declared by a class and by its bases of the same module."""
    names = declared_attributes(node)
    for base in node.bases:
        if isinstance(base, ast.Name) and base.id in known and known[base.id] is not node:
            names |= family(known[base.id], known)
    return names


def is_type_check(node: ast.AST) -> TypeGuard[ast.Call]:
    """Whether this is a call of ``isinstance`` or ``hasattr``."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in {"isinstance", "hasattr"}


def measure(path: Path, label: str) -> Shape:
    """The shape of one module."""
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    shape = Shape(module_count=1, line_count=text.count("\n"))
    known = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            size = (node.end_lineno or node.lineno) - node.lineno + 1
            shape.classes.append(ClassSize(label, node.name, size, len(methods(node))))
            declared = family(node, known)
            for function in methods(node):
                static = any(
                    isinstance(item, ast.Name) and item.id == "staticmethod" for item in function.decorator_list
                )
                shape.born_outside_init += [
                    Place(label, line, f"{node.name}.{name} in {function.name}")
                    for name, line in ([] if static else self_targets(function))
                    if name not in declared
                ]
        elif isinstance(node, ast.Global):
            shape.globals.append(Place(label, node.lineno, ", ".join(node.names)))
        elif path.stem in ENGINE_MODULES and is_type_check(node):
            shape.engine_type_checks.append(Place(label, node.lineno, ast.unparse(node)))
    return shape


def measure_tree(root: Path) -> Shape:
    """The shape of every package's sources below `root`."""
    total = Shape()
    for path in sorted(root.glob("packages/*/src/**/*.py")):
        total.add(measure(path, str(path.relative_to(root / "packages"))))
    total.classes.sort(key=lambda item: (-item.line_count, item.file, item.name))
    return total


def render(shape: Shape) -> str:
    """The report as text."""
    lines = [f"{shape.module_count} modules, {shape.line_count} lines", "", "biggest classes (lines, methods):"]
    lines += [f"  {c.line_count:5d} {c.method_count:4d}  {c.name}  {c.file}" for c in shape.classes[:TOP]]
    for title, places in (
        ("attributes born outside __init__", shape.born_outside_init),
        ("global statements", shape.globals),
        ("isinstance and hasattr in the engine", shape.engine_type_checks),
    ):
        lines += ["", f"{title}: {len(places)}"]
        lines += [f"  {place.file}:{place.line}  {place.what}" for place in places]
    return "\n".join(lines)


def main() -> int:
    """Print the report."""
    parser = argparse.ArgumentParser(description="Report the four numbers of the shape of the code.")
    parser.add_argument("root", nargs="?", type=Path, default=Path(__file__).resolve().parent.parent)
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    options = parser.parse_args()
    shape = measure_tree(options.root)
    print(json.dumps(asdict(shape), indent=1) if options.json else render(shape))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
