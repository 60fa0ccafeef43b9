"""``deepspeed.runtime.fp16``."""

from __future__ import annotations

from deepspeed._doors import doors

__getattr__, __dir__ = doors(__name__)
