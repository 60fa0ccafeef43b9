"""The page of ops: schema, meaning, and who implements each in the wheels that are installed."""

from __future__ import annotations

from collections.abc import Iterator

from ds_core import ops
from reference_pages.markdown import cell, code, prose, table
from reference_pages.markdown import page as make_page


def page() -> str:
    """The page."""
    blocks = [
        "Each op has a reference in plain PyTorch that runs on any device; wheels bring faster ones for theirs. "
        "`ds ops` shows which one serves each op on your machine.",
        table(["op", "what it does"], ([code(name), cell(row.summary)] for name, row in ops.OPS.items())),
    ]
    for name in ops.OPS:
        blocks += [f"## {name}", *op_blocks(name)]
    return make_page("Ops", *blocks)


def op_blocks(name: str) -> Iterator[str]:
    """Schema, text and implementations of one op."""
    definition = ops.OPS[name].definition()
    yield f"```text\nds::{definition.schema}\n```"
    yield prose((getattr(ops, name).__doc__ if name in ops.__all__ else definition.reference.__doc__) or "")
    yield table(
        ["device", "brought by", "proven"],
        (
            [code(item.device), cell(item.provider), cell(item.proof)]
            for item in ops.implementations()
            if item.op == name
        ),
    )
    yield f"Conformance cases that every implementation passes: {len(definition.cases)}."
