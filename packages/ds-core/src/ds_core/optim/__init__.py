"""Optimizers by name: what a config asks for, built from torch's classes or from what a wheel brings."""

from ds_core.optim.create import Created, create, is_elementwise

__all__ = ["Created", "create", "is_elementwise"]
