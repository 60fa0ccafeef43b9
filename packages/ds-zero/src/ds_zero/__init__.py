"""ZeRO: optimizer state, gradients and parameters sharded over data-parallel ranks."""

__version__ = "0.1.0"
