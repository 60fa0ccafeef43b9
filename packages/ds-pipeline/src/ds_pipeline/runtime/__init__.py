"""Executes any schedule: forward, backward whole or in two parts, and messages between stages."""

from ds_pipeline.runtime.runner import PipelineRunner

__all__ = ["PipelineRunner"]
