"""Messages between stages: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "a pipeline's messages are planned from its schedule, nothing sends by hand")
