"""AMD GPUs as a device of ds-core: the kernels of ds-accel-cuda through HIP, and the same emulated on the CPU."""

__version__ = "0.1.0"
