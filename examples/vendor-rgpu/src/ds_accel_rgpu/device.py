"""The torch device ``rgpu``: when its backend is loaded."""

from __future__ import annotations

import os

__all__ = ["autoload", "load"]


def load() -> None:
    """Makes ``torch.device("rgpu")`` usable in this process; further calls do nothing."""
    import rgpu  # noqa: F401 - registers itself


def autoload() -> None:
    """Called by ``import torch`` (entry point ``torch.backends``); loads the device where the job asks for it by name.

    torch counts devices at a process's first backward pass, and one that is loaded later cannot run another. It is not
    loaded always, for torch has room for one backend of a stranger, and another wheel may want it.
    """
    if os.environ.get("DS_ACCELERATOR", "").rpartition(":")[2] == "rgpu":
        load()
