"""Prints the seconds one import takes: import_time.py MODULE [above-torch] [engine].

Nothing but sys and time is imported before, so that every module the import needs is paid for by it.
"""

from __future__ import annotations

import sys
import time

module, *options = sys.argv[1:]
if "above-torch" in options:
    import torch  # noqa: F401  (paid for before the clock starts)
began = time.perf_counter()
__import__(module)
if "engine" in options:
    # What a program pays at its first use of the package: the engine, and the module of every installed plugin.
    import ds_core.build
    import ds_core.plugins

    assert ds_core.plugins.manager().records
took_s = time.perf_counter() - began
if "above-torch" not in options and "torch" in sys.modules:
    sys.exit(f"{module} imported torch")
print(took_s)
