"""The mesh axis of experts, from what asks for it. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping

from ds_core.hooks import AxisRequest
from ds_moe.errors import MoeConfigError

__all__ = ["EXPERT_AXIS", "axis_requests"]

EXPERT_AXIS = "expert"
_INSIDE_DATA = 300
_AROUND_DATA = 150


def axis_requests(asked: Mapping[str, int], *, around_data: bool = False) -> list[AxisRequest]:
    """The expert axis, where anything asks for more than one rank.

    Args:
        asked: ranks by what asks for them. Who asks for one keeps all experts on every rank, and is not counted.
        around_data: consecutive ranks differ in data, and those that share experts are apart
            (``use_data_before_expert_parallelism``); else those that share experts are consecutive.

    Raises:
        MoeConfigError: two ask for different numbers, naming both.
    """
    wanted = {name: size for name, size in asked.items() if size > 1}
    if not wanted:
        return []
    first, size = next(iter(wanted.items()))
    for name, other in wanted.items():
        if other != size:
            raise MoeConfigError(
                f"experts are shared by one number of ranks in all layers: {first} is {size}, and {name} is {other}; "
                "make them the same, or 1 for a layer that every rank keeps whole"
            )
    return [AxisRequest(EXPERT_AXIS, size, _AROUND_DATA if around_data else _INSIDE_DATA, splits_batch=True)]
