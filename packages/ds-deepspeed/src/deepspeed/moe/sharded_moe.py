"""Gates and dispatch."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_moe.sharded_moe": "top1gating top2gating topkgating TopKGate MOELayer multiplicative_jitter gumbel_rsample",
    },
)
