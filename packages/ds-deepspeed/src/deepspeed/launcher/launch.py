"""The process on each machine that starts its ranks: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "torchrun's agent starts the ranks of a machine; use the command deepspeed, ds run or torchrun")
