"""What ds-accel-cuda brings to ds-core."""

from __future__ import annotations

DS_HOOK_API = (1, 0)
