"""Intel GPUs as a device of ds-core: torch.xpu, and kernels as SPIR-V behind a host half that knows SYCL."""

__version__ = "0.1.0"
