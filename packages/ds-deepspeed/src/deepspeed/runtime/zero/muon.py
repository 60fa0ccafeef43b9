"""Muon."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_core.optim.muon": "Muon MuonWithAuxAdam",
    },
    refusals={
        "zeropower_via_newtonschulz5": "use ds_core.optim.newton_schulz.orthogonalize",
        "zeropower_via_gram_newtonschulz": "use ds_core.optim.newton_schulz.orthogonalize",
        "muon_update": "use ds_core.optim.newton_schulz.orthogonalize",
        "SingleDeviceMuon": "Muon is the same on one device",
    },
)
