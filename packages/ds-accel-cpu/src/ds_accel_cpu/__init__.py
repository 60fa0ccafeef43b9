"""The CPU as a device of ds-core: kernels for every instruction-set level, and optimizers built on them."""

__version__ = "0.1.0"
