"""Tensor parallelism of Hugging Face models: comes with ds-tensor."""

from __future__ import annotations

from deepspeed._doors import later

later(__name__, "ds-tensor")
