"""What ds-pipeline brings to ds-core."""

from __future__ import annotations

DS_HOOK_API = (1, 2)
