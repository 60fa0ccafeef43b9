"""What ds-accel-xpu brings to ds-core."""

DS_HOOK_API = (1, 2)
