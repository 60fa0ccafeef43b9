"""The check that all ranks of a job chose the same accelerator from the same wheels."""

from __future__ import annotations

import json
import platform
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from ds_core.errors import AcceleratorError

if TYPE_CHECKING:
    from ds_core.accelerator.contract import Accelerator
    from ds_core.plugins import PluginManager

__all__ = ["agree"]


def agree(
    accelerator: Accelerator, all_gather: Callable[[str], Sequence[str]], *, manager: PluginManager | None = None
) -> None:
    """Compares this rank's accelerator and plugin wheels with every other rank's. Called on all ranks, once at start.

    Args:
        accelerator: what `select` returned on this rank.
        all_gather: gives back every rank's text in rank order.
        manager: the plugins of this rank; the process-wide ones when None.

    Raises:
        AcceleratorError: on every rank, with a table, when any rank differs from rank 0.
    """
    if manager is None:
        from ds_core.plugins import manager as process_manager

        manager = process_manager()
    mine = {
        "host": platform.node(),
        "accelerator": accelerator.id or accelerator.name,
        "wheels": dict(sorted({r.dist: r.version for r in manager.records if r.is_active}.items())),
    }
    ranks = [json.loads(text) for text in all_gather(json.dumps(mine))]
    if all(_choice(rank) == _choice(ranks[0]) for rank in ranks):
        return
    rows = [f"  rank {number} on {rank['host']}: {_difference(rank, ranks[0])}" for number, rank in enumerate(ranks)]
    raise AcceleratorError(
        "the ranks of this job did not choose the same accelerator and wheels. "
        f"Rank 0 has {ranks[0]['accelerator']} and {_wheels(ranks[0]['wheels'])}.\n"
        + "\n".join(rows)
        + "\nInstall the same wheels on every host and set the accelerator in the config or with "
        f"DS_ACCELERATOR={ranks[0]['accelerator']}."
    )


def _choice(rank: dict[str, object]) -> tuple[object, object]:
    return rank["accelerator"], rank["wheels"]


def _wheels(wheels: dict[str, str]) -> str:
    return ", ".join(f"{dist} {version}" for dist, version in wheels.items()) or "no wheels"


def _difference(rank: dict[str, object], first: dict[str, object]) -> str:
    parts = []
    if rank["accelerator"] != first["accelerator"]:
        parts.append(f"accelerator {rank['accelerator']}")
    here, there = rank["wheels"], first["wheels"]
    if isinstance(here, dict) and isinstance(there, dict):
        for dist in sorted({*here, *there}):
            if here.get(dist) != there.get(dist):
                parts.append(f"{dist} {here.get(dist, 'not installed')} (rank 0: {there.get(dist, 'not installed')})")
    return "; ".join(parts) or "as rank 0"
