"""Builders of kernels: nothing brings it."""

from __future__ import annotations

from deepspeed._doors import refused

refused(__name__, "kernels are not built at run time; pip install a ds-accel wheel, ds ops lists what it brings")
