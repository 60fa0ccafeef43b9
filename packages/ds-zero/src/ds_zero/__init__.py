"""ZeRO: optimizer state sharded over data-parallel ranks, bit-equal to the unsharded run."""

__version__ = "0.1.0"

__all__ = ["__version__"]
