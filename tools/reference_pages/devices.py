"""The page of devices: the accelerators of the installed wheels, and each op on each, with how it was proven."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from ds_core.accelerator import candidates
from ds_core.hooks import DeviceFacts, Proof
from ds_core.ops.registry import Implementation, implementations
from ds_core.ops.table import OPS
from ds_core.plugins import load_ref, manager
from reference_pages.markdown import cell, code, table
from reference_pages.markdown import page as make_page

_MEANING = {
    Proof.HARDWARE: "run on hardware of that kind",
    Proof.EXECUTED: "the shipped code was run on a CPU: the device itself, or one of the vendor's runtime",
    Proof.EMULATED: "the source was compiled for a CPU and run there; the shipped code was compiled, and never run",
    Proof.COMPILED: "compiled, and never run",
    Proof.UNSTATED: "the wheel does not say",
}
_REFERENCE = "reference"


def page() -> str:
    """The page."""
    native = [row for row in implementations() if not row.reference and row.chosen]
    promised = {name: facts.kernels for name, facts in every_facts() if facts.kernels}
    devices = sorted({row.device for row in native} | set(promised))
    legend = [[f"*{proof.value}*", cell(meaning)] for proof, meaning in _MEANING.items()]
    legend.append([f"*{_REFERENCE}*", "plain PyTorch on the device: correct, slower"])
    return make_page(
        "Devices",
        "What each accelerator wheel brings, from the wheels that this page was made with. `ds report` says the "
        "same of your machine, and `ds accel test NAME` tests a device there.",
        *wheels(),
        "## Ops by device",
        "No kernel of this project has run on a GPU, an NPU or a Gaudi yet. A kernel that was never run on hardware is "
        "compared with the reference when it is used first there, and left out with a warning where it differs.",
        table(["word", "meaning"], legend),
        table(["op", *map(code, devices)], ([code(op), *cells(op, devices, native, promised)] for op in OPS)),
        "¹ Left out of the build of the wheel that this page was made with, which says above what it would need.",
        counts(devices, native, promised),
    )


def every_facts() -> Iterator[tuple[str, DeviceFacts]]:
    """(accelerator, what its wheel says of it)."""
    for candidate in candidates(manager()):
        if candidate.entry.facts is not None:
            yield candidate.entry.name, load_ref(candidate.entry.facts)()


def wheels() -> Iterator[str]:
    """A section for each accelerator: what its facts say wherever they are read."""
    for name, facts in every_facts():
        lines = [f"wheel `ds-accel-{name}`"]
        lines += [f"built for {cell(facts.built_for)}"] if facts.built_for else []
        lines += [f"left out of this build: {cell(line)}" for line in facts.left_out]
        lines += [f"unproven on hardware: {cell(line)}" for line in facts.unproven]
        yield f"## {name}\n\n" + "\n".join(f"- {line}" for line in lines)


Promised = Mapping[str, Mapping[str, Proof]]
"""By accelerator, the ops that a full build of its wheel has kernels for."""


def cells(op: str, devices: Sequence[str], native: Sequence[Implementation], promised: Promised) -> Iterator[str]:
    """How the op was proven on each device."""
    for device in devices:
        here = next((row.proof for row in native if row.op == op and row.device == device), "")
        full = promised.get(device, {}).get(op)
        yield here or (f"{full.value} ¹" if full is not None else _REFERENCE)


def counts(devices: Sequence[str], native: Sequence[Implementation], promised: Promised) -> str:
    """A line a device."""
    lines = []
    for device in devices:
        found = Counter(each for op in OPS for each in cells(op, [device], native, promised))
        lines.append(f"- `{device}`: " + ", ".join(f"{count} {proof}" for proof, count in found.items()))
    return "\n".join(lines)
