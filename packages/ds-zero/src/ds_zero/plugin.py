"""What ds-zero brings to ds-core."""

DS_HOOK_API = (1, 0)
