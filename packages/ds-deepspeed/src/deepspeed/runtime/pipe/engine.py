"""The engine of a pipeline."""

from __future__ import annotations

from typing import Any

from deepspeed._doors import doors


class _IsPipelined(type):
    """Answers ``isinstance`` by what drives the engine's module."""

    def __instancecheck__(cls, instance: Any) -> bool:
        from ds_core.engine import Engine

        return isinstance(instance, Engine) and instance.runner.is_exclusive


class PipelineEngine(metaclass=_IsPipelined):
    """What an engine is whose module a pipeline drives; made by ``deepspeed.initialize``, never by this name."""


__getattr__, __dir__ = doors(
    __name__,
    {
        "ds_pipeline.errors": "PipelineError",
    },
)
