"""Muon."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.optim.muon": "Muon MuonWithAuxAdam",
        "ds_core.optim.newton_schulz": "zeropower_via_newtonschulz5=orthogonalize",
    },
)
