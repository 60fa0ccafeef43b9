"""The torch device ``openbox``: loads the backend and gives it its name."""

from __future__ import annotations

import os
from pathlib import Path

from ds_accel_openbox.built_for import TORCH

__all__ = ["NAME", "autoload", "load"]

NAME = "openbox"
LIBRARY = Path(__file__).parent / "lib" / "libopenbox.so"


def load() -> None:
    """Makes ``torch.device("openbox")`` usable in this process; further calls do nothing.

    Raises:
        ImportError: the backend was built for another torch, whose C++ classes have another layout.
    """
    import torch  # not above: torch may be the one that imports this module, see `autoload`

    from ds_accel_openbox import torch_module

    if getattr(torch, NAME, None) is torch_module:
        return
    if torch.__version__ != TORCH:
        raise ImportError(
            f"ds-accel-openbox was built for torch {TORCH}, installed is {torch.__version__}; build it again with "
            "pip install --no-build-isolation --force-reinstall --no-deps, or install the torch it was built for"
        )
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(str(LIBRARY))
    torch._register_device_module(NAME, torch_module)
    torch.utils.generate_methods_for_privateuse1_backend()


def autoload() -> None:
    """Called by ``import torch`` (entry point ``torch.backends``); loads the device if OPENBOX_AUTOLOAD=1.

    A vendor loads it always. torch counts devices at a process's first backward pass, and one that is loaded later
    cannot run another. This one changes what a machine without accelerators says of itself, so it waits to be asked.
    """
    if os.environ.get("OPENBOX_AUTOLOAD") == "1":
        load()
