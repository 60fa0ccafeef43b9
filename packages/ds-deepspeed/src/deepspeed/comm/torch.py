"""torch's backend as a class: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "deepspeed.comm is torch.distributed, counted; other backends are wheels with ds_comm_backends")
