"""NVIDIA GPUs as a device of ds-core: CUDA kernels that link no torch, and the same kernels emulated on the CPU."""

__version__ = "0.1.0"
