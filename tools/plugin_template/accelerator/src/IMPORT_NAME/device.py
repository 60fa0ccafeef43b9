"""The torch device ``{{device}}``: when its backend is loaded."""

from __future__ import annotations

import importlib
import os

__all__ = ["BACKEND", "DEVICE_TYPE", "autoload", "load"]

BACKEND = "torch_{{key}}"
"""The module that makes the torch device when it is imported. Put yours here."""

DEVICE_TYPE = "{{device}}"
"""What torch calls the device, ``torch.device(DEVICE_TYPE)``: letters only, or torch.distributed makes no mesh of it."""


def load() -> None:
    """Makes the torch device usable in this process; further calls do nothing."""
    importlib.import_module(BACKEND)


def autoload() -> None:
    """Called by ``import torch`` (entry point ``torch.backends``); loads the device where the job asks for it by name.

    torch counts devices at a process's first backward pass, and one that is loaded later cannot run another. It is not
    loaded always, for torch has room for one device from outside its tree, and another wheel may want it.
    """
    if os.environ.get("DS_ACCELERATOR", "").rpartition(":")[2] == "{{key}}":
        load()
