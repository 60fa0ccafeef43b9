"""Builders of asynchronous I/O: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "kernels are not built at run time; ds_core.aio has asynchronous files")
