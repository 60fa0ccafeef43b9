"""Block-sparse attention: comes with ds-sequence."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-sequence")
