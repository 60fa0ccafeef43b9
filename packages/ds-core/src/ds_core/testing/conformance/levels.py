"""The levels of conformance, in the order in which a vendor reaches them."""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["LAST", "LEVELS"]

LEVELS: Mapping[int, str] = {
    0: "packaging",
    1: "device",
    2: "memory and tensors",
    3: "random numbers",
    4: "numerics",
    5: "ops",
    6: "collectives",
    7: "training",
    8: "offload and checkpoint",
    9: "stress",
}
"""What each level is about. A level is reached when it and all below ran whole and nothing in them failed."""

LAST = max(LEVELS)
