"""The optimizers that ds-core brings, as data; importing this imports neither torch nor a device."""

from __future__ import annotations

from collections.abc import Mapping

from ds_core.hooks import OptimizerEntry

__all__ = ["ENTRIES", "REFUSED", "TORCH_FACTORIES", "UNRELEASED"]

TORCH_FACTORIES = "ds_core.optim.torch_optim:"
"""Prefix of the references that build torch's own classes; ``torch_adam`` selects among these."""


def _torch(name: str, *, elementwise: bool = True) -> OptimizerEntry:
    return OptimizerEntry(name=name, factory=f"{TORCH_FACTORIES}{name.lower()}", elementwise=elementwise)


ENTRIES: tuple[OptimizerEntry, ...] = (
    _torch("Adam"),
    _torch("AdamW"),
    _torch("SGD"),
    _torch("Adagrad"),
    _torch("RMSprop"),
    _torch("Adadelta"),
    _torch("Adamax"),
    _torch("NAdam"),
    _torch("RAdam"),
    _torch("ASGD"),
    _torch("Rprop"),
    _torch("Adafactor", elementwise=False),
    _torch("Muon", elementwise=False),
    OptimizerEntry("Lion", "ds_core.optim.op_lion:make_lion"),
    OptimizerEntry("Lamb", "ds_core.optim.op_lamb:make_lamb", elementwise=False),
)

UNRELEASED: Mapping[str, str] = {
    "OneBitAdam": "ds-onebit",
    "ZeroOneAdam": "ds-onebit",
    "OneBitLamb": "ds-onebit",
}
"""Names DeepSpeed's configs use, each with the wheel of ours that will bring it."""

_MUP = (
    "it comes from the package mup and needs a model whose parameters carry mup's shapes; build it yourself "
    "(pip install mup) and pass it as optimizer= to initialize"
)
REFUSED: Mapping[str, str] = {
    "MuAdam": _MUP,
    "MuAdamW": _MUP,
    "MuSGD": _MUP,
    "LBFGS": "it evaluates the loss several times inside step(), which a training step of the engine does not do",
    "SparseAdam": "it takes sparse gradients only, and the engine reduces dense ones",
}
"""Names that are known and cannot be built from a config, each with the reason."""
