"""Core's own contributions, registered through the same door as any wheel's."""

DS_HOOK_API = (1, 0)
