"""Running a function of this kit on several ranks of the device, each a fresh process."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from ds_core.testing.conformance.kit import Kit

__all__ = ["RANKS_LIMIT_S", "accelerator_of", "on_ranks"]

RANKS_LIMIT_S = 50.0
"""Less than an ordinary case may take, so that ranks that hang are told with their stacks."""


def on_ranks(kit: Kit, function: Callable[..., Any], world: int, *args: Any, **kwargs: Any) -> list[Any]:
    """What ``function(accelerator id, ...)`` returned on each rank; it makes the process group itself.

    Processes are spawned, not forked: a driver that torch has loaded does not survive a fork.
    """
    from ds_core.testing.ranks import run_ranks

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    env = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "DS_ACCELERATOR": kit.bench.target.id}
    return run_ranks(
        function,
        world,
        kit.bench.target.id,
        *args,
        timeout_s=RANKS_LIMIT_S,
        init=False,
        env=env,
        start="spawn",
        **kwargs,
    )


def accelerator_of(id: str, rank: int) -> Any:
    """The accelerator on this rank, with one of its devices in use."""
    from ds_core.accelerator import select

    accelerator = select(id)
    accelerator.set_device(rank % accelerator.device_count())
    return accelerator
