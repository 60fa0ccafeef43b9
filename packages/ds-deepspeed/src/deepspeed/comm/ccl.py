"""oneCCL's backend as a class: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "name the backend: init_distributed('ccl'), or DS_COMM_BACKEND")
